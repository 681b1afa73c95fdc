"""The cluster that the tests share: real from the API server to the container, in its own namespaces."""

import contextlib
import pathlib
import subprocess

import pytest

import node
from backends import tool
from bed import Cluster, Etcd
from busybox import busybox, write_archive
from kube import Namespace, conditions

# What Pods rest on, and what does nothing in particular.
PAUSE = "localhost/pause:1"
# The image of deploy/image, under the two names between which a version changes.
BEFORE, AFTER = "localhost/wharfage:before", "localhost/wharfage:after"

# The requirements of the restricted Pod security standard, and a read-only root file system.
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name, image, labels=None, mounts=None, **container):
    """A Pod with one container, under the restricted standard; `mounts` are volumes by the path that they are mounted at."""
    volumes = {f"volume-{index}": (path, volume) for index, (path, volume) in enumerate((mounts or {}).items())}
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, (path, _) in volumes.items()],
        **container,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "containers": [container],
            "volumes": [{"name": name, **volume} for name, (_, volume) in volumes.items()],
            "securityContext": {"fsGroup": 65532},
            "terminationGracePeriodSeconds": 2,
        },
    }


class NodeCluster(Cluster):
    """An API server with a node behind it."""

    def __init__(self, folder, etcd):
        super().__init__(folder, etcd, address=node.ADDRESS)
        kubeconfig = self.kube.kubeconfig
        pause = write_archive(folder / "pause.tar", busybox("pause"), "1")
        node.start_containerd(PAUSE)
        node.load(pause, PAUSE)
        self.programs = [
            *node.start_controllers(kubeconfig, self.folder / "api.key", self.folder / "ca.crt"),
            node.start_kube_proxy(kubeconfig),
            node.start_dns(kubeconfig),
        ]
        kubelet = node.start_kubelet(kubeconfig)
        node.load(tool("WHARFAGE_TEST_IMAGE"), BEFORE)
        node.ctr("images", "tag", BEFORE, AFTER)
        kubelet.wait_until(lambda: conditions(self.kube.find("Node", node.ADDRESS)).get("Ready", {}).get("status") == "True")


# The cluster whose state explains a failure, whether or not the test itself requested the fixture.
CLUSTER = pytest.StashKey()


@pytest.fixture(scope="session")
def cluster(pytestconfig):
    if not node.ADDRESS:
        pytest.fail("these tests make a node of the machine that they run on: start them by tests/run --only node", pytrace=False)
    folder = pathlib.Path("/var/lib/bed")
    folder.mkdir()
    pytestconfig.stash[CLUSTER] = NodeCluster(folder, Etcd(folder))
    return pytestconfig.stash[CLUSTER]


@pytest.fixture(scope="session")
def kube(cluster):
    return cluster.kube


@pytest.fixture
def namespace(kube):
    """A namespace of one test, in which Pods can be made: they are refused until it has its ServiceAccount."""
    made = Namespace(kube)
    made.until("ServiceAccount", "default", lambda one: one is not None, "there")
    yield made
    made.end()


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The image of deploy/image as a folder: an OCI layout."""
    folder = tmp_path_factory.mktemp("image")
    subprocess.run(["tar", "--extract", "--file", tool("WHARFAGE_TEST_IMAGE"), "--directory", folder], check=True)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the state of the cluster to a failure's report."""
    report = yield
    cluster = item.config.stash.get(CLUSTER, None)
    if report.failed and cluster:
        # Output that the API server, down perhaps, does not return is omitted: an error here would be pytest's own, and end the run.
        with contextlib.suppress(Exception):
            explain(report, cluster.kube)
    return report


def explain(report, kube):
    """Adds sections to a report: what there is, what happened, and what containers said."""
    for title, command in [
        ("pods", ["get", "pods", "--all-namespaces", "--output=wide"]),
        ("events", ["get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"]),
        ("wharfage", ["get", "registries,repositories,lifecyclepolicies,pullsecrets", "--all-namespaces", "--output=yaml"]),
    ]:
        ran = kube.kubectl(*command, check=False)
        report.sections.append((title, ran.stdout + ran.stderr))
    for pod in kube.list("Pod"):
        where = ["--namespace", pod["metadata"]["namespace"], pod["metadata"]["name"], "--tail=60"]
        report.sections.append((f"log of {where[1]}/{where[2]}", kube.kubectl("logs", *where, check=False).stdout))
