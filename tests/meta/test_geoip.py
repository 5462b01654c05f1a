"""`meta.geoip`: where an address is, by a real database file."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from posthog_jobs.errors import AddressError, ConfigurationError
from posthog_jobs.jobs.execution import LoopCaller
from posthog_jobs.meta.geoip import GeoIP

if TYPE_CHECKING:
    from pathlib import Path

OXFORD = {
    "city": {"geoname_id": 2640729, "names": {"en": "Oxford", "fr": "Oxford"}},
    "continent": {"code": "EU", "geoname_id": 6255148, "names": {"en": "Europe"}},
    "country": {"iso_code": "GB", "geoname_id": 2635167, "names": {"en": "United Kingdom"}},
    "location": {"latitude": 51.75, "longitude": -1.25, "time_zone": "Europe/London"},
    "postal": {"code": "OX1"},
    "subdivisions": [{"iso_code": "ENG", "names": {"en": "England"}}],
}


def write(path: Path, kind: str = "GeoIP2-City") -> str:
    """Write a database that knows two networks."""
    writer = MMDBWriter(6, kind, languages=["en"], ipv4_compatible=True)
    writer.insert_network(IPSet(["2.125.160.216/29"]), OXFORD)
    writer.insert_network(IPSet(["2a02:cf40::/29"]), {"country": {"iso_code": "NO"}})
    writer.to_db_file(str(path))
    return str(path)


def located_by(path: str | None) -> GeoIP:
    return GeoIP(path, LoopCaller("test"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("geoip") / "city.mmdb")


@pytest.fixture
def geoip(path: str) -> GeoIP:
    return located_by(path)


def test_what_is_known(geoip: GeoIP) -> None:
    """GeoIP: a known address gives all that the database says, as a plain dict."""
    found = geoip.locate("2.125.160.217")

    assert type(found) is dict
    assert found["city"] == OXFORD["city"]
    assert found["country"]["iso_code"] == "GB"
    assert found["location"] == OXFORD["location"]
    assert found["postal"] == {"code": "OX1"}
    assert found["subdivisions"][0]["names"]["en"] == "England"
    assert found["traits"] == {"ip_address": "2.125.160.217", "network": "2.125.160.216/29"}
    assert geoip.locate("2a02:cf40::1")["country"]["iso_code"] == "NO"


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "8.8.8.8"])
def test_what_is_not_known(geoip: GeoIP, ip: str) -> None:
    """GeoIP: an address that is not in the database gives None."""
    assert geoip.locate(ip) is None


@pytest.mark.parametrize("ip", ["", "localhost", "1.2.3", "1.2.3.4/24", None, 16909060, b"1.2.3.4"])
def test_what_is_no_address(geoip: GeoIP, ip: Any) -> None:
    """GeoIP: what is no address is refused where it is given, in a coroutine too."""

    async def use() -> None:
        with pytest.raises(AddressError, match="not an IP address"):
            geoip.locate(ip)

    with pytest.raises(AddressError, match="not an IP address"):
        geoip.locate(ip)
    asyncio.run(use())


def test_threads_coroutines_and_forks(geoip: GeoIP) -> None:
    """GeoIP: one reader serves threads, coroutines, and processes that are forked later."""

    async def use() -> Any:
        return await geoip.locate("2.125.160.217")

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(geoip.locate, ["2.125.160.217"] * 50))
    assert all(one == found[0] for one in found)
    assert asyncio.run(use()) == found[0]
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            os._exit(0 if geoip.locate("2.125.160.217") == found[0] else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    """GeoIP: no path, no file, no database, none of cities: a clear error at each use."""
    (tmp_path / "text.mmdb").write_text("hello")
    country = write(tmp_path / "country.mmdb", "GeoLite2-Country")
    cases = [
        (None, "needs posthog_jobs_geoip_path"),
        (str(tmp_path / "missing.mmdb"), "cannot be read as an .mmdb file: .*No such file"),
        (str(tmp_path / "text.mmdb"), "cannot be read as an .mmdb file"),
        (str(tmp_path), "cannot be read as an .mmdb file"),
        (country, "does not name a database of cities: .*GeoLite2-Country"),
    ]
    for path, message in cases:
        geoip = located_by(path)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=message):
                geoip.locate("2.125.160.217")


def test_a_file_that_comes_later(tmp_path: Path) -> None:
    """GeoIP: a file that is put there later is found without a restart."""
    geoip = located_by(str(tmp_path / "city.mmdb"))
    with pytest.raises(ConfigurationError):
        geoip.locate("2.125.160.217")
    write(tmp_path / "city.mmdb")

    assert geoip.locate("2.125.160.217")["country"]["iso_code"] == "GB"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """GeoIP: without geoip2 the first use says what to install."""
    monkeypatch.setitem(sys.modules, "geoip2.database", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'posthog-jobs\[geoip\]'"):
        located_by(path).locate("2.125.160.217")
