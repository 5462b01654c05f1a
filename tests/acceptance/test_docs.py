"""README and docs: the pages that start a worker work from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import PAGES, ROOT, Story, blocks, needs_worker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if needs_worker(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_blocks_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """A page: its blocks work from top to bottom in an empty folder."""
    with Story(tmp_path) as reader:
        for block in blocks(page):
            reader.follow(block)


@pytest.mark.soak
def test_the_quickstart_works_for_who_has_nothing(tmp_path: Path) -> None:
    """Quickstart: with a virtual environment of its own, and what pip installs there."""
    with Story(tmp_path, sets_up=True) as reader:
        for block in blocks(ROOT / "docs" / "quickstart.md"):
            reader.follow(block)
