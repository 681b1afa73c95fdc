"""Lifecycle policies: put, got, deleted, refused, previewed, and enforced."""

import json
import re
import time

import pytest

import images
from conftest import pages, refused

# The worst that a loaded machine may need for a job that takes milliseconds; only a failing test waits for it.
TIMEOUT = 120


def rule(priority=1, status="untagged", count="imageCountMoreThan", number=1, action="expire", **members):
    selection = {"tagStatus": status, "countType": count, "countNumber": number}
    if count != "imageCountMoreThan":
        selection["countUnit"] = "days"
    for name in ("tagPatternList", "tagPrefixList", "storageClass", "countUnit"):
        if name in members:
            selection[name] = members.pop(name)
    act = {"type": action} | ({"targetStorageClass": "archive"} if action == "transition" else {})
    return {"rulePriority": priority, "selection": selection, "action": act, **members}


def policy(*rules):
    return json.dumps({"rules": list(rules)})


def preview(ecr, repository, **parameters):
    """The finished preview's first page."""
    ecr.get_waiter("lifecycle_policy_preview_complete").wait(repositoryName=repository, WaiterConfig={"Delay": 1, "MaxAttempts": TIMEOUT})
    return ecr.get_lifecycle_policy_preview(repositoryName=repository, **parameters)


# PutLifecyclePolicy, GetLifecyclePolicy, DeleteLifecyclePolicy


def test_a_policy_is_put_got_and_deleted(ecr, repository):
    text = policy(rule(description="keep the youngest"))
    put = ecr.put_lifecycle_policy(repositoryName=repository, lifecyclePolicyText=text)
    assert (put["registryId"], put["repositoryName"]) == ("123456789012", repository)
    assert json.loads(put["lifecyclePolicyText"]) == json.loads(text)
    got = ecr.get_lifecycle_policy(repositoryName=repository)
    assert json.loads(got["lifecyclePolicyText"]) == json.loads(text)
    assert "lastEvaluatedAt" in got
    assert json.loads(ecr.delete_lifecycle_policy(repositoryName=repository)["lifecyclePolicyText"]) == json.loads(text)
    message = f"Lifecycle policy does not exist for the repository with name '{repository}' in the registry with id '123456789012'"
    for operation in (ecr.get_lifecycle_policy, ecr.delete_lifecycle_policy, ecr.start_lifecycle_policy_preview):
        with refused("LifecyclePolicyNotFoundException", message):
            operation(repositoryName=repository)


VALIDATION = "Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint: 'Lifecycle policy validation failure:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 100, "Could not map policyString into LifecyclePolicy"),
        (json.dumps([rule(description="d" * 60)]), "Could not map policyString into LifecyclePolicy"),
        (json.dumps({"padding": "x" * 100}), "required|not allowed"),
        (policy({"rulePriority": 1, "description": "x" * 100}), "object has missing required properties"),
        (policy(rule(note="x" * 40)), "properties which are not allowed by the schema"),
        (policy(rule(status="sometimes")), "not found in enum"),
        (policy(rule(count="sinceImagePushed", countUnit="weeks")), "not found in enum"),
        (policy(rule(count="sinceImageBorn")), "not found in enum|failed to match exactly one schema"),
        (policy(rule(countUnit="days")), r"failed to match exactly one schema \(matched 0 out of 4\)"),
        (
            policy(rule(status="tagged", tagPrefixList=None)),
            r'instance type \(null\) does not match any allowed primitive type \(allowed: \["array"\]\)',
        ),
        (policy(rule(number=0)), "lower than the required minimum"),
        (policy(rule(priority=0)), "lower than the required minimum"),
        (policy(rule(status="tagged")), "Must specify tagPrefixList or tagPatternList when tagStatus=TAGGED"),
        (policy(rule(tagPatternList=["v*"])), ""),
        (policy(rule(status="tagged", tagPatternList=["v*"], tagPrefixList=["v"])), ""),
        (policy(rule(), rule(status="any")), ""),
        (policy(rule(), rule(2)), "Only one rule can select Untagged images per storage class"),
        (policy(rule(status="any"), rule(2)), "Rule for tagStatus=ANY must have the lowest priority per storage class"),
        (policy(rule(1, "tagged", tagPrefixList=["a", "b"]), rule(2, "tagged", tagPrefixList=["b", "a"])), ""),
        (policy(*(rule(n, "tagged", tagPrefixList=[f"p{n}"]) for n in range(1, 52))), ""),
        (policy(rule(status="tagged", tagPatternList=["a*b*c*d*e*"])), ""),
        (policy(rule(count="sinceImagePulled", number=90)), ""),
        (policy(rule(count="sinceImageTransitioned", number=89, storageClass="archive")), ""),
    ],
)
def test_a_policy_that_is_none_is_refused_for_its_reason(ecr, repository, text, message):
    text = text.ljust(100)
    with refused("InvalidParameterException", VALIDATION) as caught:
        ecr.put_lifecycle_policy(repositoryName=repository, lifecyclePolicyText=text)
    assert re.search(message, caught.value.response["Error"]["Message"])
    with refused("LifecyclePolicyNotFoundException"):
        ecr.get_lifecycle_policy(repositoryName=repository)


@pytest.mark.parametrize("text", ['{"rules":[]}', policy(rule(description="x" * 30_720))])
def test_a_policy_out_of_bounds_is_refused(unchecked, repository, text):
    with refused("InvalidParameterException", "'lifecyclePolicyText' failed to satisfy constraint: 'Member must have length"):
        unchecked.put_lifecycle_policy(repositoryName=repository, lifecyclePolicyText=text)


# StartLifecyclePolicyPreview, GetLifecyclePolicyPreview


def test_a_preview_tells_what_would_go_and_touches_nothing(ecr, repository):
    pushed = [images.push(ecr, repository, images.image(f"{n}"), f"v{n}") for n in range(4)]
    untagged = images.push(ecr, repository, images.image("untagged"))
    text = policy(rule(1, "tagged", number=2, action="transition", tagPatternList=["v*"]), rule(2, "any", number=2))
    started = ecr.start_lifecycle_policy_preview(repositoryName=repository, lifecyclePolicyText=text)
    assert started["status"] == "IN_PROGRESS" and json.loads(started["lifecyclePolicyText"]) == json.loads(text)
    found = preview(ecr, repository)
    assert found["status"] == "COMPLETE" and json.loads(found["lifecyclePolicyText"]) == json.loads(text)
    by_digest = {result["imageDigest"]: result for result in found["previewResults"]}
    # The untagged image is the youngest of all, so the second rule, which counts every image, has none to take.
    assert by_digest.keys() == {pushed[0].digest, pushed[1].digest}
    assert untagged.digest not in by_digest
    result = by_digest[pushed[0].digest]
    assert result.pop("imagePushedAt")
    assert result == {
        "imageTags": ["v0"],
        "imageDigest": pushed[0].digest,
        "action": {"type": "TRANSITION", "targetStorageClass": "ARCHIVE"},
        "appliedRulePriority": 1,
        "storageClass": "STANDARD",
    }
    assert found["summary"] == {
        "expiringImageTotalCount": 0,
        "transitioningImageTotalCounts": [{"targetStorageClass": "ARCHIVE", "imageTotalCount": 2}],
    }
    assert len(ecr.list_images(repositoryName=repository)["imageIds"]) == 5


def test_a_preview_of_the_policy_that_is_put_is_paged_and_filtered(ecr, repository):
    pushed = [images.push(ecr, repository, images.image(f"{n}"), *[f"v{n}"] * (n % 2)) for n in range(6)]
    text = policy(rule(1, "any", number=1))
    started = ecr.start_lifecycle_policy_preview(repositoryName=repository, lifecyclePolicyText=text)
    assert started["status"] == "IN_PROGRESS"
    found = preview(ecr, repository)
    expired = {image.digest for image in pushed[:-1]}
    assert {result["imageDigest"] for result in found["previewResults"]} == expired
    assert found["summary"]["expiringImageTotalCount"] == 5
    assert "transitioningImageTotalCounts" not in found["summary"] or found["summary"]["transitioningImageTotalCounts"] == []
    paged = pages(ecr.get_lifecycle_policy_preview, "previewResults", repositoryName=repository, maxResults=2)
    assert [len(page) for page in paged] == [2, 2, 1]
    assert {result["imageDigest"] for page in paged for result in page} == expired
    tagged = preview(ecr, repository, filter={"tagStatus": "TAGGED"})["previewResults"]
    assert {result["imageDigest"] for result in tagged} == {pushed[1].digest, pushed[3].digest}
    one = preview(ecr, repository, imageIds=[{"imageDigest": pushed[0].digest}])["previewResults"]
    assert [result["imageDigest"] for result in one] == [pushed[0].digest]
    with refused("InvalidParameterException"):
        preview(ecr, repository, imageIds=[{"imageDigest": pushed[0].digest}], maxResults=1)


def test_a_preview_is_asked_for_before_it_is_read(ecr, repository):
    with refused("LifecyclePolicyPreviewNotFoundException"):
        ecr.get_lifecycle_policy_preview(repositoryName=repository)


def test_a_preview_of_a_wrong_policy_is_refused(ecr, repository):
    with refused("InvalidParameterException", VALIDATION):
        ecr.start_lifecycle_policy_preview(repositoryName=repository, lifecyclePolicyText="{" * 100)


# Evaluation of the policy


def test_a_policy_that_is_put_is_carried_out(ecr, repository):
    pushed = [images.push(ecr, repository, images.image(f"{n}"), f"v{n}") for n in range(4)]
    ecr.put_lifecycle_policy(repositoryName=repository, lifecyclePolicyText=policy(rule(1, "any", number=2)))
    deadline = time.monotonic() + TIMEOUT
    # The time of the evaluation is written when all of it has been executed.
    while not ecr.get_lifecycle_policy(repositoryName=repository)["lastEvaluatedAt"].timestamp():
        assert time.monotonic() < deadline, "the policy isn't evaluated"
        time.sleep(0.1)
    left = ecr.list_images(repositoryName=repository)["imageIds"]
    assert {entry["imageDigest"] for entry in left} == {pushed[2].digest, pushed[3].digest}


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put_lifecycle_policy", {"lifecyclePolicyText": policy(rule()).ljust(100)}),
        ("get_lifecycle_policy", {}),
        ("delete_lifecycle_policy", {}),
        ("start_lifecycle_policy_preview", {}),
        ("get_lifecycle_policy_preview", {}),
    ],
)
def test_lifecycle_needs_a_repository(ecr, operation, parameters):
    with refused("RepositoryNotFoundException", "'not/there'"):
        getattr(ecr, operation)(repositoryName="not/there", **parameters)
