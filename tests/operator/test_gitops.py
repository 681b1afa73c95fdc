"""Argo CD's health in the interpreter that Argo CD runs it in, and the examples against the kinds that they are made of."""

import json
import subprocess

import pytest
import yaml

from backends import tool
from charts import ROOT, Helm, cluster_with_kinds_of_others, documents, dry_run, only, operator_container
from kube import API_VERSION, GROUP

HEALTH = yaml.safe_load((ROOT / "deploy/argocd/argocd-cm.yaml").read_text())["data"]
PREFIX = f"resource.customizations.health.{GROUP}_"


def kinds():
    found = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    return {crd["spec"]["names"]["kind"]: crd for crd in found}


# Argo CD


def lua(value):
    """A value as Lua writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{lua(key)}] = {lua(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(lua, value)) + "}"
    return json.dumps(value)


@pytest.fixture
def health(tmp_path):
    """What Argo CD makes of an object: status and message."""

    def health(one):
        script = tmp_path / "health.lua"
        reported = 'print(reported.status); print(reported.message or "")'
        script.write_text(
            f"obj = {lua(one)}\nlocal function health()\n{HEALTH[PREFIX + one['kind']]}\nend\nreported = health()\n{reported}\n"
        )
        ran = subprocess.run([tool("WHARFAGE_TEST_GLUA"), script], check=False, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        status, _, message = ran.stdout.strip().partition("\n")
        return status, message

    return health


def resource(kind, generation=2, observed=2, suspend=None, **conditions):
    """An object whose conditions are given as Type=("Status", "Reason", "message")."""
    reported = [
        {"type": name, "status": status, "reason": reason, "message": message, "observedGeneration": observed}
        for name, (status, reason, message) in conditions.items()
    ]
    spec = {} if suspend is None else {"suspend": suspend}
    metadata = {"name": "one", "generation": generation}
    status = {"observedGeneration": observed} | ({"conditions": reported} if reported else {})
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec, "status": status}


READY = ("True", "InSync", "as the spec asks")
WAITING = ("False", "RegistryUnavailable", "home does not answer")
REFUSED = ("False", "NotAllowed", "namespace a may not use b")
CASES = {
    "not seen yet": (dict(observed=-1), "Progressing", "generation 2"),
    "changed since": (dict(observed=1, Ready=READY), "Progressing", "generation 2"),
    "changed since it stalled": (dict(observed=1, Ready=REFUSED, Stalled=("True", *REFUSED[1:])), "Progressing", "generation 2"),
    "no condition yet": (dict(), "Progressing", "Ready"),
    "waits": (dict(Ready=WAITING, Reconciling=("True", *WAITING[1:])), "Progressing", "RegistryUnavailable: home does not answer"),
    "is corrected": (dict(Ready=READY, Reconciling=("True", "Updating", "2 of 3")), "Progressing", "Updating: 2 of 3"),
    "refused": (dict(Ready=REFUSED, Stalled=("True", *REFUSED[1:])), "Degraded", "NotAllowed: namespace a may not use b"),
    "refused while suspended": (dict(suspend=True, Ready=REFUSED, Stalled=("True", *REFUSED[1:])), "Degraded", "NotAllowed"),
    "suspended": (dict(suspend=True, Ready=READY), "Suspended", "spec.suspend"),
    "changed while suspended": (dict(observed=1, suspend=True, Ready=READY), "Suspended", "spec.suspend"),
    "suspended from the start": (dict(observed=-1, suspend=True), "Suspended", "spec.suspend"),
    "suspended no more": (dict(suspend=False, Ready=READY), "Healthy", "InSync: as the spec asks"),
    "ready": (dict(Ready=READY, Drifted=("False", "InSync", "")), "Healthy", "InSync: as the spec asks"),
    "not ready, nothing said": (dict(Ready=WAITING), "Progressing", "RegistryUnavailable"),
    "unknown": (dict(Ready=("Unknown", "Unknown", "?")), "Progressing", "Unknown"),
}


def test_every_kind_has_a_health():
    assert {key.removeprefix(PREFIX) for key in HEALTH} == kinds().keys()


@pytest.mark.parametrize("kind", sorted(key.removeprefix(PREFIX) for key in HEALTH))
@pytest.mark.parametrize(("given", "status", "message"), CASES.values(), ids=CASES)
def test_health_follows_the_conditions(health, kind, given, status, message):
    reported = health(resource(kind, **given))
    assert reported[0] == status
    assert message in reported[1]


@pytest.mark.parametrize("kind", sorted(key.removeprefix(PREFIX) for key in HEALTH))
def test_an_object_without_status_is_progressing(health, kind):
    one = resource(kind)
    del one["status"]
    assert health(one)[0] == "Progressing"


def test_the_patch_merges_into_the_config_map_of_argo_cd(kube):
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "argocd"}})
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm", "namespace": "argocd"}, "data": {"url": "x"}}
    kube.apply(theirs)
    patch = ["--patch-file", ROOT / "deploy/argocd/argocd-cm.yaml"]
    kube.kubectl("--namespace", "argocd", "patch", "configmap", "argocd-cm", *patch)
    assert kube.get("ConfigMap", "argocd-cm", "argocd")["data"] == {"url": "x"} | HEALTH


# The examples


@pytest.fixture(scope="module")
def kube(tmp_path_factory, etcd):
    """The administrator of a cluster with our kinds and those of Argo CD and Flux."""
    with cluster_with_kinds_of_others(tmp_path_factory.mktemp("gitops"), etcd) as cluster:
        yield cluster.kube


@pytest.mark.parametrize("folder", ["argocd", "flux", "kustomize", "quickstart"])
def test_an_example_builds_and_is_taken(kube, folder):
    built = kube.kubectl("kustomize", ROOT / "deploy" / folder)
    objects = documents(built)
    for name in {one["metadata"]["namespace"] for one in objects if "namespace" in one["metadata"]}:
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    assert len(dry_run(kube, built).splitlines()) == len(objects)


def test_the_quickstarts_kustomization_has_every_manifest_that_up_takes():
    folder = ROOT / "deploy/quickstart"
    named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(named) == sorted(path.name for path in folder.iterdir() if path.name != "kustomization.yaml")


def test_a_kustomization_of_ones_own_names_image_and_cluster(kube, tmp_path):
    """What docs/gitops.md shows, with the folders instead of a Git server."""
    shown = (ROOT / "docs/gitops.md").read_text().rpartition("```yaml\n")[2].partition("```")[0]
    own = yaml.safe_load(shown)
    here = tmp_path / "own"
    here.mkdir()
    for name in ("charts", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)

    def local(url):
        return "../" + url.partition(".git//")[2].partition("?")[0]

    own["resources"], own["components"] = [local(one) for one in own["resources"]], [local(one) for one in own["components"]]
    (here / "kustomization.yaml").write_text(yaml.safe_dump(own))
    objects = documents(kube.kubectl("kustomize", here, "--load-restrictor=LoadRestrictionsNone"))
    container, variables = operator_container(objects)
    assert container["image"] == variables["WHARFAGE_REGISTRY_IMAGE"] == "registry.example.com/wharfage:0.1.0"
    assert variables["WHARFAGE_CLUSTER"] == "prod-eu"
    assert {"ServiceMonitor", "PrometheusRule", "CustomResourceDefinition"} <= {one["kind"] for one in objects}


def test_charts_values_in_the_examples_are_values_of_the_chart(tmp_path):
    helm = Helm(tmp_path)
    application = yaml.safe_load((ROOT / "deploy/argocd/operator.yaml").read_text())
    release = only(documents((ROOT / "deploy/flux/operator.yaml").read_text()), "HelmRelease")
    for values in (application["spec"]["source"]["helm"]["valuesObject"], release["spec"]["values"]):
        container, variables = operator_container(helm.objects(values))
        assert container["image"] == f"{values['image']['repository']}:0.1.0"
        assert variables["WHARFAGE_CLUSTER"] == values["cluster"]
