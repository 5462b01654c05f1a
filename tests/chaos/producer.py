"""Enqueues the jobs of a chaos run, in a process of its own, from threads and a signal's handler.

Each job is noted before it is sent, and what came of it afterwards.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import os
import random
import signal
import threading
import time
from collections import deque
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.celery import PostHogJobs
from posthog_jobs.errors import BrokerUnavailableError
from tests.chaos.notebook import Notebook
from tests.chaos.orders import orders
from tests.chaos.site import APP_ID, settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from posthog_jobs.broker.transport.sending import Outcome
    from posthog_jobs.jobs.trigger import JobHandle
    from tests.chaos.orders import Order

SENDERS: Final = 4


class Producer(PostHogJobs):
    """An app that remembers what the broker answered.

    Attributes:
        outcomes: number of a job → what became of it.
    """

    outcomes: dict[int, Outcome | None]

    def send_task(
        self, name: str, args: Any = None, *arguments: Any, sending: Any = None, **options: Any
    ) -> Any:
        """Send a job; `sending` knows what the broker answered."""
        result = super().send_task(name, args, *arguments, sending=sending, **options)
        self.outcomes[args[1]["n"]] = sending.outcome
        return result


class Sender(threading.Thread):
    """Sends some of the jobs, each when its time has come, and cancels some of them."""

    def __init__(
        self, app: Producer, notes: Notebook, agenda: Iterable[Order], began: float
    ) -> None:
        super().__init__()
        self._app = app
        self._jobs = app.meta_for(APP_ID).jobs
        self._notes = notes
        self._began = began
        self._count = count()
        self._agenda: list[tuple[float, int, Order, JobHandle | None]] = []
        for order in agenda:
            self._plan(began + order.at, order)

    def run(self) -> None:
        """Work off the agenda."""
        parent = os.getppid()
        while self._agenda and os.getppid() == parent:  # nobody accounts for an orphan's jobs
            at, _, order, handle = heapq.heappop(self._agenda)
            time.sleep(max(0.0, at - time.time()))
            if handle is None:
                self._send(order)
            else:
                self._cancel(order, handle)

    def _plan(self, at: float, order: Order, handle: JobHandle | None = None) -> None:
        heapq.heappush(self._agenda, (at, next(self._count), order, handle))

    def _send(self, order: Order) -> None:
        payload = {"n": order.n, "seconds": order.seconds, "times": order.times}
        if order.key is None:
            call = self._jobs[order.job](payload)
        else:
            rule: Any = order.if_waiting
            call = self._jobs[order.job](payload, key=order.key, if_waiting=rule)
        now = time.time()
        due = int((now + (order.delay or 0)) * 1000)
        self._notes.write(what="send", n=order.n, at=now, due=due)
        try:
            if order.delay is None:
                handle = call.run_now()
            else:
                handle = call.run_at(datetime.fromtimestamp(due / 1000, UTC))
        except BrokerUnavailableError as error:
            status = "uncertain" if error.uncertain else "refused"
            self._notes.write(what="sent", n=order.n, at=time.time(), status=status, id="")
            return
        outcome = self._app.outcomes.pop(order.n)
        status = "queued" if outcome is None else outcome.status
        self._notes.write(what="sent", n=order.n, at=time.time(), status=status, id=handle.id)
        if order.cancel_after is not None:
            self._plan(now + order.cancel_after, order, handle)

    def _cancel(self, order: Order, handle: JobHandle) -> None:
        self._notes.write(what="cancel", n=order.n, at=time.time())
        try:
            answer = handle.cancel().value
        except BrokerUnavailableError:
            answer = "unavailable"
        except Exception as error:  # noqa: BLE001  # is accounted for as what it is
            answer = f"{type(error).__name__}: {error}"
        self._notes.write(what="cancelled", n=order.n, at=time.time(), answer=answer)


class InterruptedSender(Sender):
    """Sends from the main thread, where a signal's handler sends more in the middle of that."""

    def __init__(
        self,
        app: Producer,
        notes: Notebook,
        agenda: Iterable[Order],
        began: float,
        interrupting: Iterable[Order],
    ) -> None:
        super().__init__(app, notes, agenda, began)
        self._interrupting = deque(interrupting)
        signal.signal(signal.SIGALRM, lambda *_: self._interrupt())

    def run(self) -> None:
        """Work off the agenda, and then what no sending was there to be interrupted for."""
        super().run()
        while self._interrupting:
            self._interrupt()

    def _send(self, order: Order) -> None:
        if self._interrupting and time.time() >= self._began + self._interrupting[0].at:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-3))
        super()._send(order)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self) -> None:
        super()._send(self._interrupting.popleft())


def main() -> None:
    """Send all jobs of a run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.producer", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--began", type=float, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    app = Producer(config_source={"broker_url": args.url, **settings(args.folder)})
    app.outcomes = {}
    notes = Notebook(args.folder / "sent" / "sent.jsonl")
    all_orders = list(orders(args.seed, args.seconds, args.rate))
    interrupting = [order for order in all_orders if order.kind == "interrupting"]
    agenda = [order for order in all_orders if order.kind != "interrupting"]
    mine, *others = [agenda[n::SENDERS] for n in range(SENDERS)]
    senders = [Sender(app, notes, some, args.began) for some in others]
    for sender in senders:
        sender.start()
    InterruptedSender(app, notes, mine, args.began, interrupting).run()
    for sender in senders:
        sender.join()


if __name__ == "__main__":
    main()
