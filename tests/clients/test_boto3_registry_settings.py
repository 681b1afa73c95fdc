"""The settings of a registry: its policy, the scanning configuration, the account settings."""

import contextlib
import json

import pytest

from conftest import refused

ACCOUNT = "123456789012"
EVERYTHING = f"arn:aws:ecr:local-1:{ACCOUNT}:repository/*"

REPLICATE = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "another account may replicate to us",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::210987654321:root"},
            "Action": ["ecr:CreateRepository", "ecr:ReplicateImage"],
            "Resource": [EVERYTHING],
        }
    ],
}


def statement(**members):
    return json.dumps({**REPLICATE, "Statement": [{**REPLICATE["Statement"][0], **members}]})


def without(member):
    kept = {name: value for name, value in REPLICATE["Statement"][0].items() if name != member}
    return json.dumps({**REPLICATE, "Statement": [kept]})


@pytest.fixture
def no_policy(ecr):
    """A registry without a policy, which the test leaves behind, too."""

    def forget():
        with contextlib.suppress(ecr.exceptions.RegistryPolicyNotFoundException):
            ecr.delete_registry_policy()

    forget()
    yield
    forget()


@pytest.fixture
def scanning(ecr):
    """Puts scanning configurations; the default one comes back after the test."""
    yield ecr.put_registry_scanning_configuration
    ecr.put_registry_scanning_configuration(scanType="BASIC", rules=[])


def rule(frequency, *filters):
    return {"scanFrequency": frequency, "repositoryFilters": [{"filter": it, "filterType": "WILDCARD"} for it in filters]}


# PutRegistryPolicy, GetRegistryPolicy, DeleteRegistryPolicy


def test_a_policy_is_put_got_and_deleted(ecr, no_policy):
    def returned(answer):
        assert answer["registryId"] == ACCOUNT
        return json.loads(answer["policyText"])

    assert returned(ecr.put_registry_policy(policyText=json.dumps(REPLICATE))) == REPLICATE
    assert returned(ecr.get_registry_policy()) == REPLICATE
    other = statement(Resource="*")
    assert returned(ecr.put_registry_policy(policyText=other)) == returned(ecr.get_registry_policy()) == json.loads(other)
    assert returned(ecr.delete_registry_policy()) == json.loads(other)
    message = f"^Registry policy does not exist in the registry with id '{ACCOUNT}'$"
    for operation in (ecr.get_registry_policy, ecr.delete_registry_policy):
        with refused("RegistryPolicyNotFoundException", message):
            operation()


@pytest.mark.parametrize(
    "text",
    [
        statement(Resource="*"),
        statement(Resource=[EVERYTHING, f"arn:aws:ecr:local-1:{ACCOUNT}:repository/team-?/*"]),
        statement(Principal="*", Condition={"StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}}),
        statement(Principal={"Service": "codebuild.amazonaws.com"}, Action="ecr:*"),
        json.dumps({"Version": "2008-10-17", "Statement": REPLICATE["Statement"][0]}),
    ],
)
def test_what_iams_grammar_allows_is_taken(ecr, no_policy, text):
    ecr.put_registry_policy(policyText=text)
    assert json.loads(ecr.get_registry_policy()["policyText"]) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({**REPLICATE, "Version": "2024-01-01"}),
        json.dumps({**REPLICATE, "Unknown": 1}),
        statement(Effect="Maybe"),
        statement(Unknown=1),
        statement(Principal={"AWS": "arn:aws:iam::210987654321:group/all"}),
        statement(Resource="team/*"),
        statement(Resource="arn:aws:s3:::bucket"),
        statement(NotResource="*"),
        without("Resource"),
        without("Principal"),
        without("Action"),
    ],
)
def test_a_policy_that_is_none_is_refused(ecr, no_policy, text):
    ecr.put_registry_policy(policyText=json.dumps(REPLICATE))
    message = "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid registry policy provided'"
    with refused("InvalidParameterException", message):
        ecr.put_registry_policy(policyText=text)
    assert json.loads(ecr.get_registry_policy()["policyText"]) == REPLICATE


# PutRegistryScanningConfiguration, GetRegistryScanningConfiguration


def test_a_scanning_configuration_is_put_and_got_and_says_basic_before(ecr, scanning):
    put = scanning(scanType="BASIC", rules=[])
    assert put["registryScanningConfiguration"] == {"scanType": "BASIC", "rules": []}
    rules = [rule("SCAN_ON_PUSH", "team/*", "api"), rule("CONTINUOUS_SCAN", "*prod*")]
    put = scanning(scanType="ENHANCED", rules=rules)
    assert put["registryScanningConfiguration"] == {"scanType": "ENHANCED", "rules": rules}
    got = ecr.get_registry_scanning_configuration()
    assert (got["registryId"], got["scanningConfiguration"]) == (ACCOUNT, {"scanType": "ENHANCED", "rules": rules})
    scanning()
    assert ecr.get_registry_scanning_configuration()["scanningConfiguration"] == {"scanType": "BASIC", "rules": []}


@pytest.mark.parametrize(
    ("scan_type", "rules", "message"),
    [
        ("BASIC", [rule("CONTINUOUS_SCAN", "*")], "CONTINUOUS_SCAN does not go with the scanType BASIC"),
        ("BASIC", [rule("SCAN_ON_PUSH", "a"), rule("SCAN_ON_PUSH", "b")], "two rules"),
        ("ENHANCED", [rule("CONTINUOUS_SCAN", "a"), rule("CONTINUOUS_SCAN", "b")], "two rules"),
        ("ENHANCED", [rule("MANUAL", "a")], "MANUAL"),
    ],
)
def test_rules_that_do_not_go_together_are_refused(ecr, scanning, scan_type, rules, message):
    kept = [rule("SCAN_ON_PUSH", "kept")]
    scanning(scanType="BASIC", rules=kept)
    with refused("ValidationException", message):
        scanning(scanType=scan_type, rules=rules)
    assert ecr.get_registry_scanning_configuration()["scanningConfiguration"]["rules"] == kept


@pytest.mark.parametrize(
    ("wrong", "member"),
    [
        ({"scanFrequency": "HOURLY", "repositoryFilters": []}, "scanFrequency"),
        ({"repositoryFilters": []}, "scanFrequency"),
        ({"scanFrequency": "SCAN_ON_PUSH"}, "repositoryFilters"),
        (rule("SCAN_ON_PUSH", *["a"] * 101), "repositoryFilters"),
        (rule("SCAN_ON_PUSH", ""), "filter"),
        (rule("SCAN_ON_PUSH", "a" * 256), "filter"),
        (rule("SCAN_ON_PUSH", "Upper"), "filter"),
        (rule("SCAN_ON_PUSH", "a--b"), "filter"),
        ({"scanFrequency": "SCAN_ON_PUSH", "repositoryFilters": [{"filter": "a"}]}, "filterType"),
        ({"scanFrequency": "SCAN_ON_PUSH", "repositoryFilters": [{"filterType": "WILDCARD"}]}, "filter"),
        ({"scanFrequency": "SCAN_ON_PUSH", "repositoryFilters": [{"filter": "a", "filterType": "REGEX"}]}, "filterType"),
    ],
)
def test_a_rule_that_is_none_is_refused(unchecked, scanning, wrong, member):
    with refused("InvalidParameterException", f"{member}' failed to satisfy constraint"):
        unchecked.put_registry_scanning_configuration(scanType="BASIC", rules=[wrong])


# BatchGetRepositoryScanningConfiguration


@pytest.fixture
def repositories(ecr, repository_name):
    """Three repositories, of which the last scans on push by its own setting."""
    names = [f"{repository_name}/{end}" for end in ("api", "prod", "own")]
    for name in names:
        ecr.create_repository(repositoryName=name, imageScanningConfiguration={"scanOnPush": name.endswith("own")})
    return names


def applied(ecr, names):
    """Frequency, scanOnPush and filters of each repository, in the order of the names."""
    answer = ecr.batch_get_repository_scanning_configuration(repositoryNames=names)
    assert answer["failures"] == []
    found = answer["scanningConfigurations"]
    assert [it["repositoryName"] for it in found] == names
    assert [it["repositoryArn"] for it in found] == [f"arn:aws:ecr:local-1:{ACCOUNT}:repository/{name}" for name in names]
    for it in found:
        assert all(filter["filterType"] == "WILDCARD" for filter in it["appliedScanFilters"])
    return [(it["scanFrequency"], it["scanOnPush"], [filter["filter"] for filter in it["appliedScanFilters"]]) for it in found]


def test_basic_scanning_is_by_a_rule_or_by_the_repositorys_own_setting(ecr, scanning, repositories):
    scanning(scanType="BASIC", rules=[])
    assert applied(ecr, repositories) == [("MANUAL", False, []), ("MANUAL", False, []), ("SCAN_ON_PUSH", True, [])]
    scanning(scanType="BASIC", rules=[rule("SCAN_ON_PUSH", "test/*/prod", "prod", "prod*")])
    decided = ["test/*/prod", "prod"]
    assert applied(ecr, repositories) == [("MANUAL", False, []), ("SCAN_ON_PUSH", True, decided), ("SCAN_ON_PUSH", True, [])]


def test_enhanced_scanning_is_by_rules_alone_and_continuous_wins(ecr, scanning, repositories):
    rules = [rule("SCAN_ON_PUSH", "*/api", "*/prod"), rule("CONTINUOUS_SCAN", "*prod")]
    scanning(scanType="ENHANCED", rules=rules)
    expected = [("SCAN_ON_PUSH", True, ["*/api"]), ("CONTINUOUS_SCAN", True, ["*prod"]), ("MANUAL", False, [])]
    assert applied(ecr, repositories) == expected


def test_repositories_that_are_not_there_are_failures(ecr, repository):
    names = ["not/there", repository]
    answer = ecr.batch_get_repository_scanning_configuration(repositoryNames=names)
    assert [it["repositoryName"] for it in answer["scanningConfigurations"]] == [repository]
    (failure,) = answer["failures"]
    assert (failure["repositoryName"], failure["failureCode"]) == ("not/there", "REPOSITORY_NOT_FOUND")
    assert "'not/there' does not exist" in failure["failureReason"]


# PutAccountSetting, GetAccountSetting


@pytest.mark.parametrize(
    ("name", "default", "other"),
    [("BASIC_SCAN_TYPE_VERSION", "AWS_NATIVE", "CLAIR"), ("REGISTRY_POLICY_SCOPE", "V2", "V1")],
)
def test_an_account_setting_has_its_default_until_it_is_put(ecr, name, default, other):
    assert ecr.get_account_setting(name=name)["value"] == default
    for value in (other, default):
        put = ecr.put_account_setting(name=name, value=value)
        assert (put["name"], put["value"]) == (name, value)
        got = ecr.get_account_setting(name=name)
        assert (got["name"], got["value"]) == (name, value)


@pytest.mark.parametrize(("name", "value"), [("NO_SUCH_SETTING", "V2"), ("REGISTRY_POLICY_SCOPE", "V3"), ("BLOB_MOUNTING", "")])
def test_an_account_setting_that_is_none_is_refused(unchecked, name, value):
    with refused("InvalidParameterException"):
        unchecked.put_account_setting(name=name, value=value)
