"""What was sent, and what ran, read from the notes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.chaos.notebook import read

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """One job on its way to the broker, and back.

    Attributes:
        n: its number.
        at: when it was sent, in seconds since the epoch.
        due: in ms since the epoch.
        status: what the broker answered (`scheduled`, `replaced`, `kept`, `queued`), `refused`
            when it certainly has it not, else `uncertain`.
        cancelled: what its cancelling answered; None: it was not cancelled.
    """

    n: int
    at: float
    due: int
    status: str = "uncertain"
    cancelled: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start of a job.

    Attributes:
        n: the job's number.
        attempt: counts from 1; the next one is asked for by RetryError.
        group: process group of the worker.
        start: seconds since the epoch.
        due: when the attempt was due, in ms since the epoch, if the message says so.
        redelivered: whether the message had been fetched before.
        end: when it ended; None: it did not.
        outcome: how: `done`, `retry` or `failed`.
    """

    n: int
    attempt: int
    group: int
    start: float
    due: int | None = None
    redelivered: bool = False
    end: float | None = None
    outcome: str | None = None


def sends(folder: Path) -> dict[int, Send]:
    """Read what was sent, by number."""
    found: dict[int, Send] = {}
    for entry in read(folder):
        n = entry["n"]
        match entry["what"]:
            case "send":
                found[n] = Send(n=n, at=entry["at"], due=entry["due"])
            case "sent":
                found[n] = replace(found[n], status=entry["status"])
            case "cancel":
                found[n] = replace(found[n], cancelled="unknown")
            case "cancelled":
                found[n] = replace(found[n], cancelled=entry["answer"])
    return found


def runs(folder: Path) -> dict[int, list[Run]]:
    """Read what ran, by number; the first start first."""
    found: dict[str, Run] = {}
    for entry in read(folder):  # of each process in the order in which it happened
        name = entry["run"]
        if entry["what"] == "start":
            found[name] = Run(
                n=entry["n"],
                attempt=entry["attempt"],
                group=entry["group"],
                start=entry["at"],
                due=entry["due"],
                redelivered=entry["redelivered"],
            )
        else:
            found[name] = replace(found[name], end=entry["at"], outcome=entry["what"])
    by_number: dict[int, list[Run]] = {}
    for run in sorted(found.values(), key=lambda run: run.start):
        by_number.setdefault(run.n, []).append(run)
    return by_number
