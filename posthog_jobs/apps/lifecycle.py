"""Makes an installation ready in this process, once, and ends it: setup and teardown."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import AppSetupError, RetryError, StoreUnavailableError
from posthog_jobs.jobs.execution import call, in_worker
from posthog_jobs.jobs.retry import LOAD_AGAIN, ON_SETUP_RETRY, delay_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from posthog_jobs.apps.installation import Installation
    from posthog_jobs.meta.meta import Meta

logger = logging.getLogger(__name__)

#: Seconds, from its begin, that all wait for the `setup_plugin` that one of them runs, or for the
#: `teardown_plugin` of the version before; an app that blocks there shall not fill the pool.
PATIENCE: Final = 10.0


class _Readiness:
    """How far one version of an installation has come in this process."""

    __slots__ = (
        "attempts",
        "began",
        "error",
        "installation",
        "is_retired",
        "lock",
        "meta",
        "not_before",
        "ready",
        "setting_up",
        "users",
    )

    def __init__(self, installation: Installation, meta: Meta) -> None:
        self.installation: Final = installation
        self.meta: Final = meta
        self.lock: Final = threading.RLock()
        self.ready = False
        self.setting_up = False
        self.began: float | None = None
        self.attempts = 0
        self.not_before = 0.0
        self.error: AppSetupError | None = None
        self.users = 0
        self.is_retired = False


class Lifecycle:
    """The installations that were made ready in this process."""

    __slots__ = (
        "_after_end",
        "_before_end",
        "_build",
        "_ending",
        "_is_current",
        "_known",
        "_lock",
        "_pid",
    )

    def __init__(
        self,
        build: Callable[[Installation], Meta],
        is_current: Callable[[Installation], bool] = lambda _: True,
        before_end: Callable[[Installation, Meta], None] = lambda *_: None,
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
        self._known: dict[tuple[str, int], _Readiness] = {}
        self._ending: dict[str, threading.Thread] = {}
        self._pid = os.getpid()

    def meta(self, installation: Installation, *, set_up: bool = True) -> Meta:
        """Return the installation's meta, after its `setup_plugin` has run.

        Args:
            installation: which one.
            set_up: False for its meta alone, as it is used to trigger its jobs from outside.

        Raises:
            AppSetupError: `setup_plugin` failed, for good or for now.
        """
        readiness = self._known.get((installation.id, installation.version))
        if readiness is not None and not set_up and self._pid == os.getpid():
            return readiness.meta
        readiness = self._taken(installation)
        try:
            if set_up and not readiness.ready:
                self._make_ready(readiness)
            return readiness.meta
        finally:
            self._release(readiness)

    def hold(self, installation: Installation) -> tuple[Meta, Callable[[], None]]:
        """Return the installation's meta, set up, and what lets go of it.

        Until then there is no `teardown_plugin`, though the installation be changed or removed.

        Raises:
            AppSetupError: `setup_plugin` failed, for good or for now.
        """
        readiness = self._taken(installation)
        if not readiness.ready:
            try:
                self._make_ready(readiness)
            except BaseException:
                self._release(readiness)
                raise
        return readiness.meta, partial(self._release, readiness)

    @contextmanager
    def holding(self) -> Iterator[Callable[[Installation], Meta]]:
        """Give what returns the metas of installations, and let go of them all at the end."""
        releases: list[Callable[[], None]] = []

        def meta(installation: Installation) -> Meta:
            held, release = self.hold(installation)
            releases.append(release)
            return held

        try:
            yield meta
        finally:
            for release in releases:
                release()

    def retire(self, installation: Installation) -> None:
        """End an installation that was changed or removed, when nothing runs with it any more."""
        if self._pid != os.getpid():
            self._forget_parent()
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
        if self._pid != os.getpid():
            return
        known, self._known = self._known, {}
        for readiness in known.values():
            if readiness.ready:
                _run_teardown(readiness)
        for thread in list(self._ending.values()):
            thread.join()

    def _taken(self, installation: Installation) -> _Readiness:
        if self._pid != os.getpid():
            self._forget_parent()
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

    def _release(self, readiness: _Readiness) -> None:
        with self._lock:
            readiness.users -= 1
            is_over = readiness.is_retired and readiness.users == 0
        if is_over:
            self._end(readiness)

    def _make_ready(self, readiness: _Readiness) -> None:
        # since its begin: or each event would wait so long for an app that blocks there
        began = readiness.began
        waited = 0.0 if began is None else monotonic() - began
        if not readiness.lock.acquire(timeout=max(0.0, PATIENCE - waited)):
            raise AppSetupError(
                f"setup_plugin of app id {readiness.meta.app_id!r} still runs for another job "
                f"after {PATIENCE:g} s, and nothing else of the app runs before its end; see what "
                "it waits for"
            )
        try:
            if not readiness.ready:
                self._set_up(readiness)
        finally:
            readiness.lock.release()

    def _set_up(self, readiness: _Readiness) -> None:
        setup = readiness.installation.definition.hooks.get("setup_plugin")
        if setup is None:
            readiness.ready = True
            return
        if readiness.setting_up:  # it sends an event through its own hooks, for one
            raise AppSetupError(
                f"setup_plugin of app id {readiness.meta.app_id!r} is still running, and nothing "
                "else of the app runs before its end"
            )
        if readiness.error is not None and monotonic() < readiness.not_before:
            raise readiness.error.with_traceback(None)  # it is raised many times
        ending = self._ending.get(readiness.meta.app_id)
        if ending is not None:  # both may want the same port, file or account
            ending.join(PATIENCE)
        readiness.setting_up, readiness.began = True, monotonic()
        try:
            call(setup, readiness.meta)
        except Exception as error:
            delay = None
            if isinstance(error, RetryError | StoreUnavailableError):
                # a store that is away is no fault of the app, however long that takes
                policy = ON_SETUP_RETRY if isinstance(error, RetryError) else LOAD_AGAIN
                delay = delay_after(error, policy, readiness.attempts)
                readiness.attempts += 1
            what = f"setup_plugin of app id {readiness.meta.app_id!r} raised {type(error).__name__}"
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
            readiness.setting_up, readiness.began = False, None
        readiness.ready, readiness.error = True, None

    def _end(self, readiness: _Readiness) -> None:
        """Export the rest and run `teardown_plugin`, on a thread: app code may block."""
        if not readiness.ready:
            return
        app_id = readiness.meta.app_id

        def end() -> None:
            in_worker.set(True)  # an app that exits ends nothing but its own hook
            try:
                self._before_end(readiness.installation, readiness.meta)
            except Exception:
                logger.exception("what app id %r buffers stays there", app_id)
            try:
                _run_teardown(readiness)
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
        self._pid = os.getpid()


def _run_teardown(readiness: _Readiness) -> None:
    teardown = readiness.installation.definition.hooks.get("teardown_plugin")
    if teardown is not None:
        token = in_worker.set(True)  # an app that exits ends nothing but its own hook
        try:
            call(teardown, readiness.meta)
        except Exception:
            logger.exception("teardown_plugin of app id %r failed", readiness.meta.app_id)
        finally:
            in_worker.reset(token)
