"""Makes an installation ready in this process, once: its meta, and its `setup_plugin`."""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from posthog_jobs.errors import AppSetupError, RetryError
from posthog_jobs.execution import call
from posthog_jobs.retries import ON_RETRY_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthog_jobs.installations import Installation
    from posthog_jobs.meta import Meta

logger = logging.getLogger(__name__)


class _Readiness:
    """How far one version of an installation has come in this process."""

    __slots__ = (
        "attempts",
        "error",
        "installation",
        "lock",
        "meta",
        "not_before",
        "ready",
        "setting_up",
    )

    def __init__(self, installation: Installation, meta: Meta) -> None:
        self.installation: Final = installation
        self.meta: Final = meta
        self.lock: Final = threading.RLock()
        self.ready = False
        self.setting_up = False
        self.attempts = 0
        self.not_before = 0.0
        self.error: AppSetupError | None = None


class Lifecycle:
    """The installations that were made ready in this process."""

    __slots__ = ("_build", "_known", "_lock", "_pid")

    def __init__(self, build: Callable[[Installation], Meta]) -> None:
        """Remember how to build a meta; nothing runs until `meta` is asked for one."""
        self._build: Final = build
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], _Readiness] = {}
        self._pid = os.getpid()

    def meta(self, installation: Installation, *, set_up: bool = True) -> Meta:
        """Return the installation's meta, after its `setup_plugin` has run.

        Args:
            installation: which one.
            set_up: False for its meta alone, as it is used to trigger its jobs from outside.

        Raises:
            AppSetupError: `setup_plugin` failed, for good or for now.
        """
        if self._pid != os.getpid():  # a fork has none of its parent's connections or threads
            self._lock, self._known, self._pid = threading.Lock(), {}, os.getpid()
        key = (installation.id, installation.version)
        readiness = self._known.get(key)
        if readiness is not None and (readiness.ready or not set_up):  # as for nearly every job
            return readiness.meta
        with self._lock:
            readiness = self._known.get(key)
            if readiness is None:
                readiness = self._known[key] = _Readiness(installation, self._build(installation))
        if set_up and not readiness.ready:
            with readiness.lock:
                if not readiness.ready:
                    self._set_up(readiness)
        return readiness.meta

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
        readiness.setting_up = True
        try:
            call(setup, readiness.meta)
        except Exception as error:
            delay = None
            if isinstance(error, RetryError):
                delay = ON_RETRY_ERROR.delay(readiness.attempts)
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
            raise readiness.error from error
        finally:
            readiness.setting_up = False
        readiness.ready, readiness.error = True, None

    def tear_down(self) -> None:
        """Run `teardown_plugin` of all that were set up here; a failing one is logged."""
        if self._pid != os.getpid():
            return
        known, self._known = self._known, {}
        for readiness in known.values():
            teardown = readiness.installation.definition.hooks.get("teardown_plugin")
            if readiness.ready and teardown is not None:
                try:
                    call(teardown, readiness.meta)
                except Exception:
                    logger.exception("teardown_plugin of app id %r failed", readiness.meta.app_id)
