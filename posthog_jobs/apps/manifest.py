"""`plugin.json`, the file beside an app, as PostHog has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from posthog_jobs.apps.config import OPEN, ConfigSchema
from posthog_jobs.apps.public_jobs import PublicJob
from posthog_jobs.errors import AppLoadError

FILE: Final = "plugin.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an app says of itself. Its keys that only PostHog's pages use are left out.

    Attributes:
        name: the app's name for people; None: the file, if there is one, has none.
        description: what the app does.
        url: where more is to be read of it.
        main: the app's file, in its folder.
        config: what its config is made of; None: it does not say, and any config goes.
        public_jobs: job name → what an operator may trigger it with.
    """

    name: str | None = None
    description: str = ""
    url: str = ""
    main: str | None = None
    config: ConfigSchema | None = None
    public_jobs: Mapping[str, PublicJob] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def schema(self) -> ConfigSchema:
        """What checks and masks the app's config: `config`, or one that takes any config."""
        return OPEN if self.config is None else self.config

    @classmethod
    def parse(cls, declared: object, where: str = FILE) -> Manifest:
        """Read what the file holds.

        Args:
            declared: its JSON. Keys that are not known are passed over.
            where: the file, for messages.

        Raises:
            AppLoadError: it is of no shape that PostHog has.
        """
        if not isinstance(declared, Mapping):
            raise AppLoadError(f'{where} holds no JSON object; write {{"name": "…"}}')
        texts = {
            key: declared[key]
            for key in ("name", "main", "description", "url")
            if declared.get(key) is not None or (key in declared and key in ("name", "main"))
        }
        for key, text in texts.items():
            if not isinstance(text, str):
                raise AppLoadError(f"{where}: {key!r} is no string; make it one")
        config = declared.get("config")
        return cls(
            **texts,
            config=None if config is None else ConfigSchema.parse(config, where),
            public_jobs=_public_jobs(declared.get("publicJobs"), where),
        )


#: Of an app without the file.
NO_MANIFEST: Final = Manifest()


def _public_jobs(declared: object, where: str) -> Mapping[str, PublicJob]:
    if declared is None:
        declared = {}
    if not isinstance(declared, Mapping):
        raise AppLoadError(
            f"{where}: 'publicJobs' is of type {type(declared).__name__}; make it an object of job "
            'name → {"payload": {…}}'
        )
    return MappingProxyType(
        {
            name: PublicJob.parse(name, job, f"{where}: public job {name!r}")
            for name, job in declared.items()
        }
    )
