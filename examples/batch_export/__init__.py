"""Exports events in batches to an HTTP endpoint: gzipped JSON, with an event on each line.

The buffer, its limits and the retries are those of `export_events`. A batch that the endpoint
refuses is kept as failed, with its events, to be replayed when that is mended. The endpoint may
get a batch twice: the header `idempotency-key` is the same then.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import TYPE_CHECKING, Any

import httpx

from posthog_jobs import RetryError

if TYPE_CHECKING:
    from posthog_jobs import Meta, PluginEvent

#: What says "not now", besides 500 and above: Request Timeout and Too Many Requests.
NOT_NOW = (408, 429)

metrics = {"events": "sum", "batches": "sum", "largest": "max"}


class RefusedError(Exception):
    """The endpoint does not take the batch, now or later."""


def setup_plugin(meta: Meta) -> None:
    """Check the config, and prepare the connections that all exports of this process share."""
    if not meta.config["url"].startswith(("http://", "https://")):
        raise ValueError("url begins with neither http:// nor https://")
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    if "token" in meta.attachments:
        token = meta.attachments["token"].contents.decode("ascii").strip()
        headers["authorization"] = f"Bearer {token}"
    meta.global_["client"] = httpx.Client(headers=headers, timeout=float(meta.config["timeout"]))


def teardown_plugin(meta: Meta) -> None:
    """Close the connections."""
    meta.global_["client"].close()


def export_events(events: list[PluginEvent], meta: Meta) -> None:
    """Post a batch.

    Raises:
        RetryError: the endpoint is busy or away; the batch is exported again later.
        RefusedError: it does not take the batch.
    """
    lines = "".join(json.dumps(row(event), default=str) + "\n" for event in events).encode()
    key = hashlib.sha256(lines).hexdigest()
    try:
        response = meta.global_["client"].post(
            meta.config["url"], content=gzip.compress(lines), headers={"idempotency-key": key}
        )
    except httpx.TransportError as error:  # timeouts are among them
        raise RetryError(f"no answer: {type(error).__name__}") from error
    answer = f"the endpoint answered {response.status_code} to {len(events)} events"
    if response.is_server_error or response.status_code in NOT_NOW:
        asked = response.headers.get("retry-after", "")
        # it may be a date, too, which is rare: then the usual delay has to do
        raise RetryError(answer, delay=float(asked) if asked.isdecimal() else None)
    if not response.is_success:
        raise RefusedError(answer)
    meta.metrics.events.increment(len(events))
    meta.metrics.batches.increment()
    meta.metrics.largest.max(len(events))


def row(event: PluginEvent) -> dict[str, Any]:
    """Return what a warehouse's table has of an event, which PostHog keeps in several places."""
    properties = event["properties"]
    return {
        "uuid": event.get("uuid"),
        "event": event["event"],
        "distinct_id": event.get("distinct_id"),
        "team_id": event["team_id"],
        "timestamp": event.get("timestamp") or properties.get("timestamp") or event.get("now"),
        "ip": properties.get("$ip") or event.get("ip"),
        "site_url": event.get("site_url"),
        "properties": properties,
        "elements": event.get("elements", []),
        "people_set": event.get("$set", {}),
        "people_set_once": event.get("$set_once", {}),
    }
