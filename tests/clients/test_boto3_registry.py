"""The registry as a whole: tokens, authorization, and invalid requests."""

import base64
import datetime
import json
import re

import pytest

from conftest import TARGET, refused, request

# GetAuthorizationToken


def test_a_token_logs_in_for_twelve_hours(ecr, server):
    (data,) = ecr.get_authorization_token()["authorizationData"]
    assert data["proxyEndpoint"] == f"http://{server.address}"
    left = data["expiresAt"] - datetime.datetime.now(datetime.UTC)
    assert abs(left - datetime.timedelta(hours=12)) < datetime.timedelta(minutes=1)
    assert base64.b64decode(data["authorizationToken"]).startswith(b"AWS:")
    status, _, _ = request(f"http://{server.address}/v2/", Authorization=f"Basic {data['authorizationToken']}")
    assert status == 200


@pytest.mark.parametrize(
    "authorization", [None, "Basic QVdTOm5vbnNlbnNl", "Basic !", "Bearer x", "Basic " + base64.b64encode(b"me:x").decode()]
)
def test_without_a_token_the_challenge_is_basic(server, authorization):
    headers = {"Authorization": authorization} if authorization else {}
    status, headers, _ = request(f"http://{server.address}/v2/", **headers)
    assert status == 401
    assert headers["Www-Authenticate"].startswith("Basic realm=")


def test_a_changed_token_is_refused(ecr, server):
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    password = base64.b64decode(token).removeprefix(b"AWS:")
    middle = len(password) // 2
    changed = password[:middle] + (b"A" if password[middle : middle + 1] != b"A" else b"B") + password[middle + 1 :]
    basic = base64.b64encode(b"AWS:" + changed).decode()
    status, _, _ = request(f"http://{server.address}/v2/", Authorization=f"Basic {basic}")
    assert status in (401, 403)


def test_a_token_for_another_account_names_that_accounts_host(ecr, server, repository):
    data = ecr.get_authorization_token(registryIds=["999999999999", "123456789012"])["authorizationData"]
    port = server.address.rpartition(":")[2]
    other = f"999999999999.dkr.ecr.local-1.localhost:{port}"
    assert [element["proxyEndpoint"] for element in data] == [f"http://{other}", f"http://{server.address}"]
    basic = {"Authorization": f"Basic {data[0]['authorizationToken']}", "Host": other}
    assert request(f"http://{server.address}/v2/", **basic)[0] == 200
    status, _, body = request(f"http://{server.address}/v2/{repository}/tags/list", **basic)
    assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")


# DescribeRegistry


def test_the_registry_is_described(ecr):
    described = ecr.describe_registry()
    assert described["registryId"] == "123456789012"
    assert described["replicationConfiguration"] == {"rules": []}


def test_every_answer_says_what_speaks(ecr, server):
    header = ecr.describe_registry()["ResponseMetadata"]["HTTPHeaders"]["server"]
    assert re.fullmatch(r"wharfage/\d+\.\d+\.\d+\S*", header)
    for path in ("/", "/v2/", "/v2/app/manifests/v1", "/nowhere"):
        _, headers, _ = request(f"http://{server.address}{path}")
        assert headers.get_all("Server") == [header], path


# Who may ask


def test_an_unknown_key_is_refused(client):
    stranger = client(aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="x" * 40)
    with refused("UnrecognizedClientException", "The security token included in the request is invalid."):
        stranger.describe_repositories()


def test_a_wrong_secret_is_refused(client):
    key = client()._request_signer._credentials
    wrong = client(aws_access_key_id=key.access_key, aws_secret_access_key="x" * 40)
    with refused("InvalidSignatureException"):
        wrong.describe_repositories()


def test_a_session_token_of_nobodys_is_refused(client):
    key = client()._request_signer._credentials
    session = client(aws_access_key_id=key.access_key, aws_secret_access_key=key.secret_key, aws_session_token="x")
    with refused("UnrecognizedClientException"):
        session.describe_repositories()


def test_a_signature_holds_for_five_minutes(send):
    assert send("DescribeRegistry", b"{}")[0] == 200
    for minutes in (-4, 4):
        assert send("DescribeRegistry", b"{}", skew=datetime.timedelta(minutes=minutes))[0] == 200
    for minutes in (-6, 6, -60 * 24):
        status, code, _ = send("DescribeRegistry", b"{}", skew=datetime.timedelta(minutes=minutes))
        assert (status, code) == (400, "InvalidSignatureException")


def test_a_body_that_was_not_signed_is_refused(send):
    body, other = b'{"maxResults":1}', b'{"maxResults":9}'
    status, code, _ = send("DescribeRepositories", body, tamper=other)
    assert (status, code) == (400, "InvalidSignatureException")


def test_a_signature_for_another_region_is_refused(send):
    status, code, _ = send("DescribeRegistry", b"{}", region="us-east-1")
    assert status == 400 and code in ("InvalidSignatureException", "UnrecognizedClientException")


@pytest.mark.parametrize("service", ["ecr-public", "sts", "s3"])
def test_a_signature_for_another_service_is_refused(send, service):
    status, code, error = send("DescribeRegistry", b"{}", service=service)
    assert (status, code) == (400, "InvalidSignatureException")
    assert error["message"] == "Credential should be scoped to correct service: 'ecr'."


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "MissingAuthenticationTokenException"),
        ("AWS4-HMAC-SHA256 Credential=x", "IncompleteSignatureException"),
        ("nonsense", "IncompleteSignatureException"),
    ],
)
def test_a_request_without_a_whole_signature_is_refused(server, authorization, code):
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": TARGET + "DescribeRegistry"}
    if authorization:
        headers["Authorization"] = authorization
    status, answered, body = request(f"http://{server.address}/", b"{}", **headers)
    assert status == 400 and answered["x-amzn-RequestId"]
    assert json.loads(body)["__type"].rpartition("#")[2] == code


# Invalid requests


@pytest.mark.parametrize(
    ("operation", "target"),
    [("NoSuchOperation", TARGET), ("DescribeRegistry", "SomeOtherService_V1."), ("", ""), ("PutSigningConfiguration", TARGET)],
)
def test_an_operation_that_is_not_there_is_unknown(send, operation, target):
    status, code, _ = send(operation, b"{}", target=target)
    assert (status, code) == (400, "UnknownOperationException")


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b'{"maxResults":"1"}', b'{"repositoryNames":"x"}', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_input_is_refused(send, body):
    status, code, _ = send("DescribeRepositories", body)
    assert (status, code) == (400, "SerializationException")


def test_members_that_nobody_knows_are_ignored(send):
    assert send("DescribeRegistry", b'{"fromTheFuture":{"a":[1]}}')[0] == 200


def test_times_are_numbers(send):
    status, _, body = send("GetAuthorizationToken", b"{}")
    assert status == 200 and isinstance(body["authorizationData"][0]["expiresAt"], int | float)
