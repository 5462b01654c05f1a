"""`meta.geoip`: where an IP address is, by a database file of MaxMind's format."""

from __future__ import annotations

import ipaddress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.errors import AddressError, ConfigurationError

if TYPE_CHECKING:
    from geoip2.database import Reader

    from posthog_jobs.jobs.execution import LoopCaller


class GeoIP:
    """Locates addresses, for all installations of a process.

    The file is opened by the first call and mapped into memory, which threads share, and
    processes that are forked later.
    """

    def __init__(self, path: str | None, caller: LoopCaller) -> None:
        """Remember where the file is.

        Args:
            path: of an `.mmdb` file with cities, such as GeoLite2's, if there is one.
            caller: calls for coroutines.
        """
        self._path: Final = path
        self._caller: Final = caller

    def locate(self, ip: str) -> Any:
        """Return what is known of an address, IPv4 or IPv6.

        Returns:
            A dict with what is known of `city`, `country`, `continent`, `location`, `postal`,
            `subdivisions`, `traits`, …, in MaxMind's names; None if the address is not in the
            database. In a running event loop an awaitable of that.

        Raises:
            AddressError: it is not an IP address.
            ConfigurationError: no database is configured, it cannot be read, or geoip2 is not
                installed.
        """
        try:
            address = ipaddress.ip_address(ip) if isinstance(ip, str) else None
        except ValueError:
            address = None
        if address is None:
            shown = repr(ip[:50]) if isinstance(ip, str) else f"of type {type(ip).__name__}"
            raise AddressError(
                f'geoip.locate was given what is not an IP address: {shown}; use one, as "1.2.3.4"'
            )
        return self._caller.call(lambda: self._locate(str(address)), "geoip.locate")

    def _locate(self, address: str) -> dict[str, Any] | None:
        reader = self._reader
        from geoip2.errors import AddressNotFoundError  # noqa: PLC0415  # of an extra

        try:
            return reader.city(address).to_dict()
        except AddressNotFoundError:
            return None
        except TypeError as error:
            raise ConfigurationError(
                f"posthog_jobs_geoip_path does not name a database of cities: {error}"
            ) from None

    @cached_property
    def _reader(self) -> Reader:
        path = self._path
        if path is None:
            raise ConfigurationError(
                "meta.geoip needs posthog_jobs_geoip_path, the path of an .mmdb file with cities, "
                "such as MaxMind's GeoLite2-City.mmdb"
            )
        try:
            from geoip2.database import Reader  # noqa: PLC0415  # of an extra
            from maxminddb import InvalidDatabaseError  # noqa: PLC0415
        except ImportError:
            raise ConfigurationError(
                "meta.geoip needs geoip2; pip install 'posthog-jobs[geoip]'"
            ) from None
        try:
            return Reader(path)
        except (OSError, ValueError, InvalidDatabaseError) as error:
            raise ConfigurationError(
                f"posthog_jobs_geoip_path is {path!r}, which cannot be read as an .mmdb "
                f"file: {error}"
            ) from None
