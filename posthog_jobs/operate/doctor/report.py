"""What a worker tells of itself when the doctor asks; no config, no payload, no secret."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.redaction import redact

if TYPE_CHECKING:
    from posthog_jobs.apps.installation import Installations

#: The name of the remote control command.
COMMAND: Final = "posthog_jobs_report"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One worker's answer.

    Attributes:
        name: its node name.
        versions: posthog_jobs, celery and python → version.
        skew: by how many seconds its clock is ahead of Redis'; None where the broker is another.
        pool: name of its pool, such as `prefork`.
        concurrency: how many jobs it runs at a time.
        installed: app id → version of the installation.
        broken: app id → the first line of why its code cannot be loaded there.
        lease: owner of the lease on what it fetched; None where the broker is not Redis.
        lease_seconds: length of that lease.
        queues: the queues it consumes.
    """

    name: str
    versions: Mapping[str, str]
    skew: float | None
    pool: str
    concurrency: int
    installed: Mapping[str, int]
    broken: Mapping[str, str]
    lease: str | None
    lease_seconds: float | None
    queues: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, answer: object) -> WorkerReport | None:
        """Read an answer; None where it is that of a worker without this command."""
        known = {field.name for field in fields(cls)} - {"name"}
        if not isinstance(answer, Mapping) or not known <= set(answer):
            return None
        values: dict[str, Any] = {field: answer[field] for field in known}
        return cls(name=name, **{**values, "queues": tuple(values["queues"])})


def versions() -> dict[str, str]:
    """Return the versions of this process that should be the same in all workers."""
    return {
        "posthog_jobs": metadata.version("posthog-jobs"),
        "celery": metadata.version("celery"),
        "python": platform.python_version(),
    }


def installed(installations: Installations) -> dict[str, int]:
    """Return app id → version of what is installed and enabled in this process."""
    return {installation.id: installation.version for installation in installations}


def broken(installations: Installations) -> dict[str, str]:
    """Return app id → the first line of why its code cannot be loaded in this process."""
    return {
        app_id: redact(str(error).partition("\n")[0])
        for app_id, error in installations.broken.items()
    }
