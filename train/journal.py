"""A file that is only ever appended to: what is finished, one JSON line each, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fantasy_core.errors import UserError


class Journal:
    """Lines of a JSON-lines file; the line that was being written when a run was killed is not there, and is cut off
    before the next one. As a context manager it is held by one process, and others are refused."""

    def __init__(self, path: Path):
        self.path, self._file = path, None

    def read(self) -> list[dict[str, Any]]:
        """All whole lines. Raises UserError for one that is no JSON."""
        content = self.path.read_bytes() if self.path.exists() else b""
        return [self._parsed(number, line) for number, line in enumerate(content.split(b"\n")[:-1], 1)]

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is on the disk when this returns. Raises UserError where it cannot be, and ValueError for NaN
        and infinity, which are no JSON."""
        if self._file is None:
            raise ValueError("a journal is appended to inside its `with`")
        content = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}",
                got=str(error),
                expected="a folder with room and the right to write",
                do="free some space and give the same command again: what is written is not done again",
            ) from error

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}",
                got=str(error),
                expected="a folder that can be made and written",
                do="choose another --out",
            ) from error
        try:
            self._hold(self._file)
        except UserError:
            self.__exit__()
            raise
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        return self

    def __exit__(self, *_) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _hold(self, file: IO[bytes]) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{self.path} is being written",
                got="another process that holds it",
                expected="one process at a time",
                do="wait for the other run, or stop it",
            ) from error

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise UserError(
                f"line {number} of {self.path} is damaged", got=str(error), expected="JSON", do="remove the line"
            ) from error


def part_of(folder: Path, rank: int) -> Journal:
    """The journal of one of several processes that write into a folder side by side."""
    return Journal(folder / f"part-{rank:05d}.jsonl")


def read_parts(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all parts of a folder."""
    for path in sorted(folder.glob("part-*.jsonl")):
        yield from Journal(path).read()
