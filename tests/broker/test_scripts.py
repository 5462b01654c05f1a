"""The Lua scripts and the steering, in any order, against a real server."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from posthog_jobs.broker import scripts
from posthog_jobs.broker.envelope import pack, parse_partition, partition_of
from posthog_jobs.broker.redis import Keys
from posthog_jobs.broker.schedule import Schedule
from posthog_jobs.broker.transport.channel import REPLY_HEAD
from posthog_jobs.jobs.message import Steered
from tests.servers.nodes import fixed_server
from tests.servers.processes import until

if TYPE_CHECKING:
    from tests.servers.processes import Site

QUEUES = ["celery", "celery\x06\x163", "other"]
FAR = 3_600_000
SOON = 15


class Worker:
    """What a worker is to the broker: a lease, and the tags that it knows of."""

    numbers = count()

    def __init__(self) -> None:
        self.owner = f"w{next(Worker.numbers)}"
        self.tag = 1
        self.held: dict[str, str] = {}


class Broker(RuleBasedStateMachine):
    """Every message is in exactly one place, delivered at least once, and never early."""

    client: Any
    workers = Bundle("workers")
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.keys = Keys("p:")
        self.schedule = Schedule(fixed_server(self.client, "p:"))
        self.numbers = count()
        self.all_workers: list[Worker] = []
        self.due: dict[str, float] = {}
        self.alive: set[str] = set()
        self.delivered: Counter[str] = Counter()
        self.gone: set[str] = set()
        self.key_of: dict[str, tuple[str, str]] = {}

    # -- helpers ----------------------------------------------------------------------------

    def now(self) -> float:
        seconds, micros = self.client.time()
        return float(seconds * 1000 + micros / 1000)

    def call(self, script: scripts.Script, keys: list[str], *args: Any) -> Any:
        return script(self.client, [*self.keys.fixed, *keys], [self.keys.prefix, *args])

    def message(self, name: str) -> dict[str, Any]:
        return {
            "body": "",
            "headers": {"id": name, "task": "t", "eta": None, "list": []},
            "properties": {"delivery_tag": f"d{name}", "delivery_info": {}},
        }

    def turn(self, worker: Worker, room: int, acks: list[str]) -> list[Any]:
        reply: list[Any] = self.call(
            scripts.TURN,
            [self.keys.inflight(worker.owner), *map(self.keys.queue, QUEUES)],
            worker.owner, 60_000, room, worker.tag, 5, 5, len(QUEUES), "1", "y" * len(QUEUES),
            "0", *acks,
        )  # fmt: skip
        worker.tag += room
        return reply

    def deliver(self, worker: Worker, reply: list[Any]) -> None:
        for at in range(REPLY_HEAD, len(reply), 3):
            message = json.loads(reply[at + 2])
            name = message["headers"]["id"]
            assert message["headers"]["list"] == []
            assert name not in self.gone, f"{name} was cancelled"
            assert self.due[name] <= self.now(), f"{name} came early"
            worker.held[reply[at + 1].decode()] = name
            self.delivered[name] += 1

    # -- rules ------------------------------------------------------------------------------

    @rule(target=workers)
    def start(self) -> Worker:
        worker = Worker()
        self.all_workers.append(worker)
        return worker

    @rule(
        target=ids,
        queue=st.sampled_from(QUEUES),
        ahead=st.sampled_from([None, -1000, 0, SOON, FAR]),
        app=st.sampled_from(["1", "2"]),
        key=st.sampled_from(["", "", "k"]),
        if_waiting=st.sampled_from(["replace", "keep"]),
    )
    def put(self, queue: str, ahead: int | None, app: str, key: str, if_waiting: str) -> Any:
        name = f"id{next(self.numbers)}"
        if ahead is None:
            self.due[name] = 0
            scripts.ENQUEUE(
                self.client,
                [self.keys.queue(queue), self.keys.wake(queue)],
                [json.dumps(self.message(name))],
            )
            self.alive.add(name)
            return name
        due = int(self.now()) + ahead
        self.due[name] = due
        status, winner = self.call(
            scripts.SCHEDULE, [self.keys.queue(queue)],
            name, due, partition_of(app, "t"), key, if_waiting, pack(self.message(name)),
        )  # fmt: skip
        if status == b"kept":
            assert if_waiting == "keep"
            assert winner.decode() in self.alive
            return multiple()
        if status == b"replaced":
            waiting = {k for k, v in self.key_of.items() if v == (app, key) and k in self.alive}
            (old,) = waiting - self.delivered.keys() - set(self.queued())
            self.alive.discard(old)
            self.gone.add(old)
        self.alive.add(name)
        if key:
            self.key_of[name] = (app, key)
        return name

    @rule(worker=workers, room=st.integers(0, 4), acks=st.integers(0, 3))
    def take_a_turn(self, worker: Worker, room: int, acks: int) -> None:
        tags = list(worker.held)[:acks]
        reply = self.turn(worker, room, tags)
        for tag in tags:
            self.alive.discard(worker.held.pop(tag))
        self.deliver(worker, reply)

    @rule(worker=workers)
    def lose_a_reply(self, worker: Worker) -> None:
        self.turn(worker, 3, [])
        self.call(
            scripts.PUT_BACK, [self.keys.inflight(worker.owner)],
            worker.owner, "all", "front", "0", 100, *worker.held,
        )  # fmt: skip

    @rule(worker=workers, front=st.booleans())
    def put_back(self, worker: Worker, front: bool) -> None:
        tags = list(worker.held)[:2]
        self.call(
            scripts.PUT_BACK, [self.keys.inflight(worker.owner)],
            worker.owner, "only", "front" if front else "back", "0", 100, *tags,
        )  # fmt: skip
        for tag in tags:
            del worker.held[tag]

    @rule(worker=workers, ahead=st.sampled_from([0, SOON, FAR]))
    def find_it_is_not_due(self, worker: Worker, ahead: int) -> None:
        """A worker moves what it fetched into the schedule."""
        for tag, name in list(worker.held.items())[:1]:
            due = int(self.now()) + ahead
            self.due[name] = due
            del worker.held[tag]
            status, _ = self.call(
                scripts.SCHEDULE, [self.keys.queue("other"), self.keys.inflight(worker.owner)],
                name, due, partition_of("1", "t"), "", "replace", pack(self.message(name)),
                "held", tag,
            )  # fmt: skip
            assert status in (b"scheduled", b"queued")

    @rule(worker=consumes(workers))
    def die(self, worker: Worker) -> None:
        """A worker dies, its lease ends, and its late acknowledgement comes after all."""
        late = list(worker.held)
        self.client.zadd(self.keys.leases, {worker.owner: 1}, xx=True)
        other = Worker()
        self.all_workers.append(other)
        for _ in range(5):
            self.turn(other, 0, [])
        if late:
            self.client.hdel(self.keys.inflight(worker.owner), *late)
        worker.held.clear()

    @rule(name=ids)
    def cancel(self, name: str) -> None:
        answer = self.schedule.cancel(name)
        if answer is Steered.CANCELLED:
            assert name in self.alive
            self.alive.discard(name)
            self.gone.add(name)
        elif answer is Steered.UNKNOWN:
            assert self.schedule.get(name) is None

    @rule(app=st.sampled_from(["1", "2"]))
    def cancel_all(self, app: str) -> None:
        waiting = {job.id for job in self.schedule.list(app_id=app).jobs}
        cancelled = self.schedule.cancel_all(app_id=app)
        left = waiting - set(self.places())
        assert cancelled >= len(left)
        self.alive -= left
        self.gone |= left

    @rule(name=ids, ahead=st.sampled_from([None, SOON, FAR]))
    def move(self, name: str, ahead: int | None) -> None:
        if ahead is None:
            answer, due = self.schedule.run_now(name), 0.0
        else:
            moment = datetime.now(UTC) + timedelta(milliseconds=ahead)
            answer, due = self.schedule.reschedule(name, moment), moment.timestamp() * 1000
        if answer in (Steered.RESCHEDULED, Steered.QUEUED):
            assert name in self.alive
            self.due[name] = due

    @rule()
    def wait(self) -> None:
        soon = self.now() + SOON
        until(lambda: self.now() > soon)

    # -- what must hold ---------------------------------------------------------------------

    def queued(self) -> list[str]:
        return [
            json.loads(raw)["headers"]["id"]
            for queue in QUEUES
            for raw in self.client.lrange(self.keys.queue(queue), 0, -1)
        ]

    def places(self) -> list[str]:
        found = self.queued()
        found += [name.decode() for name in self.client.hkeys(self.keys.waiting)]
        for key in self.client.keys("p:posthog_jobs:inflight:*"):
            for raw in self.client.hvals(key):
                found.append(json.loads(raw[raw.index(b"{") :])["headers"]["id"])
        return found

    @invariant()
    def in_exactly_one_place(self) -> None:
        assert Counter(self.places()) == Counter(self.alive)

    @invariant()
    def indexes_agree(self) -> None:
        waiting = set(self.client.hkeys(self.keys.waiting))
        heads = dict(self.client.zrange(self.keys.heads, 0, -1, withscores=True))
        listed = set()
        for key in self.client.keys("p:posthog_jobs:due:*"):
            rows = self.client.zrange(key, 0, -1, withscores=True)
            partition = key.removeprefix(b"p:posthog_jobs:due:")
            assert heads.pop(partition) == rows[0][1]
            assert parse_partition(partition.decode())[1] == "t"
            listed |= {name for name, _ in rows}
        assert heads == {}
        assert listed == waiting
        assert set(self.client.hvals("p:posthog_jobs:keyed")) <= waiting
        assert self.schedule.count() == len(waiting) == self.schedule.forecast().total

    def teardown(self) -> None:
        """Let everything come due and every worker die: what lives is delivered."""
        for name in list(self.alive):
            if self.schedule.run_now(name) is Steered.QUEUED:
                self.due[name] = 0
        last = Worker()
        for worker in self.all_workers:
            self.client.zadd(self.keys.leases, {worker.owner: 1}, xx=True)
        for _ in range(len(self.all_workers) + len(self.alive) + 5):
            acks = list(last.held)
            self.deliver(last, self.turn(last, 4, acks))
            for tag in acks:
                self.alive.discard(last.held.pop(tag))
        self.turn(last, 0, list(last.held))
        self.alive -= set(last.held.values())
        assert self.alive == set()
        assert self.places() == []


def machine(site: Site) -> type[Broker]:
    return type("Machine", (Broker,), {"client": site.redis})


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_any_order(site: Site) -> None:
    """Put, promote, fetch, acknowledge, cancel, move, die and restore, in any order."""
    run_state_machine_as_test(
        machine(site),
        settings=settings(
            max_examples=35, stateful_step_count=30, deadline=None, suppress_health_check=CHECKS
        ),
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_any_order_for_long(site: Site) -> None:
    """The same, for longer."""
    run_state_machine_as_test(
        machine(site),
        settings=settings(
            max_examples=2000, stateful_step_count=60, deadline=None, suppress_health_check=CHECKS
        ),
    )


def test_what_came_due_while_its_answer_was_lost_is_taken_once(site: Site) -> None:
    """A message that the schedule took is known when it is sent again, though it is due by then."""
    keys, sent = Keys(""), "posthog_jobs:sent:me"
    taken = [keys.prefix, "id", 1, "part", "", "replace", "{}", "sent", "12"]
    scripts.SCHEDULE(site.redis, [*keys.fixed, "celery", sent], taken)
    assert site.redis.llen("celery") == 1

    for token, expected in (("12", 1), ("1", 2)):
        again = ["celery", keys.wake("celery"), sent]
        scripts.ENQUEUE(site.redis, again, ["{}", "sent", token])
        assert site.redis.llen("celery") == expected
