"""The app `examples.webhooks`: signed deliveries that outlast a webhook that is busy or away."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest

from examples import webhooks
from posthog_jobs.broker.failure import Reason
from posthog_jobs.errors import AppConfigError, RetriesExhaustedError
from posthog_jobs.testing import AppTester, create_event
from tests.endpoint import Answer, Endpoint
from tests.operate.test_cli_apps import run as run_apps
from tests.operate.test_cli_jobs import run as run_jobs
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs.celery import PostHogJobs
    from tests.endpoint import Request

KEY = b"a key of the tests"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
NOON = datetime(2031, 1, 31, 12, tzinfo=UTC)
BUSY = Answer(status=500)


def install(endpoint: Endpoint, **config: str) -> AppTester:
    config = {"url": endpoint.url, "secret": SECRET, "timeout": "60", **config}
    return AppTester(webhooks, config=config, now=NOON)


class TestDelivery:
    """One event, and one webhook."""

    def test_signed(self) -> None:
        """Webhooks: an event is posted as JSON with a signature that only the secret makes."""
        event = create_event()
        with Endpoint() as endpoint:
            app = install(endpoint)
            app.on_event(event)
            app.run_due()

        (request,) = endpoint.requests
        assert request.json == event
        webhook_id, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        signed = f"{webhook_id}.{at}.".encode() + request.body
        digest = hmac.digest(KEY, signed, hashlib.sha256)
        assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        assert abs(int(at) - datetime.now(UTC).timestamp()) < 60
        assert app.metrics == {"sent": 1, "failed": 0}

    def test_retried(self) -> None:
        """Webhooks: 500, 503 and silence are tried again, later and later."""
        with Endpoint(BUSY, Answer(status=503), Answer(hangs=True)) as endpoint:
            app = install(endpoint, timeout="2")
            app.on_event(create_event())
            app.run_due()
            app.jobs.assert_scheduled("deliver", in_=(5, "seconds"))
            ran = app.run_due(after=(1, "minute"))

        assert [(job.due - NOON).total_seconds() for job in ran] == [5, 15, 35]
        assert len(endpoint.requests) == 4
        assert len({(each.headers["webhook-id"], each.body) for each in endpoint.requests}) == 1
        assert app.metrics == {"sent": 1, "failed": 0}

    @pytest.mark.parametrize(
        ("status", "asked", "least", "most"),
        [
            (429, "7", 7, 7),
            (408, None, 5, 5),
            (429, "soon", 5, 5),
            (429, "9" * 400, 86_400, 86_400),
            (503, "in two hours", 7000, 7200),
        ],
    )
    def test_retry_after(self, status: int, asked: str | None, least: float, most: float) -> None:
        """Webhooks: a webhook that is busy is not asked again before it wants to be."""
        if asked == "in two hours":
            asked = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
        headers = {} if asked is None else {"Retry-After": asked}
        with Endpoint(Answer(status=status, headers=headers)) as endpoint:
            app = install(endpoint)
            app.on_event(create_event())
            app.run_due()

        waiting = app.jobs.assert_scheduled("deliver")
        assert least <= (waiting.due - NOON).total_seconds() <= most

    @pytest.mark.parametrize("asked", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
    def test_retry_at_once(self, asked: str) -> None:
        """Webhooks: a webhook that wants to be asked again now, or wanted it before, is."""
        with Endpoint(Answer(status=429, headers={"Retry-After": asked})) as endpoint:
            app = install(endpoint)
            app.on_event(create_event())
            app.run_due()

        assert len(endpoint.requests) == 2
        assert app.metrics == {"sent": 1, "failed": 0}

    @pytest.mark.parametrize("status", [301, 400, 404, 410])
    def test_refused(self, status: int) -> None:
        """Webhooks: any other answer than 2xx fails at once, is counted, and is not tried again."""
        with Endpoint(Answer(status=status)) as endpoint:
            app = install(endpoint)
            app.on_event(create_event())
            with pytest.raises(webhooks.RefusedError, match=f"answered {status}"):
                app.run_due(after=(1, "day"))

        assert len(endpoint.requests) == 1
        assert app.metrics == {"sent": 0, "failed": 1}

    def test_given_up(self) -> None:
        """Webhooks: after half a day without success a delivery fails, and is counted once."""
        with Endpoint(then=lambda _: BUSY) as endpoint:
            app = install(endpoint)
            app.on_event(create_event())
            with pytest.raises(RetriesExhaustedError, match="answered 500"):
                app.run_due(after=(1, "day"))

        assert len(endpoint.requests) == 21
        assert timedelta(hours=10) < app.clock.now - NOON < timedelta(hours=14)
        assert app.metrics == {"sent": 0, "failed": 1}


class TestConfig:
    """What is sent, and what cannot be configured."""

    def test_chosen_events(self) -> None:
        """Webhooks: events that are not named are not sent."""
        with Endpoint() as endpoint:
            app = install(endpoint, events="sign up, purchase,")
            for name in ("sign up", "purchase", "$pageview"):
                app.on_event(create_event(event=name))
            app.run_due()

        assert [request.json["event"] for request in endpoint.requests] == ["sign up", "purchase"]

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("url", "hooks.example", "url begins with neither"),
            ("secret", "not base64!", "secret is not base64"),
            ("timeout", "soon", "soon"),
        ],
    )
    def test_what_cannot_be(self, field: str, value: str, message: str) -> None:
        """Bad input: a config that cannot work fails before the first delivery, by its field."""
        config = {"url": "http://hooks.example/", "secret": SECRET, field: value}

        with pytest.raises(ValueError, match=message):
            AppTester(webhooks, config=config).setup()

    def test_what_is_missing(self) -> None:
        """Bad input: no webhook, or no secret, is refused where it is installed."""
        with pytest.raises(AppConfigError, match="'url'"):
            AppTester(webhooks, config={"secret": SECRET})
        with pytest.raises(AppConfigError, match="'secret'"):
            AppTester(webhooks, config={"url": "http://hooks.example/"})

    def test_teardown(self) -> None:
        """Webhooks: the connections are closed, and a new process opens its own."""
        with Endpoint() as endpoint:
            app = install(endpoint)
            client = app.setup().global_["client"]
            app.teardown()
            app.on_event(create_event())
            app.run_due()

        assert client.is_closed
        assert len(endpoint.requests) == 1


class TestWorker:
    """In a real worker."""

    @pytest.fixture
    def endpoint(self) -> Iterator[Endpoint]:
        slow_down = Answer(status=429, headers={"Retry-After": "1"})
        with Endpoint(BUSY, slow_down, Answer(hangs=True), then=answer) as endpoint:
            yield endpoint

    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"posthog_jobs_apps": {}}

    def test_from_installing_to_replaying(
        self, jobs_app: PostHogJobs, endpoint: Endpoint, run_now: Callable[[str, str], Any]
    ) -> None:
        """Webhooks: installed by command; what fails is retried, and what is refused is kept."""
        config = [f"url={endpoint.url}", f"secret={SECRET}", "timeout=2", "events=sign up"]
        options = [word for field in config for word in ("--config", field)]
        assert (
            run_apps(jobs_app, "install", "examples.webhooks", "--id", "hooks", *options).code == 0
        )
        jobs_app.capture(create_event())
        for count in (1, 3):  # the second one is followed by the third by itself
            endpoint.wait_for(count)
            run_now("hooks", "posthog_jobs.Webhooks.deliver")
        poll("the delivery", lambda: jobs_app.apps.metrics("hooks")["sent"] == 1)

        deliveries = {(each.headers["webhook-id"], each.body) for each in endpoint.requests}
        assert len(endpoint.requests) == 4
        assert len(deliveries) == 1
        assert endpoint.requests[0].json == create_event()

        ping = run_jobs(jobs_app, "run", "hooks", "ping", "--payload", '{"message": "refuse"}')
        assert ping.code == 0
        (failed,) = poll("the failed job", lambda: jobs_app.failures.list(app_id="hooks").jobs)
        assert failed.reason is Reason.EXCEPTION
        assert jobs_app.apps.metrics("hooks") == {"sent": 1, "failed": 1}
        jobs_app.failures.replay(failed.id)
        endpoint.wait_for(6)
        first, again = endpoint.requests[4:]
        assert first.headers["webhook-id"] == again.headers["webhook-id"]


def answer(request: Request) -> Answer:
    """Refuse what asks for it."""
    return Answer(status=400 if b"refuse" in request.body else 200)
