"""A registry that serves, and clients of it that note how long each request is on the wire: what a client in Python does with an
answer is not the registry's time."""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.request

import boto3
from botocore.config import Config
from botocore.httpsession import URLLib3Session

from databases import digest

BINARY = os.environ["WHARFAGE_TEST_BINARY"]
KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "example-secret-of-a-benchmark-only-000000"


class Serve:
    """A registry that serves."""

    def __init__(self, folder, port, url=None):
        self.port, self.admin = port, f"http://127.0.0.1:{port + 1}"
        environment = {"PATH": "/usr/bin:/bin", "WHARFAGE_ACCESS_KEY_ID": KEY, "WHARFAGE_SECRET_ACCESS_KEY": SECRET}
        if url:
            environment["WHARFAGE_DATABASE_URL"] = url
        listen = ["--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{port + 1}"]
        command = [BINARY, "serve", "--data", str(folder / "data"), "--log", "warn", *listen]
        with open(folder / "serve.log", "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while True:
            try:
                self.get("/readyz")
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit((folder / "serve.log").read_text()) from None
                time.sleep(0.05)

    def get(self, path):
        return urllib.request.urlopen(self.admin + path, timeout=60).read().decode()

    def idle(self, kind):
        """Waits until no job of a kind waits or runs."""
        while any(
            line.startswith(f'wharfage_jobs{{kind="{kind}"') and not line.endswith(" 0") for line in self.get("/metrics").splitlines()
        ):
            time.sleep(0.2)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Wire:
    """The seconds that requests were on the wire since the last look."""

    def __init__(self):
        self.seconds = 0.0

    def take(self):
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Signed:
    """A client of an AWS service."""

    def __init__(self, port, wire, service="ecr"):
        session = URLLib3Session(timeout=300, socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)])

        def send(request, **_):
            begin = time.perf_counter()
            response = session.send(request)
            wire.seconds += time.perf_counter() - begin
            return response

        config = Config(retries={"max_attempts": 1}, parameter_validation=False)
        self.client = boto3.client(service, endpoint_url=f"http://127.0.0.1:{port}", region_name="local-1",
                                   aws_access_key_id=KEY, aws_secret_access_key=SECRET, config=config)  # fmt: skip
        self.client.meta.events.register(f"before-send.{service}.*", send)

    def __getattr__(self, operation):
        return getattr(self.client, operation)


class Oci:
    """A client of /v2/ on one connection."""

    def __init__(self, port, token, wire):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self.headers, self.wire, self.used = {"Authorization": "Basic " + token}, wire, time.monotonic()

    def call(self, method, path, body=None, headers=(), expect=(200, 201, 202, 204, 206)):
        if time.monotonic() - self.used > 5:
            # It may be ended for being idle at any moment.
            self.connection.close()
            self.connection.connect()
        begin = time.perf_counter()
        self.connection.request(method, path, body, {**self.headers, **dict(headers)})
        answer = self.connection.getresponse()
        content = answer.read()
        self.used = time.monotonic()
        self.wire.seconds += time.perf_counter() - begin
        assert answer.status in expect, (method, path, answer.status, content[:300])
        return answer, content

    def blob(self, repository, data):
        name = digest(data)
        self.call("POST", f"/v2/{repository}/blobs/uploads/?digest={name}", data, {"Content-Type": "application/octet-stream"})
        return name

    def manifest(self, repository, reference, document, media_type):
        body = json.dumps(document)
        self.call("PUT", f"/v2/{repository}/manifests/{reference}", body, {"Content-Type": media_type})
        return digest(body)
