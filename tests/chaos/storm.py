"""The storm of faults: drawn from a seed, and brought upon workers and server."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.chaos.site import LEASE, POOLS, signal_group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.site import Site
    from tests.servers.nodes import WorkerProcess

SERVER: Final = "server"

#: What the server refuses with for a while: the setting that makes it do so; 0 ends it.
REFUSALS: Final = {"refuse": ("min-replicas-to-write", "1"), "full": ("maxmemory", "1mb")}

#: Seconds between two faults, in the mean.
INTERVAL: Final = 2.5
#: Seconds that a warm shutdown may take; billiard's children wait up to 30 s for each other.
PATIENCE: Final = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is to happen.

    Attributes:
        at: seconds since the run began, or later if its target is not up then.
        target: a pool, or `server`.
        kind: `kill`, `term`, `stop` or `starve`; or one of `REFUSALS`.
        seconds: how long a worker is stopped or starts no threads, or the server stays away or
            refuses.
        whole: whether it is the whole worker that is stopped, or its main process alone.
    """

    at: float
    target: str
    kind: str
    seconds: float
    whole: bool = True


@dataclass(slots=True, kw_only=True)
class Hit:
    """What happened.

    Attributes:
        kind: `kill`, `term` or `stop` of a worker, `starve` for some that end one after another
            since they can start no threads, `hung` for the kill of one that did not end
            when it was told to, or `restart` of the server, or what it refused with.
        target: pool, or `server`.
        group: process group of the worker.
        begin: seconds since the epoch.
        end: when the worker was gone or went on, or the server was back; None: not yet.
        note: how.
    """

    kind: str
    target: str
    begin: float
    group: int = 0
    end: float | None = None
    note: str = ""


def faults(seed: int, seconds: float) -> Iterator[Fault]:
    """Draw the faults of a run: all kinds in turns, in random order, at random times."""
    draw = random.Random(f"faults {seed}")
    hand: list[tuple[str, str, float]] = []
    at = 1.0
    while (at := at + draw.expovariate(1 / INTERVAL)) < seconds:
        if not hand:
            for pool in POOLS:
                hand += [(pool, "kill", 0.0), (pool, "term", 0.0)]
                hand += [(pool, "stop", draw.uniform(0.1, LEASE - 1.5))]
                hand += [(pool, "stop", draw.uniform(LEASE, 1.6 * LEASE))]
            hand += [("threads", "starve", draw.uniform(5, 8))]
            away = draw.choice([draw.uniform(0, 1), draw.uniform(1, 3), draw.uniform(6, 7)])
            hand += [(SERVER, "kill", draw.uniform(0, 1)), (SERVER, "term", away)]
            hand += [(SERVER, refusal, draw.uniform(0.5, 4)) for refusal in REFUSALS]
            draw.shuffle(hand)
        target, kind, length = hand.pop()
        whole = draw.choice([True, False])
        yield Fault(at=at, target=target, kind=kind, seconds=length, whole=whole)


class Storm:
    """Brings faults upon a site, each target's one after another.

    Attributes:
        hits: what happened so far.
        is_over: set to end all faults: what is stopped goes on, what is gone comes back.
    """

    def __init__(self, site: Site, planned: Iterator[Fault], began: float) -> None:
        self.hits: list[Hit] = []
        self.is_over = False
        self._site, self._began = site, began
        mine: dict[str, list[Fault]] = {target: [] for target in (*POOLS, SERVER)}
        for fault in planned:
            mine[fault.target].append(fault)
        lanes = [self._server_lane(mine.pop(SERVER))]
        lanes += [self._worker_lane(pool, some) for pool, some in mine.items()]
        self._lanes = lanes

    def step(self) -> bool:
        """Do what is to be done now; whether anything is left."""
        self._lanes = [lane for lane in self._lanes if next(lane, self) is not self]
        return bool(self._lanes)

    # -- lanes: generators that yield while they wait ------------------------------------------

    def _until(self, moment: float) -> Iterator[None]:
        while time.time() < moment and not self.is_over:
            yield

    def _worker_lane(self, pool: str, planned: list[Fault]) -> Iterator[None]:
        for fault in planned:
            yield from self._until(self._began + fault.at)
            if self.is_over:
                break
            worker = self._site.workers[pool]
            if worker.status == "exited":
                raise RuntimeError(f"worker {pool} ended by itself:\n{worker.logs()[-3000:]}")
            kind = "term" if fault.kind == "starve" else fault.kind
            hit = Hit(kind=kind, target=pool, group=worker.pid, begin=time.time())
            self.hits.append(hit)
            if fault.kind == "stop":
                yield from self._stop(worker, fault)
            elif fault.kind == "kill":
                worker.kill()
            else:
                yield from self._terminate(worker, hit)
            hit.end = time.time()
            if fault.kind == "starve":
                yield from self._starve(pool, fault.seconds)
            if fault.kind != "stop":
                yield from self._started(pool)

    def _started(self, pool: str) -> Iterator[None]:
        worker = self._site.start_worker(pool)
        while worker.ready_prompt not in worker.logs():
            if worker.status == "exited":
                raise RuntimeError(f"worker {pool} did not start:\n{worker.logs()[-3000:]}")
            yield

    def _starve(self, pool: str, seconds: float) -> Iterator[None]:
        """Start workers whose pool fails, until it would not any more."""
        hit = Hit(kind="starve", target=pool, begin=time.time())
        self.hits.append(hit)
        until = hit.begin + seconds
        while time.time() < until and not self.is_over:
            worker = self._site.start_worker(pool, starved_until=until)
            while worker.status == "running" and time.time() < until:
                yield
            if worker.status == "exited" and "can't start new thread" not in worker.logs():
                raise RuntimeError(f"worker {pool} ended by itself:\n{worker.logs()[-3000:]}")
            hit.note += f"{worker.status} "
        worker = self._site.workers[pool]
        last = Hit(kind="term", target=pool, group=worker.pid, begin=time.time())
        self.hits.append(last)
        yield from self._terminate(worker, last)
        hit.end = last.end = time.time()

    def _stop(self, worker: WorkerProcess, fault: Fault) -> Iterator[None]:
        if fault.whole:
            signal_group(worker, signal.SIGSTOP)
        else:
            worker.kill("SIGSTOP")
        yield from self._until(time.time() + fault.seconds)
        signal_group(worker, signal.SIGCONT)

    def _terminate(self, worker: WorkerProcess, hit: Hit) -> Iterator[None]:
        worker.kill("SIGTERM")
        deadline = time.time() + PATIENCE
        while worker.status == "running":
            if time.time() > deadline:
                hit.kind, hit.note, hit.begin = "hung", _stacks(worker), time.time()
                break
            yield
        worker.kill()  # the rest of its group

    def _server_lane(self, planned: list[Fault]) -> Iterator[None]:
        server = self._site.server
        for fault in planned:
            yield from self._until(self._began + fault.at)
            if self.is_over:
                break
            refusal = REFUSALS.get(fault.kind)
            kind = fault.kind if refusal else "restart"
            hit = Hit(kind=kind, target=SERVER, begin=time.time(), note=fault.kind)
            self.hits.append(hit)
            if refusal:
                setting, value = refusal
                self._site.patient_redis.config_set(setting, value)
                yield from self._until(time.time() + fault.seconds)
                self._site.patient_redis.config_set(setting, 0)
                hit.end = time.time()
                continue
            server.kill(f"SIG{fault.kind.upper()}")
            while server.status == "running":
                yield
            yield from self._until(time.time() + fault.seconds)
            server.start()
            while not self._site.is_up():
                if server.status == "exited":
                    raise RuntimeError(f"the server did not start:\n{server.logs()[-3000:]}")
                yield
            hit.end = time.time()


def _stacks(worker: WorkerProcess) -> str:
    """What a worker that does not end is at, if py-spy is there to tell."""
    spy = shutil.which("py-spy")
    if spy is None:
        return "install py-spy to see what it was at"
    command = [spy, "dump", "--subprocesses", "--pid", str(worker.pid)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return found.stdout or found.stderr
