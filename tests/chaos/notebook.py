"""Notes that survive the SIGKILL of whoever takes them: a line of JSON for each write."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Notebook:
    """A file that one process, or its threads, append to.

    A line is one call of write(2) on a file that is open for appending: it is there as a whole
    once the call has returned, whatever becomes of the process.
    """

    __slots__ = ("_fd",)

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)

    def write(self, **entry: Any) -> None:
        """Note something."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError("a note was written in part; is the disk full?")


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Return all notes of all notebooks of a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            yield json.loads(line)
