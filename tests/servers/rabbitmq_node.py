"""RabbitMQ as a process; its boot takes seconds, so that one serves a session."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
from pytest_celery import RabbitMQContainer

from tests.servers.nodes import HOST, ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Names the script to start, where it is in neither of the usual places.
SCRIPT_VARIABLE = "RABBITMQ_SERVER_SCRIPT"

#: Debian's; its wrapper in /usr/sbin, which PATH has, insists on root or the user rabbitmq.
_DEBIAN_SCRIPT = "/usr/lib/rabbitmq/bin/rabbitmq-server"


def find_script() -> str | None:
    """Return the server's script, or None where RabbitMQ is not installed."""
    for candidate in (os.environ.get(SCRIPT_VARIABLE), _DEBIAN_SCRIPT, "rabbitmq-server"):
        if candidate and (found := shutil.which(candidate)):
            return found
    return None


def why_not() -> str | None:
    """Return why RabbitMQ cannot be started here, or None where it can."""
    if find_script() is None:
        return (
            "RabbitMQ is not installed: there is no rabbitmq-server on PATH or in "
            f"/usr/lib/rabbitmq/bin, and {SCRIPT_VARIABLE} names none; on Debian run "
            "apt-get install rabbitmq-server"
        )
    if _find_epmd() is None:
        return "RabbitMQ needs epmd, which comes with Erlang, on PATH"
    return None


def _find_epmd() -> str | None:
    return shutil.which("epmd")


class PortMapper(ServerProcess):
    """Erlang's epmd. Left to RabbitMQ it would outlive it, and listen on every interface."""

    @classmethod
    def launch(cls, folder: Path) -> PortMapper:
        port = free_port()
        epmd = _find_epmd()
        assert epmd is not None, why_not()
        return cls(folder, [epmd, "-port", str(port), "-address", HOST], port=port)

    @property
    def port(self) -> int:
        return self._listening_port

    @property
    def ready_prompt(self) -> None:
        return None


class RabbitMQProcess(ServerProcess, RabbitMQContainer):
    """A RabbitMQ server on free ports of the loopback interface, with its data in its folder."""

    boot_timeout = 240.0
    mapper: PortMapper

    @classmethod
    def launch(cls, folder: Path, mapper: PortMapper) -> RabbitMQProcess:
        """Start a server that finds its port mapper, which is up."""
        port = free_port()
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{port}\ndisk_free_limit.absolute = 50MB\n"
        )
        env = {
            "ERL_EPMD_PORT": mapper.port,
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"test{port}@localhost",
            "RABBITMQ_DIST_PORT": free_port(),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": folder / "mnesia",
            "RABBITMQ_LOG_BASE": folder / "log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "advanced.config",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
            "RABBITMQ_PLUGINS_EXPAND_DIR": folder / "plugins",
            "RABBITMQ_PID_FILE": folder / "pid",
            "RUNNING_UNDER_SYSTEMD": "true",  # = become the Erlang VM: no shell stays in front
        }
        script = find_script()
        assert script is not None, why_not()
        words = {name: str(value) for name, value in env.items()}
        server = cls(folder, [script], words, port=port)
        server.mapper = mapper
        return server

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    @property
    def ready_prompt(self) -> str:
        return "Server startup complete"

    def kill(self, signal: str | int = "SIGKILL") -> None:
        # Erlang gives its helpers groups of their own; they end with it, but not at once
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
        super().kill(signal)
        if self.status == "exited":
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=self.stop_timeout)


def listening(process: ServerProcess) -> set[str]:
    """Return the addresses that a process and its children listen on."""
    root = psutil.Process(process.pid)
    return {
        connection.laddr.ip
        for one in (root, *root.children(recursive=True))
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def serve(folder: Path) -> Iterator[RabbitMQProcess]:
    """Yield a server that is up; end it, and all that it has started, afterwards."""
    (folder / "epmd").mkdir()
    mapper = PortMapper.launch(folder / "epmd")
    try:
        mapper.ready()
        server = RabbitMQProcess.launch(folder, mapper)
        try:
            server.ready()
            yield server
        finally:
            server.kill()
    finally:
        mapper.kill()
