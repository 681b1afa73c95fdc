"""Registry: reached in every way, with its own settings kept as it says."""

import json
import re
import time

import trustme

import images
from kube import conditions, has_state
from registries import DENIED, drift

POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "theirs", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::210987654321:root"},
            "Action": ["ecr:ReplicateImage"], "Resource": "arn:aws:ecr:*:123456789012:repository/*",
        }
    ],
}  # fmt: skip
SCANNING = {
    "scanType": "BASIC",
    "rules": [{"scanFrequency": "SCAN_ON_PUSH", "repositoryFilters": [{"filter": "*", "filterType": "WILDCARD"}]}],
}


def test_its_status_tells_what_it_is(namespace, registry, home):
    registry.ecr.create_repository(repositoryName="team/one")
    found = namespace.reconcile("Registry", home)["status"]
    assert found["endpoint"] == registry.url
    assert found["usage"]["repositories"] == 1
    assert found["quotas"] == [{"name": "repositories", "used": 1, "limit": 100000}]
    columns = namespace.kubectl("get", "registry", home).splitlines()
    assert columns[0].split() == ["NAME", "READY", "ENDPOINT", "REPOSITORIES", "IMAGES", "SIZE", "AGE"]
    assert columns[1].split()[:4] == [home, "True", registry.url, "1"]


def test_its_usage_has_images_that_no_repository_resource_declares(namespace, registry, operator):
    registry.ecr.create_repository(repositoryName="team/app")
    images.push(registry.ecr, "team/app", images.image("hello"), "v1")
    name = namespace.declare(registry)
    usage = namespace.ready("Registry", name)["status"]["usage"]
    assert (usage["repositories"], usage["images"]) == (1, 1)
    (image,) = registry.ecr.describe_images(repositoryName="team/app")["imageDetails"]
    assert usage["bytes"] == image["imageSizeInBytes"]


def test_tls_with_a_certificate_of_ones_own(namespace, make_registry, operator):
    server = make_registry(tls=trustme.CA())
    name = namespace.declare(server)
    namespace.waiting("Registry", name, "RegistryUnavailable", "certificate")
    with open(server.ca) as bundle:
        namespace.secret("ca", **{"ca.crt": bundle.read()})
    reference = {"caBundleSecretRef": {"name": "ca", "namespace": namespace.name}}
    namespace.patch("Registry", name, {"spec": {"endpoint": reference}})
    namespace.ready("Registry", name, "Serving")
    namespace.secret("ca", **{"ca.crt": "no certificate"})
    namespace.stalled("Registry", name, "InvalidParameterException", "certificate")


def test_another_account_than_it_says(namespace, registry, operator):
    name = namespace.declare(registry, registryId="999999999999")
    namespace.stalled("Registry", name, "RegistryIdMismatch", "belong to registry 123456789012, not to 999999999999")


def test_an_assumed_role(namespace, moto, operator):
    name = namespace.declare(moto)
    role = {"roleArn": "arn:aws:iam::123456789012:role/registry"}
    namespace.patch("Registry", name, {"spec": {"aws": role}})
    namespace.ready("Registry", name, "Serving")


def sts_says(status, code, message):
    """An error as STS answers it: with the request's id, another one each time."""
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    body = f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">{error}<RequestId>an-id</RequestId></ErrorResponse>'
    return {"status": status, "body": body, "Content-Type": "text/xml"}


def test_a_role_that_is_refused_or_that_nobody_gives(make_cluster, make_operator, make_namespace, moto, make_front):
    cluster, sts = make_cluster(), make_front(moto)
    namespace = make_namespace(kube=cluster.kube)
    make_operator(cluster, environment=moto.environment | {"AWS_ENDPOINT_URL_STS": sts.url})
    sts.fail(**sts_says(503, "ServiceUnavailable", "later"))
    name = namespace.declare(moto)
    namespace.patch("Registry", name, {"spec": {"aws": {"roleArn": "arn:aws:iam::123456789012:role/registry"}}})
    namespace.waiting("Registry", name, "RegistryUnavailable", "there are no credentials to ask it with.*STS answers ServiceUnavailable")
    sts.heal()
    why = "User: arn:aws:iam::123456789012:user/a is not authorized to perform: sts:AssumeRole"
    sts.fail(**sts_says(403, "AccessDenied", why))
    first = namespace.stalled("Registry", name, "AccessDenied", f"STS refuses the credentials: {re.escape(why)}$")
    again = namespace.reconcile("Registry", name)
    assert conditions(again) == conditions(first)
    assert [event["reason"] for event in namespace.events("Registry", name)].count("AccessDenied") == 1
    sts.heal()
    namespace.reconcile("Registry", name)
    namespace.ready("Registry", name, "Serving")


def test_one_that_is_not_managed_goes_whatever_finalizer_it_has(namespace, registry, operator):
    """A manifest that was exported and applied again has it."""
    name = namespace.declare(registry)
    namespace.ready("Registry", name)
    namespace.patch("Registry", name, {"metadata": {"finalizers": ["wharfage.dev/finalizer"]}})
    namespace.delete("Registry", name)
    namespace.gone("Registry", name)


class TestSettings:
    def test_they_are_put_and_changed_and_kept(self, namespace, registry, operator):
        name = namespace.declare(registry, policy=POLICY, scanningConfiguration=SCANNING, accountSettings={"BLOB_MOUNTING": "ENABLED"})
        namespace.ready("Registry", name, "Serving")
        ecr = registry.ecr
        assert json.loads(ecr.get_registry_policy()["policyText"]) == POLICY
        assert ecr.get_registry_scanning_configuration()["scanningConfiguration"] == SCANNING
        assert ecr.get_account_setting(name="BLOB_MOUNTING")["value"] == "ENABLED"

        ecr.delete_registry_policy()
        ecr.put_registry_scanning_configuration(scanType="BASIC", rules=[])
        ecr.put_account_setting(name="BLOB_MOUNTING", value="DISABLED")
        corrected = namespace.reconcile("Registry", name)
        assert conditions(corrected)["Drifted"]["reason"] == "DriftCorrected"
        assert json.loads(ecr.get_registry_policy()["policyText"]) == POLICY
        assert ecr.get_registry_scanning_configuration()["scanningConfiguration"] == SCANNING
        assert ecr.get_account_setting(name="BLOB_MOUNTING")["value"] == "ENABLED"
        assert "DriftCorrected" in [event["reason"] for event in namespace.events("Registry", name)]

        namespace.patch("Registry", name, {"spec": {"accountSettings": {"BLOB_MOUNTING": "DISABLED"}}})
        namespace.ready("Registry", name, "Serving")
        assert ecr.get_account_setting(name="BLOB_MOUNTING")["value"] == "DISABLED"

    def test_two_that_are_one_registry_do_not_fight(self, namespace, registry, operator):
        settings = registry.ecr.get_account_setting
        older = namespace.declare(registry, accountSettings={"BLOB_MOUNTING": "ENABLED"})
        namespace.ready("Registry", older)
        # Creation times are in whole seconds.
        time.sleep(1)
        younger = namespace.declare(registry, accountSettings={"BLOB_MOUNTING": "DISABLED"}, scanningConfiguration=SCANNING)
        namespace.stalled("Registry", younger, "OwnedByAnother", f"accountSettings.BLOB_MOUNTING conflicts with Registry {older}")
        assert settings(name="BLOB_MOUNTING")["value"] == "ENABLED"
        namespace.reconcile("Registry", older)
        assert has_state(namespace.reconcile("Registry", younger), "Stalled", "OwnedByAnother")
        assert settings(name="BLOB_MOUNTING")["value"] == "ENABLED"
        # Both want the same of that, and only one of them has a word about the other.
        namespace.patch("Registry", younger, {"spec": {"accountSettings": {"BLOB_MOUNTING": "ENABLED"}}})
        namespace.ready("Registry", younger, "Serving")
        assert registry.ecr.get_registry_scanning_configuration()["scanningConfiguration"] == SCANNING
        namespace.patch("Registry", younger, {"spec": {"accountSettings": {"BLOB_MOUNTING": "DISABLED"}}})
        namespace.stalled("Registry", younger, "OwnedByAnother")
        namespace.delete("Registry", older)
        namespace.ready("Registry", younger, "Serving")
        assert settings(name="BLOB_MOUNTING")["value"] == "DISABLED"

    def test_an_operator_that_starts_again_does_not_fight_either(self, make_cluster, make_operator, make_namespace, front):
        cluster = make_cluster()
        operator, namespace = make_operator(cluster), make_namespace(kube=cluster.kube)
        older = namespace.declare(front, accountSettings={"BLOB_MOUNTING": "ENABLED"})
        namespace.ready("Registry", older)
        time.sleep(1)
        youngers = [namespace.declare(front, accountSettings={"BLOB_MOUNTING": "DISABLED"}) for _ in range(24)]
        for younger in youngers:
            namespace.stalled("Registry", younger, "OwnedByAnother")
        for _ in range(3):
            operator.restart()
            for name in [older, *youngers]:
                namespace.reconcile("Registry", name)
        assert front.calls.count("PutAccountSetting") == 1

    def test_throttling_while_they_are_looked_at_is_waited_for(self, namespace, front, operator):
        name = namespace.declare(front, policy=POLICY)
        namespace.ready("Registry", name)
        front.throttle("GetRegistryPolicy")
        namespace.patch("Registry", name, {"spec": {"scanningConfiguration": SCANNING}})
        namespace.waiting("Registry", name, "RegistryUnavailable", "has been unreachable since .*: ThrottlingException")
        front.heal()
        namespace.ready("Registry", name, "Serving")

    def test_one_that_cannot_be_looked_at_keeps_no_other_from_being_put(self, namespace, front, operator):
        front.fail(
            "GetRegistryPolicy", 500, '{"__type":"InternalFailure","message":"never"}', **{"Content-Type": "application/x-amz-json-1.1"}
        )
        name = namespace.declare(front, policy=POLICY, accountSettings={"BLOB_MOUNTING": "ENABLED"})
        namespace.stalled("Registry", name, "InternalFailure", "never")
        assert front.ecr.get_account_setting(name="BLOB_MOUNTING")["value"] == "ENABLED"

    def test_drift_that_cannot_be_corrected_is_reported(self, namespace, front, operator):
        name = namespace.declare(front, accountSettings={"BLOB_MOUNTING": "ENABLED"})
        namespace.ready("Registry", name)
        front.fail("PutAccountSetting", 400, DENIED, **{"Content-Type": "application/x-amz-json-1.1"})
        front.ecr.put_account_setting(name="BLOB_MOUNTING", value="DISABLED")
        for _ in range(2):
            found = namespace.reconcile("Registry", name)
            assert has_state(found, "Stalled", "AccessDeniedException")
            drifted = conditions(found)["Drifted"]
            assert (drifted["status"], drifted["reason"]) == ("True", "DriftDetected") and "BLOB_MOUNTING" in drifted["message"]
        front.heal()
        drifted = conditions(namespace.reconcile("Registry", name))["Drifted"]
        assert (drifted["status"], drifted["reason"]) == ("False", "DriftCorrected")
        assert drift(operator, name, "Registry") == (1, 1)

    def test_a_policy_without_sense_is_refused(self, namespace, registry, operator):
        name = namespace.declare(registry, policy={"Version": "2012-10-17", "Statement": [{"Effect": "Maybe"}]})
        namespace.stalled("Registry", name, "InvalidParameterException", "policy is not valid")
        namespace.patch("Registry", name, {"spec": {"policy": None}})
        namespace.ready("Registry", name, "Serving")
