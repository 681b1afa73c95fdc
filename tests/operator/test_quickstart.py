"""The quickstart in a cluster: the same manifests as `wharfage up` takes, but for the Registry, which runs beside the cluster
here, as no node does."""

import json
import os

import pytest
import yaml

from conftest import ROOT

QUICKSTART = ROOT / "deploy/quickstart"
NAMESPACE = "quickstart"


@pytest.fixture
def running(make_registry):
    return make_registry(region="local-1")


@pytest.fixture
def quickstart(make_namespace, running, operator, tmp_path):
    """The folder as it is, but for `managed`; applied."""
    namespace = make_namespace(NAMESPACE)
    namespace.secret("key", **running.credentials)
    endpoint = running.declaration() | {"credentialsSecretRef": {"name": "key", "namespace": NAMESPACE}}
    elsewhere = [{"op": "remove", "path": "/spec/managed"}, {"op": "add", "path": "/spec/endpoint", "value": endpoint}]
    overlay = {
        "resources": [os.path.relpath(QUICKSTART, tmp_path)],
        "patches": [{"target": {"kind": "Registry"}, "patch": json.dumps(elsewhere)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    namespace.kubectl("apply", "-k", tmp_path)
    yield namespace
    namespace.kube.delete("Registry", "home")


def wait(namespace):
    # Registries have no namespace: all of them would be other tests', too.
    namespace.kubectl("wait", "--for=condition=Ready", "registry/home", "--timeout=60s")
    namespace.kubectl("wait", "--for=condition=Ready", "repositories,lifecyclepolicies", "--all", "--timeout=60s")


def test_everything_becomes_ready_and_the_repositories_are_there(quickstart, running):
    wait(quickstart)
    assert running.names() == {"hello", "shop/api", "shop/web", "ci/build-cache"}
    api = running.repository("shop/api")
    assert api["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
    assert {entry["filter"] for entry in api["imageTagMutabilityExclusionFilters"]} == {"dev-*", "latest"}
    assert api["tags"]["cost-center"] == "42"
    policy = json.loads(running.ecr.get_repository_policy(repositoryName="shop/web")["policyText"])
    assert policy["Statement"][0]["Sid"] == "partners may pull"
    expire = json.loads(running.ecr.get_lifecycle_policy(repositoryName="ci/build-cache")["lifecyclePolicyText"])
    assert [rule["action"] for rule in expire["rules"]] == [{"type": "expire"}]
    with pytest.raises(running.ecr.exceptions.LifecyclePolicyNotFoundException):
        running.ecr.get_lifecycle_policy(repositoryName="shop/api")


def table(text):
    """What `kubectl get` prints, as rows of columns; the age is left out."""
    header, *rows = (line.split() for line in text.splitlines())
    return header, sorted(rows)


def test_kubectl_get_tells_what_matters(quickstart, running):
    wait(quickstart)
    header, rows = table(quickstart.kubectl("get", "repositories"))
    assert header == ["NAME", "READY", "URI", "IMAGES", "SIZE", "CRITICAL", "AGE"]
    expected = [("build-cache", "ci/build-cache"), ("hello", "hello"), ("shop-api", "shop/api"), ("shop-web", "shop/web")]
    assert [row[:5] for row in rows] == [[name, "True", f"{running.address}/{repository}", "0", "0"] for name, repository in expected]
    header, (row,) = table(quickstart.kubectl("get", "registry", "home"))
    assert header == ["NAME", "READY", "ENDPOINT", "REPOSITORIES", "IMAGES", "SIZE", "AGE"]
    assert row[:3] == ["home", "True", running.url]
    header, rows = table(quickstart.kubectl("get", "lifecyclepolicies"))
    assert header == ["NAME", "READY", "MODE", "REPOSITORIES", "EXPIRING", "PROTECTED", "AGE"]
    assert [row[:4] for row in rows] == [["clean-ci", "True", "Enforce", "1"], ["keep-it-small", "True", "Preview", "2"]]
    wide, rows = table(quickstart.kubectl("get", "repositories", "hello", "--output=wide"))
    assert wide[-3:] == ["REGISTRY", "MUTABILITY", "MESSAGE"]


def test_applying_it_again_changes_nothing(quickstart, tmp_path):
    wait(quickstart)
    again = quickstart.kubectl("apply", "-k", tmp_path).splitlines()
    assert len(again) == 8
    assert [line for line in again if not line.endswith(" unchanged")] == []


def test_deleting_the_manifests_leaves_what_is_to_be_retained(quickstart, running):
    wait(quickstart)
    quickstart.kubectl("delete", "lifecyclepolicies,repositories", "--all", "--timeout=60s")
    assert running.names() == {"hello", "shop/api", "shop/web"}
