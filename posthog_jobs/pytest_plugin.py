"""The pytest plugin of posthog_jobs: the fixture `posthog_app`.

Every pytest run where posthog_jobs is installed imports this module, so it imports the rest of the
package when a test asks for the fixture: no run is slowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from posthog_jobs.testing import AppTester


@pytest.fixture
def posthog_app() -> type[AppTester]:
    """What installs an app in memory, as `posthog_app(my_app, config={...})`: `AppTester`."""
    from posthog_jobs.testing import AppTester  # noqa: PLC0415  # the module's docstring says why

    return AppTester
