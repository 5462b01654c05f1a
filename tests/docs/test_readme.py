"""README's test of an app works as it stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from tests.docs.pages import ROOT, blocks

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]

#: Runs pytest as a project without configuration does, and tells what its start has imported.
RUN: Final = f"""
import sys, pytest
sys.path.insert(0, {str(ROOT)!r})
class Imported:
    def pytest_collection(self):
        ours = {{name for name in sys.modules if name.startswith("posthog_jobs")}}
        print("imported:", sorted({{"celery", "kombu", "redis"}} & set(sys.modules) | ours))
others = [option for name in ("celery", "pytest_celery") for option in ("-p", f"no:{{name}}")]
sys.exit(pytest.main([*others, "-s"], plugins=[Imported()]))
"""


def test_its_test_of_an_app_passes(pytester: pytest.Pytester) -> None:
    """README: the teapot app is tested in ten lines, and the plugin imports nothing before."""
    files = {block.file: block.text for block in blocks(ROOT / "README.md")}
    body = files["test_teapot.py"].partition("\ndef ")[2].splitlines()[1:]
    assert len([line for line in body if line.strip()]) <= 10
    pytester.makepyfile(teapot=files["teapot.py"], test_teapot=files["test_teapot.py"])

    result = pytester.run(sys.executable, "-c", RUN)

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["imported: [[]'posthog_jobs', 'posthog_jobs.pytest_plugin']"])
