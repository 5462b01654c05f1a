"""The config that an app asks for: checks it, masks it, and finds its secrets and attachments."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.attachment import Attachment
from posthog_jobs.apps.config_field import ConfigField
from posthog_jobs.apps.declaration import is_empty
from posthog_jobs.errors import AppConfigError, AppLoadError, did_you_mean
from posthog_jobs.redaction import MASK, masked, secret_texts, texts, unmasked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSchema:
    """The fields of an app's config.

    Attributes:
        fields: key → field, in the order of `plugin.json`.
        is_open: whether any other key goes too, as for an app that declares no config.
    """

    fields: Mapping[str, ConfigField] = field(default_factory=dict)
    is_open: bool = False

    @classmethod
    def parse(cls, declared: object, where: str) -> ConfigSchema:
        """Read what `plugin.json` has under `config`.

        Args:
            declared: a list of fields, or a mapping of key → field.
            where: what to call the file in messages.

        Raises:
            AppLoadError: it is of no shape that PostHog has.
        """
        fields: dict[str, ConfigField] = {}
        for key, entry, place in _entries(declared, where):
            if key is None:  # a text between the fields
                continue
            # two of one key are found in the wild; the last one counts, as in PostHog
            fields[key] = ConfigField.parse({**entry, "key": key}, place)
        for asking in fields.values():
            for condition in (*(asking.required_if or ()), *asking.visible_if):
                if condition.field not in fields:
                    raise AppLoadError(
                        f"{where}: config field {asking.key!r} depends on {condition.field!r}, "
                        f"which is no field; {did_you_mean(condition.field, fields)}the fields are "
                        f"{', '.join(fields)}"
                    )
        return cls(fields=MappingProxyType(fields))

    def having(self, fields: Iterable[ConfigField]) -> ConfigSchema:
        """Return a schema that has these fields too, where it does not declare them itself."""
        added = {field.key: field for field in fields if field.key not in self.fields}
        return replace(self, fields=MappingProxyType({**self.fields, **added}))

    def check(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config with its defaults filled in; checking it again changes nothing.

        Args:
            config: field → value. None is as if the field were not given.

        Raises:
            AppConfigError: a required field is missing or empty, a key is unknown, or a value is
                of the wrong type or no choice. No value is shown.
        """
        if not isinstance(config, Mapping):
            raise AppConfigError(
                f"the config is of type {type(config).__name__}; make it a mapping of field → value"
            )
        if self.is_open:
            return copy.deepcopy(dict(config))
        for key in config:
            if key not in self.fields:
                known = f"the fields are {', '.join(self.fields)}" if self.fields else "it has none"
                raise AppConfigError(
                    f"config has the unknown field {str(key)[:80]!r}; "
                    f"{did_you_mean(key, self.fields)}{known}"
                )
        checked = {key: self._checked(key, config.get(key)) for key in self.fields}
        checked = {key: value for key, value in checked.items() if value is not None}
        for key, declared in self.fields.items():
            if is_empty(checked.get(key)) and declared.is_required(checked):
                called = f" ({declared.name!r})" if declared.name else ""
                raise AppConfigError(f"config field {key!r}{called} is required; set it")
        return checked

    def mask(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what may be shown of a config: no secret, and no attachment's contents.

        Secrets are `MASK`, attachments `<file_name, N bytes>`.
        """
        return {str(key): self._shown(key, value) for key, value in config.items()}

    def merge(self, old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config with some of its fields changed; it is not checked.

        Args:
            old: the config before.
            changes: field → its new value. None removes the field; one that is as `mask` shows it
                keeps its old value.

        Raises:
            AppConfigError: a mask stands for nothing.
        """
        merged = dict(old)
        for key, value in changes.items():
            if value is None:
                merged.pop(key, None)
            elif key in old and value == self._shown(key, old[key]):
                continue
            else:
                merged[key] = unmasked(value, old.get(key), f"config field {key!r}")
        return merged

    def secrets(self, config: Mapping[str, Any]) -> frozenset[str]:
        """Return the texts that must never be shown: of secret fields, and in what they hold."""
        found: set[str] = set()
        for key, value in config.items():
            declared = self.fields.get(key)
            if declared is None:
                found.update(secret_texts(key, value))
            elif declared.secret:
                found.update(_secrets_in(declared, value))
        return frozenset(found)

    def attachments(self, config: Mapping[str, Any]) -> Mapping[str, Attachment]:
        """Return the attachments of a checked config, by their field."""
        return {
            key: Attachment.read(config[key], f"config field {key!r}")
            for key, declared in self.fields.items()
            if declared.type == "attachment" and not is_empty(config.get(key))
        }

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config without its attachments, as `meta.config` has it."""
        return {
            key: value
            for key, value in config.items()
            if key not in self.fields or self.fields[key].type != "attachment"
        }

    def _checked(self, key: str, value: Any) -> Any:
        declared = self.fields[key]
        if value is None:
            return copy.deepcopy(declared.default)
        if is_empty(value):
            return value
        return copy.deepcopy(declared.checked(value, f"config field {key!r}"))

    def _shown(self, key: object, value: Any) -> Any:
        declared = self.fields.get(key) if isinstance(key, str) else None
        if declared is None:
            return masked(key, value)
        if declared.type == "attachment" and not is_empty(value):
            try:
                attachment = Attachment.read(value, "it")
            except AppConfigError:
                return MASK
            return f"<{attachment.file_name}, {len(attachment.contents)} bytes>"
        return MASK if declared.secret and not is_empty(value) else value


#: Of an app that declares no config: anything goes, and what looks like a secret is one.
OPEN: Final = ConfigSchema(is_open=True)


def _secrets_in(declared: ConfigField, value: Any) -> Iterator[str]:
    if declared.type == "attachment":
        # not its type and name, which stand in harmless texts too
        with contextlib.suppress(AppConfigError):
            attachment = Attachment.read(value, "it")
            yield attachment.stored()["contents"]
            yield attachment.contents.decode(errors="replace")
    else:
        yield from texts(value)


def _entries(declared: object, where: str) -> Iterator[tuple[str | None, dict[str, Any], str]]:
    """Yield key, declaration and place; the key is None for a text that is no field."""
    if isinstance(declared, Mapping):
        entries = [
            (key, entry, f"{where}: config field {key!r}") for key, entry in declared.items()
        ]
    elif isinstance(declared, list):
        entries = [(None, entry, f"{where}: config[{n}]") for n, entry in enumerate(declared)]
    else:
        raise AppLoadError(
            f"{where}: 'config' is of type {type(declared).__name__}; make it a list of fields, "
            'such as [{"key": "url", "type": "string"}]'
        )
    for outer, entry, place in entries:
        if not isinstance(entry, Mapping):
            raise AppLoadError(
                f"{place} is of type {type(entry).__name__}; make it a field, such as "
                '{"key": "url", "type": "string"}'
            )
        is_text = "markdown" in entry and not entry.keys() - {"markdown", "order"}
        key = None if is_text else entry.get("key", outer)
        if not is_text and (not isinstance(key, str) or not key or not key.isprintable()):
            raise AppLoadError(f'{place} has no key that is a text; add "key": "…"')
        named = f"{where}: config field {key!r}" if key else place
        yield key, dict(entry), named
