"""One field of an app's config: how `plugin.json` declares it, and which values it takes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.attachment import Attachment
from posthog_jobs.apps.declaration import check_keys, check_type, is_empty
from posthog_jobs.errors import AppConfigError, AppLoadError, PayloadError, did_you_mean
from posthog_jobs.jobs.payload import check_payload

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPES: Final = ("string", "json", "attachment", "choice")

#: Key of a declaration → the type of its value. PostHog knows these.
KEYS: Final[Mapping[str, type]] = {
    "key": str,
    "name": str,
    "type": str,
    "default": object,
    "hint": str,
    "markdown": str,
    "description": str,  # these three are only for PostHog's own pages
    "order": object,
    "site": bool,
    "required": bool,
    "secret": bool,
    "choices": list,
    "required_if": list,
    "visible_if": list,
}

_EQUALS: Final = ("=", "==")
_DIFFERS: Final = ("!=",)


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
            AppLoadError: it is of no shape that PostHog has.
        """
        check_keys(declared, KEYS, where)
        given = {key: value for key, value in declared.items() if value is not None}
        for unused in ("description", "order", "site"):
            given.pop(unused, None)
        kind = given.get("type", "string")
        check_type(kind, TYPES, where)
        if kind == "choice":
            given["choices"] = _choices(given, where)
        else:
            given.pop("choices", None)
        for key in given.keys() & {"required_if", "visible_if"}:
            given[key] = tuple(_condition(part, f"{where}: {key!r}") for part in given[key])
        default = given.pop("default", None)
        field = cls(**given)
        if is_empty(default):
            # as in PostHog, so that an app need not ask whether a text is there
            return replace(field, default=default) if kind == "string" else field
        try:
            default = field.checked(default, f"{where}: the default")
        except AppConfigError as error:
            raise AppLoadError(str(error)) from None
        return replace(field, default=default)

    def checked(self, value: object, what: str) -> Any:
        """Return a value as the app's config holds it.

        Args:
            value: what was given; not empty.
            what: what to call it in messages.

        Raises:
            AppConfigError: it is of the wrong type, or no choice; the value is not shown.
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
                f"{what} is none of its choices; {did_you_mean(value, self.choices)}use one of "
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


def _choices(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    choices = given.get("choices")
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise AppLoadError(
            f'{where} is a choice without choices; add "choices": ["…", "…"], strings alone'
        )
    if given.get("secret"):
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
        if part[1] in (*_EQUALS, *_DIFFERS):
            value = "" if part[2] is None else part[2]
            return Condition(field=part[0], value=value, negated=part[1] in _DIFFERS)
    raise AppLoadError(
        f'{where} has a condition that is none; write ["field", "value"], or ["field"] for a '
        "field that is set"
    )


def _json(value: object, what: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise AppConfigError(
                f"{what} is a string, but no JSON; quote and close all of it"
            ) from None
        if isinstance(value, str):
            # else what is read once and checked again would not be what it was
            raise AppConfigError(f"{what} is JSON of a mere string; make it an object or a list")
    try:
        check_payload(value, what)
        json.dumps(value)
    except PayloadError as error:
        raise AppConfigError(str(error)) from None
    except TypeError as error:  # what a payload may hold, but no file of JSON
        raise AppConfigError(f"{what} is no JSON: {error}; use JSON's own types") from None
    return value
