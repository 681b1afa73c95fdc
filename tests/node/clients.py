"""Clients of registries that run in the cluster: boto3, crane, and the node's containerd."""

import base64
import dataclasses
import json
import os
import pathlib
import subprocess
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

import node
from backends import TIMEOUT, tool
from images import write_layout

REGION = "eu-home-1"


@dataclasses.dataclass(frozen=True)
class Registry:
    """How a registry is reached from the node: its URL, its root key, and the bundle that its certificate is checked by."""

    url: str
    access_key_id: str
    secret_access_key: str
    ca: str | None = None
    # Reading ECR's model takes longer than most calls: it is read once. A session is for one thread at a time.
    _session: boto3.session.Session = dataclasses.field(default_factory=boto3.session.Session, init=False, repr=False, compare=False)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def address(self):
        return self.url.partition("://")[2]

    def ecr(self, read_timeout=60):
        """A boto3 client with its own connection, which tries a call once; timeouts are in seconds."""
        with self._lock:
            return self._session.client(
                "ecr", endpoint_url=self.url, region_name=REGION, aws_access_key_id=self.access_key_id,
                aws_secret_access_key=self.secret_access_key, verify=self.ca or True,
                config=Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=read_timeout),
            )  # fmt: skip

    def insist(self, call):
        """Tries `call(client)` again until it is answered: of what changes behind a Service the node hears a moment later. No
        attempt is long, as packets to a Pod that has just gone are answered by nobody."""
        return insist(lambda: call(self.ecr(read_timeout=10)))

    def wait(self):
        """Waits until the way leads there."""
        self.insist(lambda ecr: ecr.describe_registry())

    def docker_config(self, *names):
        """The content of a docker config that logs in to the registry under these names, as a PullSecret's does."""
        (data,) = self.insist(lambda ecr: ecr.get_authorization_token())["authorizationData"]
        return json.dumps({"auths": {name: {"auth": data["authorizationToken"]} for name in names}})

    def crane(self, *arguments, folder):
        """Runs crane, logged in; `folder` is its home."""
        (folder / "config.json").write_text(self.docker_config(self.address))
        environment = {"DOCKER_CONFIG": str(folder), "HOME": str(folder), **({"SSL_CERT_FILE": self.ca} if self.ca else {})}
        command = [tool("WHARFAGE_TEST_CRANE"), *map(str, arguments)]
        ran = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert ran.returncode == 0, f"crane {' '.join(command[1:])}: {ran.stderr}"
        return ran.stdout.strip()

    def push(self, image, repository, tag, folder):
        """Pushes an image by crane; returns its digest."""
        layout = pathlib.Path(folder) / f"layout-{os.urandom(4).hex()}"
        write_layout(layout, image)
        self.crane("push", layout, f"{self.address}/{repository}:{tag}", folder=folder)
        return image.digest


def insist(call):
    """Tries a call of boto3's again until it is answered."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return call()
        except (BotoCoreError, ClientError) as error:
            if not passing(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def passing(error):
    """Whether an error is one that a client tries again after: no answer, or one that says so."""
    return not isinstance(error, ClientError) or error.response["ResponseMetadata"]["HTTPStatusCode"] in (429, 500, 502, 503, 504)


def let_nodes_pull(name, url, ca=None):
    """Tells containerd how the registry `name` is reached: the configuration of a node's administrator for names without DNS."""
    folder = node.HOSTS / name
    folder.mkdir(exist_ok=True)
    trusted = ""
    if ca:
        (folder / "ca.crt").write_text(ca)
        trusted = f'\n  ca = "{folder / "ca.crt"}"'
    (folder / "hosts.toml").write_text(f'server = "https://{name}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]{trusted}\n')


def pull_secret(name, docker_config):
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(docker_config.encode()).decode()},
    }
