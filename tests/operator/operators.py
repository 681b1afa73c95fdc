"""The operator as a process, logged in with the permissions that its chart gives it and no other."""

import time
import urllib.request
import uuid

from backends import TIMEOUT, free_port, tool
from charts import Helm, operator_container
from kube import Kube
from processes import Process, Server

SERVICE_ACCOUNT = "wharfage"
# Registries may run in the namespaces of all tests.
EVERYWHERE = {"rbac": {"managedNamespaces": ["*"]}}
# What managed registries would run if there were a node.
IMAGE = "registry.example.com/wharfage:bed"


def in_force(kube, objects):
    """Waits until who logs in here may do what these roles give: an API server heeds a binding a moment after it was made."""
    rules = {(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")): one.get("rules") for one in objects}
    for one in objects:
        if "roleRef" not in one:
            continue
        namespace = one["metadata"].get("namespace")
        given = rules.get((one["roleRef"]["kind"], one["roleRef"]["name"], namespace)) or []
        given = [(rule["verbs"][0], rule["resources"][0], rule["apiGroups"][0]) for rule in given]
        whole = [(verb, resource, group) for verb, resource, group in given if "/" not in resource]
        if not whole:
            continue
        verb, resource, group = whole[0]
        asked = ["auth", "can-i", verb, f"{resource}.{group}".rstrip(".")]
        where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
        deadline = time.monotonic() + TIMEOUT
        while (ran := kube.kubectl(*asked, *where, check=False)).returncode:
            assert time.monotonic() < deadline, f"{one['kind']} {one['metadata']['name']} isn't heeded: {ran.stdout}{ran.stderr}"


class Operator(Server):
    """`wharfage operator` for a cluster: stop(), kill(), start() again, freeze(), thaw(); `kube` is what it may see, and
    replica() another one that waits for its lease."""

    def __init__(self, folder, cluster, cluster_name="bed", namespace="wharfage", environment=None, options=(), values=None, image=IMAGE):
        """`cluster_name` is recorded as the owner of its objects, its lease lies in `namespace`; options and environment go to
        `wharfage operator`; `values` are those of the chart, whose permissions and arguments it has."""
        self.folder, self.cluster, self.cluster_name, self.namespace = folder, cluster, cluster_name, namespace
        self._given = {
            "environment": environment or {},
            "options": options,
            "values": EVERYWHERE if values is None else values,
            "image": image,
        }
        self._replicas = []
        folder.mkdir(parents=True, exist_ok=True)
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        self.kubeconfig = cluster.login(namespace, SERVICE_ACCOUNT)
        objects = self._chart(self._given["values"])
        roles = [one for one in objects if one["kind"] != "Deployment"]
        cluster.kube.apply(roles)
        container, variables = operator_container(objects)
        self.kube = Kube(self.kubeconfig)
        in_force(self.kube, roles)
        address = f"127.0.0.1:{free_port()}"
        self.admin = f"http://{address}"
        command = [
            tool("WHARFAGE_TEST_BINARY"), *container["args"], "--managed-namespaces", variables["WHARFAGE_MANAGED_NAMESPACES"], "--cluster", cluster_name, "--namespace", namespace,
            "--admin-listen", address, "--registry-image", image, *options,
        ]  # fmt: skip
        own = {
            "KUBECONFIG": str(self.kubeconfig), "POD_NAME": f"wharfage-{uuid.uuid4().hex[:5]}",
            "WHARFAGE_LOG": "info,wharfage=debug",
        }  # fmt: skip
        self.process = Process("wharfage operator", command, folder / "operator.log", own | self._given["environment"])

    def _chart(self, values):
        """The operator's roles and its Deployment."""
        own = {"fullnameOverride": f"{self.namespace}-operator", "serviceAccount": {"create": False, "name": SERVICE_ACCOUNT}}
        parts = ["--show-only", "templates/rbac.yaml", "--show-only", "templates/deployment.yaml"]
        return Helm(self.folder).objects(own | values, *parts, namespace=self.namespace)

    @property
    def ready(self):
        """It may still wait for the lease."""
        return f"{self.admin}/healthz"

    def replica(self):
        """Another process for the same lease, started."""
        folder = self.folder / f"replica-{len(self._replicas)}"
        other = Operator(folder, self.cluster, self.cluster_name, self.namespace, **self._given)
        self._replicas.append(other)
        other.start()
        return other

    def end(self):
        for replica in self._replicas:
            replica.end()
        super().end()

    def metrics(self):
        """Its metrics as a dict from a series' name with its labels, as Prometheus writes it, to its value."""
        with urllib.request.urlopen(f"{self.admin}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        series = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in series}
