"""Makes an installation ready in this process, once, and ends it: setup and teardown."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from posthog_jobs.errors import AppSetupError, RetryError, StoreUnavailableError
from posthog_jobs.jobs.execution import after_fork, call, in_worker
from posthog_jobs.jobs.retry import LOAD_AGAIN, ON_SETUP_RETRY, delay_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs.apps.installation import Installation

logger = logging.getLogger(__name__)

#: What an installation's hooks and jobs are called with, its `meta`.
M = TypeVar("M")

#: Seconds, from its begin, that all wait for the `setup_plugin` that one of them runs, or for the
#: `teardown_plugin` of the version before; an app that blocks there shall not fill the pool.
PATIENCE: Final = 10.0


@dataclass(slots=True, eq=False)
class _Readiness(Generic[M]):
    """How far one version of an installation has come in this process."""

    installation: Installation
    meta: M
    lock: threading.RLock = field(default_factory=threading.RLock)
    ready: bool = False
    began: float | None = None  # while `setup_plugin` runs
    attempts: int = 0
    not_before: float = 0.0
    error: AppSetupError | None = None
    users: int = 0
    is_retired: bool = False

    def run_teardown(self) -> None:
        """Run `teardown_plugin`, if there is one; a failing one is logged."""
        teardown = self.installation.definition.hooks.get("teardown_plugin")
        if teardown is None:
            return
        token = in_worker.set(True)  # an app that exits ends nothing but its own hook
        try:
            call(teardown, self.meta)
        except Exception:
            logger.exception("teardown_plugin of app id %r failed", self.installation.id)
        finally:
            in_worker.reset(token)


class Lifecycle(Generic[M]):
    """The installations that were made ready in this process."""

    __slots__ = (
        "__weakref__",
        "_after_end",
        "_before_end",
        "_build",
        "_ending",
        "_is_current",
        "_known",
        "_lock",
    )

    def __init__(
        self,
        build: Callable[[Installation], M],
        is_current: Callable[[Installation], bool] = lambda _: True,
        before_end: Callable[[Installation, M], None] = lambda *_: None,
        after_end: Callable[[Installation], None] = lambda _: None,
    ) -> None:
        """Nothing runs until `hold` or `meta` is asked for a meta.

        Args:
            build: makes a meta.
            is_current: tells whether an installation has been neither changed nor removed.
            before_end: called before the `teardown_plugin` of one that has been; may raise.
            after_end: called after it, when nothing of it runs here any more; may raise.
        """
        self._build: Final = build
        self._is_current: Final = is_current
        self._before_end: Final = before_end
        self._after_end: Final = after_end
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], _Readiness[M]] = {}
        self._ending: dict[str, threading.Thread] = {}
        after_fork(self._forget_parent)

    def meta(self, installation: Installation, *, set_up: bool = True) -> M:
        """Return the installation's meta, after its `setup_plugin` has run.

        Args:
            installation: which one.
            set_up: False for its meta alone, as it is used to trigger its jobs from outside.

        Raises:
            AppSetupError: `setup_plugin` failed, for good or for now.
        """
        readiness = self._known.get((installation.id, installation.version))
        if readiness is not None and (readiness.ready or not set_up):
            return readiness.meta
        meta, release = self.hold(installation, set_up=set_up)
        release()
        return meta

    def hold(
        self, installation: Installation, *, set_up: bool = True
    ) -> tuple[M, Callable[[], None]]:
        """Return the installation's meta, set up, and what lets go of it.

        Until then there is no `teardown_plugin`, though the installation be changed or removed.

        Raises:
            AppSetupError: `setup_plugin` failed, for good or for now.
        """
        readiness = self._taken(installation)
        if set_up and not readiness.ready:
            try:
                self._make_ready(readiness)
            except BaseException:
                self._release(readiness)
                raise
        return readiness.meta, partial(self._release, readiness)

    @contextmanager
    def holding(self) -> Iterator[Callable[[Installation], M]]:
        """Give what returns the metas of installations, and let go of them all at the end."""
        with ExitStack() as releases:

            def meta(installation: Installation) -> M:
                held, release = self.hold(installation)
                releases.callback(release)
                return held

            yield meta

    def retire(self, installation: Installation) -> None:
        """End an installation that was changed or removed, when nothing runs with it any more."""
        with self._lock:
            readiness = self._known.pop((installation.id, installation.version), None)
            if readiness is None:
                return
            readiness.is_retired = True
            is_over = readiness.users == 0
        if is_over:
            self._end(readiness)

    def tear_down(self) -> None:
        """Run `teardown_plugin` of all that were set up here; a failing one is logged."""
        known, self._known = self._known, {}
        for readiness in known.values():
            if readiness.ready:
                readiness.run_teardown()
        for thread in list(self._ending.values()):
            thread.join()

    def _taken(self, installation: Installation) -> _Readiness[M]:
        key = (installation.id, installation.version)
        with self._lock:
            readiness = self._known.get(key)
            if readiness is None:
                readiness = self._known[key] = _Readiness(installation, self._build(installation))
                # it may have been replaced since the caller looked it up, and is not retired again
                if not self._is_current(installation):
                    del self._known[key]
                    readiness.is_retired = True
            readiness.users += 1
        return readiness

    def _release(self, readiness: _Readiness[M]) -> None:
        with self._lock:
            readiness.users -= 1
            is_over = readiness.is_retired and readiness.users == 0
        if is_over:
            self._end(readiness)

    def _make_ready(self, readiness: _Readiness[M]) -> None:
        # since its begin: or each event would wait so long for an app that blocks there
        began = readiness.began
        waited = 0.0 if began is None else monotonic() - began
        if not readiness.lock.acquire(timeout=max(0.0, PATIENCE - waited)):
            raise AppSetupError(
                f"setup_plugin of app id {readiness.installation.id!r} still runs for another job "
                f"after {PATIENCE:g} s, and nothing else of the app runs before its end; see what "
                "it waits for"
            )
        try:
            if not readiness.ready:
                self._set_up(readiness)
        finally:
            readiness.lock.release()

    def _set_up(self, readiness: _Readiness[M]) -> None:
        app_id, hooks = readiness.installation.id, readiness.installation.definition.hooks
        if "setup_plugin" not in hooks:
            readiness.ready = True
            return
        if readiness.began is not None:  # it sends an event through its own hooks, for one
            raise AppSetupError(
                f"setup_plugin of app id {app_id!r} is still running, and nothing else of the app "
                "runs before its end"
            )
        if readiness.error is not None and monotonic() < readiness.not_before:
            raise readiness.error.with_traceback(None)  # it is raised many times
        ending = self._ending.get(app_id)
        if ending is not None:  # both may want the same port, file or account
            ending.join(PATIENCE)
        readiness.began = monotonic()
        try:
            call(hooks["setup_plugin"], readiness.meta)
        except Exception as error:
            delay = None
            if isinstance(error, RetryError | StoreUnavailableError):
                # a store that is away is no fault of the app, however long that takes
                policy = ON_SETUP_RETRY if isinstance(error, RetryError) else LOAD_AGAIN
                delay = delay_after(error, policy, readiness.attempts)
                readiness.attempts += 1
            what = f"setup_plugin of app id {app_id!r} raised {type(error).__name__}"
            outlook = (
                "the app is marked failed in this process; mend it and restart"
                if delay is None
                else f"it is run again in {delay:g} s"
            )
            logger.exception("%s; %s", what, outlook)
            readiness.not_before = float("inf") if delay is None else monotonic() + delay
            readiness.error = AppSetupError(f"{what}: {error}; {outlook}")
            readiness.error.final = delay is None
            raise readiness.error from error
        finally:
            readiness.began = None
        readiness.ready, readiness.error = True, None

    def _end(self, readiness: _Readiness[M]) -> None:
        """Export the rest and run `teardown_plugin`, on a thread: app code may block."""
        if not readiness.ready:
            return
        app_id = readiness.installation.id

        def end() -> None:
            in_worker.set(True)  # an app that exits ends nothing but its own hook
            try:
                self._before_end(readiness.installation, readiness.meta)
            except Exception:
                logger.exception("what app id %r buffers stays there", app_id)
            try:
                readiness.run_teardown()
                self._after_end(readiness.installation)
            except Exception:
                logger.exception("what app id %r has kept may stay", app_id)
            finally:
                if self._ending.get(app_id) is threading.current_thread():
                    del self._ending[app_id]

        thread = threading.Thread(target=end, name=f"posthog_jobs.teardown.{app_id}", daemon=True)
        self._ending[app_id] = thread
        thread.start()

    def _forget_parent(self) -> None:
        # a fork has none of its parent's connections or threads
        self._lock, self._known, self._ending = threading.Lock(), {}, {}
