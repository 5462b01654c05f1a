"""The chaos run: under faults no job is lost, early, or run twice without a fault that explains it.

`python -m tests.chaos` is the same for 10 minutes.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.backlog import Remains
from tests.chaos.ledger import account
from tests.chaos.orders import Order, orders
from tests.chaos.run import ChaosRun
from tests.chaos.runs import Run, Send
from tests.chaos.storm import REFUSALS, SERVER, Hit, faults

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.ledger import Account
    from tests.chaos.storm import Fault


@pytest.mark.timeout(600)
def test_thirty_seconds_of_faults(tmp_path: Path) -> None:
    """Each job ran, waits, failed or was cancelled; none early, none twice without a fault."""
    seed = draw_seed()

    report = ChaosRun(tmp_path, seed=seed, seconds=30, rate=50).report()

    assert not report.problems, (
        f"python -m tests.chaos --seconds 30 --rate 50 --seed {seed}\n{report}"
    )
    assert report.account.total("ran") > 0
    assert {hit.kind for hit in report.hits} >= {"restart", "stop", "starve", *REFUSALS}


def draw_seed() -> int:
    """Draw a seed by which all befalls the server, one worker is stopped, and another starved.

    All in the first two of three parts of the time, so that a slow machine comes to it.
    """
    while True:
        seed = random.SystemRandom().randrange(1_000_000)
        first: dict[str, Fault] = {}
        servers: set[str] = set()
        for fault in faults(seed, 20):
            first.setdefault(fault.target, fault)
            if fault.target == SERVER:
                servers.add(fault.kind)
        workers = {fault.kind for fault in first.values()}
        if (
            workers >= {"stop", "starve"}
            and servers >= REFUSALS.keys()
            and servers & {"kill", "term"}
        ):
            return seed


def test_a_seed_draws_the_same_again() -> None:
    """The same seed gives the same jobs and faults, and another one others."""
    assert list(orders(1, 60, 10)) == list(orders(1, 60, 10)) != list(orders(2, 60, 10))
    assert list(faults(1, 600)) == list(faults(1, 600)) != list(faults(2, 600))


# -- the ledger itself: a run that shows nothing must mean that there was nothing -----------------

AT = 1_000_000.0  # when the one job is sent, due, and run


def ran(start: float = 0.0, end: float | None = 0.01, **details: Any) -> Run:
    """Return a run that starts some seconds after the job was sent."""
    outcome = None if end is None else "done"
    ended = None if end is None else AT + end
    fields = {"n": 0, "attempt": 1, "group": 7, "outcome": outcome, **details}
    return Run(start=AT + start, end=ended, **fields)


def hit(kind: str, begin: float, end: float, group: int = 7) -> Hit:
    """Return a fault that lasted from and to some seconds after the job was sent."""
    return Hit(kind=kind, target="solo", group=group, begin=AT + begin, end=AT + end)


def of(
    *runs: Run,
    hits: tuple[Hit, ...] = (),
    send: dict[str, Any] | None = None,
    remains: Remains | None = None,
    **order: Any,
) -> Account:
    """Account for one job."""
    sent = {"n": 0, "at": AT, "due": int(AT * 1000), "status": "queued", **(send or {})}
    return account(
        orders=[Order(n=0, at=0, **{"kind": "immediate", **order})],
        sends={0: Send(**sent)},
        runs={0: list(runs)} if runs else {},
        remains=remains or Remains(),
        hits=hits,
    )


AGAIN = ran(8, 8.01, group=8, redelivered=True)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (of(), "is lost"),
        (of(ran(end=None)), "is lost"),
        (of(ran(start=-0.001)), "ran early"),
        (of(ran(), AGAIN), "no fault explains"),
        (of(ran(), AGAIN, hits=(hit("term", 0, 1),)), "no fault explains"),
        (of(ran(), AGAIN, hits=(hit("kill", 4, 4),)), "no fault explains"),
        (of(ran(), AGAIN, hits=(hit("kill", 0, 0.1, group=9),)), "no fault explains"),
        (of(ran(), AGAIN, hits=(hit("stop", 0, 3),)), "no fault explains"),
        (of(ran(), AGAIN, hits=(hit("restart", 4, 5),)), "no fault explains"),
        (of(ran(), ran(8, group=8), hits=(hit("kill", 0, 0.1),)), "no fault explains"),
        (of(ran(), send={"status": "refused"}), "refused"),
        (of(ran(), send={"status": "kept"}), "gave way"),
        (of(ran(), send={"cancelled": "cancelled"}), "was cancelled"),
        (of(ran(), remains=Remains(waiting=Counter([0]))), "has ended"),
        (of(remains=Remains(waiting=Counter([0, 0]))), "waits 2 times"),
        (of(remains=Remains(failed={0: "unknown app"})), "failed: unknown app"),
        (of(kind="keyed", key="k", send={"status": "scheduled"}), "1 jobs are gone"),
        (of(ran(), kind="far"), "a year early"),
    ],
)  # fmt: skip
def test_what_the_ledger_finds(found: Account, problem: str) -> None:
    """What must not happen is found."""
    assert any(problem in text for text in found.problems), found.problems


@pytest.mark.parametrize(
    ("found", "fate"),
    [
        (of(ran()), "ran"),
        (of(ran(end=None), AGAIN, hits=(hit("kill", 2, 2),)), "ran"),
        (of(ran(0, 0.5), AGAIN, hits=(hit("kill", 0.7, 0.8),)), "ran"),
        (of(ran(0, 9), AGAIN, hits=(hit("stop", 1, 8.5),)), "ran"),
        (of(AGAIN, ran(9, 9.1), hits=(hit("stop", 1, 8.5),)), "ran"),
        (of(ran(), AGAIN, hits=(hit("restart", 0, 7),)), "ran"),
        (of(remains=Remains(waiting=Counter([0]))), "waiting"),
        (of(ran(end=None), remains=Remains(queued=Counter([0]))), "queued"),
        (of(kind="failing", remains=Remains(failed={0: "exception"})), "failed"),
        (of(remains=Remains(failed={0: "worker lost too often"})), "lost too often"),
        (of(send={"status": "refused"}), "refused"),
        (of(send={"status": "uncertain"}), "unknown"),
        (of(send={"cancelled": "cancelled"}), "cancelled"),
        (of(send={"cancelled": "promoted"}), "revoked"),
        (of(kind="keyed", key="k", send={"status": "kept"}), "not kept"),
    ],
)  # fmt: skip
def test_what_the_ledger_accepts(found: Account, fate: str) -> None:
    """What may happen is accounted for."""
    assert found.problems == []
    assert found.total(fate) == 1
