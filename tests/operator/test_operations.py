"""The operator for its administrators: health, metrics, and a registry that throttles or is unreachable."""

import urllib.error
import urllib.request

PREFIX = "wharfage_operator_"


def get(operator, path):
    """Status and text of an answer of the admin server."""
    try:
        with urllib.request.urlopen(operator.admin + path) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def series(operator, metric, **labels):
    """The series of a metric that have these labels."""
    wanted = {f'{name}="{value}"' for name, value in labels.items()}
    found = operator.metrics().items()
    return {name: value for name, value in found if name.split("{")[0] == PREFIX + metric and all(one in name for one in wanted)}


def value(operator, metric, **labels):
    return sum(series(operator, metric, **labels).values())


def repository(registry, name="app", **spec):
    spec = {"registryRef": {"name": registry}, **spec}
    return {"apiVersion": "wharfage.dev/v1alpha1", "kind": "Repository", "metadata": {"name": name}, "spec": spec}


def test_health_and_readiness(operator, home):
    assert get(operator, "/healthz") == (200, "ok\n")
    assert get(operator, "/readyz") == (200, "ok\n")
    assert get(operator, "/v2/")[0] == 404


def test_the_leader_tells_how_resources_stand(operator, namespace, home):
    stalled = value(operator, "resources", kind="Repository", state="stalled")
    namespace.apply(repository(home))
    namespace.ready("Repository", "app")
    assert value(operator, "leader") == 1
    for kind in ("Repository", "Registry"):
        operator.process.wait_until(lambda: value(operator, "resources", kind=kind, state="ready") >= 1, "count")  # noqa: B023
    namespace.apply(repository(home, "other", repositoryName="app"))
    namespace.stalled("Repository", "other", "OwnedByAnother")
    operator.process.wait_until(lambda: value(operator, "resources", kind="Repository", state="stalled") == stalled + 1, "count")
    operator.process.wait_until(lambda: value(operator, "errors_total", kind="Repository", reason="OwnedByAnother") >= 1, "count")


def test_reconciles_are_counted_and_leave_no_queue(operator, namespace, home):
    before = value(operator, "reconciles_total", kind="Repository", outcome="ready")
    namespace.apply(repository(home))
    namespace.ready("Repository", "app")
    namespace.reconcile("Repository", "app")
    operator.process.wait_until(lambda: value(operator, "reconciles_total", kind="Repository", outcome="ready") > before, "count")
    assert value(operator, "reconcile_duration_seconds_count", kind="Repository") >= 1
    operator.process.wait_until(lambda: value(operator, "queue_depth", kind="Repository") == 0, "empty its queue")


def test_drift_is_counted_by_registry(operator, namespace, registry, home):
    namespace.apply(repository(home, imageTagMutability="IMMUTABLE"))
    namespace.ready("Repository", "app")
    assert not series(operator, "drift_detected_total", registry=home)
    registry.ecr.put_image_tag_mutability(repositoryName="app", imageTagMutability="MUTABLE")
    namespace.reconcile("Repository", "app")
    for metric in ("drift_detected_total", "drift_corrected_total"):
        assert value(operator, metric, kind="Repository", registry=home) == 1


def test_a_registry_that_throttles_is_asked_again_and_counted(operator, namespace, front):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    front.throttle("CreateRepository", times=1)
    namespace.apply(repository(home))
    namespace.ready("Repository", "app")
    calls = lambda code: value(operator, "api_calls_total", registry=home, operation="CreateRepository", code=code)  # noqa: E731
    assert (calls("ThrottlingException"), calls("200")) == (1, 1)
    assert value(operator, "api_throttles_total", registry=home) == 1
    assert front.counted()["CreateRepository"] == 2


def test_a_quota_that_is_used_up_is_asked_for_once(operator, namespace, front):
    home = namespace.declare(front)
    namespace.ready("Registry", home)
    body = '{"__type":"LimitExceededException","message":"too many repositories"}'
    front.fail("CreateRepository", 400, body, **{"Content-Type": "application/x-amz-json-1.1"})
    namespace.apply(repository(home))
    namespace.stalled("Repository", "app", "LimitExceededException", "too many repositories")
    assert front.counted()["CreateRepository"] == 1
    assert value(operator, "api_throttles_total", registry=home) == 0


def test_a_registry_that_is_away_is_down(operator, namespace, registry, home):
    assert value(operator, "registry_up", registry=home) == 1
    registry.stop()
    namespace.apply(repository(home))
    namespace.waiting("Repository", "app", "RegistryUnavailable")
    assert value(operator, "registry_up", registry=home) == 0
    assert value(operator, "api_calls_total", registry=home, code="RegistryUnavailable") >= 1
    registry.start()
    namespace.ready("Repository", "app")
    assert value(operator, "registry_up", registry=home) == 1


def test_a_registry_whose_key_is_missing_is_down(operator, namespace, home):
    namespace.delete("Secret", f"{home}-key")
    namespace.waiting("Registry", home, "ReferenceNotFound")
    assert value(operator, "registry_up", registry=home) == 0


def test_a_registry_that_is_deleted_leaves_no_series(operator, namespace, home):
    namespace.apply(repository(home))
    namespace.ready("Repository", "app")
    assert value(operator, "api_calls_total", registry=home) > 0
    namespace.delete("Repository", "app")
    namespace.gone("Repository", "app")
    namespace.delete("Registry", home)
    namespace.gone("Registry", home)
    operator.process.wait_until(lambda: home not in get(operator, "/metrics")[1], "forget it")


def test_no_secret_is_exposed(operator, namespace, registry, home):
    namespace.apply(repository(home))
    namespace.ready("Repository", "app")
    output = get(operator, "/metrics")[1] + operator.process.output()
    assert registry.credentials["AWS_SECRET_ACCESS_KEY"] not in output
