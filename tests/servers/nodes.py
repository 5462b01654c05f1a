"""pytest-celery's containers as plain processes: real servers and workers, and no Docker."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_celery import CeleryTestContainer, CeleryWorkerContainer, RedisContainer
from pytest_docker_tools.exceptions import ContainerFailed, ContainerNotReady

from posthog_jobs.broker.embedded import find_binary
from posthog_jobs.broker.redis import Keys, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
_PDEATHSIG = 1

#: What configures the example apps in `celeryconfig.py` begins so.
_OF_EXAMPLES = ("TEAPOT_", "EXPORT_", "WEBHOOKS_", "BATCHES_", "STARS_")

#: What a child process gets of this one's environment: nothing that configures Celery or us.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("CELERY_", "POSTHOG_JOBS_", *_OF_EXAMPLES))
}


#: Whose byte n a process of tests has locked to have the port n for itself.
_PORTS = (Path(tempfile.gettempdir()) / f"posthog_jobs-ports-{os.getuid()}").open("ab")
_free_ports: set[int] = set()
_closed_ports: list[socket.socket] = []


def free_port() -> int:
    """Return a port that nothing listens on, below those that outgoing connections get.

    No other process of tests gets it before this one ends, and this one gets it once.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port in _free_ports:  # a lock keeps other processes off, not this one
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            fcntl.lockf(_PORTS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind((HOST, port))
            _free_ports.add(port)
            return port


def closed_port() -> int:
    """Return a port that refuses connections for as long as this process lives."""
    holder = socket.socket()
    holder.bind((HOST, 0))  # and never listens, so that nobody else can
    _closed_ports.append(holder)
    port: int = holder.getsockname()[1]
    return port


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


class ProcessContainer(CeleryTestContainer):
    """What pytest-celery asks of a container, answered by a process in a folder of its own."""

    boot_timeout = 120.0
    stop_timeout = 60.0

    def __init__(
        self, folder: Path, command: list[str], env: dict[str, str] | None = None, port: int = 0
    ) -> None:
        # no super().__init__(): there is no Docker object behind this container
        self.folder = folder
        self._id = uuid.uuid4().hex
        self._command = [argument.replace("%h", self._id[:12]) for argument in command]
        self._environment = {**ENVIRONMENT, "HOME": str(folder), **(env or {})}
        self._listening_port = port
        self._log = folder / "log.txt"
        self.start()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def id(self) -> str:
        return self._id

    @property
    def name(self) -> str:
        return f"{type(self).__name__}-{self._id[:12]}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> str:
        return "running" if self._process.poll() is None else "exited"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # no threads are under way here
            )

    def ready(self) -> bool:
        deadline = time.monotonic() + self.boot_timeout
        while not self._is_up():
            tail = self.logs()[-3000:]
            if self.status == "exited":
                raise ContainerFailed(self, f"{self.name} ended at its start:\n{tail}")
            if time.monotonic() > deadline:
                raise ContainerNotReady(self, f"{self.name} is not up:\n{tail}")
            time.sleep(0.02)
        return True

    def _is_up(self) -> bool:
        if self._listening_port:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self._listening_port)):
                    return False
        prompt = self.ready_prompt
        return not prompt or prompt.encode() in self._log.read_bytes()[self._log_start :]

    def logs(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:  # pytest-celery's name
        number = _signal_number(signal)
        if number == _signal_number("SIGKILL"):
            # of the whole group, as a container's processes end with its first one
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            self._process.wait()
        elif self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self, timeout: float | None = None) -> None:
        """Stop as `docker stop` does: SIGTERM, and SIGKILL if that takes too long."""
        self.kill("SIGTERM")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout or self.stop_timeout)
        self.kill()

    def restart(self, timeout: float | None = None) -> None:
        self.stop(timeout)
        self.start()
        self.ready()

    def reload(self) -> None:
        """Nothing to read anew: the state is the process' own."""

    def teardown(self) -> None:
        """Nothing: the fixture that started the process ends it."""

    def serve(self) -> Iterator[ProcessContainer]:
        """Yield the container when it is up; end it afterwards."""
        try:
            self.ready()
            yield self
        finally:
            self.kill()


class ServerProcess(ProcessContainer):
    """A server on a free port of the loopback interface."""

    @property
    def url(self) -> str:
        """Return what connects to it."""
        raise NotImplementedError

    @property
    def hostname(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self._listening_port

    @property
    def host_url(self) -> str:
        return self.url


class RedisProcess(ServerProcess, RedisContainer):
    """A Redis or Valkey server on a free port of the loopback interface."""

    @classmethod
    def launch(cls, folder: Path, *options: str) -> RedisProcess:
        port = free_port()
        where = ["--port", str(port), "--bind", HOST, "--dir", str(folder), "--save", ""]
        return cls(folder, [find_binary(), *where, *options], port=port)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/{self.vhost}"


class WorkerProcess(ProcessContainer, CeleryWorkerContainer):
    """`celery -A posthog_jobs worker`."""

    @property
    def ready_prompt(self) -> str:
        return " ready."


def _signal_number(name: str | int) -> int:
    return getattr(signal, name) if isinstance(name, str) else name


def poll(what: str, condition: Any, timeout: float = 60.0) -> Any:
    """Return what a function returns as soon as that is true; fail after the timeout (s)."""
    deadline = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)


def fixed_server(client: Any, prefix: str = "") -> RedisServer:
    """Return what schedule and failed jobs are read from: a client of the test's own."""
    return RedisServer(lambda: (client, Keys(prefix)))
