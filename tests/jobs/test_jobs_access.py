"""How an app names its jobs: as attributes and items of `meta.jobs`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from posthog_jobs.errors import PostHogJobsError, UnknownJobError
from posthog_jobs.jobs.trigger import Jobs
from tests.recorder import FUNCTIONS, Recorder, make_jobs


@pytest.fixture
def sender() -> Recorder:
    return Recorder()


@pytest.fixture
def jobs(sender: Recorder) -> Jobs:
    return make_jobs(sender)


def test_access_by_attribute_and_item(jobs: Jobs, sender: Recorder) -> None:
    """Access: meta.jobs.name and meta.jobs["name"] are the same job, whatever its name."""
    jobs.retryRequest(1).run_now()
    jobs["retryRequest"](2).run_now()
    jobs.keys(3).run_now()
    jobs._private().run_now()

    names = [(message.job_name, message.app_name, message.app_id) for message in sender.sent]
    assert names == [
        ("retryRequest", "teapot", "one"),
        ("retryRequest", "teapot", "one"),
        ("keys", "teapot", "one"),
        ("_private", "teapot", "one"),
    ]


@pytest.mark.parametrize("ask", [lambda jobs, name: jobs[name], getattr], ids=["item", "attribute"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("retry_request", "; did you mean 'retryRequest'? it exports: "),
        ("cleanUp", "; did you mean 'clean_up'? it exports: "),
        ("zzz", "; it exports: retryRequest, clean_up, either, keys, _private"),
        ("", "; it exports: "),
    ],
)
def test_an_unknown_name(jobs: Jobs, ask: Any, name: str, hint: str) -> None:
    """Access: an unknown name raises at once, with the known names and a close match."""
    with pytest.raises(
        UnknownJobError, match=r"^app 'teapot' \(app id 'one'\) exports no"
    ) as caught:
        ask(jobs, name)
    assert f"no job {name!r}{hint}" in str(caught.value)
    assert isinstance(caught.value, AttributeError)
    assert isinstance(caught.value, PostHogJobsError)


def test_an_app_without_jobs(sender: Recorder) -> None:
    """Access: where an app exports no job at all, the message says so."""
    jobs = make_jobs(sender, {})

    assert (len(jobs), dir(jobs)) == (0, [])
    with pytest.raises(UnknownJobError, match="exports no job 'x'; it exports: none"):
        jobs.x  # noqa: B018


def test_looking_around(jobs: Jobs) -> None:
    """Access: dir, in, len, iteration, hasattr and getattr's default tell what jobs there are."""
    assert dir(jobs) == sorted(FUNCTIONS)
    assert list(jobs) == list(FUNCTIONS)
    assert len(jobs) == len(FUNCTIONS)
    assert "retryRequest" in jobs
    assert "retry_request" not in jobs
    assert 5 not in jobs
    assert hasattr(jobs, "retryRequest")
    assert not hasattr(jobs, "retry_request")
    assert getattr(jobs, "nope", None) is None
    assert repr(jobs).startswith("<Jobs of app 'teapot' (app id 'one'): retryRequest, clean_up")


@pytest.mark.parametrize(
    "name", ["__len__x__", "__deepcopy__", "__json__", "__fspath__", "__await__"]
)
def test_dunder_names_are_no_jobs(jobs: Jobs, name: str) -> None:
    """Access: dunder names never become jobs, nor an error about jobs."""
    with pytest.raises(AttributeError) as caught:
        getattr(jobs, name)
    assert not isinstance(caught.value, UnknownJobError)


def test_copies_do_not_recurse(jobs: Jobs, sender: Recorder) -> None:
    """Access: copying works, pickling fails as it must, and nothing asks itself without end."""
    copy.copy(jobs).clean_up().run_now()
    assert len(sender.sent) == 1

    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            attempt(jobs)
    with pytest.raises(AttributeError, match="origin"):
        Jobs.__new__(Jobs).clean_up  # noqa: B018
