"""What operators are told of an installation, and of its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from posthog_jobs.redaction import MASK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs.apps.definition import AppDefinition
    from posthog_jobs.apps.entries import AppEntry
    from posthog_jobs.apps.installation import Loaded
    from posthog_jobs.errors import AppError


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledApp:
    """An installation, as an operator sees it.

    Attributes:
        entry: id, module, config, team, and whether it is enabled.
        definition: its code; None if it is broken, or disabled in the store and so not loaded.
        error: why it is broken, in this process; None if it is not.
    """

    entry: AppEntry
    definition: AppDefinition | None = field(repr=False)
    error: AppError | None

    @classmethod
    def of(cls, loaded: Loaded) -> Self:
        """Describe what became of an entry in this process."""
        installation = loaded.installation
        return cls(
            entry=loaded.entry,
            definition=None if installation is None else installation.definition,
            error=loaded.error,
        )

    @property
    def masked_config(self) -> Mapping[str, Any]:
        """The config as it may be shown: without secrets; all are masked if no code says which."""
        if self.definition is None:
            return dict.fromkeys(self.entry.config, MASK)
        return self.definition.manifest.schema.mask(self.entry.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninstalled:
    """What became of an installation's remains.

    Attributes:
        cancelled: how many waiting jobs were cancelled; None if they were kept.
        purged: how many keys of its cache and storage were deleted; None if they were kept.
    """

    cancelled: int | None
    purged: int | None
