"""docker-credential-ecr-login with a registry of ours, set up as docs/clients.md shows it."""

import http.server
import json
import os
import pathlib
import socket
import subprocess
import threading

import pytest
import trustme

from backends import free_port, tool
from processes import Process, Server

# The helper takes names of this form alone, and nobody's but the clients' DNS knows this one.
NAME = "123456789012.dkr.ecr.eu-home-1.amazonaws.com"


class Home(Server):
    """`wharfage serve` under that name; its root key and the files for `wharfage env` are in its data folder."""

    def __init__(self, folder):
        self.folder = folder
        authority = trustme.CA()
        certificate = authority.issue_cert(NAME)
        authority.cert_pem.write_to_path(folder / "ca.crt")
        (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())
        port, admin = free_port(), free_port()
        self.address = ("127.0.0.1", port)
        self.ready = f"http://127.0.0.1:{admin}/readyz"
        command = [
            tool("WHARFAGE_TEST_BINARY"), "serve", "--data", folder / "data", "--listen", f"127.0.0.1:{port}",
            "--admin-listen", f"127.0.0.1:{admin}", "--tls-cert", folder / "tls.crt", "--tls-key", folder / "tls.key",
            "--registry-id", "123456789012", "--region", "eu-home-1", "--public-url", f"https://{NAME}",
        ]  # fmt: skip
        self.process = Process("wharfage serve", command, folder / "serve.log")
        self.start()


class Names(http.server.BaseHTTPRequestHandler):
    """Stands in for the clients' DNS: a proxy that knows the registry's name and nobody else's."""

    def do_CONNECT(self):
        if self.path != f"{NAME}:443":
            self.send_error(502)
            return
        with socket.create_connection(self.server.registry) as registry:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=pump, args=(registry, self.connection))
            back.start()
            pump(self.connection, registry)
            back.join()

    def log_message(self, *_):
        pass


def pump(source, target):
    """Copies data from one socket to another until the end of the stream, and passes the end on."""
    try:
        while received := source.recv(65536):
            target.sendall(received)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # A disconnected peer ends both directions.
        for end in (source, target):
            end.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    running = Home(tmp_path_factory.mktemp("home"))
    yield running
    running.stop()
    running.end()


@pytest.fixture(scope="module")
def names(home):
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Names)
    proxy.daemon_threads = True
    proxy.registry = home.address
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_port}"
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def shell(home, names, tmp_path):
    """Runs a script where docker's configuration names the helper for the registry, and `wharfage env` was evaluated."""
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"credHelpers": {NAME: "ecr-login"}}))
    tools = ("BINARY", "AWS", "CRANE", "ECR_LOGIN")
    folders = dict.fromkeys(str(pathlib.Path(tool(f"WHARFAGE_TEST_{name}")).parent) for name in tools)
    authority = str(home.folder / "ca.crt")
    environment = {
        "PATH": os.pathsep.join([*folders, "/usr/bin", "/bin"]), "HOME": str(tmp_path), "HTTPS_PROXY": names,
        # Of the AWS SDKs, and of other programs.
        "AWS_CA_BUNDLE": authority, "SSL_CERT_FILE": authority,
    }  # fmt: skip

    def run(script):
        script = f'eval "$(wharfage env --data {home.folder}/data)"\n{script}'
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            check=False, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, f"{script}\nexit code {ran.returncode}\n{ran.stdout}{ran.stderr}{home.process.tail()}"
        return ran.stdout.strip()

    return run


def test_the_helper_gets_a_password(shell):
    got = json.loads(shell(f"echo {NAME} | docker-credential-ecr-login get"))
    assert (got["ServerURL"], got["Username"]) == (NAME, "AWS")
    shell(f"export DOCKER_CONFIG=$PWD; crane auth login -u AWS -p '{got['Secret']}' {NAME}; crane catalog {NAME}")
    assert json.loads(shell("docker-credential-ecr-login list")) == {f"https://{NAME}": "AWS"}


def test_nobody_logs_in_and_images_go_there_and_back(shell):
    shell(
        f"""
        aws ecr create-repository --repository-name team/hello
        echo hello > hello.txt; tar -cf layer.tar hello.txt
        crane append -f layer.tar -t {NAME}/team/hello:v1
        crane pull {NAME}/team/hello:v1 pulled.tar
        """
    )
    assert shell("tar -xf pulled.tar --wildcards '*.tar.gz' && tar -xzOf *.tar.gz hello.txt") == "hello"


def test_without_the_helper_the_registry_refuses(shell):
    with pytest.raises(AssertionError, match=r"UNAUTHORIZED|401"):
        shell(f"DOCKER_CONFIG=/nowhere crane catalog {NAME}")
