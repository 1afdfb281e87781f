"""Files that enter and leave: what is wrong with one in four parts, and writing that leaves nothing half done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError


def check_file(path: str | Path, kind: str) -> Path:
    """`path` when it is a readable, non-empty file; else a UserError that says which of these it is not."""
    path = Path(path)
    got = "a folder" if path.is_dir() else "no such file" if not path.is_file() else None
    if got is None and not os.access(path, os.R_OK):
        got = "a file that may not be read"
    if got is None and path.stat().st_size == 0:
        got = "an empty file"
    if got:
        raise UserError(
            f"cannot read the {kind} {path}", got=got, expected=f"a readable {kind} file", do="check the path"
        )
    return path


def read_json(path: Path, kind: str) -> dict:
    """The object in a JSON file. Raises UserError for a file that is not there, or holds something else."""
    try:
        told = json.loads(check_file(path, kind).read_text("utf-8"))
    except ValueError as error:  # of its text, or of its encoding
        raise _no_object(path, kind, str(error)) from error
    if not isinstance(told, dict):
        raise _no_object(path, kind, f"a {type(told).__name__}")
    return told


def _no_object(path: Path, kind: str, got: str) -> UserError:
    do = "fetch the file again, or mend it"
    return UserError(f"cannot read the {kind} {path}", got=got, expected="JSON, an object", do=do)


def broken(path: Path, kind: str, got: str) -> UserError:
    """The error for a damaged or foreign file."""
    do = "play it in another program; if it plays, convert it again, else bring another file"
    return UserError(f"cannot read the {kind} {path}", got=got, expected=f"a whole, undamaged {kind} file", do=do)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a missing folder and other faults of the file system become UserErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            got=error.strerror or str(error),
            expected="an existing folder with room and the right to write",
            do="free some space or choose another place; nothing half-written was left behind",
        ) from error


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to: renamed to `path` on success, removed on any error and on Ctrl-C."""
    part = part_of(Path(path))
    try:
        with writing(Path(path)):
            yield part
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
