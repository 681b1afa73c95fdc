"""LifecyclePolicy, as the registry enforces it: put, previewed, corrected, released."""

import json

import pytest

import images
from kube import API_VERSION, REQUESTED_AT, conditions, has_state
from lifecycle import TIER, outcome, policy, reasons, repository, rule, stored
from registries import DENIED, drift

KEEP = "keep"
# The plan's text after three was changed to nine in the registry.
CHANGED = "lifecyclePolicy.rules[rulePriority=1].selection.countNumber: 9 -> 3"


def document(server, name):
    """The policy that a repository has; None if it has none."""
    ecr = server.ecr
    try:
        return json.loads(ecr.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"])
    except ecr.exceptions.LifecyclePolicyNotFoundException:
        return None


def owner(server, name):
    return server.repository(name)["tags"].get("wharfage.dev/lifecycle")


@pytest.fixture(params=["ours", "amazon"])
def either(request):
    """A server and the name of its Registry: ours, and an ECR that others wrote."""
    server, registry = ("registry", "home") if request.param == "ours" else ("moto", "amazon")
    return request.getfixturevalue(server), request.getfixturevalue(registry)


# Enforce


def test_a_policy_is_put_and_changed_in_place(namespace, either):
    server, registry = either
    name = repository(namespace, registry)
    policy(namespace, registry, rules=[rule(3)])
    ready = namespace.ready("LifecyclePolicy", KEEP, "InSync", "put to 1 repository")
    assert document(server, name) == {"rules": [rule(3)]}
    assert owner(server, name).split("/")[1:] == [str(namespace), KEEP]
    assert outcome(ready, name) == {"name": name, "state": "Enforced"}
    assert ready["status"]["totals"] == {"repositories": 1}
    assert "Created" in reasons(namespace)
    policy(namespace, registry, rules=[rule(4)])
    namespace.ready("LifecyclePolicy", KEEP)
    assert document(server, name) == {"rules": [rule(4)]}
    assert "Updated" in reasons(namespace) and "DriftCorrected" not in reasons(namespace)


def test_what_somebody_else_changed_is_put_back(namespace, either):
    server, registry = either
    name = repository(namespace, registry)
    policy(namespace, registry, rules=[rule(3)])
    namespace.ready("LifecyclePolicy", KEEP)
    server.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule(9)]}, indent=8))
    found = namespace.reconcile("LifecyclePolicy", KEEP)
    assert document(server, name) == {"rules": [rule(3)]}
    drifted = conditions(found)["Drifted"]
    assert (drifted["status"], drifted["reason"]) == ("False", "DriftCorrected")
    assert drifted["message"] == f"drift corrected: {CHANGED}"
    assert "DriftCorrected" in reasons(namespace)
    server.ecr.delete_lifecycle_policy(repositoryName=name)
    namespace.reconcile("LifecyclePolicy", KEEP)
    assert document(server, name) == {"rules": [rule(3)]}


def test_drift_that_cannot_be_corrected_is_reported(namespace, registry, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    name, other = repository(namespace, home), repository(namespace, home, "other")
    policy(namespace, home, rules=[rule(3)])
    namespace.ready("LifecyclePolicy", KEEP)
    front.fail("PutLifecyclePolicy", 400, DENIED, **{"Content-Type": "application/x-amz-json-1.1"})
    registry.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule(9)]}, indent=8))
    for _ in range(2):
        found = namespace.reconcile("LifecyclePolicy", KEEP)
        assert has_state(found, "Stalled", "AccessDeniedException")
        drifted = conditions(found)["Drifted"]
        assert (drifted["status"], drifted["reason"]) == ("True", "DriftDetected")
        assert drifted["message"] == f"drift detected, and not corrected yet: {CHANGED}"
        assert outcome(found, other)["state"] == "Enforced"
        assert drift(operator, home, "LifecyclePolicy") == (1, 0)
    front.heal()
    drifted = conditions(namespace.reconcile("LifecyclePolicy", KEEP))["Drifted"]
    assert (drifted["status"], drifted["reason"]) == ("False", "DriftCorrected")
    assert drift(operator, home, "LifecyclePolicy") == (1, 1)
    assert document(registry, name) == {"rules": [rule(3)]}


def test_the_same_policy_in_other_words_is_let_be(namespace, registry, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    name = repository(namespace, home)
    policy(namespace, home, rules=[rule(3, priority=2), rule(2, "untagged", priority=1)])
    namespace.ready("LifecyclePolicy", KEEP)
    other = {"rules": [rule(2, "untagged", storageClass="standard"), rule(3, priority=2) | {"description": ""}]}
    registry.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps(other))
    start = len(front.calls)
    found = namespace.reconcile("LifecyclePolicy", KEEP)
    assert "GetLifecyclePolicy" in front.counted(start) and "PutLifecyclePolicy" not in front.counted(start)
    assert conditions(found)["Drifted"]["reason"] == "InSync"


def test_a_selector_takes_what_comes_and_lets_go_of_what_leaves(namespace, registry, home):
    first, other = repository(namespace, home, "first"), repository(namespace, home, "other", labels={})
    policy(namespace, home)
    ready = namespace.ready("LifecyclePolicy", KEEP)
    assert [one["name"] for one in ready["status"]["repositories"]] == [first]
    namespace.patch("Repository", "other", {"metadata": {"labels": TIER}})
    namespace.until("LifecyclePolicy", KEEP, lambda one: one["status"]["totals"]["repositories"] == 2)
    namespace.ready("LifecyclePolicy", KEEP)
    assert document(registry, other) is not None
    namespace.patch("Repository", "other", {"metadata": {"labels": {"tier": None}}})
    namespace.until("LifecyclePolicy", KEEP, lambda one: one["status"]["totals"]["repositories"] == 1)
    namespace.ready("LifecyclePolicy", KEEP)
    assert owner(registry, other) is None and document(registry, other) is not None, "retained by default"
    assert document(registry, first) is not None and owner(registry, first) is not None
    assert "Released" in reasons(namespace)
    namespace.delete("Repository", "first")
    namespace.until("LifecyclePolicy", KEEP, lambda one: one["status"]["totals"]["repositories"] == 0)
    namespace.ready("LifecyclePolicy", KEEP, message="chooses no Repository")
    assert owner(registry, first) is None


def test_a_reference_is_waited_for(namespace, registry, home):
    policy(namespace, home, repositoryRef={"name": "api"})
    waiting = namespace.waiting("LifecyclePolicy", KEEP, "ReferenceNotFound", f"Repository {namespace}/api does not exist")
    assert conditions(waiting)["ReferencesResolved"]["status"] == "False"
    name = repository(namespace, home)
    found = namespace.ready("LifecyclePolicy", KEEP)
    assert conditions(found)["ReferencesResolved"]["status"] == "True"
    assert document(registry, name) is not None


def test_a_registry_is_waited_for(namespace, registry, operator):
    policy(namespace, f"{namespace}-late", repositoryRef={"name": "api"})
    namespace.waiting("LifecyclePolicy", KEEP, "ReferenceNotFound", f'Registry "{namespace}-late" does not exist')
    late = namespace.declare(registry, name=f"{namespace}-late")
    repository(namespace, late)
    namespace.ready("LifecyclePolicy", KEEP)


def test_what_is_there_is_a_reference_that_is_resolved(namespace, front, operator):
    """Also in a Registry that doesn't answer yet."""
    home = f"{namespace}-late"
    spec = {"registryRef": {"name": home}, "repositoryName": f"{namespace}/api"}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "api"}, "spec": spec})
    for name in ("api", "nothing"):
        policy(namespace, home, name, repositoryRef={"name": name})
        missing = namespace.waiting("LifecyclePolicy", name, "ReferenceNotFound", "Registry .* does not exist")
        assert conditions(missing)["ReferencesResolved"]["status"] == "False"
    front.fail(status=503)
    namespace.declare(front, name=home)
    unreachable = namespace.waiting("LifecyclePolicy", "api", "RegistryUnavailable")
    assert conditions(unreachable)["ReferencesResolved"]["status"] == "True"
    missing = f"Repository {namespace}/nothing does not exist"
    resolved = conditions(namespace.waiting("LifecyclePolicy", "nothing", "ReferenceNotFound", missing))["ReferencesResolved"]
    assert (resolved["status"], resolved["message"].startswith(missing)) == ("False", True)


# Whose it is


def test_of_two_policies_the_older_governs_until_it_goes(namespace, registry, home):
    name = repository(namespace, home)
    policy(namespace, home, "older", [rule(3)])
    namespace.ready("LifecyclePolicy", "older")
    policy(namespace, home, "younger", [rule(5)])
    stalled = namespace.stalled("LifecyclePolicy", "younger", "OwnedByAnother", f"{name} .* LifecyclePolicy {namespace}/older")
    assert outcome(stalled, name)["state"] == "Failed"
    namespace.reconcile("LifecyclePolicy", "younger")
    assert document(registry, name) == {"rules": [rule(3)]}
    namespace.delete("LifecyclePolicy", "older")
    namespace.ready("LifecyclePolicy", "younger")
    assert document(registry, name) == {"rules": [rule(5)]}


@pytest.mark.parametrize("how", [{}, {"inUseProtection": {"enabled": True}}, {"mode": "Preview"}, {"managementPolicy": "Observe"}])
@pytest.mark.parametrize("reason", ["NotAllowed", "OwnedByAnother"])
def test_a_policy_does_not_reach_into_another_namespace(make_namespace, registry, operator, reason, how):
    theirs, evil = make_namespace(labels={"team": "payments"}), make_namespace()
    selector = {"matchLabels": {"team": "payments"}} if reason == "NotAllowed" else {}
    home = theirs.declare(registry, allowedNamespaces=[{"selector": selector}])
    theirs.ready("Registry", home)
    name = repository(theirs, home)
    for number in range(2):
        images.push(registry.ecr, name, images.image(f"{number}"), f"v{number}")
    spec = {"registryRef": {"name": home}, "repositoryName": name}
    evil.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "x", "labels": TIER}, "spec": spec})
    evil.stalled("Repository", "x", reason)
    policy(evil, home, repositoryRef={"name": "x"}, **how)
    refused = evil.waiting("LifecyclePolicy", KEEP, "ReferenceNotFound", f"no Repository of namespace {evil} has it")
    assert outcome(refused, name) == {"name": name, "state": "Pending"}
    policy(theirs, home, rules=[rule(3)])
    theirs.ready("LifecyclePolicy", KEEP, "InSync")
    assert document(registry, name) == {"rules": [rule(3)]}
    assert owner(registry, name).split("/")[1:] == [str(theirs), KEEP]
    assert len(stored(registry.ecr, name)) == 2


@pytest.mark.parametrize("change", [{"mode": "Preview"}, {"repositorySelector": {"matchLabels": {"tier": "none"}}}])
def test_a_policy_that_lets_go_makes_way_for_the_younger(namespace, registry, home, change):
    name = repository(namespace, home)
    policy(namespace, home, "older", [rule(3)])
    namespace.ready("LifecyclePolicy", "older")
    policy(namespace, home, "younger", [rule(5)])
    namespace.stalled("LifecyclePolicy", "younger", "OwnedByAnother")
    namespace.patch("LifecyclePolicy", "older", {"spec": change})
    namespace.ready("LifecyclePolicy", "younger")
    assert document(registry, name) == {"rules": [rule(5)]}
    assert owner(registry, name).endswith("/younger")


def test_what_another_cluster_governs_is_left_alone(namespace, registry, home):
    name = repository(namespace, home)
    arn = registry.repository(name)["repositoryArn"]
    registry.ecr.tag_resource(resourceArn=arn, tags=[{"Key": "wharfage.dev/lifecycle", "Value": "elsewhere/team/theirs"}])
    registry.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule(9)]}, indent=8))
    namespace.reconcile("Repository", "api")
    policy(namespace, home)
    namespace.stalled("LifecyclePolicy", KEEP, "OwnedByAnother", "LifecyclePolicy team/theirs of cluster elsewhere")
    assert document(registry, name) == {"rules": [rule(9)]}
    assert owner(registry, name) == "elsewhere/team/theirs"


@pytest.mark.parametrize(("adoption", "adopts"), [("AdoptOrCreate", True), ("Adopt", True), ("Create", False)])
def test_a_policy_that_is_there_is_taken_over_if_that_is_wanted(namespace, registry, home, adoption, adopts):
    name = f"{namespace}/api"
    registry.ecr.create_repository(repositoryName=name)
    registry.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule(9)]}, indent=8))
    repository(namespace, home)
    policy(namespace, home, rules=[rule(3)], adoptionPolicy=adoption)
    if adopts:
        namespace.ready("LifecyclePolicy", KEEP)
        assert "Adopted" in reasons(namespace)
    else:
        namespace.stalled("LifecyclePolicy", KEEP, "AlreadyExists", "adoptionPolicy is Create")
    assert document(registry, name) == {"rules": [rule(3 if adopts else 9)]}


def test_a_policy_that_is_to_be_adopted_is_waited_for(namespace, registry, home):
    name = repository(namespace, home)
    policy(namespace, home, rules=[rule(3)], adoptionPolicy="Adopt")
    namespace.waiting("LifecyclePolicy", KEEP, "NotFound", "adoptionPolicy is Adopt")
    registry.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule(9)]}, indent=8))
    namespace.patch("LifecyclePolicy", KEEP, {"metadata": {"annotations": {"reconcile.wharfage.dev/requestedAt": "now"}}})
    namespace.ready("LifecyclePolicy", KEEP)
    assert document(registry, name) == {"rules": [rule(3)]}


def test_of_two_policies_in_two_registries_that_are_one_the_older_governs(namespace, registry, operator):
    first, second = namespace.declare(registry), namespace.declare(registry)
    for each in (first, second):
        namespace.ready("Registry", each)
    name = repository(namespace, first)
    spec = {"registryRef": {"name": second}, "repositoryName": name}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "twin"}, "spec": spec})
    namespace.stalled("Repository", "twin", "OwnedByAnother")
    policy(namespace, first, "older", [rule(3)], interval="1s")
    namespace.ready("LifecyclePolicy", "older")
    policy(namespace, second, "younger", [rule(5)], repositoryRef={"name": "twin"}, interval="1s")
    namespace.stalled("LifecyclePolicy", "younger", "OwnedByAnother", f"{name} .* LifecyclePolicy {namespace}/older")
    namespace.reconcile("LifecyclePolicy", "older")
    assert document(registry, name) == {"rules": [rule(3)]}
    assert owner(registry, name).endswith("/older")


# When it is deleted


def test_what_it_said_last_holds_for_a_look_that_is_under_way(namespace, registry, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    name = repository(namespace, home)
    policy(namespace, home, deletionPolicy="Delete")
    namespace.ready("LifecyclePolicy", KEEP)
    front.pause("DescribeRepositories", f'"{name}"')
    namespace.patch("LifecyclePolicy", KEEP, {"metadata": {"annotations": {REQUESTED_AT: "now"}}})
    namespace.until("LifecyclePolicy", KEEP, lambda _: front.held, "being reconciled")
    namespace.patch("LifecyclePolicy", KEEP, {"spec": {"deletionPolicy": "Retain"}})
    namespace.delete("LifecyclePolicy", KEEP)
    # A later event of the same watch has arrived, so that the operator knows that it is being deleted.
    policy(namespace, home, "marker", repositorySelector={"matchLabels": {"tier": "none"}})
    namespace.ready("LifecyclePolicy", "marker")
    front.go_on()
    namespace.gone("LifecyclePolicy", KEEP)
    assert document(registry, name) == {"rules": [rule()]}
    assert "DeleteLifecyclePolicy" not in front.calls


@pytest.mark.parametrize(("deletion", "stays"), [(None, True), ("Retain", True), ("Delete", False)])
def test_a_policy_that_goes_takes_its_tag_and_what_it_says(namespace, either, deletion, stays):
    server, registry = either
    name = repository(namespace, registry)
    policy(namespace, registry, **({"deletionPolicy": deletion} if deletion else {}))
    namespace.ready("LifecyclePolicy", KEEP)
    assert namespace.get("LifecyclePolicy", KEEP)["metadata"]["finalizers"] == ["wharfage.dev/finalizer"]
    namespace.delete("LifecyclePolicy", KEEP)
    namespace.gone("LifecyclePolicy", KEEP)
    assert owner(server, name) is None
    assert (document(server, name) is not None) == stays


@pytest.mark.parametrize("deletion", ["Retain", "Delete"])
def test_a_policy_goes_while_the_registry_is_down(namespace, registry, home, deletion):
    name = repository(namespace, home)
    policy(namespace, home, deletionPolicy=deletion)
    namespace.ready("LifecyclePolicy", KEEP)
    registry.stop()
    namespace.delete("LifecyclePolicy", KEEP)
    if deletion == "Delete":
        unavailable = lambda one: conditions(one)["Ready"]["reason"] == "RegistryUnavailable"  # noqa: E731
        namespace.until("LifecyclePolicy", KEEP, unavailable)
        registry.start()
    namespace.gone("LifecyclePolicy", KEEP)
    if deletion == "Delete":
        assert document(registry, name) is None


# Preview


def test_a_preview_tells_what_would_go_and_touches_nothing(namespace, registry, home):
    name = repository(namespace, home)
    pushed = [images.push(registry.ecr, name, images.image(f"{n}"), f"v{n}") for n in range(14)]
    rules = [rule(12, "tagged", action="transition", tagPatternList=["v*"]), rule(11, priority=2, status="any")]
    policy(namespace, home, rules=rules, mode="Preview")
    ready = namespace.ready("LifecyclePolicy", KEEP, "Previewed")
    found = outcome(ready, name)
    assert (found["state"], found["expiring"], found["transitioning"], found["bytes"]) == ("Previewed", 0, 2, 0)
    assert {one["digest"] for one in found["sample"]} == {pushed[0].digest, pushed[1].digest}
    assert {one["action"] for one in found["sample"]} == {"TRANSITION"}
    policy(namespace, home, rules=[rule(2)], mode="Preview")
    ready = namespace.ready("LifecyclePolicy", KEEP, "Previewed")
    found = outcome(ready, name)
    assert (found["expiring"], found["transitioning"]) == (12, 0)
    assert found["bytes"] == sum(image.size for image in pushed[:12])
    assert len(found["sample"]) == 10
    assert {tuple(one["tags"]) for one in found["sample"]} <= {(f"v{n}",) for n in range(12)}
    totals = {"repositories": 1, "expiring": 12, "transitioning": 0, "bytes": found["bytes"]}
    assert ready["status"]["totals"] == totals
    assert len(stored(registry.ecr, name)) == 14 and document(registry, name) is None
    assert owner(registry, name) is None


def test_a_preview_is_made_again_when_somebody_asks(namespace, registry, home):
    name = repository(namespace, home)
    images.push(registry.ecr, name, images.image("0"), "v0")
    policy(namespace, home, mode="Preview")
    assert outcome(namespace.ready("LifecyclePolicy", KEEP, "Previewed"), name)["expiring"] == 0
    images.push(registry.ecr, name, images.image("1"), "v1")
    namespace.patch("LifecyclePolicy", KEEP, {"metadata": {"annotations": {"reconcile.wharfage.dev/requestedAt": "now"}}})
    namespace.until("LifecyclePolicy", KEEP, lambda one: outcome(one, name).get("expiring") == 1)


def test_a_preview_that_is_made_again_after_an_interval_is_no_event(namespace, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    repository(namespace, home)
    policy(namespace, home, mode="Preview", interval="2s")
    namespace.ready("LifecyclePolicy", KEEP, "Previewed")
    previews = lambda _: front.calls.count("StartLifecyclePolicyPreview") >= 4  # noqa: E731
    namespace.until("LifecyclePolicy", KEEP, previews, "previewed in three intervals")
    (event,) = [one for one in namespace.events("LifecyclePolicy", KEEP) if one["reason"] == "PreviewStarted"]
    assert not event.get("series"), event


def test_a_policy_that_is_only_previewed_again_is_taken_away(namespace, registry, home):
    name = repository(namespace, home)
    policy(namespace, home)
    namespace.ready("LifecyclePolicy", KEEP, "InSync")
    policy(namespace, home, mode="Preview")
    namespace.ready("LifecyclePolicy", KEEP, "Previewed")
    assert document(registry, name) is None and owner(registry, name) is None
    policy(namespace, home)
    namespace.ready("LifecyclePolicy", KEEP, "InSync")
    assert document(registry, name) is not None


def test_a_preview_beside_a_policy_that_governs_changes_nothing_of_it(namespace, registry, home):
    name = repository(namespace, home)
    policy(namespace, home, "governs", [rule(3)])
    namespace.ready("LifecyclePolicy", "governs", "InSync")
    policy(namespace, home, "tries", [rule(9)], mode="Preview")
    namespace.ready("LifecyclePolicy", "tries", "Previewed")
    assert document(registry, name) == {"rules": [rule(3)]}
    assert owner(registry, name).endswith("/governs")


# Restraint


def test_a_policy_that_observes_only_looks(namespace, registry, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    name = repository(namespace, home)
    start = len(front.calls)
    policy(namespace, home, managementPolicy="Observe")
    found = namespace.ready("LifecyclePolicy", KEEP, "Observed")
    assert (conditions(found)["Drifted"]["status"], conditions(found)["Drifted"]["reason"]) == ("True", "DriftDetected")
    assert outcome(found, name)["state"] == "Pending"
    registry.ecr.put_lifecycle_policy(repositoryName=name, lifecyclePolicyText=json.dumps({"rules": [rule()]}, indent=8))
    found = namespace.reconcile("LifecyclePolicy", KEEP)
    assert (conditions(found)["Drifted"]["status"], outcome(found, name)["state"]) == ("False", "Enforced")
    assert all(operation.startswith(("Get", "Describe", "List")) for operation in front.counted(start))
    assert not namespace.get("LifecyclePolicy", KEEP)["metadata"].get("finalizers")


def test_a_suspended_policy_rests(namespace, registry, home):
    name = repository(namespace, home)
    policy(namespace, home, rules=[rule(3)])
    namespace.ready("LifecyclePolicy", KEEP)
    policy(namespace, home, rules=[rule(5)], suspend=True)
    found = namespace.until("LifecyclePolicy", KEEP, lambda one: "Suspended" in conditions(one))
    assert found["status"]["observedGeneration"] < found["metadata"]["generation"]
    assert conditions(found)["Ready"]["status"] == "True" and "Reconciling" not in conditions(found)
    assert "Suspended" in reasons(namespace)
    assert document(registry, name) == {"rules": [rule(3)]}
    policy(namespace, home, rules=[rule(5)])
    namespace.ready("LifecyclePolicy", KEEP)
    assert document(registry, name) == {"rules": [rule(5)]}


def test_looks_that_find_nothing_new_write_nothing(namespace, registry, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    name = repository(namespace, home)
    images.push(registry.ecr, name, images.image("0"), "v0")
    policy(namespace, home, "previews", mode="Preview", interval="1s")
    policy(namespace, home, "governs", interval="1s")
    before = [namespace.ready("LifecyclePolicy", each) for each in ("previews", "governs")]
    looked = lambda _: front.counted().get("StartLifecyclePolicyPreview", 0) >= 4  # noqa: E731
    namespace.until("LifecyclePolicy", "previews", looked, expected="previewed a few times")
    after = [namespace.get("LifecyclePolicy", each) for each in ("previews", "governs")]
    assert [one["metadata"]["resourceVersion"] for one in after] == [one["metadata"]["resourceVersion"] for one in before]


# When something is wrong


def test_a_refusal_is_reported_in_the_registrys_words(namespace, registry, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    good, bad = repository(namespace, home, "good"), repository(namespace, home, "bad")
    body = '{"__type":"LimitExceededException","message":"no more policies"}'
    front.fail("PutLifecyclePolicy", 400, body, **{"Content-Type": "application/x-amz-json-1.1"})
    policy(namespace, home)
    stalled = namespace.stalled("LifecyclePolicy", KEEP, "LimitExceededException", "no more policies; 1 more repository")
    assert {outcome(stalled, name)["state"] for name in (good, bad)} == {"Failed"}
    assert "LimitExceededException" in reasons(namespace)
    front.heal()
    found = namespace.reconcile("LifecyclePolicy", KEEP)
    namespace.ready("LifecyclePolicy", KEEP)
    assert document(registry, good) == document(registry, bad) is not None, found


def test_a_registry_that_is_away_is_waited_for(namespace, registry, home):
    name = repository(namespace, home)
    policy(namespace, home, rules=[rule(3)])
    namespace.ready("LifecyclePolicy", KEEP)
    registry.stop()
    policy(namespace, home, rules=[rule(5)])
    namespace.waiting("LifecyclePolicy", KEEP, "RegistryUnavailable", "has been unreachable since")
    registry.start()
    namespace.ready("LifecyclePolicy", KEEP)
    assert document(registry, name) == {"rules": [rule(5)]}


def test_a_registry_without_previews_says_so(namespace, front, operator):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    name = repository(namespace, home)
    body = '{"__type":"UnknownOperationException"}'
    front.fail("StartLifecyclePolicyPreview", 400, body, **{"Content-Type": "application/x-amz-json-1.1"})
    policy(namespace, home, mode="Preview")
    namespace.stalled("LifecyclePolicy", KEEP, "UnsupportedByRegistry", f"{name}: this registry has no such operation")
    namespace.ready("Registry", home)
