"""`meta.metrics`: numbers that an app declares, summed up over all workers on Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.definition import KINDS
from posthog_jobs.broker.scripts import EXTREME
from posthog_jobs.errors import MetricError, UnknownMetricError, did_you_mean, is_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis import Redis

    from posthog_jobs.broker.redis import Keys, RedisServer
    from posthog_jobs.jobs.lane import Lane


class Metrics:
    """One installation's metrics: `meta.metrics["name"]`, or `meta.metrics.name`."""

    __slots__ = ("_app_id", "_kinds", "_lane", "_server")

    def __init__(
        self, app_id: str, kinds: Mapping[str, str], server: RedisServer, lane: Lane
    ) -> None:
        self._app_id: Final = app_id
        self._kinds: Final = kinds
        self._server: Final = server
        self._lane: Final = lane

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
        return Metric(self._app_id, name, kind, self._server, self._lane)

    def __getattr__(self, name: str) -> Metric:
        if name.startswith("__"):  # what copy, pickle and others look for
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._kinds]


class Metric:
    """One metric, recorded by the one method of its kind.

    Every method raises MetricError where it is called, and StoreUnavailableError when Redis does
    not answer. In a running event loop it returns an awaitable, and need not be awaited.
    """

    __slots__ = ("_app_id", "_kind", "_lane", "_name", "_server")

    def __init__(self, app_id: str, name: str, kind: str, server: RedisServer, lane: Lane) -> None:
        self._app_id: Final = app_id
        self._name: Final = name
        self._kind: Final = kind
        self._server: Final = server
        self._lane: Final = lane

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
        kind, field = self._kind, _field(self._name, self._kind)
        where = f"metric {self._name!r} of app id {self._app_id!r}"
        if KINDS[kind] != method:
            raise MetricError(f"{where} is a {kind}; use .{KINDS[kind]}(…), or declare it anew")
        text = repr(_checked(where, number))

        def call(redis: Redis, keys: Keys) -> None:
            name = keys.metrics(self._app_id)
            if kind == "sum":
                redis.hincrbyfloat(name, field, float(text))
            else:
                EXTREME(redis, [name], [field, text, kind])

        return self._lane.call(lambda: self._server.call(call), f"{method} of {where}")


def read_metrics(
    app_id: str, kinds: Mapping[str, str] | None, server: RedisServer
) -> dict[str, float | None]:
    """Return the values of an installation's metrics, as they are now.

    Args:
        app_id: the installation.
        kinds: the metrics that its app declares, name → kind; None: its code is not known, so
            all that were recorded.
        server: where they are kept.

    Returns:
        Name → value; what was never recorded is 0 for a `sum`, else None.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    if kinds is not None and not kinds:
        return {}
    kept = server.call(lambda redis, keys: redis.hgetall(keys.metrics(app_id)))
    # as bytes, or as text if the URL says decode_responses
    values = {_text(field): float(value) for field, value in kept.items()}
    if kinds is None:
        return {field.partition(":")[2]: value for field, value in values.items()}
    nothing = {"sum": 0.0}
    return {name: values.get(_field(name, kind), nothing.get(kind)) for name, kind in kinds.items()}


def _text(field: bytes | str) -> str:
    return field.decode() if isinstance(field, bytes) else field


def _field(name: str, kind: str) -> str:
    """The kind is part of it, so that a metric that is declared anew starts anew."""
    return f"{kind}:{name}"


def _checked(where: str, number: object) -> float:
    if not is_number(number):
        shown = number if isinstance(number, float) else f"of type {type(number).__name__}"
        raise MetricError(f"{where} was given what is {shown}; use a finite number")
    return float(number)
