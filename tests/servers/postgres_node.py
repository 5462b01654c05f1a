"""PostgreSQL as a process, for `tests.servers.nodes`: a private server on a unix socket alone."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.servers.nodes import ENVIRONMENT, ProcessContainer

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Whom the server runs as where the tests run as root, which it refuses.
_USERS = ("postgres", "nobody")


def find_binary(name: str) -> str | None:
    """Return a program of PostgreSQL, or None where it is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    beside = shutil.which("postgres")
    places = [shutil.which(name), *debian]
    if beside is not None:
        places.append(Path(beside).resolve().parent / name)
    return next((str(place) for place in places if place and os.access(place, os.X_OK)), None)


def why_not() -> str | None:
    """Return why PostgreSQL cannot be started here, or None where it can."""
    if find_binary("postgres") is None or find_binary("initdb") is None:
        return (
            "PostgreSQL is not installed: there are no postgres and initdb on PATH or in "
            "/usr/lib/postgresql; on Debian run apt-get install postgresql"
        )
    if os.getuid() == 0 and (shutil.which("setpriv") is None or _user() is None):
        return "PostgreSQL refuses to run as root, and there is no setpriv, or no user, to run it"
    return None


def _user() -> pwd.struct_passwd | None:
    return next((user for user in pwd.getpwall() if user.pw_name in _USERS), None)


def _as_user(command: list[str], folder: Path) -> list[str]:
    """Return a command that runs as somebody who is not root and owns the folder."""
    user = _user()
    if os.getuid() != 0 or user is None:
        return command
    os.chown(folder, user.pw_uid, user.pw_gid)
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    # which a change of user would clear: the server ends with the tests
    return ["setpriv", *ids, "--pdeathsig", "KILL", "--", *command]


class PostgresProcess(ProcessContainer):
    """A PostgreSQL server that listens on a unix socket in its folder, and nowhere else."""

    @classmethod
    def launch(cls, folder: Path) -> PostgresProcess:
        """Make a database cluster in a folder that its user can reach, and serve it."""
        initdb, postgres = find_binary("initdb"), find_binary("postgres")
        assert initdb is not None, why_not()
        assert postgres is not None, why_not()
        data = folder / "data"
        data.mkdir()
        make = [initdb, "-D", str(data), "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            _as_user(make, data),
            check=True,
            capture_output=True,
            cwd="/",
            env={**ENVIRONMENT, "LC_ALL": "C.UTF-8"},
            timeout=240,
        )
        options = {"listen_addresses": "", "unix_socket_directories": str(data), "fsync": "off"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return cls(folder, _as_user([postgres, "-D", str(data), *words], data))

    @property
    def ready_prompt(self) -> str:
        return "database system is ready to accept connections"

    @property
    def url(self) -> str:
        socket = quote(str(self.folder / "data"), safe="")
        return f"postgresql+psycopg://tests:hunter2@/postgres?host={socket}"


def serve() -> Iterator[PostgresProcess]:
    """Yield a server that is up; end it, and remove its data, afterwards."""
    # pytest's own folders are closed to other users, and too long for a socket's path
    with tempfile.TemporaryDirectory(prefix="posthog_jobs-") as name:
        Path(name).chmod(0o711)
        server = PostgresProcess.launch(Path(name))
        try:
            server.ready()
            yield server
        finally:
            server.kill("SIGQUIT")  # = at once; its children end with it
            with suppress(subprocess.TimeoutExpired):
                server._process.wait(server.stop_timeout)
            server.kill()
