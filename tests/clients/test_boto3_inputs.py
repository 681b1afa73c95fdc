"""Every operation's input, held against the service's model: wrong types, missing members, values out of bounds.

The model is botocore's own, so that no operation and no member is forgotten.
"""

import json
import uuid

import botocore.session
import pytest

# The operations of the registry; add a new operation here.
OPERATIONS = """
    GetAuthorizationToken DescribeRegistry GetAccountSetting PutAccountSetting
    PutRegistryPolicy GetRegistryPolicy DeleteRegistryPolicy
    PutRegistryScanningConfiguration GetRegistryScanningConfiguration BatchGetRepositoryScanningConfiguration
    CreateRepository DescribeRepositories DeleteRepository PutImageTagMutability PutImageScanningConfiguration
    TagResource UntagResource ListTagsForResource
    SetRepositoryPolicy GetRepositoryPolicy DeleteRepositoryPolicy
    PutImage BatchGetImage BatchDeleteImage ListImages DescribeImages ListImageReferrers UpdateImageStorageClass
    BatchCheckLayerAvailability GetDownloadUrlForLayer InitiateLayerUpload UploadLayerPart CompleteLayerUpload
    PutLifecyclePolicy GetLifecyclePolicy DeleteLifecyclePolicy StartLifecyclePolicyPreview GetLifecyclePolicyPreview
""".split()

MODEL = botocore.session.get_session().get_service_model("ecr")

# One value of each JSON type; null means an absent member.
VALUES = {"string": "text", "number": 7, "boolean": True, "list": [], "structure": {}}

JSON_TYPES = {
    "string": "string",
    "blob": "string",
    "timestamp": "number",
    "integer": "number",
    "long": "number",
    "boolean": "boolean",
    "list": "list",
    "structure": "structure",
    "map": "structure",
}


def members(operation):
    shape = MODEL.operation_model(operation).input_shape
    return shape.members if shape else {}


def required(operation):
    shape = MODEL.operation_model(operation).input_shape
    return shape.required_members if shape else []


def value(name, shape):
    """A value that the model takes."""
    if name == "resourceArn":
        return "arn:aws:ecr:local-1:123456789012:repository/not/there"
    if name == "repositoryName":
        return f"not/there-{uuid.uuid4().hex}"
    if "Digest" in name and shape.type_name == "string":
        return "sha256:" + "0" * 64
    if name == "imageId":
        return {"imageTag": "v1"}
    if name == "uploadId":
        return str(uuid.uuid4())
    if shape.type_name == "string":
        return shape.enum[0] if getattr(shape, "enum", None) else "x" * max(1, shape.metadata.get("min", 1))
    if shape.type_name == "structure":
        return {inner: value(inner, shape.members[inner]) for inner in shape.required_members}
    if shape.type_name == "list":
        return [value(name, shape.member)]
    return {"blob": "eA==", "boolean": True}.get(shape.type_name, 0)


def valid(operation):
    return {name: value(name, members(operation)[name]) for name in required(operation)}


EVERY_MEMBER = [(operation, name) for operation in OPERATIONS for name in members(operation)]
EVERY_REQUIRED = [(operation, name) for operation in OPERATIONS for name in required(operation)]


def bounded():
    """Each member with a value that its model's bounds refuse."""
    for operation, name in EVERY_MEMBER:
        shape = members(operation)[name]
        low, high = shape.metadata.get("min"), shape.metadata.get("max")
        if shape.type_name == "string" and getattr(shape, "enum", None):
            yield operation, name, "NOT_IN_THE_ENUM"
        elif shape.type_name == "string":
            if low:
                yield operation, name, ""
            if high and high < 100_000:
                yield operation, name, "x" * (high + 1)
            if shape.metadata.get("pattern"):
                yield operation, name, "!"
        elif shape.type_name == "list":
            if low:
                yield operation, name, []
            if high and high <= 1000:
                yield operation, name, [value(name, shape.member)] * (high + 1)
        elif shape.type_name in ("integer", "long"):
            if low is not None:
                yield operation, name, low - 1
            if high is not None:
                yield operation, name, high + 1


def ids(parameter):
    return parameter if len(str(parameter)) < 40 else f"{str(parameter)[:12]}…"


@pytest.mark.parametrize(("operation", "name"), EVERY_MEMBER, ids=ids)
def test_a_member_of_another_type_is_no_input(send, operation, name):
    expected = JSON_TYPES[members(operation)[name].type_name]
    for kind, wrong in VALUES.items():
        if kind != expected:
            status, code, body = send(operation, json.dumps(valid(operation) | {name: wrong}).encode())
            assert (status, code) == (400, "SerializationException"), (wrong, body)


@pytest.mark.parametrize(("operation", "name"), EVERY_REQUIRED, ids=ids)
def test_a_required_member_that_is_missing_is_named(send, operation, name):
    complete = valid(operation)
    for incomplete in ({key: kept for key, kept in complete.items() if key != name}, complete | {name: None}):
        status, code, body = send(operation, json.dumps(incomplete).encode())
        assert (status, code) == (400, "InvalidParameterException"), body
        assert name.lower() in body["message"].lower()


@pytest.mark.parametrize(("operation", "name", "wrong"), list(bounded()), ids=ids)
def test_a_value_out_of_bounds_is_refused(send, operation, name, wrong):
    status, code, body = send(operation, json.dumps(valid(operation) | {name: wrong}).encode())
    special = {"tags": ("TooManyTagsException", "InvalidTagParameterException")}
    assert status == 400 and code in ("InvalidParameterException", *special.get(name, ())), body
    assert name.lower() in body["message"].lower()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_least_input_is_understood(send, operation):
    status, code, body = send(operation, json.dumps(valid(operation)).encode())
    absent = ("RepositoryNotFoundException", "RegistryPolicyNotFoundException", "InvalidParameterException")
    assert status == 200 or code in absent, body


@pytest.mark.parametrize("operation", OPERATIONS)
def test_another_account_is_not_ours(send, operation):
    if "registryId" in members(operation):
        status, code, body = send(operation, json.dumps(valid(operation) | {"registryId": "999999999999"}).encode())
        assert status == 400 and code != "", body
