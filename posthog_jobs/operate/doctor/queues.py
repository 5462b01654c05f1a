"""The queues that jobs go to, and whether a worker consumes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.broker.envelope import Record
from posthog_jobs.hooks.ticks import PERIODS
from posthog_jobs.operate.doctor.findings import fail, ok, warn
from posthog_jobs.operate.doctor.search import search
from posthog_jobs.operate.doctor.workers import bystander
from posthog_jobs.worker.event_tasks import CAPTURE, ON_EVENT
from posthog_jobs.worker.export_tasks import EXPORT_EVENTS, FLUSH_EXPORT
from posthog_jobs.worker.tasks import task_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from celery import Celery

    from posthog_jobs.apps.installation import Installations
    from posthog_jobs.broker.redis import Keys
    from posthog_jobs.operate.doctor.findings import Finding
    from posthog_jobs.operate.doctor.workers import Crew

#: Hook → the tasks that run it.
_TASKS: Final = {
    "process_event": (CAPTURE,),
    "process_event_batch": (CAPTURE,),
    "on_event": (CAPTURE, ON_EVENT),
    "on_snapshot": (CAPTURE, ON_EVENT),
    "export_events": (CAPTURE, FLUSH_EXPORT, EXPORT_EVENTS),
    **{hook: (f"posthog_jobs.{hook}",) for hook in PERIODS},
}

#: Between a queue's name and a priority, in the keys of kombu's lists, and in its bindings.
_PRIORITY: Final = "\x06\x16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is on its way through a queue.

    Attributes:
        messages: how many are in it.
        waiting: how many wait in the schedule, and will go to it.
        consumers: how many consumers the broker knows of; only RabbitMQ knows.
        routed: whether jobs of this configuration go there; else it may be another app's.
    """

    messages: int = 0
    waiting: int = 0
    consumers: int = 0
    routed: bool = True


def routed(app: Celery, installations: Installations) -> set[str]:
    """Return the queues that Celery's router sends jobs and events of installed apps to."""
    names: set[str] = set()
    for installation in installations:
        definition = installation.definition
        names.update(task_name(definition.name, job) for job in definition.jobs)
        names.update(*(_TASKS.get(hook, ()) for hook in definition.hooks))
    return {app.amqp.router.route({}, name)["queue"].name for name in names}


def waiting(client: Any, keys: Keys) -> Counter[str]:
    """Return queue → how many wait for it, all of an app's job counted by where its first goes."""
    partitions = [name.decode() for name in client.zrange(keys.heads, 0, -1)]
    pipe = client.pipeline(transaction=False)
    for partition in partitions:
        pipe.zcard(keys.due(partition))
        pipe.zrange(keys.due(partition), 0, 0)
    replies = pipe.execute()
    counts = {
        first[0].decode(): count
        for count, first in zip(replies[::2], replies[1::2], strict=True)
        if first
    }
    found: Counter[str] = Counter()
    if counts:
        records = client.hmget(keys.waiting, list(counts))
        for (task_id, count), data in zip(counts.items(), records, strict=True):
            if data is not None:  # else it has just left for its queue
                queue = Record.parse(task_id, data).queue.removeprefix(keys.global_keyprefix)
                found[queue.partition(_PRIORITY)[0]] += count
    return found


def declared(client: Any, keys: Keys) -> set[str]:
    """Return the queues that anybody has ever sent to on this Redis, by kombu's bindings."""
    prefix = f"{keys.global_keyprefix}_kombu.binding."
    exchanges, _ = search(client, prefix)
    pipe = client.pipeline(transaction=False)
    for exchange in sorted(exchanges):
        pipe.smembers(f"{prefix}{exchange}")
    bindings = {binding.decode() for members in pipe.execute() for binding in members}
    names = {binding.rpartition(_PRIORITY)[2] for binding in bindings}
    return {name for name in names if ".pidbox" not in name and not name.startswith("celeryev")}


def loads(
    app: Celery,
    names: Collection[str],
    waits: Mapping[str, int],
    others: Collection[str] = (),
) -> dict[str, Load]:
    """Ask the broker for the load of queues; one that is not there is empty.

    Args:
        app: the Celery app.
        names: the queues that jobs go to.
        waits: queue → how many wait for it.
        others: queues that matter if there is something in them.
    """
    found = {}
    with app.connection_for_read() as connection:
        for name in sorted({*names, *others}):
            messages = consumers = 0
            try:
                with (
                    connection.channel() as channel
                ):  # one each: RabbitMQ closes it if there is none
                    _, messages, consumers = channel.queue_declare(queue=name, passive=True)
            except connection.channel_errors:
                pass
            routed = name in names
            if routed or messages:
                found[name] = Load(
                    messages=messages,
                    waiting=waits.get(name, 0),
                    consumers=consumers,
                    routed=routed,
                )
    return found


def consumed(app: Celery, crew: Crew, names: Iterable[str], *, timeout: float) -> set[str]:
    """Return the queues that workers say they consume; others than ours are asked only if needed.

    Args:
        app: the Celery app.
        crew: the workers.
        names: the queues that matter.
        timeout: seconds to wait for answers.
    """
    found = {queue for report in crew.reports for queue in report.queues}
    if crew.others and not set(names) <= found:
        with bystander(app) as connection:
            inspect = app.control.inspect(timeout=timeout, connection=connection)
            replies = inspect.active_queues() or {}
        found |= {queue["name"] for queues in replies.values() for queue in queues}
    return found


def queues(load: Mapping[str, Load], consumed: set[str], crew: Crew) -> Finding:
    """Look for queues that nobody consumes.

    Args:
        load: queue → what is on its way through it.
        consumed: the queues that workers say they consume.
        crew: the workers; one that did not answer may consume any queue.
    """
    nobodys = {name: of for name, of in load.items() if name not in consumed and not of.consumers}
    if not nobodys:
        every = ", ".join(f"{name} ({of.messages:,} in it)" for name, of in load.items())
        return ok("queues", f"all consumed: {every}" if load else "no app exports a job")
    names = ",".join(nobodys)
    listed = ", ".join(
        f"{name} ({of.messages:,} in it, {of.waiting:,} waiting for it)"
        for name, of in nobodys.items()
    )
    full = any(of.routed and (of.messages or of.waiting) for of in nobodys.values())
    judge = fail if full and not crew.silent else warn
    return judge(
        "queues",
        f"no worker that answered consumes {listed}",
        f"Start a worker for {'it' if len(nobodys) == 1 else 'them'}: "
        f"celery -A posthog_jobs worker -Q {names}; or change task_routes",
    )
