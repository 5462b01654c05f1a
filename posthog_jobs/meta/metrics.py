"""`meta.metrics`: numbers that an app declares, summed up over all workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from posthog_jobs.apps.definition import KINDS
from posthog_jobs.errors import StoreValueError, UnknownMetricError, did_you_mean, is_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from posthog_jobs.jobs.execution import LoopCaller


class MetricsStore(Protocol):
    """Where the metrics of all installations are, by app id, kind and name.

    The kind counts, so that a metric that is declared anew starts anew. Every method may be called
    from any thread, and raises StoreUnavailableError when the store does not answer.
    """

    def record(self, app_id: str, kind: str, name: str, number: float) -> None:
        """Add a number to a `sum`, or keep it if it is the most (`max`) or the least. Atomic."""

    def read(self, app_id: str) -> dict[tuple[str, str], float]:
        """Return what was recorded, by kind and name."""

    def purge(self, app_id: str) -> int:
        """Delete all that an installation has recorded; return how many keys there were."""


class Metrics:
    """One installation's metrics: `meta.metrics["name"]`, or `meta.metrics.name`."""

    __slots__ = ("_app_id", "_caller", "_kinds", "_store")

    def __init__(
        self, app_id: str, kinds: Mapping[str, str], store: MetricsStore, caller: LoopCaller
    ) -> None:
        self._app_id, self._kinds, self._store, self._caller = app_id, kinds, store, caller

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of this name.

        Raises:
            UnknownMetricError: the app declares none of this name.
        """
        kind = self._kinds.get(name)
        if kind is None:
            hint = did_you_mean(name, self._kinds)
            raise UnknownMetricError(
                f"app id {self._app_id!r} declares no metric {name!r}; {hint}it declares: "
                f'{", ".join(self._kinds) or "none"}. Add it to metrics = {{"name": "sum"}}'
            )
        return Metric(self._app_id, name, kind, self._store, self._caller)

    def __getattr__(self, name: str) -> Metric:
        if name.startswith("__"):  # what copy, pickle and others look for
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._kinds]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, recorded by the one method of its kind.

    Every method raises StoreValueError where it is called, and StoreUnavailableError when Redis
    does not answer. In a running event loop it returns an awaitable, and need not be awaited.
    """

    _app_id: str
    _name: str
    _kind: str
    _store: MetricsStore
    _caller: LoopCaller

    def increment(self, number: float = 1) -> Any:
        """Add a number to a `sum`."""
        return self._record("increment", number)

    def max(self, number: float) -> Any:
        """Keep a number in a `max` if it is larger than all before."""
        return self._record("max", number)

    def min(self, number: float) -> Any:
        """Keep a number in a `min` if it is smaller than all before."""
        return self._record("min", number)

    def _record(self, method: str, number: float) -> Any:
        app_id, name, kind = self._app_id, self._name, self._kind
        where = f"metric {name!r} of app id {app_id!r}"
        if KINDS[kind] != method:
            raise StoreValueError(f"{where} is a {kind}; use .{KINDS[kind]}(…), or declare it anew")
        if not is_number(number):
            shown = number if isinstance(number, float) else f"of type {type(number).__name__}"
            raise StoreValueError(f"{where} was given what is {shown}; use a finite number")
        value = float(number)
        return self._caller.call(
            lambda: self._store.record(app_id, kind, name, value), f"{method} of {where}"
        )
