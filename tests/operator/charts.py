"""Our Helm chart, as helm renders and installs it."""

import contextlib
import os
import pathlib
import subprocess

import yaml

from backends import tool
from bed import Cluster

ROOT = pathlib.Path(__file__).parents[2]
CHART = ROOT / "charts/wharfage"
# A helm that `go install` built takes itself for a client of Kubernetes 1.20 where it renders without a cluster.
KUBE_VERSION = "v1.35.0"


class Helm:
    """helm with nothing of the user's; with `kube` for that cluster."""

    def __init__(self, home, kube=None):
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        if kube:
            self._environment["KUBECONFIG"] = str(kube.kubeconfig)

    def __call__(self, *arguments, values=None, check=True):
        """What helm prints. `values` go in as a file. With check=False the finished process, whatever its exit code."""
        command = [tool("WHARFAGE_TEST_HELM"), *map(str, arguments)]
        if values is not None:
            command += ["--values", "-"]
        ran = subprocess.run(
            command, check=False, env=self._environment, input=yaml.safe_dump(values or {}), capture_output=True, text=True
        )  # fmt: skip
        if not check:
            return ran
        assert ran.returncode == 0, f"{' '.join(command)}\nexit code {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def template(self, values, *arguments, chart=CHART, namespace="wharfage", check=True):
        """The chart's text with these values."""
        values = {"image": {"repository": "registry.example.com/wharfage"}} | values
        return self(
            "template", "wharfage", chart, "--namespace", namespace, "--kube-version", KUBE_VERSION, *arguments,
            values=values, check=check,
        )  # fmt: skip

    def objects(self, values, *arguments, **options):
        """The chart's objects with these values."""
        return documents(self.template(values, *arguments, **options))


def documents(text):
    return [one for one in yaml.safe_load_all(text) if one]


def only(objects, kind):
    """The one object of a kind."""
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def operator_container(objects):
    """The operator's container, and its variables by name."""
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return container, {one["name"]: one.get("value") for one in container["env"]}


def leaves(value, path=()):
    """The paths of everything in nested mappings that is no mapping with keys; each with its value."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    return [(path, value)]


@contextlib.contextmanager
def cluster_with_kinds_of_others(folder, etcd):
    """A cluster with our kinds, and those of the Prometheus operator, Argo CD and Flux as their authors publish them."""
    cluster = Cluster(folder, etcd)
    kubectl = cluster.kube.kubectl
    for path in sorted(pathlib.Path(tool("WHARFAGE_TEST_FOREIGN_CRDS")).glob("*.yaml")):
        kubectl("apply", "--server-side", "-f", path)
    kubectl("apply", "--server-side", "-f", ROOT / "crds")
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    yield cluster
    cluster.end()


def dry_run(kube, text):
    """What an API server would do with these objects, one line each; what its schemas don't know fails."""
    strict = ["--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"]
    return kube.kubectl("apply", *strict, "-f", "-", stdin=text)
