"""The registries behind the operator: ours, as a process; an Amazon ECR that others wrote; and a way to disturb both."""

import base64
import contextlib
import functools
import http.client
import http.server
import os
import re
import sys
import threading
import urllib.request
import uuid

import boto3
from botocore.config import Config

from backends import free_port, tool
from processes import Process, Server

ACCOUNT = "123456789012"
DENIED = '{"__type":"AccessDeniedException","message":"not yours to change"}'


def client_of(server, service="ecr", **settings):
    """A boto3 client of a server, with settings of its Config; no retry hides an error, and nothing of the environment
    is used."""
    credentials = server.credentials
    return boto3.session.Session().client(
        service, endpoint_url=server.url, region_name=server.region,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"], aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, **settings), verify=server.ca or True,
    )  # fmt: skip


class Registry(Server):
    """`wharfage serve`, with its own root key. `url`, `address` (host:port), `ecr` (boto3), `credentials`;
    stop() and start() again on the same port and data, kill(), freeze(), thaw(), restart()."""

    kind = "endpoint"

    def __init__(self, folder, region="eu-home-1", registry_id=ACCOUNT, tls=None, options=(), environment=None):
        """`tls` is a trustme.CA that the certificate comes from; options and environment go to `wharfage serve`."""
        self.region, self.registry_id = region, registry_id
        self.credentials = {"AWS_ACCESS_KEY_ID": "AKIA" + uuid.uuid4().hex[:16].upper(), "AWS_SECRET_ACCESS_KEY": os.urandom(20).hex()}
        folder.mkdir(parents=True, exist_ok=True)
        port, admin = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.ca = None
        if tls:
            self.ca = str(folder / "ca.crt")
            tls.cert_pem.write_to_path(self.ca)
            certificate = tls.issue_cert("127.0.0.1", "localhost")
            (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
            (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())
            options = (*options, "--tls-cert", folder / "tls.crt", "--tls-key", folder / "tls.key")
        self.url = f"{'https' if tls else 'http'}://{self.address}"
        self.admin = f"http://127.0.0.1:{admin}"
        command = [
            tool("WHARFAGE_TEST_BINARY"), "serve", "--data", folder / "data", "--listen", self.address,
            "--admin-listen", f"127.0.0.1:{admin}", "--region", region, "--registry-id", registry_id, *options,
        ]  # fmt: skip
        keys = {f"WHARFAGE_{name.removeprefix('AWS_')}": value for name, value in self.credentials.items()}
        self.process = Process("wharfage serve", command, folder / "serve.log", keys | (environment or {}))
        self.start()

    @property
    def ready(self):
        return f"{self.admin}/readyz"

    def declaration(self):
        """The field `endpoint` of a Registry resource, without credentials and CA bundle."""
        return {"url": self.url}

    @functools.cached_property
    def ecr(self):
        return client_of(self)

    def client(self, service="ecr", **settings):
        """A boto3 client with settings of botocore's Config, such as read_timeout."""
        return client_of(self, service, **settings)

    def names(self):
        """The names of all repositories."""
        pages = self.ecr.get_paginator("describe_repositories").paginate()
        return {one["repositoryName"] for page in pages for one in page["repositories"]}

    def repository(self, name):
        """What DescribeRepositories says of a repository, with its `tags` as a dict; None if there is none."""
        ecr = self.ecr
        try:
            (found,) = ecr.describe_repositories(repositoryNames=[name])["repositories"]
        except ecr.exceptions.RepositoryNotFoundException:
            return None
        tags = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
        return found | {"tags": {tag["Key"]: tag["Value"] for tag in tags}}


class Moto(Registry):
    """moto's server, in place of Amazon ECR, STS and IAM: an implementation that we did not write."""

    kind = "aws"

    def __init__(self, folder, region="eu-central-1"):
        self.region, self.registry_id, self.ca = region, ACCOUNT, None
        self.credentials = {"AWS_ACCESS_KEY_ID": "AKIAMOTOMOTOMOTOMOTO", "AWS_SECRET_ACCESS_KEY": "unchecked-by-moto"}
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", port]
        self.process = Process("moto", command, folder / "moto.log")
        self.start()

    @property
    def ready(self):
        return f"{self.url}/moto-api/data.json"

    def stop(self):
        """Stops the server; its data is lost."""
        self.process.stop()

    def reset(self):
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()

    def declaration(self):
        return {}

    @property
    def environment(self):
        """What makes an AWS SDK take it for Amazon."""
        return {f"AWS_ENDPOINT_URL_{service}": self.url for service in ("ECR", "STS", "IAM")}


class Front:
    """A proxy before a registry's API: it passes on what comes, remembers it, and fails where a test asks for it. The registry's
    own key works through it; `url` and all else is as the registry's."""

    def __init__(self, behind):
        self._behind = behind
        self._failures = []
        self._changed = threading.Condition()
        self._paused = None
        self.held = []
        """The operations that wait, or waited, for `go_on()`."""
        self.calls = []
        """Every request: the operation's name, and for other paths than / the method and path."""
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def _handle(self):
                front._handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __getattr__(self, name):
        return getattr(self._behind, name)

    def client(self, service="ecr", **settings):
        """A client whose calls go through here; `ecr` calls the registry directly."""
        return client_of(self, service, **settings)

    def declaration(self):
        return {"url": self.url}

    @property
    def kind(self):
        """A front before moto is declared by its URL, too."""
        return "endpoint"

    def fail(self, operation=".*", status=500, body=b"", times=None, **headers):
        """From now on operations whose name matches get this answer; `times` of them, else until `heal()`."""
        content = body if isinstance(body, bytes) else body.encode()
        self._failures.append([re.compile(operation), status, content, headers, times])

    def throttle(self, operation=".*", times=None):
        """Answers as Amazon does when it is asked too often."""
        body = '{"__type":"ThrottlingException","message":"Rate exceeded"}'
        self.fail(operation, 400, body, times, **{"Content-Type": "application/x-amz-json-1.1"})

    def lose(self, operation=".*", times=None):
        """Passes requests on, and closes the connection instead of answering."""
        self.fail(operation, None, times=times)

    def heal(self, operation=None):
        """No failure any more; with an operation none of those that were asked for by just this pattern."""
        self._failures[:] = [it for it in self._failures if operation is not None and it[0].pattern != operation]

    def pause(self, operation=".*", containing=""):
        """Requests come in and wait for `go_on()`: those whose operation matches, and whose body contains this."""
        self._paused = (re.compile(operation), containing.encode())

    def go_on(self):
        with self._changed:
            self._paused = None
            self._changed.notify_all()

    def counted(self, start=0):
        """How often each operation was called, from the call with this number on."""
        made = self.calls[start:]
        return {name: made.count(name) for name in sorted(set(made))}

    def end(self):
        self.go_on()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        target = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        name = target or f"{request.command} {request.path}"
        self.calls.append(name)
        with self._changed:
            waits = lambda: self._paused and self._paused[0].fullmatch(name) and self._paused[1] in body  # noqa: E731
            if waits():
                self.held.append(name)
            self._changed.wait_for(lambda: not waits())
        lost = False
        for failure in self._failures:
            pattern, status, content, headers, times = failure
            if pattern.fullmatch(name) and times != 0:
                failure[4] = None if times is None else times - 1
                if status is not None:
                    return self._answer(request, status, headers.items(), content)
                lost = True
        # The Host header is passed on as it is: it is signed.
        connection = http.client.HTTPConnection(self._behind.address, timeout=60)
        with contextlib.closing(connection):
            try:
                connection.request(request.command, request.path, body, dict(request.headers))
                answer = connection.getresponse()
                content = answer.read()
            except OSError:
                # As if this were the registry itself, and unreachable.
                lost = True
        if lost:
            request.close_connection = True
            return None
        hop = {"connection", "transfer-encoding", "content-length"}
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in hop]
        return self._answer(request, answer.status, headers, content)

    @staticmethod
    def _answer(request, status, headers, content):
        request.send_response(status)
        for key, value in headers:
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


def drift(operator, registry, kind):
    """How many properties of a kind's resources in a Registry the operator detected as drifted, and how many it corrected."""
    metrics, labels = operator.metrics(), f'{{kind="{kind}",registry="{registry}"}}'
    return tuple(metrics.get(f"wharfage_operator_drift_{what}_total{labels}", 0) for what in ("detected", "corrected"))


def password(registry):
    """What docker logs in with, as the user AWS."""
    token = registry.ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    return base64.b64decode(token).decode().removeprefix("AWS:")
