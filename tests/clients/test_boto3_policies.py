"""Repository policies: put, got, deleted, and refused when they are none."""

import json

import pytest

from conftest import refused

PULL = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "partners may pull",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::210987654321:root"},
            "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
        }
    ],
}


def statement(**members):
    return json.dumps({**PULL, "Statement": [{**PULL["Statement"][0], **members}]})


def without(member):
    kept = {name: value for name, value in PULL["Statement"][0].items() if name != member}
    return json.dumps({**PULL, "Statement": [kept]})


def test_a_policy_is_put_got_and_deleted(ecr, repository):
    named = {"registryId": "123456789012", "repositoryName": repository}

    def returned(answer):
        assert {name: answer[name] for name in named} == named
        return json.loads(answer["policyText"])

    assert returned(ecr.set_repository_policy(repositoryName=repository, policyText=json.dumps(PULL))) == PULL
    assert returned(ecr.get_repository_policy(repositoryName=repository)) == PULL
    assert returned(ecr.delete_repository_policy(repositoryName=repository)) == PULL
    message = f"Repository policy does not exist for the repository with name '{repository}' in the registry with id '123456789012'"
    for operation in (ecr.get_repository_policy, ecr.delete_repository_policy):
        with refused("RepositoryPolicyNotFoundException", message):
            operation(repositoryName=repository)


def test_a_policy_replaces_the_one_before(ecr, repository):
    ecr.set_repository_policy(repositoryName=repository, policyText=json.dumps(PULL))
    ecr.set_repository_policy(repositoryName=repository, policyText=statement(Action="ecr:ListImages"))
    (found,) = json.loads(ecr.get_repository_policy(repositoryName=repository)["policyText"])["Statement"]
    assert found["Action"] in ("ecr:ListImages", ["ecr:ListImages"])


@pytest.mark.parametrize(
    "text",
    [
        statement(Principal="*"),
        statement(Principal={"AWS": "210987654321"}),
        statement(Principal={"AWS": ["arn:aws:iam::210987654321:role/ci", "arn:aws:iam::210987654321:user/me"]}),
        statement(Principal={"Service": "codebuild.amazonaws.com"}),
        statement(Action="ecr:*"),
        statement(Condition={"StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}}),
        json.dumps({"Version": "2008-10-17", "Statement": PULL["Statement"][0]}),
    ],
)
def test_what_iams_grammar_allows_is_taken(ecr, repository, text):
    ecr.set_repository_policy(repositoryName=repository, policyText=text)
    assert ecr.get_repository_policy(repositoryName=repository)["policyText"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({**PULL, "Version": "2024-01-01"}),
        json.dumps({**PULL, "Unknown": 1}),
        statement(Effect="Maybe"),
        statement(Resource="*"),
        statement(Unknown=1),
        statement(Principal={"AWS": "arn:aws:iam::210987654321:group/all"}),
        statement(Principal={"AWS": "everyone"}),
        statement(Condition={"StringSounds": {"aws:PrincipalOrgID": "o"}}),
        without("Principal"),
        without("Action"),
        without("Effect"),
    ],
)
def test_what_iams_grammar_does_not_allow_is_refused(unchecked, repository, text):
    with refused("InvalidParameterException", "(?i)invalid repository policy provided|policyText"):
        unchecked.set_repository_policy(repositoryName=repository, policyText=text)


def test_a_policy_of_more_than_ten_kibibytes_is_refused(unchecked, repository):
    with refused("InvalidParameterException", "(?i)policyText"):
        unchecked.set_repository_policy(repositoryName=repository, policyText=statement(Sid="x" * 10_240))


@pytest.mark.parametrize("operation", ["set_repository_policy", "get_repository_policy", "delete_repository_policy"])
def test_policies_need_a_repository(ecr, operation):
    text = {"policyText": json.dumps(PULL)} if operation.startswith("set") else {}
    with refused("RepositoryNotFoundException", "'not/there'"):
        getattr(ecr, operation)(repositoryName="not/there", **text)
