"""README and docs: every command and every block works, and every link leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import PAGES, ROOT, Story, blocks, check, needs_worker

if TYPE_CHECKING:
    from pathlib import Path


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if not needs_worker(p)], ids=name)
def test_the_blocks_of_a_page_work(page: Path, tmp_path: Path) -> None:
    """A page: its blocks work from top to bottom in an empty folder, with no worker."""
    with Story(tmp_path) as reader:
        for block in blocks(page):
            reader.follow(block)


def test_no_block_uses_an_unknown_name(tmp_path: Path) -> None:
    """Python blocks: no name is undefined, and none is imported in vain."""
    for block in (block for page in PAGES for block in blocks(page) if block.language == "python"):
        place = f"{name(block.page)}_{block.line}.py".replace("/", "_")
        (tmp_path / place).write_text(block.text)
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F,E9",
        str(tmp_path),
    ]

    result = subprocess.run(ruff, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_in_the_text_exist(page: Path) -> None:
    """A page: what its sentences tell a reader to type exists, too, with its options."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for command in re.findall(r"`((?:celery -A|python -m|pip install|\. \.venv)[^`]*)`", text):
        check(" ".join(command.split()))


def anchors(page: Path) -> set[str]:
    """Return the anchors that a browser of the repository makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    """A page: each relative link leads to a file, and each anchor to a heading."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]+`", "code", text)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_each_page_is_reached_from_the_readme() -> None:
    """Docs: a reader who follows links from the README comes to every page."""
    reached, todo = set[str](), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if name(page) in reached or page.suffix != ".md":
            continue
        reached.add(name(page))
        links = re.findall(r"\]\(([^)#:]+)", page.read_text())
        todo += [(page.parent / link).resolve() for link in links]

    assert reached >= {name(page) for page in PAGES}


def test_the_readme_is_short() -> None:
    """README: it has at most 200 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_no_block_is_left_out() -> None:
    """Pages: all blocks are at the beginning of a line and of a language, so that all are run."""
    for page in PAGES:
        text = page.read_text()
        fences = [line for line in text.splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(list(blocks(page))), page
        assert all(block.language for block in blocks(page)), page
