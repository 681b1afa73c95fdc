"""The server and the clients that the tests share.

`wharfage up deploy/quickstart` runs once for all tests, on a free port, its data in a temporary folder; and once more on
PostgreSQL and S3. Clients get nothing in their environment but what `wharfage env` prints. A test makes the repositories it
needs.
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
import uuid

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import ClientError

from backends import TIED, end, postgres, s3, tool

ROOT = pathlib.Path(__file__).parents[2]


class Server:
    """A `wharfage up FOLDER`."""

    def __init__(self, folder, data, home, **variables):
        self.data = data
        self.binary = tool("WHARFAGE_TEST_BINARY")
        tools = [tool(name) for name in ("WHARFAGE_TEST_AWS", "WHARFAGE_TEST_CRANE", "WHARFAGE_TEST_SKOPEO")]
        folders = dict.fromkeys(str(pathlib.Path(path).parent) for path in [self.binary, *tools])
        self.bare = {"PATH": os.pathsep.join([*folders, "/usr/bin", "/bin"]), "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
        command = [self.binary, "up", folder, "--data", data, "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*TIED, *map(str, command)],
            env=self.bare | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        # A start that takes minutes is a failure, which ends the loop below.
        timer = threading.Timer(120, self.process.kill)
        timer.start()
        for line in self.process.stdout:
            self.lines.append(line)
            if "aws ecr get-login-password" in line:
                break
        else:
            raise RuntimeError("wharfage up ended before it said how to log in:\n" + "".join(self.lines))
        timer.cancel()
        self._drain = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._drain.start()
        printed = subprocess.run(
            ["sh", "-c", 'eval "$(wharfage env --data "$1")" && env -0', "sh", data],
            env=self.bare,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        self.environment = dict(line.split("=", 1) for line in printed.split("\0") if line)
        self.address = self.environment["WHARFAGE_REGISTRY"]

    def stop(self):
        self.process.terminate()
        code = end(self.process)
        self._drain.join()
        assert code == 0, f"wharfage up ended with {code}:\n" + "".join(self.lines)

    def shell(self, script, home, **variables):
        """Runs a script as a user would type it, and returns its output."""
        environment = self.environment | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)} | variables
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            check=False,
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, f"{script}\nexit code {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran.stdout.strip()


@pytest.fixture(scope="session", params=["sqlite-folder", "postgres-s3"])
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    manifests = ROOT / "deploy/quickstart"
    with contextlib.ExitStack() as backends:
        variables = {}
        if request.param == "postgres-s3":
            variables["WHARFAGE_DATABASE_URL"] = backends.enter_context(postgres())
            endpoint, keys = backends.enter_context(s3())
            variables |= keys
            manifests = shutil.copytree(manifests, folder / "manifests")
            registry = manifests / "registry.yaml"
            managed = f"""
    database: {{postgres: {{connectionSecretRef: {{namespace: quickstart, name: from-the-environment}}}}}}
    storage: {{s3: {{bucket: images, endpoint: "{endpoint}", redirect: true}}}}
"""
            text, count = re.subn(r"managed: \{\}.*\n", f"managed:{managed}", registry.read_text())
            assert count == 1, "the quickstart's Registry no longer says `managed: {}`"
            registry.write_text(text)
        running = Server(manifests, folder / "data", folder, **variables)
        yield running
        running.stop()


@pytest.fixture
def shell(server, tmp_path):
    """Runs a script in a folder and a home of the test's own."""
    return lambda script, **variables: server.shell(script, tmp_path, **variables)


@pytest.fixture(scope="session")
def client(server):
    """Makes boto3 clients that are configured by the environment alone; no retry hides an error."""
    wanted = {name: value for name, value in server.environment.items() if name.startswith(("AWS_", "WHARFAGE_REG"))}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)

        def make(service="ecr", **settings):
            config = Config(retries={"total_max_attempts": 1}, **settings.pop("config", {}))
            return boto3.session.Session().client(service, config=config, **settings)

        yield make


@pytest.fixture(scope="session")
def ecr(client):
    return client()


@pytest.fixture(scope="session")
def unchecked(client):
    """An ECR client that sends what its model refuses, so that the server has to."""
    return client(config={"parameter_validation": False})


@pytest.fixture
def repository_name():
    return f"test/{uuid.uuid4().hex}"


@pytest.fixture
def repository(ecr, repository_name):
    """The name of a fresh repository."""
    ecr.create_repository(repositoryName=repository_name)
    return repository_name


@contextlib.contextmanager
def refused(code, message="", status=400):
    """Expects the error `code`; `message` is a regular expression for its text."""
    with pytest.raises(ClientError) as caught:
        yield caught
    response = caught.value.response
    error = response["Error"]
    assert error["Code"] == code, error
    assert re.search(message, error["Message"]), error["Message"]
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert response["ResponseMetadata"]["RequestId"]


def pages(call, key, **parameters):
    """Every page of a listing, as a list of lists."""
    token = {}
    result = []
    while True:
        answer = call(**parameters, **token)
        result.append(answer[key])
        if "nextToken" not in answer:
            return result
        assert answer["nextToken"]
        token = {"nextToken": answer["nextToken"]}


TARGET = "AmazonEC2ContainerRegistry_V20150921."


def request(url, data=None, **headers):
    """Status, headers and body of an HTTP exchange."""
    asked = urllib.request.Request(url, data=data, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(asked) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.fixture(scope="session")
def send(ecr, server):
    """Signs a body for ECR and sends it, with a clock that may be wrong; status, error code and body."""
    key = ecr._request_signer._credentials

    def send(operation, body, target=TARGET, skew=datetime.timedelta(), region="local-1", service="ecr", tamper=None):
        signed = AWSRequest(
            "POST",
            f"http://{server.address}/",
            data=body,
            headers={"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": target + operation},
        )
        with pytest.MonkeyPatch.context() as patch:
            moment = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + skew
            patch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: moment)
            SigV4Auth(key, service, region).add_auth(signed)
        prepared = signed.prepare()
        headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in prepared.headers.items()}
        status, _, answer = request(prepared.url, tamper or body, **headers)
        parsed = json.loads(answer)
        return status, parsed.get("__type", "").rpartition("#")[2], parsed

    return send
