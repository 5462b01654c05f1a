from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import pytest

from posthog_jobs import redaction
from posthog_jobs.redaction import LONGEST_TEXT, MASK, guard, keep_secret, redact
from tests.servers.nodes import poll

if TYPE_CHECKING:
    from pathlib import Path

    from posthog_jobs.celery import PostHogJobs

SECRET = 's3cr"t\nof two lines'


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without secrets, and leaves none."""
    monkeypatch.setattr(redaction, "_secrets", ())


class Log:
    """A logger of its own, what its guarded handler has written, and the records themselves."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.records: list[logging.LogRecord] = []
        self.handler = logging.StreamHandler(self._stream)
        self.logger = logging.Logger("guarded")  # noqa: LOG001  # nobody else's
        self.logger.addHandler(self.handler)
        guard(self.logger)
        self.handler.addFilter(self._keep)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def _keep(self, record: logging.LogRecord) -> bool:
        self.records.append(record)
        return True


def fail(*errors: Exception) -> None:
    """Raise each error because of the one before it."""
    cause: Exception | None = None
    for error in errors:
        error.__cause__ = cause
        cause = error
    assert cause is not None
    raise cause


@pytest.fixture
def log() -> Log:
    return Log()


def test_texts() -> None:
    """A secret is masked wherever it stands, also as repr and JSON write it."""
    keep_secret([SECRET])

    assert redact(f"a{SECRET}b") == f"a{MASK}b"
    assert redact(repr({"key": SECRET})) == f"{{'key': '{MASK}'}}"
    assert redact('"s3cr\\"t\\nof two lines"') == f'"{MASK}"'
    assert redact("nothing of it") == "nothing of it"


def test_short_secrets() -> None:
    """A secret that is shorter than words are is left alone."""
    keep_secret(["abcde", ""])

    assert redact("abcdefg") == "abcdefg"


def test_one_secret_in_another() -> None:
    """Of a secret that has another one in it nothing is left over."""
    keep_secret(["hunter2"])
    keep_secret(["hunter2-and-more"])

    assert redact("hunter2-and-more, hunter2") == f"{MASK}, {MASK}"


@pytest.mark.parametrize(
    ("message", "arguments", "written"),
    [
        (f"a {SECRET}", (), f"a {MASK}"),
        ("a %s, %d", (SECRET, 5), f"a {MASK}, 5"),
        ("a %r", ({"key": SECRET},), f"a {{'key': '{MASK}'}}"),
        ("a %(key)s", ({"key": SECRET},), f"a {MASK}"),
        ("a %(n)s", ({"key": SECRET, "n": 5},), "a 5"),
        ("a %d", (SECRET,), "a %d (its arguments do not fit)"),
        (ValueError(SECRET), (), MASK),
        ("100 %", (), "100 %"),
    ],
)
def test_messages(log: Log, message: Any, arguments: tuple[Any, ...], written: str) -> None:
    """A record's message and arguments reach a handler without secrets."""
    keep_secret([SECRET])

    log.logger.warning(message, *arguments)

    assert log.text == f"{written}\n"
    assert SECRET not in str(log.records[0].args)


def test_tracebacks(log: Log) -> None:
    """A traceback is written without secrets, its causes too; the exception goes no further."""
    keep_secret([SECRET, "hunter2"])
    try:
        fail(KeyError(SECRET), ValueError(f"hunter2{SECRET}"))
    except ValueError:
        log.logger.exception("it failed")

    assert log.text.startswith("it failed\n")
    assert f"KeyError: '{MASK}'" in log.text
    assert f"ValueError: {MASK}{MASK}\n" in log.text
    assert "hunter2" not in log.text
    assert log.records[0].exc_info is None


def test_a_traceback_without_secrets(log: Log) -> None:
    """An exception that holds no secret stays on its record, for whoever reports it."""
    keep_secret([SECRET])
    try:
        fail(ValueError())
    except ValueError:
        log.logger.exception("it failed")

    assert "ValueError" in log.text
    assert isinstance(log.records[0].exc_info, tuple)


def test_fields_of_a_record(log: Log) -> None:
    """What a record has besides, as Celery's `data`, is without secrets too."""
    keep_secret([SECRET])
    log.handler.setFormatter(logging.Formatter("%(message)s %(data)s %(more)s"))

    log.logger.warning("a", extra={"data": {"exc": SECRET, "n": 5}, "more": SECRET})

    assert log.text == f"a {{'exc': '{MASK}', 'n': 5}} {MASK}\n"


def test_texts_that_are_too_long(log: Log) -> None:
    """Of a message, a field and a traceback that nobody can read, the two ends are left."""
    loud = f"begin{'x' * 10**6}end"
    data = {"exc": loud, "number": 1}
    try:
        fail(ValueError(loud))
    except ValueError:
        log.logger.exception("failed: %s", loud, extra={"data": data, "more": loud})

    record = log.records[-1]
    fields = vars(record)
    texts = [record.getMessage(), fields["exc_text"], fields["data"]["exc"], fields["more"]]
    for text in texts:
        assert len(text) < LONGEST_TEXT + 100
        assert "begin" in text
        assert text.rstrip().endswith("end")
        assert "characters are left out" in text
    assert "test_redaction.py" in texts[1]


def test_no_secrets(log: Log) -> None:
    """Where there are no secrets, a record is left as it is."""
    log.logger.warning("a %s", "b")
    guard(log.logger)

    assert log.text == "a b\n"
    assert len(log.handler.filters) == 2


APP = """
import logging
from posthog_jobs import job

@job
def leak(meta):
    token = meta.config["token"]
    meta.logger.warning("with %s", token)
    logging.getLogger("elsewhere").error("%r", {"token": token})
    print(f"printed {token}")
    raise RuntimeError(f"refused {token}") from KeyError(token)
"""


class TestWorker:
    """A real worker whose app leaks its secret wherever it can."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "leaky.py").write_text(APP)
        (tmp_path / "plugin.json").write_text(
            '{"main": "leaky.py", "config": [{"key": "token", "secret": true}]}'
        )
        app = {"module": str(tmp_path / "leaky.py"), "config": {"token": "hunter2-hunter2"}}
        return {"posthog_jobs_apps": {"leaky": app}}

    @pytest.mark.parametrize("pool", ["prefork"])
    def test_a_secret_never_reaches_the_log(
        self, jobs_app: PostHogJobs, default_worker_container: Any, pool: str
    ) -> None:
        """A secret in a message, a print, an exception and its traceback is masked in the log."""
        jobs_app.meta_for("leaky").jobs.leak().run_now()

        poll("traceback", lambda: "RuntimeError: refused" in default_worker_container.logs())

        logs = default_worker_container.logs()
        assert "hunter2" not in logs
        assert f"[leaky] with {MASK}" in logs
        assert f"{{'token': '{MASK}'}}" in logs
        assert f"printed {MASK}" in logs
        assert f"KeyError: '{MASK}'" in logs
        assert f"RuntimeError: refused {MASK}" in logs
