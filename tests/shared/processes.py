"""A server of the bed as a process: started, stopped, killed, frozen; its output lies in a file."""

import pathlib
import signal
import subprocess
import time
import urllib.request
import weakref
from typing import ClassVar

from backends import TIED, TIMEOUT

# The environment of a server: nothing of the shell that started the tests.
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class Process:
    """A command that can be started again. It ends with the tests, however they end."""

    all: ClassVar = weakref.WeakSet()

    def __init__(self, name, command, log, environment=None):
        self.name = name
        self.command = [str(word) for word in command]
        self.log = pathlib.Path(log)
        self.environment = BARE | (environment or {})
        self._popen = None
        self._mark = 0
        Process.all.add(self)

    @property
    def running(self):
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self):
        return self._popen.pid

    def launch(self):
        """Starts it; nothing is said about its being ready."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*TIED, *self.command], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def wait_until(self, ready, what="be ready"):
        """Waits until `ready()` says so; the process has to live on meanwhile."""
        deadline = time.monotonic() + TIMEOUT
        while not ready():
            if not self.running or time.monotonic() > deadline:
                state = "ended" if not self.running else f"didn't {what} in {TIMEOUT} s"
                raise RuntimeError(f"{self.name} {state}; the end of its log:\n{self.tail()}")
            time.sleep(0.02)

    def stop(self):
        """Asks it to end, and returns its exit code."""
        self._popen.terminate()
        return self._ended()

    def kill(self):
        """kill -9."""
        self._popen.kill()
        self._ended()

    def freeze(self):
        """It keeps its connections, and answers nothing from now on."""
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._popen.send_signal(signal.SIGCONT)

    def end(self):
        """Kills it, in any state."""
        if self.running:
            self.kill()

    def _ended(self):
        try:
            return self._popen.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            raise AssertionError(f"{self.name} doesn't end when asked to; the end of its log:\n{self.tail()}") from None

    def output(self, offset=0):
        """Returns its log from this byte on."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[offset:].decode(errors="replace")

    def mark(self):
        """Marks the start of the current test's output."""
        self._mark = self.log.stat().st_size if self.log.exists() else 0

    def since_mark(self):
        return self.output(self._mark)

    def tail(self, lines=20):
        return "\n".join(self.output().splitlines()[-lines:])


class Server:
    """A server in one process, `process`, that answers at `ready`: stopped, killed and frozen with it."""

    def start(self):
        """Starts it and waits until it answers."""
        self.process.launch()
        self.process.wait_until(lambda: answers(self.ready))

    def stop(self):
        """As Kubernetes stops a Pod: SIGTERM, which it heeds."""
        assert self.process.stop() == 0, self.process.tail()

    def restart(self):
        self.stop()
        self.start()

    def kill(self):
        self.process.kill()

    def freeze(self):
        self.process.freeze()

    def thaw(self):
        self.process.thaw()

    def end(self):
        self.process.end()


def answers(url, context=None):
    """Whether a server answers at this URL with anything but an error."""
    try:
        with urllib.request.urlopen(url, context=context, timeout=5):
            return True
    except OSError:
        return False
