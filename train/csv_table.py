"""CSV files that people write: a header by name, cells as texts, and what is wrong said by its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fantasy_core.errors import UserError, some


def read_table(
    path: Path, needed: Sequence[str], also: Mapping[str, str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, its cells by column, stripped). Empty lines are left out, other columns are kept; `also` are other names
    of columns. Raises UserError for a file that is none, for missing columns, and for lines of another length."""
    try:
        lines = list(csv.reader(path.read_text("utf-8-sig").split("\n")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_table(path, [str(error)], "a CSV file in UTF-8") from error
    header = [(also or {}).get(name.strip(), name.strip()) for name in (lines[0] if lines else [])]
    if not set(needed) <= set(header) or len(set(header)) < len(header):
        raise bad_table(path, [",".join(header) or "nothing"], f"a first line with {','.join(needed)}")
    for number, cells in enumerate(lines[1:], 2):
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise bad_table(path, [f"line {number}: {len(cells)} cells"], f"{len(header)} cells, as in the first line")
        yield number, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}


def bad_table(path: Path, problems: Sequence[str], expected: str) -> UserError:
    return UserError(f"{path} cannot be used", got=some(problems), expected=expected, do="correct the file")
