"""`celery -A posthog_jobs`: where it takes its configuration from, and what it says."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.servers.nodes import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

SHOW = "from posthog_jobs.celery import app; print(app.conf.broker_url, app.conf.accept_content)"


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_configuration_of_the_working_directory(tmp_path: Path) -> None:
    """Configuration: celeryconfig.py of the working directory, with what it says."""
    (tmp_path / "celeryconfig.py").write_text("broker_url = 'redis://here'\n")

    assert run(tmp_path, "-c", SHOW).stdout == "redis://here ['json']\n"


def test_configuration_module_of_the_environment_wins(tmp_path: Path) -> None:
    """Configuration: $CELERY_CONFIG_MODULE wins over celeryconfig.py; and it may be missing."""
    (tmp_path / "celeryconfig.py").write_text("broker_url = 'redis://here'\n")
    (tmp_path / "other.py").write_text("broker_url = 'redis://other'\n")

    assert run(tmp_path, "-c", SHOW, CELERY_CONFIG_MODULE="other").stdout.startswith(
        "redis://other"
    )
    assert (
        "No module named 'nowhere'"
        in run(tmp_path, "-c", SHOW, CELERY_CONFIG_MODULE="nowhere").stderr
    )


def test_defaults_in_any_other_folder(tmp_path: Path) -> None:
    """Configuration: in a folder without celeryconfig.py the defaults hold, from anywhere."""
    assert run(tmp_path, "-c", SHOW).stdout == "None ['json']\n"


def test_apps_beside_the_configuration_are_found(tmp_path: Path) -> None:
    """Configuration: modules beside celeryconfig.py are importable, in the CLI too."""
    (tmp_path / "celeryconfig.py").write_text(
        "broker_url = 'memory://'\nposthog_jobs_apps = {'mine': 'my_app'}\n"
    )
    (tmp_path / "my_app.py").write_text("def process_event(event, meta):\n    return event\n")
    code = "import posthog_jobs; print(posthog_jobs.process_event({'event': 'x'}))"

    done = run(tmp_path, "-c", code)
    report = run(tmp_path, "-m", "celery", "-A", "posthog_jobs", "report")

    assert done.stdout == "{'properties': {}, 'team_id': 1, 'event': 'x'}\n", done.stderr
    assert report.returncode == 0
    assert "my_app" not in report.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("posthog_jobs_apps = {'x': {'modul': 'y'}}", "unknown field 'modul'; did you mean"),
        ("broker_url = 'redus://x'", "has the scheme 'redus', which is not a broker's"),
        ("accept_content = ['pickle']", "takes JSON alone"),
        ("task_compression = 'brotli'", "set it to gzip, bzip2 or lzma"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, config: str, message: str) -> None:
    """Bad input: a worker with a wrong configuration ends with one line that says the fix."""
    (tmp_path / "celeryconfig.py").write_text(config)

    done = run(tmp_path, "-m", "celery", "-A", "posthog_jobs", "worker", "-P", "solo")

    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert "Traceback" not in done.stderr


def test_app_code_pulls_in_no_celery(tmp_path: Path) -> None:
    """Importing: `import posthog_jobs`, as app code does, imports no Celery, kombu or Redis."""
    code = (
        "import sys, posthog_jobs\nprint(sorted({'celery', 'kombu', 'redis'} & set(sys.modules)))"
    )

    assert run(tmp_path, "-c", code).stdout == "[]\n"


def test_help_names_the_jobs_command(tmp_path: Path) -> None:
    """CLI: `celery --help` lists our command, and its own help says what it does."""
    top = run(tmp_path, "-m", "celery", "-A", "posthog_jobs", "--help")
    jobs = run(tmp_path, "-m", "celery", "-A", "posthog_jobs", "jobs", "--help")

    assert "jobs" in top.stdout
    assert "stop-embedded" in jobs.stdout
