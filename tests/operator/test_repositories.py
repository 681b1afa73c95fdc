"""Repository: created, corrected, adopted, owned by one resource, released. On our registry and on an Amazon ECR that others
wrote."""

import json
import time
from typing import ClassVar

import pytest

import images
from kube import API_VERSION, REQUESTED_AT, conditions, has_state
from registries import DENIED, drift

OWNER = ("wharfage.dev/cluster", "wharfage.dev/namespace", "wharfage.dev/name")
POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Sid": "ci", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:root"}, "Action": ["ecr:BatchGetImage"]}
    ],
}


@pytest.fixture(params=["ours", "amazon"])
def where(request, namespace, operator):
    """A registry's name in the cluster, and the registry."""
    server = request.getfixturevalue({"ours": "registry", "amazon": "moto"}[request.param])
    name = namespace.declare(server)
    namespace.ready("Registry", name, "Serving")
    return name, server


def declare(namespace, registry, name="app", labels=None, **spec):
    """A Repository whose name in the registry is the namespace's, a slash and its own."""
    spec = {"registryRef": {"name": registry}, "repositoryName": f"{namespace}/{name}", **spec}
    metadata = {"name": name, "labels": labels or {}}
    return namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": metadata, "spec": spec})


def owner(found):
    return tuple(found["tags"].get(key) for key in OWNER)


def reasons(namespace, name="app"):
    return [event["reason"] for event in namespace.events("Repository", name)]


def test_it_is_made_with_every_field(namespace, where, operator):
    registry, server = where
    filters = [{"filterType": "WILDCARD", "filter": "dev-*"}]
    declare(
        namespace, registry,
        imageTagMutability="IMMUTABLE_WITH_EXCLUSION", imageTagMutabilityExclusionFilters=filters,
        imageScanningConfiguration={"scanOnPush": True}, encryptionConfiguration={"encryptionType": "AES256"},
        repositoryPolicy=POLICY, tags={"cost-center": "42"},
    )  # fmt: skip
    ready = namespace.ready("Repository", "app", "InSync")
    name = f"{namespace}/app"
    found = server.repository(name)
    assert found["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
    assert found["imageTagMutabilityExclusionFilters"] == filters
    assert found["imageScanningConfiguration"] == {"scanOnPush": True}
    assert found["encryptionConfiguration"]["encryptionType"] == "AES256"
    assert found["tags"]["cost-center"] == "42"
    assert owner(found) == (operator.cluster_name, namespace.name, "app")
    assert json.loads(server.ecr.get_repository_policy(repositoryName=name)["policyText"]) == POLICY
    status = ready["status"]
    assert status["repositoryArn"] == found["repositoryArn"]
    assert status["repositoryUri"] == found["repositoryUri"]
    assert status["registryId"] == found["registryId"]
    assert (status["imageCount"], status["imageSizeBytes"]) == (0, 0)
    assert conditions(ready)["ReferencesResolved"]["status"] == "True"
    assert conditions(ready)["Drifted"]["status"] == "False"
    # Amazon ECR scans; a registry of ours does not yet.
    assert ("does not scan images yet" in conditions(ready)["Ready"]["message"]) == (server.kind != "aws")
    assert reasons(namespace) == ["Created"]


CHANGES = {
    "imageTagMutability": ({"imageTagMutability": "IMMUTABLE"}, lambda it: it["imageTagMutability"] == "IMMUTABLE"),
    "scanOnPush": (
        {"imageScanningConfiguration": {"scanOnPush": True}},
        lambda it: it["imageScanningConfiguration"]["scanOnPush"] is True,
    ),
    "tags": ({"tags": {"team": "blue"}}, lambda it: it["tags"].get("team") == "blue"),
    "repositoryPolicy": ({"repositoryPolicy": POLICY}, lambda it: it["policy"] == POLICY),
}


def look(server, name):
    found, ecr = server.repository(name), server.ecr
    try:
        return found | {"policy": json.loads(ecr.get_repository_policy(repositoryName=name)["policyText"])}
    except ecr.exceptions.RepositoryPolicyNotFoundException:
        return found | {"policy": None}


def disturb(server, name, found):
    """Changes fields of a test's manifest without the operator."""
    ecr = server.ecr
    ecr.put_image_tag_mutability(repositoryName=name, imageTagMutability="MUTABLE")
    ecr.put_image_scanning_configuration(repositoryName=name, imageScanningConfiguration={"scanOnPush": False})
    ecr.untag_resource(resourceArn=found["repositoryArn"], tagKeys=["team"])
    if found["policy"]:
        ecr.delete_repository_policy(repositoryName=name)


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_is_changed_and_kept_and_taken_back(namespace, where, field):
    registry, server = where
    change, holds = CHANGES[field]
    name = f"{namespace}/app"
    declare(namespace, registry)
    namespace.ready("Repository", "app")
    assert not holds(look(server, name))

    declare(namespace, registry, **change)
    namespace.ready("Repository", "app", "InSync")
    assert holds(look(server, name))
    assert "Updated" in reasons(namespace)

    # Drift is detected, reported and corrected.
    disturb(server, name, look(server, name))
    assert not holds(look(server, name))
    corrected = namespace.reconcile("Repository", "app")
    assert holds(look(server, name))
    drifted = conditions(corrected)["Drifted"]
    assert (drifted["status"], drifted["reason"]) == ("False", "DriftCorrected")
    assert "DriftCorrected" in reasons(namespace)

    # Fields removed from the manifest are reset.
    declare(namespace, registry)
    namespace.ready("Repository", "app", "InSync")
    if (field, server.kind) != ("scanOnPush", "aws"):
        # The AWS SDK leaves a false scanOnPush out, as Amazon ECR understands; moto takes that for no change.
        assert not holds(look(server, name))


def test_drift_that_cannot_be_corrected_is_reported(namespace, front, operator):
    registry = namespace.declare(front)
    namespace.ready("Registry", registry)
    declare(namespace, registry, imageTagMutability="IMMUTABLE")
    namespace.ready("Repository", "app")
    front.fail("PutImageTagMutability", 400, DENIED, **{"Content-Type": "application/x-amz-json-1.1"})
    front.ecr.put_image_tag_mutability(repositoryName=f"{namespace}/app", imageTagMutability="MUTABLE")
    for _ in range(2):
        found = namespace.reconcile("Repository", "app")
        assert has_state(found, "Stalled", "AccessDeniedException")
        drifted = conditions(found)["Drifted"]
        assert (drifted["status"], drifted["reason"]) == ("True", "DriftDetected")
        assert "imageTagMutability: MUTABLE -> IMMUTABLE" in drifted["message"]
        assert drift(operator, registry, "Repository") == (1, 0)
    front.heal()
    drifted = conditions(namespace.reconcile("Repository", "app"))["Drifted"]
    assert (drifted["status"], drifted["reason"]) == ("False", "DriftCorrected")
    assert drift(operator, registry, "Repository") == (1, 1)
    assert "DriftCorrected" in reasons(namespace)


def test_drift_is_corrected_within_an_interval(namespace, where):
    registry, server = where
    declare(namespace, registry, imageTagMutability="IMMUTABLE", tags={"team": "blue"}, interval="1s")
    namespace.ready("Repository", "app")
    disturb(server, f"{namespace}/app", look(server, f"{namespace}/app"))
    namespace.until("Repository", "app", lambda one: conditions(one)["Drifted"]["reason"] == "DriftCorrected")
    # A disturbance that comes in the middle of a look may take two.
    namespace.until("Repository", "app", lambda _: look(server, f"{namespace}/app")["tags"].get("team") == "blue")
    namespace.until("Repository", "app", lambda _: look(server, f"{namespace}/app")["imageTagMutability"] == "IMMUTABLE")


def test_one_that_was_deleted_behind_our_back_is_made_again(namespace, where):
    registry, server = where
    declare(namespace, registry)
    namespace.ready("Repository", "app")
    server.ecr.delete_repository(repositoryName=f"{namespace}/app")
    namespace.reconcile("Repository", "app")
    assert owner(server.repository(f"{namespace}/app"))[1:] == (namespace.name, "app")
    assert "DriftCorrected" in reasons(namespace)


def test_order_makes_no_difference(namespace, where):
    """Lists whose order means nothing are no drift."""
    registry, server = where
    filters = [{"filterType": "WILDCARD", "filter": one} for one in ("dev-*", "tmp-*")]
    declare(namespace, registry, imageTagMutability="MUTABLE_WITH_EXCLUSION", imageTagMutabilityExclusionFilters=filters)
    before = namespace.ready("Repository", "app")
    server.ecr.put_image_tag_mutability(
        repositoryName=f"{namespace}/app", imageTagMutability="MUTABLE_WITH_EXCLUSION",
        imageTagMutabilityExclusionFilters=filters[::-1],
    )  # fmt: skip
    after = namespace.reconcile("Repository", "app")
    assert conditions(after)["Drifted"] == conditions(before)["Drifted"]


class TestAdoption:
    def test_what_is_there_is_taken_over(self, namespace, where, operator):
        registry, server = where
        server.ecr.create_repository(repositoryName=f"{namespace}/app", tags=[{"Key": "kept", "Value": "yes"}])
        declare(namespace, registry, imageTagMutability="IMMUTABLE")
        namespace.ready("Repository", "app", "InSync")
        found = server.repository(f"{namespace}/app")
        assert owner(found) == (operator.cluster_name, namespace.name, "app")
        assert found["tags"]["kept"] == "yes"
        assert found["imageTagMutability"] == "IMMUTABLE"
        assert reasons(namespace) == ["Adopted"]

    def test_create_takes_nothing_over(self, namespace, where):
        registry, server = where
        server.ecr.create_repository(repositoryName=f"{namespace}/app")
        declare(namespace, registry, adoptionPolicy="Create", imageTagMutability="IMMUTABLE")
        namespace.stalled("Repository", "app", "AlreadyExists", "AdoptOrCreate")
        found = server.repository(f"{namespace}/app")
        assert (found["tags"], found["imageTagMutability"]) == ({}, "MUTABLE")

    def test_adopt_makes_nothing_and_waits(self, namespace, where):
        registry, server = where
        declare(namespace, registry, adoptionPolicy="Adopt", interval="1s")
        namespace.waiting("Repository", "app", "NotFound", "AdoptOrCreate")
        assert server.repository(f"{namespace}/app") is None
        server.ecr.create_repository(repositoryName=f"{namespace}/app")
        namespace.ready("Repository", "app", "InSync")


class TestConflict:
    def test_two_resources_the_younger_is_refused(self, namespace, make_namespace, where):
        registry, server = where
        declare(namespace, registry, tags={"whose": "first"})
        namespace.ready("Repository", "app")
        other = make_namespace()
        other.apply({
            "apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "app"},
            "spec": {"registryRef": {"name": registry}, "repositoryName": f"{namespace}/app", "tags": {"whose": "second"}},
        })  # fmt: skip
        message = f"{namespace}/app in {registry} is managed by Repository {namespace}/app"
        other.stalled("Repository", "app", "OwnedByAnother", message)
        assert server.repository(f"{namespace}/app")["tags"]["whose"] == "first"
        assert [event["reason"] for event in other.events("Repository", "app")] == ["OwnedByAnother"]
        # When the first is deleted, the second has it within seconds.
        namespace.delete("Repository", "app")
        other.ready("Repository", "app", "InSync")
        assert server.repository(f"{namespace}/app")["tags"]["whose"] == "second"

    def test_two_clusters_never_fight(self, namespace, where, make_cluster, make_operator, make_namespace):
        registry, server = where
        declare(namespace, registry, tags={"whose": "first"}, interval="1s")
        namespace.ready("Repository", "app")
        abroad = make_cluster()
        make_operator(abroad, cluster_name="abroad")
        theirs = make_namespace(kube=abroad.kube)
        name = theirs.declare(server)
        theirs.ready("Registry", name)
        theirs.apply({
            "apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "app"},
            "spec": {"registryRef": {"name": name}, "repositoryName": f"{namespace}/app", "tags": {"whose": "second"}, "interval": "1s"},
        })  # fmt: skip
        theirs.stalled("Repository", "app", "OwnedByAnother", "of cluster")
        theirs.reconcile("Repository", "app")
        namespace.reconcile("Repository", "app")
        assert server.repository(f"{namespace}/app")["tags"]["whose"] == "first"
        theirs.delete("Repository", "app")
        theirs.gone("Repository", "app")
        assert server.repository(f"{namespace}/app")["tags"]["whose"] == "first"


class TestTwoThatAreOneRegistry:
    """Two Registry resources for one server, and a Repository in each that asks for the same name."""

    WITH_IMAGES: ClassVar = {"deletionPolicy": "Delete", "emptyOnDelete": True}

    @staticmethod
    def ask(namespace, registry, name, **spec):
        spec = {"registryRef": {"name": registry}, "repositoryName": name, **spec}
        metadata = {"name": "app"}
        namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": metadata, "spec": spec})

    def test_the_one_that_has_it_keeps_it(self, namespace, make_namespace, registry, operator):
        first, second = namespace.declare(registry), namespace.declare(registry)
        for each in (first, second):
            namespace.ready("Registry", each)
        other, name = make_namespace(), f"{namespace}/app"
        declare(namespace, first, tags={"whose": "first"}, interval="1s")
        namespace.ready("Repository", "app")
        images.push(registry.ecr, name, images.image("hello"), "v1")
        younger = {"tags": {"whose": "second"}, "interval": "1s", **self.WITH_IMAGES}
        self.ask(other, second, name, **younger)
        other.stalled("Repository", "app", "OwnedByAnother", f"{name} in {second} is managed by Repository {namespace}/app")
        namespace.reconcile("Repository", "app")
        other.reconcile("Repository", "app")
        assert registry.repository(name)["tags"]["whose"] == "first"
        other.delete("Repository", "app")
        other.gone("Repository", "app")
        assert len(registry.ecr.list_images(repositoryName=name)["imageIds"]) == 1
        # When the first is deleted, the second has it.
        self.ask(other, second, name, **younger)
        other.stalled("Repository", "app", "OwnedByAnother")
        namespace.delete("Repository", "app")
        other.ready("Repository", "app", "InSync")
        assert registry.repository(name)["tags"]["whose"] == "second"

    def test_nor_does_it_change_hands_when_the_operator_starts_again(self, make_cluster, make_operator, make_namespace, front):
        cluster = make_cluster()
        operator, namespace = make_operator(cluster), make_namespace(kube=cluster.kube)
        first, second, other = namespace.declare(front), namespace.declare(front), make_namespace(kube=cluster.kube)
        for each in (first, second):
            namespace.ready("Registry", each)
        for number in range(8):
            declare(namespace, first, f"app-{number}")
            namespace.ready("Repository", f"app-{number}")
            spec = {"registryRef": {"name": second}, "repositoryName": f"{namespace}/app-{number}", **self.WITH_IMAGES}
            metadata = {"name": f"app-{number}"}
            other.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": metadata, "spec": spec})
            other.stalled("Repository", f"app-{number}", "OwnedByAnother")
        start = len(front.calls)
        for _ in range(2):
            operator.restart()
            for number in range(8):
                assert has_state(other.reconcile("Repository", f"app-{number}"), "Stalled", "OwnedByAnother")
                assert has_state(namespace.reconcile("Repository", f"app-{number}"), "Ready", "InSync")
        assert front.counted(start).get("TagResource", 0) == 0


class TestBorders:
    def test_a_name_outside_the_prefixes_is_refused_until_it_is_allowed(self, make_namespace, registry, operator):
        namespace = make_namespace(labels={"team": "payments"})
        allowed = [{"selector": {"matchLabels": {"team": "payments"}}, "repositoryPrefixes": ["payments/"]}]
        name = namespace.declare(registry, allowedNamespaces=allowed)
        namespace.apply({
            "apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "api"},
            "spec": {"registryRef": {"name": name}, "repositoryName": "billing/api"},
        })  # fmt: skip
        message = f"namespace {namespace} may use payments/ in Registry {name}, not billing/api"
        namespace.stalled("Repository", "api", "NotAllowed", message)
        assert registry.names() == set()
        allowed[0]["repositoryPrefixes"].append("billing/")
        namespace.patch("Registry", name, {"spec": {"allowedNamespaces": allowed}})
        namespace.ready("Repository", "api", "InSync")

    def test_a_namespace_that_loses_its_label_loses_its_right(self, make_namespace, registry, operator):
        namespace = make_namespace(labels={"team": "payments"})
        name = namespace.declare(registry, allowedNamespaces=[{"selector": {"matchLabels": {"team": "payments"}}}])
        declare(namespace, name)
        namespace.ready("Repository", "app")
        namespace.kube.patch("Namespace", namespace.name, {"metadata": {"labels": {"team": None}}})
        namespace.stalled("Repository", "app", "NotAllowed", "allowedNamespaces")
        assert registry.names() == {f"{namespace}/app"}


class TestDeletion:
    def test_it_stays_by_default_and_is_nobodys(self, namespace, where):
        registry, server = where
        declare(namespace, registry, tags={"team": "blue"})
        namespace.ready("Repository", "app")
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")
        assert server.repository(f"{namespace}/app")["tags"] == {"team": "blue"}

    def test_it_goes_when_that_is_asked_for(self, namespace, where):
        registry, server = where
        declare(namespace, registry, deletionPolicy="Delete")
        namespace.ready("Repository", "app")
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")
        assert server.repository(f"{namespace}/app") is None

    def test_one_with_images_stays_unless_emptying_is_asked_for_too(self, namespace, home, registry):
        declare(namespace, home, deletionPolicy="Delete", interval="1s")
        namespace.ready("Repository", "app")
        images.push(registry.ecr, f"{namespace}/app", images.image("hello"), "v1")
        namespace.delete("Repository", "app")
        namespace.until(
            "Repository", "app",
            lambda one: conditions(one).get("Stalled", {}).get("reason") == "RepositoryNotEmptyException", "refused by the registry",
        )  # fmt: skip
        assert registry.names() == {f"{namespace}/app"}
        namespace.patch("Repository", "app", {"spec": {"emptyOnDelete": True}})
        namespace.gone("Repository", "app")
        assert registry.names() == set()

    def test_protection_keeps_it(self, namespace, where):
        registry, server = where
        declare(namespace, registry, deletionPolicy="Delete", emptyOnDelete=True, deletionProtection=True)
        namespace.ready("Repository", "app")
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")
        assert server.repository(f"{namespace}/app") is not None

    def test_what_another_owns_is_left_alone(self, namespace, where):
        registry, server = where
        tags = [{"Key": key, "Value": value} for key, value in zip(OWNER, ("elsewhere", "team", "app"), strict=True)]
        server.ecr.create_repository(repositoryName=f"{namespace}/app", tags=tags)
        declare(namespace, registry, deletionPolicy="Delete", emptyOnDelete=True)
        namespace.stalled("Repository", "app", "OwnedByAnother", "elsewhere")
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")
        assert owner(server.repository(f"{namespace}/app")) == ("elsewhere", "team", "app")

    def test_a_registry_that_is_gone_holds_nothing_that_is_retained(self, namespace, registry, operator):
        name = namespace.declare(registry)
        declare(namespace, name)
        namespace.ready("Repository", "app")
        registry.stop()
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")
        registry.start()
        assert registry.names() == {f"{namespace}/app"}

    @pytest.mark.parametrize("change", [{"deletionPolicy": "Retain"}, {"deletionProtection": True}, {"suspend": True}])
    def test_what_it_said_last_holds_for_a_reconcile_that_is_under_way(self, namespace, registry, front, operator, change):
        home = namespace.declare(front)
        declare(namespace, home, deletionPolicy="Delete", emptyOnDelete=True)
        namespace.ready("Repository", "app")
        name = f"{namespace}/app"
        images.push(registry.ecr, name, images.image("hello"), "v1")
        front.pause("DescribeRepositories", f'"{name}"')
        namespace.patch("Repository", "app", {"metadata": {"annotations": {REQUESTED_AT: "now"}}})
        namespace.until("Repository", "app", lambda _: front.held, "being reconciled")
        namespace.patch("Repository", "app", {"spec": change})
        namespace.delete("Repository", "app")
        # A later event of the same watch has arrived, so that the operator knows that it is being deleted.
        declare(namespace, home, "marker")
        namespace.ready("Repository", "marker")
        front.go_on()
        namespace.gone("Repository", "app")
        assert len(registry.ecr.list_images(repositoryName=name)["imageIds"]) == 1
        assert "DeleteRepository" not in front.calls

    def test_without_the_registry_resource_it_goes_too(self, namespace, registry, operator):
        name = namespace.declare(registry)
        declare(namespace, name)
        namespace.ready("Repository", "app")
        namespace.delete("Registry", name)
        namespace.waiting("Repository", "app", "ReferenceNotFound")
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")

    def test_deleting_waits_for_a_registry_that_is_away(self, namespace, registry, operator):
        name = namespace.declare(registry)
        declare(namespace, name, deletionPolicy="Delete")
        namespace.ready("Repository", "app")
        registry.stop()
        namespace.delete("Repository", "app")
        namespace.until("Repository", "app", lambda one: conditions(one).get("Ready", {}).get("reason") == "RegistryUnavailable", "waiting")
        registry.start()
        namespace.gone("Repository", "app")
        assert registry.names() == set()


class TestObserve:
    def test_it_looks_and_changes_nothing(self, namespace, where):
        registry, server = where
        server.ecr.create_repository(repositoryName=f"{namespace}/app")
        declare(namespace, registry, managementPolicy="Observe", imageTagMutability="IMMUTABLE")
        seen = namespace.ready("Repository", "app", "Observed")
        drifted = conditions(seen)["Drifted"]
        assert drifted["status"] == "True"
        assert "imageTagMutability: MUTABLE -> IMMUTABLE" in drifted["message"]
        assert seen["status"]["repositoryUri"] == server.repository(f"{namespace}/app")["repositoryUri"]
        assert "finalizers" not in seen["metadata"]
        found = server.repository(f"{namespace}/app")
        assert (found["tags"], found["imageTagMutability"]) == ({}, "MUTABLE")
        namespace.delete("Repository", "app")
        namespace.gone("Repository", "app")
        assert server.repository(f"{namespace}/app") is not None

    def test_it_waits_for_what_is_not_there(self, namespace, where):
        registry, server = where
        declare(namespace, registry, managementPolicy="Observe", interval="1s")
        namespace.waiting("Repository", "app", "NotFound")
        server.ecr.create_repository(repositoryName=f"{namespace}/app")
        namespace.ready("Repository", "app", "Observed")


def test_suspended_nothing_is_done(namespace, where):
    registry, server = where
    declare(namespace, registry, imageTagMutability="IMMUTABLE", interval="1s")
    namespace.ready("Repository", "app")
    declare(namespace, registry, imageTagMutability="MUTABLE", interval="1s", suspend=True)
    rests = namespace.until("Repository", "app", lambda one: "Suspended" in conditions(one))
    assert rests["status"]["observedGeneration"] < rests["metadata"]["generation"]
    assert conditions(rests)["Ready"]["status"] == "True"
    assert "Reconciling" not in conditions(rests)
    assert "Suspended" in reasons(namespace)
    assert server.repository(f"{namespace}/app")["imageTagMutability"] == "IMMUTABLE"
    declare(namespace, registry, imageTagMutability="MUTABLE", interval="1s")
    namespace.ready("Repository", "app", "InSync")
    assert server.repository(f"{namespace}/app")["imageTagMutability"] == "MUTABLE"


class TestReferences:
    def test_a_registry_that_comes_late(self, namespace, registry, operator):
        name = f"{namespace}-late"
        declare(namespace, name)
        waiting = namespace.waiting("Repository", "app", "ReferenceNotFound", f'Registry "{name}" does not exist')
        assert conditions(waiting)["ReferencesResolved"]["status"] == "False"
        namespace.declare(registry, name=name)
        ready = namespace.ready("Repository", "app", "InSync")
        assert conditions(ready)["ReferencesResolved"]["status"] == "True"

    def test_a_registry_that_is_there_is_a_reference_that_is_resolved(self, namespace, front, operator):
        unreachable, unready = f"{namespace}-unreachable", f"{namespace}-unready"
        declare(namespace, unreachable, "of-unreachable")
        declare(namespace, unready, "of-unready")
        for name in ("of-unreachable", "of-unready"):
            namespace.waiting("Repository", name, "ReferenceNotFound")
        front.fail(status=503)
        namespace.declare(front, name=unreachable)
        missing = {"credentialsSecretRef": {"name": "missing", "namespace": namespace.name}}
        endpoint = {"region": front.region, "endpoint": front.declaration() | missing}
        namespace.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": unready}, "spec": endpoint})
        for name, reason in (("of-unreachable", "RegistryUnavailable"), ("of-unready", "RegistryNotReady")):
            waiting = namespace.waiting("Repository", name, reason)
            assert conditions(waiting)["ReferencesResolved"]["status"] == "True", name

    def test_credentials_that_come_late_and_are_changed(self, namespace, registry, operator):
        name = namespace.declare(registry, credentials=False)
        reference = {"credentialsSecretRef": {"name": "late", "namespace": namespace.name}}
        namespace.patch("Registry", name, {"spec": {"endpoint": reference}})
        declare(namespace, name)
        namespace.waiting("Registry", name, "ReferenceNotFound", f"Secret {namespace}/late does not exist")
        namespace.waiting("Repository", "app", "RegistryNotReady")
        namespace.secret("late", AWS_ACCESS_KEY_ID=registry.credentials["AWS_ACCESS_KEY_ID"], AWS_SECRET_ACCESS_KEY="wrong")
        namespace.stalled("Registry", name)
        namespace.secret("late", **registry.credentials)
        namespace.ready("Registry", name, "Serving")
        namespace.ready("Repository", "app", "InSync")


def never(front, operation, how):
    """From now on the operation does not work, and others do."""
    match how:
        case "error":
            body = '{"__type":"ServerException","message":"oops"}'
            front.fail(operation, 500, body, **{"Content-Type": "application/x-amz-json-1.1"})
        case "unavailable":
            front.fail(operation, 503)
        case "garbage":
            front.fail(operation, 200, "<html>welcome</html>")
        case "lost":
            front.lose(operation)


class TestTrouble:
    def test_the_registrys_own_words_stand_in_the_status(self, namespace, front, operator):
        name = namespace.declare(front)
        namespace.ready("Registry", name)
        body = '{"__type":"LimitExceededException","message":"the registry has as many repositories as it may"}'
        front.fail("CreateRepository", 400, body, **{"Content-Type": "application/x-amz-json-1.1"})
        declare(namespace, name, interval="1s")
        namespace.stalled("Repository", "app", "LimitExceededException", "as many repositories as it may")
        assert "LimitExceededException" in reasons(namespace)
        front.heal()
        namespace.ready("Repository", "app", "InSync")

    @pytest.mark.parametrize("how", ["error", "unavailable", "garbage", "lost"])
    def test_one_operation_that_never_works_is_no_reason_to_leave_the_registry_alone(self, namespace, front, operator, how):
        name = namespace.declare(front)
        namespace.ready("Registry", name)
        never(front, "SetRepositoryPolicy", how)
        declare(namespace, name, "with-policy", repositoryPolicy=POLICY, interval="1s")
        if how == "error":
            namespace.stalled("Repository", "with-policy", "ServerException", "oops")
        else:
            namespace.waiting("Repository", "with-policy", "RegistryUnavailable")
        declare(namespace, name, "other")
        namespace.ready("Repository", "other", "InSync")
        assert has_state(namespace.reconcile("Registry", name), "Ready")
        front.heal()
        namespace.ready("Repository", "with-policy", "InSync")

    @pytest.mark.parametrize("how", ["error", "unavailable", "garbage", "lost"])
    def test_a_registry_that_comes_back_without_one_operation_is_back(self, namespace, front, operator, how):
        name = namespace.declare(front)
        declare(namespace, name, "with-policy", interval="1s")
        namespace.ready("Repository", "with-policy")
        front.fail(status=503, body="unavailable")
        # The only resource that calls, and its call never succeeds again.
        declare(namespace, name, "with-policy", repositoryPolicy=POLICY, interval="1s")
        namespace.waiting("Repository", "with-policy", "RegistryUnavailable", f"Registry {name} has been unreachable since")
        never(front, "SetRepositoryPolicy", how)
        front.heal(".*")
        declare(namespace, name, "other")
        namespace.ready("Repository", "other", "InSync")
        namespace.ready("Registry", name)
        front.heal()
        namespace.ready("Repository", "with-policy", "InSync")

    @pytest.mark.parametrize("how", ["throttling", "errors", "garbage", "frozen", "gone"])
    def test_a_registry_that_is_not_well_is_waited_for(self, namespace, front, registry, operator, how):
        name = namespace.declare(front)
        declare(namespace, name, interval="1s")
        namespace.ready("Repository", "app")
        match how:
            case "throttling":
                front.throttle()
            case "errors":
                front.fail(status=500, body='{"__type":"ServerException","message":"oops"}')
            case "garbage":
                front.fail(status=200, body="<html>welcome</html>")
            case "frozen":
                registry.freeze()
            case "gone":
                registry.stop()
        declare(namespace, name, interval="1s", imageTagMutability="IMMUTABLE")
        if how == "frozen":
            # It takes the client's timeout to find out; meanwhile the resource is simply not reconciled yet.
            assert not has_state(namespace.get("Repository", "app"), "Ready")
        else:
            namespace.waiting("Repository", "app", "RegistryUnavailable", f"Registry {name} has been unreachable since")
        match how:
            case "frozen":
                registry.thaw()
            case "gone":
                registry.start()
            case _:
                front.heal()
        namespace.ready("Repository", "app", "InSync")
        assert registry.repository(f"{namespace}/app")["imageTagMutability"] == "IMMUTABLE"

    def test_a_registry_that_is_away_is_not_hammered(self, namespace, front, operator):
        name = namespace.declare(front)
        for number in range(20):
            declare(namespace, name, f"app-{number}", interval="1s")
        for number in range(20):
            namespace.ready("Repository", f"app-{number}")
        front.fail(status=200, body="<html>welcome</html>")
        for number in range(20):
            declare(namespace, name, f"app-{number}", interval="1s", imageTagMutability="IMMUTABLE")
        for number in range(20):
            namespace.waiting("Repository", f"app-{number}", "RegistryUnavailable")
        asked = len(front.calls)
        declare(namespace, name, "one-more")
        namespace.waiting("Repository", "one-more", "RegistryUnavailable")
        # Twenty resources that each want to try every second: one asks for all, and ever more seldom.
        assert len(front.calls) - asked <= 3
        front.heal()
        for number in range(20):
            namespace.ready("Repository", f"app-{number}", "InSync")


def test_a_finalizer_that_came_with_the_manifest_holds_nobody(namespace, home):
    """As in an object exported and applied again, or restored from a backup: the operator is not its only manager."""
    declare(namespace, home)
    namespace.ready("Repository", "app")
    finalizers = ["example.com/first", "wharfage.dev/finalizer"]
    restored = {"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "app", "finalizers": finalizers}}
    namespace.kube.apply(restored, namespace.name, manager="backup")
    namespace.delete("Repository", "app")
    namespace.until("Repository", "app", lambda one: one["metadata"]["finalizers"] == ["example.com/first"], "released by us alone")
    namespace.kube.apply(restored | {"metadata": {"name": "app", "finalizers": []}}, namespace.name, manager="backup")
    namespace.gone("Repository", "app")


def test_nothing_of_peoples_objects_is_written(namespace, home):
    """Spec, labels and annotations are whose they were: the operator has written the status and its finalizer."""
    declare(namespace, home, labels={"tier": "prod"}, imageTagMutability="IMMUTABLE")
    ready = namespace.ready("Repository", "app")
    managers = {(it["manager"], it.get("subresource")): it["fieldsV1"] for it in ready["metadata"]["managedFields"]}
    assert set(managers) == {("tests", None), ("wharfage", "status"), ("wharfage-finalizer", None)}
    assert set(managers["wharfage", "status"]) == {"f:status"}
    assert managers["wharfage-finalizer", None] == {"f:metadata": {"f:finalizers": {".": {}, 'v:"wharfage.dev/finalizer"': {}}}} or (
        managers["wharfage-finalizer", None] == {"f:metadata": {"f:finalizers": {'v:"wharfage.dev/finalizer"': {}}}}
    )


def test_when_nothing_changes_nothing_is_written(namespace, front, cluster, operator):
    """In steady state neither the API server is written to, nor the registry asked for each resource."""
    name = namespace.declare(front)
    for number in range(10):
        declare(namespace, name, f"app-{number}", imageTagMutability="IMMUTABLE")
    before = [namespace.ready("Repository", f"app-{number}") for number in range(10)]
    versions = {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in before}
    # A reconcile of each, by a label that means nothing to it.
    for number in range(10):
        namespace.reconcile("Repository", f"app-{number}")
    after = {one["metadata"]["name"]: one for one in namespace.list("Repository")}
    for one in before:
        now = after[one["metadata"]["name"]]
        same = ("observedGeneration", "conditions", "imageCount", "repositoryUri")
        assert {key: now["status"].get(key) for key in same} == {key: one["status"].get(key) for key in same}
        assert versions[one["metadata"]["name"]] != now["metadata"]["resourceVersion"], "the annotation"


def test_a_minute_without_the_registry(namespace, front, operator):
    """Nothing is lost, nobody has to do anything, and meanwhile the registry is asked ever more seldom."""
    name = namespace.declare(front)
    for number in range(10):
        declare(namespace, name, f"app-{number}", interval="1s")
    for number in range(10):
        namespace.ready("Repository", f"app-{number}")
    front.fail(status=503, body="unavailable")
    for number in range(10):
        declare(namespace, name, f"app-{number}", interval="1s", imageTagMutability="IMMUTABLE")
    declare(namespace, name, "new", interval="1s")
    namespace.waiting("Repository", "new", "RegistryUnavailable")
    namespace.delete("Repository", "app-9")
    namespace.gone("Repository", "app-9")
    asked = len(front.calls)
    time.sleep(60)
    # Pauses of 1, 2, 4, 8, 16 and 32 s, each ended by one call; a call already started is tried five times.
    assert len(front.calls) - asked <= 40
    front.heal()
    for number in range(9):
        namespace.ready("Repository", f"app-{number}", "InSync")
        assert front.repository(f"{namespace}/app-{number}")["imageTagMutability"] == "IMMUTABLE"
    namespace.ready("Repository", "new", "InSync")
    assert front.repository(f"{namespace}/app-9")["imageTagMutability"] == "MUTABLE"
