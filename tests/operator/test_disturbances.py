"""Registries and API servers that are unreachable, slow, lost in the middle of a call, or talk nonsense: everything converges without a
hand, nothing is lost, and an unreachable registry gets no extra calls."""

import pytest

from kube import API_VERSION, REQUESTED_AT

MANY = [f"app-{number:02}" for number in range(30)]


def declare(namespace, registry, *names, **spec):
    spec = {"registryRef": {"name": registry}, **spec}
    namespace.apply([{"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": name}, "spec": spec} for name in names])


def all_are(namespace, state, reason):
    for name in MANY:
        getattr(namespace, state)("Repository", name, reason)


@pytest.fixture
def disturbed(namespace, front, operator):
    """The name of a Registry behind a front."""
    name = namespace.declare(front)
    namespace.ready("Registry", name)
    return name


def test_a_registry_that_goes_away_is_waited_for_and_left_alone(namespace, disturbed, front):
    declare(namespace, disturbed, *MANY)
    all_are(namespace, "ready", "InSync")
    front.fail(status=503, body="unavailable")
    declare(namespace, disturbed, *MANY, tags={"team": "red"})
    all_are(namespace, "waiting", "RegistryUnavailable")
    start = len(front.calls)
    declare(namespace, disturbed, *MANY, tags={"team": "blue"})
    all_are(namespace, "waiting", "RegistryUnavailable")
    # It is known by now: not each of them has to find out.
    assert len(front.calls) - start < len(MANY)
    front.heal()
    all_are(namespace, "ready", "InSync")
    assert {front.repository(name)["tags"]["team"] for name in MANY} == {"blue"}
    namespace.ready("Registry", disturbed)


def test_a_registry_that_is_unreachable_is_reported_once(namespace, disturbed, front):
    declare(namespace, disturbed, "app")
    namespace.ready("Repository", "app")
    front.fail(status=503, body="unavailable")
    declare(namespace, disturbed, "app", tags={"team": "blue"})
    first = namespace.waiting("Repository", "app", "RegistryUnavailable")
    tries = len(front.calls)
    # A second failure would be reported before the third attempt.
    namespace.until("Registry", disturbed, lambda _: len(front.calls) > tries + 2, "tried again")
    assert namespace.get("Repository", "app")["status"] == first["status"]
    front.heal()
    namespace.ready("Repository", "app")


def test_a_process_that_is_killed_and_comes_back(namespace, home, registry):
    declare(namespace, home, *MANY)
    all_are(namespace, "ready", "InSync")
    registry.kill()
    declare(namespace, home, *MANY, tags={"team": "blue"})
    all_are(namespace, "waiting", "RegistryUnavailable")
    registry.start()
    all_are(namespace, "ready", "InSync")
    assert {registry.repository(name)["tags"]["team"] for name in MANY} == {"blue"}


def test_a_registry_that_takes_requests_and_answers_none(namespace, home, registry):
    declare(namespace, home, "app")
    namespace.ready("Repository", "app")
    registry.freeze()
    declare(namespace, home, "app", tags={"team": "blue"})
    namespace.waiting("Repository", "app", "RegistryUnavailable")
    registry.thaw()
    namespace.ready("Repository", "app")
    assert registry.repository("app")["tags"]["team"] == "blue"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, "<html>It works!</html>", "text/html"),
        (200, '{"repositories": [', "application/x-amz-json-1.1"),
        (200, '{"repositories": 5}', "application/x-amz-json-1.1"),
        (404, "not found", "text/plain"),
        (502, "<html>Bad Gateway</html>", "text/html"),
    ],
)
def test_a_registry_that_talks_nonsense_is_waited_for(namespace, disturbed, front, status, body, kind):
    declare(namespace, disturbed, "app")
    namespace.ready("Repository", "app")
    front.fail("Describe.*|List.*|Get.*", status, body, **{"Content-Type": kind})
    namespace.patch("Repository", "app", {"metadata": {"annotations": {REQUESTED_AT: "now"}}})
    namespace.waiting("Repository", "app", "RegistryUnavailable")
    declare(namespace, disturbed, "other")
    namespace.waiting("Repository", "other", "RegistryUnavailable")
    front.heal()
    for name in ("app", "other"):
        namespace.ready("Repository", name)
    assert front.names() == {"app", "other"}


def test_throttling_slows_down_and_loses_nothing(namespace, disturbed, front, operator):
    front.throttle(times=20)
    declare(namespace, disturbed, *MANY)
    all_are(namespace, "ready", "InSync")
    assert set(MANY) <= front.names()
    throttled = {name: value for name, value in operator.metrics().items() if "throttle" in name and disturbed in name}
    assert sum(throttled.values()) >= 20, throttled


@pytest.mark.parametrize("operation", ["CreateRepository", "TagResource", "PutImageTagMutability", "DeleteRepository"])
def test_an_answer_that_is_lost_is_found_out(namespace, disturbed, front, operation):
    """With adoptionPolicy Create, a repository created before the answer got lost must be recognized as owned."""
    front.lose(operation, times=1)
    owned = {"adoptionPolicy": "Create", "deletionPolicy": "Delete"}
    declare(namespace, disturbed, "app", **owned)
    namespace.ready("Repository", "app", "InSync")
    declare(namespace, disturbed, "app", imageTagMutability="IMMUTABLE", tags={"team": "blue"}, **owned)
    namespace.ready("Repository", "app", "InSync")
    found = front.repository("app")
    assert (found["imageTagMutability"], found["tags"]["team"]) == ("IMMUTABLE", "blue")
    namespace.delete("Repository", "app")
    namespace.gone("Repository", "app")
    assert front.names() == set()
    assert operation in front.calls


@pytest.fixture
def own(make_cluster, make_operator, make_namespace, front):
    """A cluster, an operator and a namespace of the test's own, and a Registry in it."""
    cluster = make_cluster()
    operator, namespace = make_operator(cluster), make_namespace(kube=cluster.kube)
    name = namespace.declare(front)
    namespace.ready("Registry", name)
    return cluster, operator, namespace, name


def test_an_operator_that_is_killed_in_a_call_knows_its_own_afterwards(own, front):
    _, operator, namespace, registry = own
    front.pause()
    start = len(front.calls)
    declare(namespace, registry, "app", adoptionPolicy="Create")
    namespace.until("Repository", "app", lambda _: "CreateRepository" in front.calls[start:], "being made")
    operator.kill()
    front.go_on()
    operator.start()
    namespace.ready("Repository", "app", "InSync")
    assert front.names() == {"app"}


def test_an_api_server_that_restarts_while_everything_changes(own, front):
    cluster, _, namespace, registry = own
    declare(namespace, registry, *MANY[:15])
    cluster.restart()
    declare(namespace, registry, *MANY[15:])
    declare(namespace, registry, *MANY[:15], tags={"team": "blue"})
    namespace.delete("Repository", MANY[29])
    cluster.restart()
    for name in MANY[:29]:
        namespace.ready("Repository", name, "InSync")
    namespace.gone("Repository", MANY[29])
    assert {front.repository(name)["tags"]["team"] for name in MANY[:15]} == {"blue"}


def test_what_changed_while_no_operator_ran_is_caught_up_with(own, front):
    _, operator, namespace, registry = own
    declare(namespace, registry, "changed", "removed", deletionPolicy="Delete")
    for name in ("changed", "removed"):
        namespace.ready("Repository", name)
    operator.kill()
    declare(namespace, registry, "changed", tags={"team": "blue"})
    namespace.delete("Repository", "removed")
    declare(namespace, registry, "added")
    operator.start()
    for name in ("changed", "added"):
        namespace.ready("Repository", name)
    namespace.gone("Repository", "removed")
    assert front.names() == {"changed", "added"}
    assert front.repository("changed")["tags"]["team"] == "blue"
