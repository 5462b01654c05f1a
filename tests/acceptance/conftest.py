"""Sites of a server and its workers, for the tests of the transport."""

from __future__ import annotations

from tests.servers.fixtures import frail_site, notes_server, own_server, server, site

__all__ = ["frail_site", "notes_server", "own_server", "server", "site"]
