"""What `plugin.json` declares: the checks that all of its parts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posthog_jobs.errors import AppLoadError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: What JSON's types are called in messages.
_NAMES = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}


def is_empty(value: object) -> bool:
    """Tell whether a value counts as none, as an empty text field of PostHog's forms does."""
    return value is None or value == ""


def check_keys(declared: Mapping[str, Any], keys: Mapping[str, type], where: str) -> None:
    """Check that an object has known keys alone, each with null or a value of its type.

    Args:
        declared: the object.
        keys: key → the type of its value.
        where: what to call the object in messages.

    Raises:
        AppLoadError: it has another key, or a value of another type.
    """
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
