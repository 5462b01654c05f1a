"""Posts events to a webhook, signed, and again later while it does not answer.

Each event becomes a job, so that it survives a worker's end, waits out a webhook that is down,
and is kept as failed, to be replayed, if the webhook refuses it. A webhook may get an event
twice: the header `webhook-id` is the same then.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx

from posthog_jobs import RetryError, RetryPolicy, job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs import Meta, PluginEvent

#: What says "not now", besides 500 and above: Request Timeout and Too Many Requests.
NOT_NOW = (408, 429)

metrics = {"sent": "sum", "failed": "sum"}


class RefusedError(Exception):
    """The webhook does not want this, now or later."""


def setup_plugin(meta: Meta) -> None:
    """Check the config, and prepare what all deliveries of this process share."""
    if not meta.config["url"].startswith(("http://", "https://")):
        raise ValueError("url begins with neither http:// nor https://")
    try:
        secret = meta.config["secret"].removeprefix("whsec_")
        meta.global_["key"] = base64.b64decode(secret, validate=True)
    except ValueError:
        raise ValueError("secret is not base64") from None
    names = (name.strip() for name in meta.config["events"].split(","))
    meta.global_["events"] = frozenset(name for name in names if name)
    meta.global_["client"] = httpx.AsyncClient(timeout=float(meta.config["timeout"]))


async def teardown_plugin(meta: Meta) -> None:
    """Close the connections."""
    await meta.global_["client"].aclose()


async def on_event(event: PluginEvent, meta: Meta) -> None:
    """Have an event delivered, if it is one of those to send."""
    wanted = meta.global_["events"]
    if not wanted or event["event"] in wanted:
        await meta.jobs.deliver({"id": str(uuid4()), "event": event}).run_now()


@job
async def ping(payload: dict[str, str], meta: Meta) -> None:
    """Have a message delivered, for an operator who wants to see whether it arrives."""
    event = {"event": "ping", "properties": {"message": payload["message"]}}
    await meta.jobs.deliver({"id": str(uuid4()), "event": event}).run_now()


# again after 5, 10, 20 … s, then every hour: for half a day in all
@job(retry=RetryPolicy(first=5, retries=20, longest=3600), time_limit=120)
async def deliver(delivery: dict[str, Any], meta: Meta) -> None:
    """Post an event, again later while the webhook is busy or away."""
    try:
        await post(delivery, meta)
    except Exception as error:
        is_last = meta.job is not None and meta.job.attempt == meta.job.max_attempts
        if is_last or not isinstance(error, RetryError):
            await meta.metrics.failed.increment()
        raise
    await meta.metrics.sent.increment()


async def post(delivery: Mapping[str, Any], meta: Meta) -> None:
    """Post an event once.

    Raises:
        RetryError: it may work later.
        RefusedError: it will not.
    """
    body = json.dumps(delivery["event"], default=str).encode()
    headers = signed(body, delivery["id"], meta.global_["key"], int(time.time()))
    try:
        response = await meta.global_["client"].post(
            meta.config["url"], content=body, headers=headers
        )
    except httpx.TransportError as error:  # timeouts are among them
        raise RetryError(f"no answer: {type(error).__name__}") from error
    answer = f"the webhook answered {response.status_code}"
    if response.is_server_error or response.status_code in NOT_NOW:
        raise RetryError(answer, delay=retry_after(response))
    if not response.is_success:
        raise RefusedError(answer)


def signed(body: bytes, webhook_id: str, key: bytes, now: int) -> dict[str, str]:
    """Return the headers that prove where a body comes from, as Standard Webhooks has them.

    Args:
        body: what is posted.
        webhook_id: by which the receiver knows what it has got before.
        key: the secret that it shares with us.
        now: seconds since the epoch, by which it knows what is too old to be ours.
    """
    digest = hmac.new(key, b"%s.%d.%s" % (webhook_id.encode(), now, body), hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a response asks to wait, by `Retry-After`; None if it does not."""
    asked = response.headers.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())
