"""`plugin.json`, the file beside an app, as PostHog has it; with the jobs that it makes public."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from posthog_jobs.apps.config import OPEN, ConfigSchema, check_type, checked_keys, is_empty
from posthog_jobs.errors import AppLoadError, JobCallError, did_you_mean, is_number

if TYPE_CHECKING:
    from collections.abc import Callable

FILE: Final = "plugin.json"

#: Key of a payload field's declaration → the type of its value. PostHog knows these.
KEYS: Final[Mapping[str, type]] = {
    "type": str,
    "title": str,
    "required": bool,
    "default": object,
    "staff_only": bool,  # only PostHog's own pages look at it
}


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_range(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:  # noqa: PLR2004  # first and last
        return False
    first, last = map(_moment, value)
    return first is not None and last is not None and first <= last


#: Type of a payload's field → what a message asks for, and what tells whether a value is of it.
TYPES: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "string": ('a string, such as "abc"', lambda value: isinstance(value, str)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "json": ("any JSON", lambda _: True),
    "number": ("a number, such as 5", is_number),
    "date": (
        'a date or time in ISO 8601, such as "2030-01-31" or "2030-01-31T12:00:00Z"',
        lambda value: _moment(value) is not None,
    ),
    "daterange": ('the first and the last date, such as ["2030-01-01", "2030-01-31"]', _is_range),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadField:
    """A field of a public job's payload.

    Attributes:
        type: one of `TYPES`.
        title: what people call it.
        required: whether it must be given and not be empty.
        default: its value if none is given; None: it has none.
    """

    type: str
    title: str = ""
    required: bool = False
    default: Any = None

    @classmethod
    def parse(cls, declared: object, where: str) -> PayloadField:
        """Read the declaration of a field.

        Raises:
            AppLoadError: it is not of a shape that PostHog has.
        """
        given = checked_keys(declared, KEYS, where)
        given.pop("staff_only", None)
        check_type(given.setdefault("type", None), TYPES, where)
        field = cls(**given)
        if not is_empty(field.default) and not field.takes(field.default):
            raise AppLoadError(f"{where}: the default is not {TYPES[field.type][0]}; mend it")
        return field

    def takes(self, value: object) -> bool:
        """Tell whether a value that is not empty is of the field's type."""
        return TYPES[self.type][1](value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicJob:
    """A job that an operator may trigger.

    Attributes:
        name: the job's name.
        payload: key → field; None: its payload is not declared, and may be anything.
    """

    name: str
    payload: Mapping[str, PayloadField] | None = None

    @classmethod
    def parse(cls, name: str, declared: object, where: str) -> PublicJob:
        """Read the declaration of a job.

        Args:
            name: the job's name.
            declared: a mapping that may have `payload`, a mapping of key → field.
            where: what to call the declaration in messages.

        Raises:
            AppLoadError: it is not of a shape that PostHog has.
        """
        payload = checked_keys(declared, {"payload": dict}, where).get("payload")
        if payload is None:
            return cls(name=name)
        for key in payload:
            if not key or not key.isprintable():
                raise AppLoadError(
                    f"{where}: payload field {key!r} has no text as its key; rename it"
                )
        fields = {
            key: PayloadField.parse(field, f"{where}: payload field {key!r}")
            for key, field in payload.items()
        }
        return cls(name=name, payload=MappingProxyType(fields))

    def check(self, payload: object) -> Any:
        """Return a payload with its defaults filled in.

        Args:
            payload: what was given.

        Raises:
            JobCallError: a required field is missing or empty, a field is unknown, or a value is
                of another type. No value is shown.
        """
        if self.payload is None:
            return payload
        what = f"the payload of job {self.name!r}"
        if not isinstance(payload, Mapping):
            raise JobCallError(
                f"{what} is of type {type(payload).__name__}; make it an object with the fields "
                f"{self._known()}"
            )
        for key in payload:
            if key not in self.payload:
                raise JobCallError(
                    f"{what} has the unknown field {key!r}; {did_you_mean(key, self.payload)}"
                    f"its fields are {self._known()}"
                )
        checked: dict[str, Any] = {}
        for key, declared in self.payload.items():
            value = payload.get(key)
            if value is None:
                value = copy.deepcopy(declared.default)
            if is_empty(value) and declared.required:
                raise JobCallError(
                    f"{what} lacks the required field {key!r}; add it: {TYPES[declared.type][0]}"
                )
            if not is_empty(value) and not declared.takes(value):
                raise JobCallError(
                    f"{what}: {key!r} is of type {type(value).__name__} or out of range; make it "
                    f"{TYPES[declared.type][0]}"
                )
            if value is not None or key in payload:
                checked[key] = value
        return checked

    def _known(self) -> str:
        return ", ".join(self.payload or ()) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an app says of itself. Its keys that only PostHog's pages use are left out.

    Attributes:
        name: the app's name for people; None: the file, if there is one, has none.
        main: the app's file, in its folder.
        config: what its config is made of; None: it does not say, and any config goes.
        public_jobs: job name → what an operator may trigger it with.
    """

    name: str | None = None
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
            AppLoadError: it is not of a shape that PostHog has.
        """
        if not isinstance(declared, Mapping):
            raise AppLoadError(f'{where} is not a JSON object; write {{"name": "…"}}')
        keys = {"name": str, "main": str, "config": object, "publicJobs": dict}
        given = checked_keys({key: declared.get(key) for key in keys}, keys, where)
        config = given.get("config")
        public_jobs = {
            name: PublicJob.parse(name, job, f"{where}: public job {name!r}")
            for name, job in given.get("publicJobs", {}).items()
        }
        return cls(
            name=given.get("name"),
            main=given.get("main"),
            config=None if config is None else ConfigSchema.parse(config, where),
            public_jobs=MappingProxyType(public_jobs),
        )


#: Of an app without the file.
NO_MANIFEST: Final = Manifest()
