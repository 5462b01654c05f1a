"""The config that an app asks for: its fields in `plugin.json`, and what checks and masks it."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.attachment import Attachment
from posthog_jobs.errors import AppConfigError, AppLoadError, PayloadError, did_you_mean
from posthog_jobs.jobs.payload import check_payload
from posthog_jobs.redaction import MASK, masked, secret_texts, texts, unmasked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

TYPES: Final = ("string", "json", "attachment", "choice")

#: Key of a declaration → the type of its value. PostHog knows these.
KEYS: Final[Mapping[str, type]] = {
    "key": str,
    "name": str,
    "type": str,
    "default": object,
    "hint": str,
    "markdown": str,
    "description": str,
    "order": object,
    "site": bool,  # only PostHog's own code in browsers looks at it
    "required": bool,
    "secret": bool,
    "choices": list,
    "required_if": list,
    "visible_if": list,
}

#: What JSON's types are called in messages.
_NAMES: Final = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}

#: Operator of a condition → whether it is negated.
_OPERATORS: Final = {"=": False, "==": False, "!=": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What `required_if` and `visible_if` ask of another field.

    Attributes:
        field: the other field's key.
        value: what it must be; None: anything but empty.
        negated: whether it must be anything else.
    """

    field: str
    value: Any = None
    negated: bool = False

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a config is so; a field that is not set is as an empty one."""
        actual = config.get(self.field)
        if self.value is None:
            return not is_empty(actual)
        return (("" if is_empty(actual) else actual) == self.value) is not self.negated


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigField:
    """A field, as `plugin.json` declares it.

    Attributes:
        key: its key in the config.
        type: one of `TYPES`.
        name: what people call it.
        hint: what people should know of it.
        markdown: a text that stands above it.
        description: what it is for.
        order: where it stands among the others.
        default: its value if none is given; None: it has none.
        required: whether it must be given and not be empty.
        secret: whether it is never shown.
        choices: what a `choice` may be.
        required_if: it is required if all of these hold; None: it is not.
        visible_if: it is required only if all of these hold.
    """

    key: str
    type: str = "string"
    name: str = ""
    hint: str = ""
    markdown: str = ""
    description: str = ""
    order: Any = None
    default: Any = None
    required: bool = False
    secret: bool = False
    choices: tuple[str, ...] = ()
    required_if: tuple[Condition, ...] | None = None
    visible_if: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, declared: Mapping[str, Any], where: str) -> ConfigField:
        """Read the declaration of a field.

        Args:
            declared: the declaration, with its key.
            where: what to call it in messages, such as `plugin.json: config field 'url'`.

        Raises:
            AppLoadError: it is not of a shape that PostHog has.
        """
        given = checked_keys(declared, KEYS, where)
        given.pop("site", None)
        kind = given.get("type", "string")
        check_type(kind, TYPES, where)
        choices = given.pop("choices", None)
        if kind == "choice":
            given["choices"] = _choices(choices, where, secret=bool(given.get("secret")))
        for key in given.keys() & {"required_if", "visible_if"}:
            given[key] = tuple(_condition(part, f"{where}: {key!r}") for part in given[key])
        field = cls(**given)
        if is_empty(field.default):
            # as in PostHog, so that an app need not ask whether a text is there
            return field if kind == "string" else replace(field, default=None)
        try:
            return replace(field, default=field.checked(field.default, f"{where}: the default"))
        except AppConfigError as error:
            raise AppLoadError(str(error)) from None

    def checked(self, value: object, what: str) -> Any:
        """Return a value as the app's config holds it.

        Args:
            value: what was given; not empty.
            what: what to call it in messages.

        Raises:
            AppConfigError: it is of the wrong type, or not a choice; the value is not shown.
        """
        if self.type == "attachment":
            return Attachment.read(value, what).stored()
        if self.type == "json":
            return _json(value, what)
        if not isinstance(value, str):
            example = json.dumps(self.choices[0] if self.choices else "30")
            raise AppConfigError(
                f"{what} is of type {type(value).__name__}; make it a string, such as {example}"
            )
        if self.type == "choice" and value not in self.choices:
            raise AppConfigError(
                f"{what} is not one of its choices; {did_you_mean(value, self.choices)}use one of "
                f"{', '.join(map(repr, self.choices))}"
            )
        return value

    def is_required(self, config: Mapping[str, Any]) -> bool:
        """Tell whether it must be given, beside the other fields of a config."""
        asked = self.required or (
            self.required_if is not None
            and all(condition.holds(config) for condition in self.required_if)
        )
        return asked and all(condition.holds(config) for condition in self.visible_if)


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
            AppLoadError: it is not of a shape that PostHog has.
        """
        # two of one key are found in the wild; the last one counts, as in PostHog
        fields = {
            key: ConfigField.parse(entry, f"{where}: config field {key!r}")
            for key, entry in _entries(declared, where)
        }
        for asking in fields.values():
            for condition in (*(asking.required_if or ()), *asking.visible_if):
                if condition.field not in fields:
                    raise AppLoadError(
                        f"{where}: config field {asking.key!r} depends on {condition.field!r}, "
                        f"which is not a field; {did_you_mean(condition.field, fields)}the fields "
                        f"are {', '.join(fields)}"
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
                of the wrong type or not a choice. No value is shown.
        """
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
        return {key: self._shown(key, value) for key, value in config.items()}

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

    def split(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Attachment]]:
        """Return what `meta.config` and `meta.attachments` have of a checked config."""
        values, attachments = dict(config), {}
        for key, declared in self.fields.items():
            if declared.type == "attachment":
                value = values.pop(key, None)
                if not is_empty(value):
                    attachments[key] = Attachment.read(value, f"config field {key!r}")
        return values, attachments

    def _checked(self, key: str, value: Any) -> Any:
        declared = self.fields[key]
        if value is None:
            return copy.deepcopy(declared.default)
        if is_empty(value):
            return value
        return copy.deepcopy(declared.checked(value, f"config field {key!r}"))

    def _shown(self, key: str, value: Any) -> Any:
        declared = self.fields.get(key)
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


def is_empty(value: object) -> bool:
    """Tell whether a value counts as none, as an empty text field of PostHog's forms does."""
    return value is None or value == ""


def checked_keys(declared: object, keys: Mapping[str, type], where: str) -> dict[str, Any]:
    """Return what an object of `plugin.json` says, without what is null.

    Args:
        declared: the object.
        keys: key → the type of its value.
        where: what to call the object in messages.

    Raises:
        AppLoadError: it is not an object, has another key, or a value of another type.
    """
    if not isinstance(declared, Mapping):
        raise AppLoadError(
            f"{where} is of type {type(declared).__name__}; make it an object with any of the keys "
            f"{', '.join(keys)}"
        )
    for key, value in declared.items():
        kind = keys.get(key)
        if kind is None:
            raise AppLoadError(
                f"{where} has the unknown key {key!r}; {did_you_mean(key, keys)}the keys are "
                f"{', '.join(keys)}"
            )
        if value is not None and not isinstance(value, kind):
            raise AppLoadError(
                f"{where}: {key!r} is of type {type(value).__name__}; make it {_NAMES[kind]}"
            )
    return {key: value for key, value in declared.items() if value is not None}


def check_type(kind: object, types: Collection[str], where: str) -> None:
    """Check the type that a field declares.

    Raises:
        AppLoadError: there is no such type.
    """
    if not isinstance(kind, str) or kind not in types:
        raise AppLoadError(
            f"{where} has the type {kind!r}; {did_you_mean(kind, types)}the types are "
            f"{', '.join(types)}"
        )


def _choices(choices: list[Any] | None, where: str, *, secret: bool) -> tuple[str, ...]:
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise AppLoadError(
            f'{where} is a choice without choices; add "choices": ["…", "…"], strings alone'
        )
    if secret:
        raise AppLoadError(
            f"{where} is a secret choice, which whoever reads plugin.json can guess; remove "
            "'secret', or make it a string"
        )
    return tuple(choices)


def _condition(part: object, where: str) -> Condition:
    if (
        isinstance(part, list)
        and 1 <= len(part) <= 3  # noqa: PLR2004  # field; field, value; field, operator, value
        and isinstance(part[0], str)
    ):
        if len(part) < 3:  # noqa: PLR2004
            return Condition(field=part[0], value=part[1] if part[1:] else None)
        if isinstance(part[1], str) and part[1] in _OPERATORS:
            value = "" if part[2] is None else part[2]
            return Condition(field=part[0], value=value, negated=_OPERATORS[part[1]])
    raise AppLoadError(
        f'{where} is not a list of conditions; write ["field", "value"], or ["field"] for a '
        "field that is set"
    )


def _json(value: object, what: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise AppConfigError(
                f"{what} is a string, but not JSON; quote and close all of it"
            ) from None
        if isinstance(value, str):
            # else what is read once and checked again would not be what it was
            raise AppConfigError(f"{what} is JSON of a mere string; make it an object or a list")
    try:
        check_payload(value, what)
        json.dumps(value)
    except PayloadError as error:
        raise AppConfigError(str(error)) from None
    except TypeError as error:  # what a payload may hold, but not a file of JSON
        raise AppConfigError(f"{what} is not JSON: {error}; use JSON's own types") from None
    return value


def _secrets_in(declared: ConfigField, value: Any) -> Iterator[str]:
    if declared.type == "attachment":
        # not its type and name, which stand in harmless texts too
        with contextlib.suppress(AppConfigError):
            attachment = Attachment.read(value, "it")
            yield attachment.stored()["contents"]
            yield attachment.contents.decode(errors="replace")
    else:
        yield from texts(value)


def _entries(declared: object, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the key and the declaration of each field."""
    if not isinstance(declared, (Mapping, list)):
        raise AppLoadError(
            f"{where}: 'config' is of type {type(declared).__name__}; make it a list of fields, "
            'such as [{"key": "url", "type": "string"}]'
        )
    entries = declared.items() if isinstance(declared, Mapping) else enumerate(declared)
    for outer, entry in entries:
        place = f"{where}: config[{outer!r}]"
        if not isinstance(entry, Mapping):
            raise AppLoadError(
                f"{place} is of type {type(entry).__name__}; make it a field, such as "
                '{"key": "url", "type": "string"}'
            )
        if "markdown" in entry and not entry.keys() - {"markdown", "order"}:
            continue  # a text between the fields
        key = entry.get("key", outer)
        if not isinstance(key, str) or not key or not key.isprintable():
            raise AppLoadError(f'{place} has no key that is a text; add "key": "…"')
        yield key, {**entry, "key": key}
