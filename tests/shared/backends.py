"""What the tests' servers are started with, and PostgreSQL and S3: real ones, on a socket and on loopback, gone with this process."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# `nobody` on every Linux: PostgreSQL refuses to run as root.
NOBODY = 65_534

# Only a test that fails anyway waits for it.
TIMEOUT = 300

# The server ends with this process, however that ends.
TIED = ["setpriv", "--pdeathsig", "KILL"]


def tool(name):
    """The path in an environment variable that tests/run sets."""
    path = os.environ.get(name)
    if not path or not pathlib.Path(path).exists():
        raise RuntimeError(f"{name} is {path or 'not set'}, which is not there: start the tests by tests/run")
    return path


def wait_for(what, ready, process):
    deadline = time.monotonic() + TIMEOUT
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{what} doesn't start")
        time.sleep(0.02)


# Below what a kernel gives for port 0 (its ip_local_port_range), so that nobody gets them by chance. Each of
# pytest-xdist's workers (gw0, gw1, …) has some of them.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = range(20_000 + _WORKER, 32_000, _WORKERS)
_handed_out = set()


def end(process):
    """Waits until a process that was asked to end has ended, and returns its exit code. One that doesn't is killed."""
    try:
        return process.wait(timeout=TIMEOUT)
    finally:
        process.kill()
        process.wait()


def free_port():
    """A port of 127.0.0.1 that nobody listens on, another one each time: it stays free until it is wanted, and while its server is
    stopped."""
    while True:
        port = random.choice(PORTS)
        if port in _handed_out:
            continue
        _handed_out.add(port)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def postgres():
    """A server with an empty database; yields the database's URL."""
    programs = pathlib.Path(tool("WHARFAGE_TEST_POSTGRES_BIN"))
    # Not below pytest's own folder, which only this user may enter.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="wharfage-clients-pg-"))
    user = []
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    clean = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    data, log = folder / "data", folder / "log"
    with log.open("wb") as output:
        shared = {"env": clean, "cwd": folder, "stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
        initdb = [programs / "initdb", "--username=wharfage", "--auth=trust", "--encoding=UTF8", "--no-sync", "-D", data]
        subprocess.run([*TIED, *user, *initdb], check=True, **shared)
        settings = ["listen_addresses=", "fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        options = [option for setting in settings for option in ("-c", setting)]
        server = subprocess.Popen([*TIED, *user, programs / "postgres", "-D", data, "-k", folder, *options], **shared)
    try:
        ready = b"database system is ready to accept connections"
        wait_for("PostgreSQL", lambda: ready in log.read_bytes(), server)
        yield f"postgres://wharfage@{str(folder).replace('/', '%2F')}/postgres"
    finally:
        # A fast shutdown, which does not wait for clients as SIGTERM's does.
        server.send_signal(signal.SIGINT)
        end(server)
        shutil.rmtree(folder)


@contextlib.contextmanager
def s3():
    """A server with an empty bucket `images`; yields its endpoint and the environment that holds its keys."""
    keys = {"WHARFAGE_S3_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "WHARFAGE_S3_SECRET_ACCESS_KEY": os.urandom(20).hex()}
    with tempfile.TemporaryDirectory(prefix="wharfage-clients-s3-") as folder:
        (pathlib.Path(folder) / "images").mkdir()
        address = f"127.0.0.1:{free_port()}"
        environment = {
            "ROOT_ACCESS_KEY_ID": keys["WHARFAGE_S3_ACCESS_KEY_ID"],
            "ROOT_SECRET_ACCESS_KEY": keys["WHARFAGE_S3_SECRET_ACCESS_KEY"],
            "PATH": "/usr/bin:/bin",
        }
        command = [tool("WHARFAGE_TEST_VERSITYGW"), "--quiet", "--region", "us-east-1", "--port", address, "posix", folder]
        server = subprocess.Popen([*TIED, *command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        def answers():
            try:
                urllib.request.urlopen(f"http://{address}/")
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        try:
            wait_for("versitygw", answers, server)
            yield f"http://{address}", keys
        finally:
            server.kill()
            server.wait()
