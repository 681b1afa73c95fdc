"""The operator as a process, logged in with the permissions that its chart gives it and no other."""

import urllib.request
import uuid

from backends import free_port, tool
from charts import Helm, operator_container
from kube import Kube
from processes import Process, Server

SERVICE_ACCOUNT = "wharfage"
# What managed registries would run if there were a node.
IMAGE = "registry.example.com/wharfage:bed"


class Operator(Server):
    """`wharfage operator` for a cluster: stop(), kill(), start() again, freeze(), thaw(); `kube` is what it may see, and
    replica() another one that waits for its lease."""

    def __init__(self, folder, cluster, cluster_name="bed", namespace="wharfage", environment=None, options=(), values=None):
        """`cluster_name` is written on what it owns, its lease lies in `namespace`; options and environment go to
        `wharfage operator`; `values` are those of the chart, whose permissions and arguments it has."""
        self.folder, self.cluster, self.cluster_name, self.namespace = folder, cluster, cluster_name, namespace
        self._given = {"environment": environment or {}, "options": options, "values": values or {}}
        self._replicas = []
        folder.mkdir(parents=True, exist_ok=True)
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        self.kubeconfig = cluster.login(namespace, SERVICE_ACCOUNT)
        objects = self._chart(self._given["values"])
        cluster.kube.apply([one for one in objects if one["kind"] != "Deployment"])
        container, _ = operator_container(objects)
        self.kube = Kube(self.kubeconfig)
        address = f"127.0.0.1:{free_port()}"
        self.operations = f"http://{address}"
        command = [
            tool("WHARFAGE_TEST_BINARY"), *container["args"], "--cluster", cluster_name, "--namespace", namespace,
            "--operations-listen", address, "--registry-image", IMAGE, *options,
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
        return f"{self.operations}/healthz"

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
        with urllib.request.urlopen(f"{self.operations}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        series = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in series}
