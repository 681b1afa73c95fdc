"""STS, as far as there is one: the call that most tools begin with. Forms go in, XML comes out."""

import json
import re
import urllib.parse

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

from conftest import refused, request

ROOT = {"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:root", "UserId": "123456789012"}


@pytest.fixture(scope="module")
def sts(client):
    return client("sts")


def test_a_caller_learns_who_it_is(sts):
    identity = sts.get_caller_identity()
    metadata = identity.pop("ResponseMetadata")
    assert identity == ROOT
    assert metadata["RequestId"] == metadata["HTTPHeaders"]["x-amzn-requestid"]


def test_the_aws_cli_tells_who_one_is(shell, server):
    assert json.loads(shell("aws sts get-caller-identity")) == ROOT
    url = f"--endpoint-url http://{server.address}"
    assert shell(f"aws sts get-caller-identity {url} --query Account --output text") == ROOT["Account"]


def test_a_get_is_as_good_as_a_form(sts, server):
    url = f"http://{server.address}/?" + urllib.parse.urlencode({"Action": "GetCallerIdentity", "Version": "2011-06-15"})
    signed = AWSRequest("GET", url)
    SigV4Auth(sts._request_signer._credentials, "sts", "local-1").add_auth(signed)
    status, headers, body = request(url, **dict(signed.headers))
    assert (status, headers["Content-Type"]) == (200, "text/xml")
    assert re.search(rf"<Arn>{ROOT['Arn']}</Arn>", body.decode())


def test_what_comes_with_iam_is_not_there_yet(sts):
    with refused("InvalidAction", "Could not find operation AssumeRole for version 2011-06-15"):
        sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/deploy", RoleSessionName="test")


def test_an_unknown_key_is_nobody(client):
    stranger = client("sts", aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="x" * 40)
    with refused("InvalidClientTokenId", "The security token included in the request is invalid.", status=403):
        stranger.get_caller_identity()


def test_a_wrong_secret_is_refused(client, sts):
    key = sts._request_signer._credentials.access_key
    with refused("SignatureDoesNotMatch", "The request signature we calculated does not match", status=403):
        client("sts", aws_access_key_id=key, aws_secret_access_key="x" * 40).get_caller_identity()
