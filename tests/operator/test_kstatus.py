"""What Flux and `kubectl wait` make of every kind in every phase: computed by kstatus itself, as Flux runs it.

https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md"""

import datetime
import json
import subprocess

import pytest

from backends import tool
from kube import API_VERSION, GROUP, conditions


def kstatus(one):
    """`Current`, `InProgress`, `Failed`, `Terminating`, …"""
    ran = subprocess.run([tool("WHARFAGE_TEST_KSTATUS")], input=json.dumps(one), capture_output=True, text=True, check=True)
    return ran.stdout.split("\t")[0]


RULES = [
    {
        "rulePriority": 1,
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 5},
        "action": {"type": "expire"},
    }
]


def specs(registry):
    """A minimal spec of every namespaced kind."""
    reference = {"registryRef": {"name": registry}}
    return {
        "Repository": reference,
        "LifecyclePolicy": reference | {"repositorySelector": {}, "mode": "Enforce", "rules": RULES},
        "PullSecret": reference | {"secretName": "pull"},
    }


def make(namespace, kind, registry, name="one", **more):
    spec = specs(registry)[kind] | more
    return namespace.apply({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})


NAMESPACED = sorted(specs(""))


def test_every_kind_is_here(cluster):
    """A kind that joins is tested here, too."""
    served = {one.kind for one in cluster.kube.resources(group=GROUP)}
    assert served == {*NAMESPACED, "Registry"}


@pytest.mark.parametrize("kind", NAMESPACED)
def test_nobody_has_looked_yet(make_cluster, make_namespace, kind):
    """Before any operator runs an object is in progress: kstatus takes one without a word of its status for done."""
    namespace = make_namespace(kube=make_cluster().kube)
    made = make(namespace, kind, "nowhere")
    assert made["status"] == {"observedGeneration": -1}
    assert kstatus(made) == "InProgress"


@pytest.mark.parametrize("kind", NAMESPACED)
def test_waiting_for_a_reference_is_in_progress_and_then_it_is_current(namespace, registry, operator, kind):
    name = f"{namespace}-late"
    make(namespace, kind, name)
    waiting = namespace.waiting(kind, "one", "ReferenceNotFound")
    assert kstatus(waiting) == "InProgress"
    namespace.declare(registry, name=name)
    assert kstatus(namespace.ready(kind, "one")) == "Current"


@pytest.mark.parametrize("kind", ["Repository", "PullSecret"])
def test_what_is_not_allowed_has_failed(namespace, registry, operator, kind):
    name = namespace.declare(registry, allowedNamespaces=[{"selector": {"matchLabels": {"no": "body"}}}])
    make(namespace, kind, name)
    assert kstatus(namespace.stalled(kind, "one", "NotAllowed")) == "Failed"


def test_a_policy_that_another_one_keeps_out_has_failed(namespace, home, operator):
    make(namespace, "Repository", home)
    make(namespace, "LifecyclePolicy", home, name="first")
    namespace.ready("LifecyclePolicy", "first")
    make(namespace, "LifecyclePolicy", home, name="second")
    assert kstatus(namespace.stalled("LifecyclePolicy", "second", "OwnedByAnother")) == "Failed"


@pytest.mark.parametrize("kind", NAMESPACED)
def test_a_change_that_nobody_has_looked_at_is_in_progress(namespace, home, operator, kind):
    make(namespace, kind, home)
    ready = namespace.ready(kind, "one")
    ready["metadata"]["generation"] += 1
    assert kstatus(ready) == "InProgress"


@pytest.mark.parametrize("kind", NAMESPACED)
def test_a_suspended_one_is_not_current_with_a_spec_that_was_never_applied(namespace, home, operator, kind):
    make(namespace, kind, home)
    applied = namespace.ready(kind, "one")["metadata"]["generation"]
    namespace.patch(kind, "one", {"spec": {"suspend": True, "interval": "1h"}})
    rests = namespace.until(kind, "one", lambda one: "Suspended" in conditions(one))
    assert [event["reason"] for event in namespace.events(kind, "one")].count("Suspended") == 1
    assert rests["status"]["observedGeneration"] == applied
    assert kstatus(rests) == "InProgress"
    namespace.patch(kind, "one", {"spec": {"suspend": False}})
    resumed = namespace.ready(kind, "one")
    assert kstatus(resumed) == "Current" and "Suspended" not in conditions(resumed)


@pytest.mark.parametrize("kind", NAMESPACED)
def test_a_reference_that_never_comes_has_failed_in_the_end(namespace, operator, kind):
    make(namespace, kind, "never")
    waits = namespace.waiting(kind, "one", "ReferenceNotFound", "never")
    assert kstatus(waits) == "InProgress"
    # As if it had waited for a quarter of an hour.
    before = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=15)).strftime("%Y-%m-%dT%H:%M:%SZ")
    aged = [condition | {"lastTransitionTime": before} for condition in waits["status"]["conditions"]]
    namespace.patch(kind, "one", {"status": {"conditions": aged}}, subresource="status")
    namespace.reconcile(kind, "one")
    assert kstatus(namespace.stalled(kind, "one", "ReferenceNotFound", "never")) == "Failed"


def test_one_that_waits_to_be_deleted_is_terminating(namespace, front, operator):
    """Its registry is unreachable, and it is to be deleted there: it stays until then, and is deleted when the registry is back."""
    name = namespace.declare(front)
    make(namespace, "Repository", name, deletionPolicy="Delete", interval="5s")
    namespace.ready("Repository", "one")
    front.fail(status=503, body="unavailable")
    namespace.delete("Repository", "one")
    waiting = namespace.until("Repository", "one", lambda one: one["metadata"].get("deletionTimestamp"))
    assert kstatus(waiting) == "Terminating"
    front.heal()
    namespace.gone("Repository", "one")
    assert "one" not in front.names()


def test_a_registry_in_its_phases(namespace, front, operator):
    name = namespace.declare(front, credentials=False)
    namespace.patch("Registry", name, {"spec": {"endpoint": {"credentialsSecretRef": {"name": "late", "namespace": namespace.name}}}})
    assert kstatus(namespace.waiting("Registry", name, "ReferenceNotFound", "late")) == "InProgress"
    namespace.secret("late", AWS_ACCESS_KEY_ID="AKIANOBODY", AWS_SECRET_ACCESS_KEY="wrong")
    assert kstatus(namespace.stalled("Registry", name)) == "Failed"
    namespace.secret("late", **front.credentials)
    assert kstatus(namespace.ready("Registry", name, "Serving")) == "Current"
