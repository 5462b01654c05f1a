"""A broker on which jobs fail at once, without a worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from redis import Redis

from posthog_jobs.broker import scripts
from posthog_jobs.broker.failure import FailedJob
from posthog_jobs.broker.failures import FailureKeeper
from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.transport.channel import REPLY_HEAD
from posthog_jobs.broker.transport.connection import Connection
from posthog_jobs.worker.job_ends import reason_of

if TYPE_CHECKING:
    from posthog_jobs.celery import PostHogJobs
    from tests.servers.nodes import RedisProcess

LEASE = "worker"


class Broken:
    """A broker on which jobs fail, at once and without a worker."""

    client: Any  # whose replies are bytes

    def __init__(self, app: PostHogJobs, server: RedisProcess) -> None:
        self.app, self.client = app, Redis.from_url(server.url)
        self.keys = Keys()
        self.connection = Connection(self.client.connection_pool)
        self.tags = 0
        self.most = 100

    def fetch(self) -> tuple[str, bytes]:
        """Take the next message in flight; its tag, and the message."""
        self.tags += 1
        args = [LEASE, 60_000, 1, self.tags, 0, 0, 1, "0", "y", "0"]
        keys = [*self.keys.fixed, self.keys.inflight(LEASE), "celery"]
        reply = scripts.TURN(self.connection, keys, [self.keys.prefix, *args])
        _, tag, raw = reply[REPLY_HEAD:]
        return tag.decode(), raw

    def settle(self, tag: str, raw: bytes, error: Exception) -> str:
        """Let the message fail with an error; its id."""
        failure = FailedJob.of(
            json.loads(raw)["headers"],
            fallback_id="none",
            reason=reason_of(error),
            error=error,
            traceback="Traceback …",
            worker="w@test",
        )
        keeper = FailureKeeper(self.keys, self.most)
        list(keeper.move(self.connection, self.keys.inflight(LEASE), {tag: failure}))
        return failure.id

    def fail(
        self,
        error: Exception | None = None,
        app_id: str = "recorder",
        job: str = "record",
        payload: Any = 1,
    ) -> str:
        self.app.meta_for(app_id).jobs[job](payload).run_now()
        return self.settle(*self.fetch(), error or ValueError("no good"))

    def keys_left(self) -> list[bytes]:
        kept: Any = self.client.keys("posthog_jobs:failed*")
        return [key for key in kept if key != b"posthog_jobs:failed_dropped"]
