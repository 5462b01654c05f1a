"""The app `examples.github_stars`: each star once, across pages, hours, limits and crashes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from examples import github_stars
from posthog_jobs.errors import AppConfigError, RetryError, StoreUnavailableError
from posthog_jobs.meta.posthog import PostHog
from posthog_jobs.meta.storage import Storage
from posthog_jobs.testing import AppTester
from tests.acceptance.test_ticks import quiet_moment
from tests.endpoint import Answer, Endpoint
from tests.notes import notes, wait_for
from tests.servers.nodes import HOST, closed_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_celery import CeleryTestSetup

    from posthog_jobs.broker.schedule import WaitingJob
    from posthog_jobs.celery import PostHogJobs
    from tests.endpoint import Request
    from tests.servers.nodes import WorkerProcess

PAGE = 3
REPOSITORY = "PostHog/posthog"
BUSY = Answer(status=502)


class GitHub(Endpoint):
    """Answers as GitHub's GraphQL API does about a repository, `PAGE` stars a page."""

    def __init__(self, *answers: Answer, stars: int = 0) -> None:
        super().__init__(*answers, then=self._page)
        self.stars = stars

    @property
    def cursors(self) -> list[str | None]:
        return [request.json["variables"]["after"] for request in self.requests]

    def _page(self, request: Request) -> Answer:
        asked = request.json["variables"]
        if f"{asked['owner']}/{asked['name']}" != REPOSITORY:
            errors = [{"type": "NOT_FOUND", "message": "Could not resolve to a Repository"}]
            return answer({"data": {"repository": None}, "errors": errors})
        first = int(asked["after"] or 0)
        last = min(first + PAGE, self.stars)
        info = {"endCursor": str(last) if last > first else None, "hasNextPage": last < self.stars}
        page = {"edges": [star(number) for number in range(first, last)], "pageInfo": info}
        return answer({"data": {"repository": {"stargazers": page}}})


def star(number: int) -> dict[str, Any]:
    """Return a star, whose cursor is how many there are up to it."""
    login = f"gazer-{number}"
    user = {"login": login, "databaseId": number, "url": f"https://github.com/{login}"}
    return {
        "cursor": str(number + 1),
        "starredAt": f"2024-01-01T00:00:{number:02}Z",
        "node": {**user, "avatarUrl": f"https://avatars.example/{number}"},
    }


def answer(body: object, status: int = 200, **headers: str) -> Answer:
    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, headers=dashed, body=json.dumps(body).encode())


def install(url: str, **config: str) -> AppTester:
    config = {"repository": REPOSITORY, "token": "github-token", "url": url, **config}
    return AppTester(github_stars, config=config)


def captured(app: AppTester) -> list[int]:
    return [event["properties"]["user_id"] for event in app.captured]


class TestHours:
    """One run after another."""

    def test_page_by_page(self) -> None:
        """GitHub stars: all pages are captured, the oldest star first, with its own time."""
        with GitHub(stars=7) as github:
            app = install(github.url)
            app.run_every_hour()

        assert captured(app) == list(range(7))
        assert github.cursors == [None, "3", "6"]
        assert {each.headers["authorization"] for each in github.requests} == {
            "Bearer github-token"
        }
        event = app.captured[5]
        assert (event["event"], event["distinct_id"]) == ("GitHub Star", "gazer-5")
        assert event["timestamp"] == "2024-01-01T00:00:05+00:00"
        assert event["properties"]["repository"] == REPOSITORY
        assert app.metrics == {"stars": 7}

    def test_goes_on(self) -> None:
        """GitHub stars: the next hour captures only what is new, in a new process, too."""
        with GitHub(stars=2) as github:
            app = install(github.url, eventName="star")
            app.run_every_hour()
            app.teardown()
            app.run_every_hour()
            github.stars = 5
            app.run_every_hour()
            app.run_every_hour()

        assert captured(app) == list(range(5))
        assert github.cursors == [None, "2", "2", "5"]
        assert {event["event"] for event in app.captured} == {"star"}

    def test_no_stars(self) -> None:
        """GitHub stars: a repository without stars is asked for its first page each hour."""
        with GitHub() as github:
            app = install(github.url)
            app.run_every_hour()
            app.run_every_hour()

        assert github.cursors == [None, None]
        assert app.captured == []

    def test_hidden_stars(self) -> None:
        """GitHub stars: a page whose stars are all hidden does not hold up the next one."""
        info = {"endCursor": "3", "hasNextPage": True}
        hidden = answer({"data": {"repository": {"stargazers": {"edges": [], "pageInfo": info}}}})
        with GitHub(hidden, stars=4) as github:
            app = install(github.url)
            app.run_every_hour()

        assert captured(app) == [3]


class TestFailures:
    """What ends a run early."""

    def test_between_pages(self) -> None:
        """GitHub stars: a run that ends between two pages goes on there, with no star twice."""
        with GitHub(stars=7) as github:
            app = install(github.url)
            github.answers_after(1, BUSY)
            with pytest.raises(RetryError, match="answered 502"):
                app.run_every_hour()
            app.teardown()
            app.run_every_hour()

        assert captured(app) == list(range(7))
        assert github.cursors == [None, "3", "3", "6"]

    def test_within_a_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GitHub stars: a star that was not captured is captured by the next run, and no other."""
        capture, calls = PostHog.capture, list[str]()

        def fail_once(self: PostHog, event: str, properties: Any = None) -> Any:
            calls.append(event)
            if len(calls) == 5:
                raise MemoryError
            return capture(self, event, properties)

        monkeypatch.setattr(PostHog, "capture", fail_once)
        with GitHub(stars=7) as github:
            app = install(github.url)
            with pytest.raises(MemoryError):
                app.run_every_hour()
            app.teardown()
            app.run_every_hour()

        assert captured(app) == list(range(7))
        assert github.cursors == [None, "3", "4"]

    def test_a_cursor_that_was_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GitHub stars: the star whose cursor could not be kept is captured twice, it alone."""
        keep, calls = Storage.set, list[object]()

        def fail_once(self: Storage, key: str, value: object) -> Any:
            calls.append(value)
            if value == "5" and calls.count("5") == 1:
                raise StoreUnavailableError("gone")
            return keep(self, key, value)

        monkeypatch.setattr(Storage, "set", fail_once)
        with GitHub(stars=7) as github:
            app = install(github.url)
            with pytest.raises(StoreUnavailableError):
                app.run_every_hour()
            app.run_every_hour()

        assert captured(app) == [0, 1, 2, 3, 4, 4, 5, 6]

    @pytest.mark.parametrize(
        ("limited", "least", "most"),
        [
            (lambda: answer({}, 429, retry_after="9"), 9, 9),
            (lambda: answer({"message": "You have exceeded a secondary rate limit."}, 403), 60, 60),
            (lambda: answer({"message": "secondary rate limit"}, 403, Retry_After="5"), 5, 5),
            (
                lambda: answer(
                    {"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded"}]},
                    x_ratelimit_remaining="0",
                    x_ratelimit_reset=str(int(time.time()) + 600),
                ),
                500,
                600,
            ),
        ],
    )
    def test_rate_limits(self, limited: Callable[[], Answer], least: float, most: float) -> None:
        """GitHub stars: at GitHub's limits a run stops until GitHub takes requests again."""
        with GitHub(limited(), stars=2) as github:
            app = install(github.url)
            with pytest.raises(RetryError, match="too many requests") as raised:
                app.run_every_hour()
            assert raised.value.delay is not None
            assert least <= raised.value.delay <= most
            app.run_every_hour()

        assert captured(app) == [0, 1]

    def test_away(self) -> None:
        """GitHub stars: a GitHub that does not answer is asked again later."""
        with pytest.raises(RetryError, match="no answer from GitHub: ConnectError"):
            install(f"http://{HOST}:{closed_port()}/").run_every_hour()

    @pytest.mark.parametrize(
        ("refusal", "message"),
        [
            (answer({"message": "Bad credentials"}, 401), "401: .*Bad credentials"),
            (answer({"message": "Resource not accessible"}, 403), "403: .*not accessible"),
        ],
    )
    def test_refused(self, refusal: Answer, message: str) -> None:
        """GitHub stars: a token that is refused is an error, and no matter of time."""
        with GitHub(refusal) as github, pytest.raises(github_stars.GitHubError, match=message):
            install(github.url).run_every_hour()

    def test_unknown_repository(self) -> None:
        """GitHub stars: a repository that is not there is an error."""
        with GitHub() as github, pytest.raises(github_stars.GitHubError, match="NOT_FOUND"):
            install(github.url, repository="nobody/nothing").run_every_hour()

    @pytest.mark.parametrize("repository", ["posthog", "/posthog", "PostHog/", "a/b/c"])
    def test_what_is_no_repository(self, repository: str) -> None:
        """Bad input: a repository without its owner fails before the first hour."""
        with pytest.raises(ValueError, match="not owner/name"):
            install("http://github.example/", repository=repository).setup()

    def test_what_is_missing(self) -> None:
        """Bad input: no token is refused where it is installed."""
        with pytest.raises(AppConfigError, match="'token'"):
            AppTester(github_stars, config={"repository": REPOSITORY})


class TestWorker:
    """In a real worker."""

    @pytest.fixture
    def github(self) -> Iterator[GitHub]:
        with GitHub(stars=7) as github:
            yield github

    @pytest.fixture
    def lease(self) -> float:
        """Length of the lease, in seconds; for parametrizing."""
        return 60

    @pytest.fixture
    def settings(self, github: GitHub, lease: float) -> dict[str, Any]:
        config = {"repository": REPOSITORY, "token": "github-token", "url": github.url}
        return {
            "broker_transport_options": {"visibility_timeout": lease},
            "posthog_jobs_apps": {
                "stars": {"module": "examples.github_stars", "config": config},
                "recorder": "tests.samples.recorder",
            },
        }

    def test_from_one_hour_to_the_next(
        self, jobs_app: PostHogJobs, github: GitHub, run_now: Callable[[str, str], WaitingJob]
    ) -> None:
        """GitHub stars: an hour is cut short by a limit, goes on, and the next has what is new."""
        quiet_moment(jobs_app)
        github.answers_after(2, Answer(status=429, headers={"Retry-After": "1"}))
        hour = run_now("stars", "posthog_jobs.run_every_hour")
        wait_for(jobs_app, "on_event", 7)
        github.stars = 8
        run_now("stars", "posthog_jobs.run_every_hour")
        wait_for(jobs_app, "on_event", 8)

        assert hour.due.minute == 0
        assert github.cursors == [None, "3", "6", "6", "7"]
        seen = notes(jobs_app, "on_event")
        assert sorted(each["event"]["properties"]["user_id"] for each in seen) == list(range(8))
        assert jobs_app.apps.metrics("stars") == {"stars": 8}
        assert jobs_app.meta_for("stars").storage.get(f"cursor of {REPOSITORY}") == "8"
        (following,) = jobs_app.schedule.list(app_id="stars").jobs
        assert following.key == "tick"

    @pytest.mark.soak
    @pytest.mark.parametrize("lease", [3])
    def test_killed_between_pages(
        self,
        jobs_app: PostHogJobs,
        github: GitHub,
        celery_setup: CeleryTestSetup,
        start_worker: Callable[[], WorkerProcess],
        run_now: Callable[[str, str], WaitingJob],
    ) -> None:
        """GitHub stars: a worker killed while it waits for a page has another one go on there."""
        quiet_moment(jobs_app)
        github.answers_after(1, Answer(hangs=True))
        run_now("stars", "posthog_jobs.run_every_hour")
        github.wait_for(2)
        celery_setup.worker.kill()
        start_worker()

        seen = wait_for(jobs_app, "on_event", 7, timeout=90)  # a dead run's lock ends after 30 s

        assert sorted(each["event"]["properties"]["user_id"] for each in seen) == list(range(7))
        assert github.cursors == [None, "3", "3", "6"]
