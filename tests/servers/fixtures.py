"""A real server for the session, an empty one for each test, and workers that end with it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.servers.processes import Server, Site, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with TemporaryDirectory(prefix="pj") as folder, running(Server(Path(folder))) as found:
        yield found


@pytest.fixture(scope="session")
def notes_server() -> Iterator[Server]:
    with TemporaryDirectory(prefix="pj") as folder, running(Server(Path(folder))) as found:
        yield found


@pytest.fixture
def site(server: Server, notes_server: Server, tmp_path: Path) -> Iterator[Site]:
    server.client().flushall()
    notes_server.client().flushall()
    found = Site(server, notes_server, tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill; it keeps everything that it acknowledged."""
    with TemporaryDirectory(prefix="pj") as folder:
        server = Server(Path(folder), "--appendonly", "yes", "--appendfsync", "always")
        with running(server):
            yield server


@pytest.fixture
def frail_site(own_server: Server, notes_server: Server, tmp_path: Path) -> Iterator[Site]:
    notes_server.client().flushall()
    found = Site(own_server, notes_server, tmp_path)
    try:
        yield found
    finally:
        found.close()
