"""What people install: the chart, by Helm, and a managed Registry whose volume is a folder of the node."""

import pathlib
import subprocess

import node
from backends import TIMEOUT, tool
from clients import REGION
from kube import API_VERSION

CHART = pathlib.Path(__file__).parents[2] / "charts/wharfage"
# The StorageClass of folders of the node.
FOLDERS = "folders"


class Release:
    """The chart's release `wharfage`, in a namespace of the same name."""

    name = "wharfage"

    def __init__(self, kube, folder):
        self.kube, self.folder = kube, folder

    def helm(self, *arguments):
        environment = {"KUBECONFIG": str(self.kube.kubeconfig), "HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        command = [tool("WHARFAGE_TEST_HELM"), *map(str, arguments), "--namespace", self.name]
        ran = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert ran.returncode == 0, f"helm {' '.join(command[1:])}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def install(self, image):
        """Installs the chart with this image, or upgrades to it, and waits until the operators are ready."""
        repository, _, tag = image.rpartition(":")
        self.helm(
            "upgrade", "--install", self.name, CHART, "--create-namespace", "--wait", f"--timeout={2 * TIMEOUT}s",
            "--set", f"image.repository={repository}", "--set", f"image.tag={tag}",
        )  # fmt: skip

    def uninstall(self):
        self.helm("uninstall", self.name, "--wait", f"--timeout={TIMEOUT}s")


def offer_folder(kube, name):
    """Offers a folder of the node as a PersistentVolume `name`, as clusters do that make no volumes by themselves. Returns it."""
    folder = pathlib.Path("/var/lib/volumes") / name
    folder.mkdir(parents=True)
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.ADDRESS]}
    kube.apply(
        [
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": FOLDERS},
                "provisioner": "kubernetes.io/no-provisioner",
                "volumeBindingMode": "WaitForFirstConsumer",
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "storageClassName": FOLDERS,
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "local": {"path": str(folder)},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
                },
            },
        ]
    )
    return folder


def registry(name, managed=None, **spec):
    """A managed Registry whose data lie in a folder of the node."""
    storage = {"filesystem": {"size": "1Gi", "storageClassName": FOLDERS}}
    return {
        "apiVersion": API_VERSION,
        "kind": "Registry",
        "metadata": {"name": name},
        "spec": {"region": REGION, "managed": {"storage": storage, **(managed or {})}, **spec},
    }


def repository(registry, repository_name, name="app"):
    return {
        "apiVersion": API_VERSION,
        "kind": "Repository",
        "metadata": {"name": name},
        "spec": {"registryRef": {"name": registry}, "repositoryName": repository_name},
    }
