"""`meta.metrics`: declared by an app, recorded by its code, kept on Redis or in memory."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from posthog_jobs.apps.definition import define_app
from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import (
    AppLoadError,
    StoreUnavailableError,
    StoreValueError,
    UnknownMetricError,
)
from posthog_jobs.operate.cli.apps import apps
from posthog_jobs.settings import Settings
from posthog_jobs.testing.memory import memory_stores
from posthog_jobs.worker.runtime import Runtime
from tests.recorder import Recorder
from tests.servers.nodes import closed_port

if TYPE_CHECKING:
    from pathlib import Path

    from posthog_jobs import Meta
    from tests.servers.nodes import RedisProcess

APP = """
metrics = {"count": "sum", "longest": "MAX", "shortest": "min"}

def on_event(event, meta): ...
"""


@pytest.fixture
def config(idle_server: RedisProcess, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "measured.py").write_text(APP)
    apps = {"one": str(tmp_path / "measured.py"), "two": str(tmp_path / "measured.py")}
    return {"broker_url": idle_server.url, "posthog_jobs_apps": apps}


@pytest.fixture
def app(config: dict[str, Any]) -> PostHogJobs:
    return PostHogJobs(config_source=config)


@pytest.fixture(params=["redis", "memory"])
def runtime(request: pytest.FixtureRequest, config: dict[str, Any], app: PostHogJobs) -> Runtime:
    """What runs the apps, over Redis and over what app authors test with."""
    if request.param == "redis":
        return app.runtime
    settings = Settings(apps=config["posthog_jobs_apps"])
    return Runtime(settings, Recorder(), memory_stores(lambda: datetime.now(UTC)))


@pytest.fixture
def meta(runtime: Runtime) -> Meta:
    return runtime.meta("one")


def recorded(runtime: Runtime, app_id: str = "one") -> dict[str, float | None]:
    return runtime.metas.metrics(app_id, runtime.installations.get(app_id).definition)


def test_each_kind(runtime: Runtime, meta: Meta) -> None:
    """Metrics: a sum adds up, a max and a min keep the most and the least, of any sign."""
    assert recorded(runtime) == {"count": 0, "longest": None, "shortest": None}
    for number in (3, -7.5, 2, 0):
        meta.metrics["count"].increment(number)
        meta.metrics["longest"].max(number)
        meta.metrics.shortest.min(number)
    meta.metrics.count.increment()

    assert recorded(runtime) == {"count": -1.5, "longest": 3, "shortest": -7.5}
    assert recorded(runtime, "two") == {"count": 0, "longest": None, "shortest": None}
    assert (runtime.metas.purge("one"), runtime.metas.purge("two")) == (1, 0)
    assert recorded(runtime) == {"count": 0, "longest": None, "shortest": None}
    assert list(meta.metrics) == ["count", "longest", "shortest"]
    assert {"count", "longest"} <= set(dir(meta.metrics))


@pytest.mark.parametrize("number", [1e300, 5e-324, 0.1, 2**53, -1e17])
def test_numbers_are_kept_exactly(runtime: Runtime, meta: Meta, number: float) -> None:
    """Metrics: a max and a min are the very numbers that were given."""
    meta.metrics.longest.max(-1e308)
    meta.metrics.longest.max(number)
    meta.metrics.shortest.min(number)

    values = recorded(runtime)
    assert (values["longest"], values["shortest"]) == (number, number)


def test_threads_and_coroutines_record_together(runtime: Runtime, meta: Meta) -> None:
    """Metrics: nothing is lost between threads; a coroutine awaits, or need not."""

    async def use() -> None:
        meta.metrics.count.increment(100)
        await meta.metrics.longest.max(1000)

    with ThreadPoolExecutor(4) as threads:
        for number in range(100):
            threads.submit(meta.metrics.count.increment)
            threads.submit(meta.metrics.longest.max, number)
            threads.submit(meta.metrics.shortest.min, number)
    asyncio.run(use())

    assert recorded(runtime) == {"count": 200, "longest": 1000, "shortest": 0}


@pytest.mark.parametrize("number", [math.nan, math.inf, True, "1", None, 10**400])
def test_what_is_no_number(runtime: Runtime, meta: Meta, number: Any) -> None:
    """Metrics: what is no finite number is refused where it is given, and nothing is kept."""
    with pytest.raises(StoreValueError, match="metric 'count' of app id 'one' was given"):
        meta.metrics.count.increment(number)
    assert recorded(runtime)["count"] == 0


def test_the_wrong_method(meta: Meta) -> None:
    """Metrics: a metric is recorded by the method of its kind alone, which the error names."""
    with pytest.raises(StoreValueError, match=r"metric 'longest' .* is a max; use \.max\(…\)"):
        meta.metrics.longest.increment()
    with pytest.raises(StoreValueError, match=r"is a sum; use \.increment\(…\)"):
        meta.metrics.count.min(1)


def test_an_unknown_metric(meta: Meta) -> None:
    """Metrics: a name that is not declared is an error at once, with the close one."""
    with pytest.raises(UnknownMetricError, match=r"no metric 'cuont'; did you mean 'count'\?"):
        meta.metrics["cuont"].increment()
    assert not hasattr(meta.metrics, "other")
    assert not hasattr(meta.metrics, "__other__")


def test_a_metric_declared_anew_starts_anew(runtime: Runtime, meta: Meta) -> None:
    """Metrics: what was recorded as a sum is no max; unloadable code shows all there is."""
    meta.metrics.count.increment(5)
    definition = define_app(
        "measured", "", {"on_event": print, "metrics": {"count": "max", "other": "sum"}}
    )

    assert runtime.metas.metrics("one", definition) == {"count": None, "other": 0}
    assert runtime.metas.metrics("one", None) == {"count": 5}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["count"], "`metrics` is of type list; it maps names to kinds"),
        ({"count": "total"}, "metric 'count' is of the kind 'total'; the kinds are sum, max, min"),
        ({"count": "summ"}, "did you mean 'sum'"),
        ({"count": 1}, "is of the kind 1; the kinds"),
        ({"my count": "sum"}, "'my count' is not the name of a metric"),
        ({"__count": "sum"}, "'__count' is not the name of a metric"),
        ({1: "sum"}, "1 is not the name of a metric"),
    ],
)
def test_what_is_no_declaration(metrics: Any, message: str) -> None:
    """Metrics: a declaration that cannot work is refused when the app is loaded."""
    with pytest.raises(AppLoadError, match=message):
        define_app("teapot", "teapot", {"on_event": print, "metrics": metrics})


def test_a_submodule_is_no_declaration() -> None:
    """Metrics: an app that is a package may have a module metrics.py."""
    assert define_app("teapot", "", {"on_event": print, "metrics": sys}).metrics == {}


def test_apps_show(app: PostHogJobs) -> None:
    """Metrics: `apps show` prints them."""
    app.meta_for("one").metrics.count.increment(5)
    context = CLIContext(app=app, no_color=True, workdir=None)
    shown = CliRunner().invoke(apps, ["show", "one", "--json"], obj=context)

    metrics = {"count": 5, "longest": None, "shortest": None}
    assert json.loads(shown.stdout)["metrics"] == metrics


def test_redis_is_away(config: dict[str, Any]) -> None:
    """Metrics: without Redis recording is an error, at once."""
    config["broker_url"] = f"redis://127.0.0.1:{closed_port()}/0"
    meta = PostHogJobs(config_source=config).runtime.meta("one")
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        meta.metrics.count.increment()
