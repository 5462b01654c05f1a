"""README and docs as stories: the blocks of a page run in its order, in an empty folder.

What a block is for stands behind its language, where a reader's browser does not show it:

| block | what a test does with it |
|---|---|
| `sh` | runs it; whatever command fails, fails the test |
| `sh terminal` | starts it, and goes on as soon as it listens; ends it with the page |
| `sh check`, `console` | runs nothing, but looks whether each command and option exists |
| `python` | runs it as a script |
| `python app` | loads it as an app |
| `python settings` | looks whether each name is a setting |
| `json`, `toml` | parses it |
| `… file=NAME` | writes it to that file, for what comes below |
| `text output` | its lines are in what the block above has printed; `…` stands for anything |
| `text log` | its lines come up in a terminal |
| `text`, `mermaid` | nothing; `rights` are those that another test gives a user |

In commands `ID` stands for the id that was printed last, and `/path/of/clone` for this folder. The
set-up of a virtual environment is looked at rather than run, unless a test asks for it.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery as celery_command

from posthog_jobs.broker.embedded import EmbeddedServer
from posthog_jobs.settings import Settings
from posthog_jobs.testing import AppTester

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE: Final = re.compile(r"^```(\w+)?([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_UUID: Final = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_SHELL: Final = re.compile(r"[|&;<>$`]")
_SET_UP: Final = ("python3 -m venv", ". .venv/bin/activate", "pip install")

#: Where each command is run in a process that has imported these: it starts in a tenth of the time.
_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["celery.bin.celery", "kombu.transport.redis", "posthog_jobs.testing", __name__]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The file that the reader is to put it in."""
        return next((m.removeprefix("file=") for m in self.marks if m.startswith("file=")), None)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Return a page's blocks."""
    text = page.read_text()
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        language, marks, body = fence[1] or "", fence[2], fence[3]
        yield Block(page=page, line=line, language=language, marks=tuple(marks.split()), text=body)


def needs_worker(page: Path) -> bool:
    """Tell whether a page starts something that goes on running."""
    return any("terminal" in block.marks for block in blocks(page))


def commands(text: str) -> Iterator[str]:
    """Return what a shell block has the reader type: a line each, comments and all."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def words(command: str) -> Iterator[list[str]]:
    """Return the words of each simple command that a line is made of."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    simple: list[str] = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            yield simple
            simple = []
        else:
            simple.append(word)
    yield simple


class Story:
    """A reader who does what a page says."""

    def __init__(self, folder: Path, *, sets_up: bool = False) -> None:
        self.folder = folder
        self._sets_up = sets_up
        self._home = Path(tempfile.mkdtemp(prefix="docs-"))  # a socket's path must be short
        ours = ("CELERY_", "POSTHOG_JOBS_")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "HOME": str(self._home),
            "POSTHOG_JOBS_HOME": str(self._home / "jobs"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self._terminals: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._output = ""
        self._id = "ID"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _log in self._terminals:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process, _log in self._terminals:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        EmbeddedServer(self._home / "jobs").stop()
        shutil.rmtree(self._home)

    def follow(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: it does not work as it stands there.
        """
        if block.file is not None:
            file = self.folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        getattr(self, f"_{block.language}")(block)

    def _sh(self, block: Block) -> None:
        for command in commands(block.text):
            if "check" in block.marks:
                check(command)
            elif "terminal" in block.marks:
                self._start(command)
            else:
                self._run(command)

    def _console(self, block: Block) -> None:
        for command in re.findall(r"^\$ (.*)$", block.text, re.MULTILINE):
            check(command)

    def _python(self, block: Block) -> None:
        compile(block.text, str(block), "exec")
        if "settings" in block.marks or block.file == "celeryconfig.py":
            check_settings(block.text)
        elif "app" in block.marks:
            path = self.folder / f"app_{block.line}.py"
            path.write_text(block.text)
            self._fork(["python", "-c", f"{__name__}.loads_as_app", str(path)])
        elif block.file is None:
            path = self.folder / f"script_{block.line}.py"
            path.write_text(block.text)
            self._fork(["python", str(path)])

    def _json(self, block: Block) -> None:
        json.loads(block.text)

    def _toml(self, block: Block) -> None:
        tomllib.loads(block.text)

    def _text(self, block: Block) -> None:
        if "output" in block.marks:
            lacking = self._lacks(block, self._output)
            assert lacking is None, f"{block}: {lacking!r} is not in:\n{self._output}"
        elif "log" in block.marks:
            deadline = time.monotonic() + 30
            while lacking := self._lacks(block, self._log()):
                assert time.monotonic() < deadline, f"{block}: no {lacking!r} in:\n{self._log()}"
                time.sleep(0.05)

    def _mermaid(self, block: Block) -> None:
        assert block.text.split()[0] in {"flowchart", "sequenceDiagram"}, block
        assert ";" not in block.text, f"{block}: a semicolon ends a statement"

    def _lacks(self, block: Block, found: str) -> str | None:
        """Return the first line of a block that is not in a text."""
        have = [" ".join(line.split()) for line in found.splitlines()]
        for line in self._filled_in(block.text).splitlines():
            pattern = " ".join(line.split()).replace("[", "[[]").replace("…", "*")
            if not fnmatch.filter(have, pattern):
                return line
        return None

    def _run(self, command: str) -> None:
        if command.startswith(_SET_UP) and not self._sets_up:
            check(command)
            return
        command = self._filled_in(command)
        argv = shlex.split(command, comments=True)
        plain = not _SHELL.search(re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command.partition(" #")[0]))
        if plain and argv[0] in {"celery", "python"} and "-m" not in argv and not self._sets_up:
            self._fork(argv)
            return
        if self._sets_up and (self.folder / ".venv/bin/activate").exists():
            command = f". .venv/bin/activate; {command}"
        self._ended(command, self._popen(["bash", "-euo", "pipefail", "-c", command]))

    def _filled_in(self, text: str) -> str:
        return re.sub(r"\bID\b(?! +[A-Z])", self._id, text).replace("/path/of/clone", str(ROOT))

    def _popen(self, argv: list[str]) -> int:
        with (self._home / "output").open("wb") as output:
            process = subprocess.run(
                argv, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, check=False, timeout=240,
            )  # fmt: skip
        return process.returncode

    def _fork(self, argv: list[str]) -> None:
        process = _PROCESSES.Process(
            target=_typed, args=(argv, self.folder, self._environment, self._home / "output")
        )
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
        self._ended(shlex.join(argv), process.exitcode)

    def _ended(self, command: str, code: int | None) -> None:
        self._output = (self._home / "output").read_text(errors="replace")
        self._id = (_UUID.findall(self._output) or [self._id])[-1]
        assert code == 0, f"{command}\nended with {code}:\n{self._output}\n{self._log()}"

    def _start(self, command: str) -> None:
        if self._sets_up:
            command = f". .venv/bin/activate; {command}"
        log = self._home / f"terminal-{len(self._terminals)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=self.folder, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._terminals.append((process, log))
        deadline = time.monotonic() + 60
        while not re.search(r" ready\.|Serving HTTP", log.read_text(errors="replace")):
            assert process.poll() is None, f"{command} ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"{command} does not listen:\n{log.read_text()}"
            time.sleep(0.05)

    def _log(self) -> str:
        return "".join(log.read_text(errors="replace") for _, log in self._terminals)


def _typed(argv: list[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
    """Run a command in this process as if it had been typed in a folder."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [place for place in sys.path if Path(place) != ROOT]
    sys.argv = argv
    if argv[0] == "celery":
        from celery.__main__ import main  # noqa: PLC0415  # it is the command

        sys.exit(main())
    sys.path.insert(0, str(folder))
    if argv[1] != "-c":
        runpy.run_path(argv[1], run_name="__main__")
    elif argv[2] == f"{__name__}.loads_as_app":
        AppTester(argv[3])
    else:
        exec(argv[2], {"__name__": "__main__"})  # python -c


def check_settings(text: str) -> None:
    """Look whether each name of a configuration is a setting of Celery or of ours."""
    values: dict[str, Any] = {}
    exec(text, values)
    assigned = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    names = {each.id for node in assigned for each in node.targets if isinstance(each, ast.Name)}
    Settings.from_conf({name: values[name] for name in names})
    ours = {name for name in names if name.startswith("posthog_jobs_")}
    assert names - ours <= {name for name, _ in flatten(NAMESPACES)}


def check(command: str) -> None:
    """Look whether a command that is not run exists, with its options and extras."""
    for argv in words(command):
        while argv and re.fullmatch(r"[A-Z_]+=.*", argv[0]):
            del argv[0]
        if argv:
            _check(argv)


def _check(argv: list[str]) -> None:
    program = argv[0].removeprefix(".venv/bin/")
    if program == "celery":
        assert argv[1:3] == ["-A", "posthog_jobs"], argv
        _check_celery(argv[3:])
    elif program in {"python", "python3"} and argv[1] == "-m":
        assert importlib.util.find_spec(argv[2]), argv
    elif program == "pip":
        for requirement in argv[2:]:
            for extra in re.findall(r"\[(.*)\]", requirement):
                assert set(extra.split(",")) <= set(extras()), requirement
            assert requirement.startswith((".[", "/path/of/clone[", "-")) or requirement.isalnum()
    elif "/" in program and program != ".":
        assert os.access(ROOT / program, os.X_OK), argv
    else:
        known = {".", "cd", "curl", "git", "mkdir", "pre-commit", "pytest", "redis-cli", "tox"}
        linters = {"ruff", "mypy", "lint-imports"}
        assert program in known | linters, argv


def _check_celery(argv: list[str]) -> None:
    command: Any = celery_command
    rest = iter(argv)
    for word in rest:
        if word == "flower" and command is celery_command:
            assert "flower" in extras()
            return  # another package's, with options of its own
        if re.fullmatch(r"--?[a-zA-Z][\w-]*", word):
            known = {o: each for each in command.params for o in (*each.opts, *each.secondary_opts)}
            assert word in known, f"celery {shlex.join(argv)}: it has no {word}"
            for _ in range(0 if known[word].is_flag else known[word].nargs):
                next(rest, None)
        elif hasattr(command, "commands"):
            assert word in command.commands, f"celery {shlex.join(argv)}: there is no {word}"
            command = command.commands[word]


def extras() -> dict[str, list[str]]:
    """Return extra → what it installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, list[str]] = project["optional-dependencies"]
    return found
