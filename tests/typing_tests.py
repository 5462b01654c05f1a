"""What a type checker says of an app's code; mypy runs over it, and nothing else does.

Each `type: ignore` is a mistake that must stay an error: mypy refuses one that it does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, assert_type

import posthog_jobs
from posthog_jobs import JobHandle, Jobs, Meta, PluginEvent, RetryError, job
from posthog_jobs.jobs.trigger import JobCall, TriggerableJob
from posthog_jobs.testing import AppTester, ScheduledJob, create_event, create_meta

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@job
def plain(payload: dict[str, str], meta: Meta) -> None: ...


@job(name="retryRequest")
async def renamed(payload: int, meta: Meta) -> str:
    raise RetryError("not now")


def decorating_keeps_the_type() -> None:
    plain_: Callable[[dict[str, str], Meta], None] = plain
    renamed_: Callable[[int, Meta], Awaitable[str]] = renamed
    plain(7, meta_of("app"))  # type: ignore[arg-type]
    job(7)  # type: ignore[call-overload]
    job("retryRequest")  # type: ignore[call-overload]


def process_event(event: PluginEvent, meta: Meta) -> PluginEvent | None:
    assert_type(event["event"], str)
    assert_type(event["properties"], dict[str, Any])
    assert_type(event["team_id"], int)
    assert_type(event.get("ip"), str | None)
    assert_type(event.get("$set"), dict[str, Any] | None)
    event["properties"]["seen"] = True
    event["team_id"] = "2"  # type: ignore[typeddict-item]
    event["propertys"]  # type: ignore[typeddict-item]
    if event["event"] == "drop":
        return None
    return {**event, "properties": {"of": meta.app_id}}


def meta_of(app_id: str) -> Meta:
    meta = posthog_jobs.meta_for(app_id)
    assert_type(meta, Meta)
    assert_type(meta.app_id, str)
    assert_type(meta.team_id, int)
    assert_type(meta.config, Mapping[str, Any])
    assert_type(meta.jobs, Jobs)
    meta.config["url"] = "x"  # type: ignore[index]
    meta.app_id = "other"  # type: ignore[misc]
    return meta


async def triggering(meta: Meta) -> None:
    assert_type(meta.jobs.retryRequest, TriggerableJob)
    assert_type(meta.jobs["retryRequest"], TriggerableJob)
    call = meta.jobs.retryRequest({"url": "x"}, key="k", if_waiting="keep")
    assert_type(call, JobCall)
    assert_type(call.run_now(), JobHandle)
    assert_type(call.run_in(1.5, "hours"), JobHandle)
    assert_type(call.run_at(datetime.now(UTC)), JobHandle)
    assert_type(call.run_now().id, str)
    assert_type(call.run_now().due, datetime)
    await call.run_now()
    nothing = await call.run_now()  # type: ignore[func-returns-value]
    call.run_in("30", "seconds")  # type: ignore[arg-type]
    call.run_in(30)  # type: ignore[call-arg]
    call.run_at("tomorrow")  # type: ignore[arg-type]
    call.run_soon()  # type: ignore[attr-defined]
    meta.jobs.retryRequest(1, if_waiting="never")  # type: ignore[arg-type]


def having_events(event: PluginEvent) -> None:
    assert_type(posthog_jobs.process_event(event), PluginEvent | None)
    assert_type(posthog_jobs.process_event({"event": "sign up"}), PluginEvent | None)
    assert_type(posthog_jobs.capture(event), JobHandle)
    plain_dict: dict[str, Any] = {"event": "sign up"}
    posthog_jobs.capture(plain_dict)
    posthog_jobs.capture("sign up")  # type: ignore[arg-type]
    nameless: PluginEvent = {"properties": {}, "team_id": 1}  # type: ignore[typeddict-item]


def testing(posthog_app: type[AppTester]) -> None:
    app = posthog_app({"jobs": {"plain": plain}}, config={"url": "x"}, now=datetime.now(UTC))
    assert_type(app, AppTester)
    assert_type(app.meta, Meta)
    assert_type(app.process_event(create_event(event="sign up")), PluginEvent | None)
    assert_type(app.jobs.assert_scheduled("plain", in_=(30, "seconds")), ScheduledJob)
    assert_type(app.run_due(after=(1, "month")), list[ScheduledJob])
    assert_type(process_event(create_event(), create_meta()), PluginEvent | None)
    app.run_due(after=30)  # type: ignore[arg-type]
    app.jobs.assert_scheduled(plain)  # type: ignore[arg-type]
    posthog_app(7)  # type: ignore[arg-type]
