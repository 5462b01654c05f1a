"""What an app author tests an app with: no broker, no worker, no waiting.

`AppTester` loads an app and runs its hooks and jobs in the test's own process, with a clock that
stands until it is turned. pytest has it as the fixture `posthog_app`.
"""

from __future__ import annotations

from posthog_jobs.jobs.message import ABSENT
from posthog_jobs.testing.events import create_event, create_identify, create_pageview
from posthog_jobs.testing.recorder import JobsRecorder
from posthog_jobs.testing.schedule import Clock, FailedJob, ScheduledJob
from posthog_jobs.testing.tester import AppTester, create_meta

__all__ = [
    "ABSENT",
    "AppTester",
    "Clock",
    "FailedJob",
    "JobsRecorder",
    "ScheduledJob",
    "create_event",
    "create_identify",
    "create_meta",
    "create_pageview",
]
