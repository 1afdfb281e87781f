"""Files of rows as columns: JSON lines for people and parquet of the same columns for scale, told apart by the suffix.

`read_columns` gives the columns of millions of rows (pyarrow reads both forms in C++, and the named columns alone),
`rows_of` the rows of either form as dataclasses, as `train.run.read_rows` does. What is wrong with a file is said with
its line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file
from fantasy_core.media.files import replacing
from train.run import read_rows, write_rows

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row")
Kinds = Mapping[str, type]  # name of a column -> str or float
FORMATS = ("jsonl", "parquet")
BLOCK = 1 << 24  # bytes of JSON lines parsed at once; no line may be longer
WRITTEN_AT_ONCE = 1 << 16  # rows
TELLING = {str: "a text", float: "a finite number"}


def is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def part_files(given: Sequence[Path]) -> list[Path]:
    """These files, and in the place of a folder those in it. Raises UserError for a folder without any."""
    found = []
    for path in given:
        inside = sorted(f for f in path.iterdir() if f.suffix in (".jsonl", ".parquet")) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"{path} holds no rows",
                got="a folder without such files",
                expected="part files *.jsonl or *.parquet",
                do="give the folder that the stage before wrote into",
            )
        found += inside
    return found


# ---- reading ----


def read_columns(path: Path, kinds: Kinds, needed: Sequence[str] = (), *, growing: bool = False) -> pa.Table:
    """The columns `kinds` of a file, in that order, text as string and numbers as float64; null where a row has none.
    Of a file that is `growing` a last line that was cut off is left out (see `cut_off`). Raises UserError for a file
    that cannot be read and for rows that are broken, lack a `needed` column, or hold another kind."""
    check_readable(path)
    table = _parquet(path, kinds) if is_parquet(path) else _json_lines(path, kinds, needed, growing)
    if any(table[name].null_count for name in needed) or not _finite(table, kinds):
        _refuse_values(path, table, kinds, needed)
    return table


def check_readable(path: Path) -> Path:
    """Raises UserError for what is no readable file; an empty one is one without rows."""
    return path if path.is_file() and not path.stat().st_size else check_file(path, "file of rows")


def cut_off(path: Path) -> int:
    """Bytes of a last line that a killed process did not finish; 0 where the file ends well."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        tail, begin = b"", size
        while begin and b"\n" not in tail:
            begin = max(begin - BLOCK, 0)
            file.seek(begin)
            tail = file.read(size - begin)
    last = tail.rpartition(b"\n")[2]
    try:
        json.loads(last or b"{}")
    except ValueError:
        return len(last)
    return 0


def _json_lines(path: Path, kinds: Kinds, needed: Sequence[str], growing: bool) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json as pj

    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in kinds.items()])
    length = path.stat().st_size - (cut_off(path) if growing else 0)
    if not length:
        return schema.empty_table()
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        with pa.OSFile(str(path)) if length == path.stat().st_size else _beginning(path, length) as file:
            table = pj.read_json(file, pj.ReadOptions(block_size=BLOCK), options).select(list(kinds))
        table.validate(full=True)  # text that is no UTF-8
        return table
    except pa.ArrowInvalid as error:
        _refuse_lines(path, kinds, needed, length, str(error))


def _beginning(path: Path, length: int) -> pa.NativeFile:
    """The first bytes of a file, as one."""
    import pyarrow as pa

    return pa.BufferReader(pa.memory_map(str(path)).read_buffer(length))


def _parquet(path: Path, kinds: Kinds) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in kinds if name in there])
        columns = {}
        for name, kind in kinds.items():
            absent = pa.nulls(len(table), _arrow_type(kind))
            columns[name] = _cast(path, name, table[name], kind) if name in there else pa.chunked_array([absent])
        return pa.table(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read", got=str(error), expected="a parquet file", do="make the file again"
        ) from error


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: type) -> pa.ChunkedArray:
    """The column as text or numbers. Raises UserError for what is another kind: nothing is turned into text."""
    import pyarrow as pa

    held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_string_view(held)
    numbers = pa.types.is_floating(held) or pa.types.is_integer(held)
    if pa.types.is_null(held) or (texts if kind is str else numbers):
        return column.cast(_arrow_type(kind))
    raise UserError(
        f"column {name} of {path} cannot be used", got=str(column.type), expected=TELLING[kind], do="correct the column"
    )


def _arrow_type(kind: type) -> pa.DataType:
    import pyarrow as pa

    return pa.string() if kind is str else pa.float64()


def _finite(table: pa.Table, kinds: Kinds) -> bool:
    import pyarrow.compute as pc

    numbers = [table[name] for name, kind in kinds.items() if kind is float]
    return all(pc.all(pc.is_finite(column)).as_py() is not False for column in numbers)


# ---- what is wrong ----


def _refuse_values(path: Path, table: pa.Table, kinds: Kinds, needed: Sequence[str]) -> NoReturn:
    """Say which row lacks a column or holds a number that is none."""
    if not is_parquet(path):
        _refuse_lines(path, kinds, needed, path.stat().st_size, "a row without a value")
    for number, row in enumerate((r for batch in table.to_batches() for r in batch.to_pylist()), 1):
        if wrong := _wrong({name: value for name, value in row.items() if value is not None}, kinds, needed):
            raise _bad_row(f"row {number} of {path}", wrong, kinds, needed)
    raise AssertionError(f"{path} has no wrong row")


def _refuse_lines(path: Path, kinds: Kinds, needed: Sequence[str], length: int, why: str) -> NoReturn:
    """Find the first bad line of a file that could not be read, which is slow, and say what is wrong with it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            length -= len(line)
            if not line.strip() or length < 0:
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                wrong = _wrong(row, kinds, needed) if isinstance(row, dict) else f"a {type(row).__name__}"
            except ValueError as error:  # no JSON, no UTF-8
                wrong = str(error)
            if wrong:
                raise _bad_row(f"line {number} of {path}", wrong, kinds, needed)
    raise UserError(f"{path} cannot be read", got=why, expected="a JSON object a line", do="make the file again")


def _wrong(row: dict, kinds: Kinds, needed: Sequence[str]) -> str | None:
    absent = [name for name in needed if row.get(name) is None]
    if absent:
        return f"missing: {some(absent)}"
    other = {name: row[name] for name, kind in kinds.items() if row.get(name) is not None and not _is(row[name], kind)}
    return f"other kinds of values: {some(f'{name} {value!r}' for name, value in other.items())}" if other else None


def _is(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bad_row(where: str, wrong: str, kinds: Kinds, needed: Sequence[str]) -> UserError:
    return UserError(
        f"{where} is not a row of this file",
        got=wrong,
        expected="a JSON object with " + ", ".join(f"{name} ({TELLING[kinds[name]]})" for name in needed or kinds),
        do="correct the line, or make the file again",
    )


# ---- rows ----


def rows_of(path: Path, kind: type[Row]) -> Iterator[Row]:
    """The rows of a file of either form as dataclasses; other columns are ignored, and null is the default. Raises
    UserError with the line."""
    if not is_parquet(path):
        yield from read_rows(path, kind)
        return
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)  # type: ignore[arg-type]
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    kinds = {field.name: float if hints[field.name] is float else str for field in fields}
    for batch in read_columns(path, kinds, needed).to_batches(WRITTEN_AT_ONCE):
        for row in batch.to_pylist():
            yield kind(**{name: value for name, value in row.items() if value is not None})


def videos_once(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a list of videos, one or more. Raises UserError for a `video` that is there twice, and for none."""
    rows = list(rows_of(path, kind))
    twice = [name for name, count in Counter(row.video for row in rows).items() if count > 1]  # type: ignore[attr-defined]
    if twice or not rows:
        raise UserError(
            f"{path} is no list of videos",
            got=f"more than once: {some(twice)}" if twice else "no line",
            expected="every video once",
            do="correct the file" if twice else "give the videos.jsonl of a stage that made videos",
        )
    return rows


# ---- writing ----


def write_rows_of(path: Path, found: Sequence[Any]) -> None:
    """Dataclasses, at least one, as a file of the form that its suffix says, whole or not at all."""
    if is_parquet(path):
        names = [field.name for field in dataclasses.fields(found[0])]
        write_columns(path, {name: [getattr(row, name) for row in found] for name in names}, {})
    else:
        write_rows(path, found)


def write_columns(path: Path, columns: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Columns of equal lengths (arrow or numpy arrays, lists) as a file of the form that its suffix says, whole or not
    at all. `about` goes into the metadata of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns)).replace_schema_metadata(dict(about))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        if is_parquet(path):
            pq.write_table(table, beside, compression="zstd")
            return
        encode = json.JSONEncoder(ensure_ascii=False).encode
        with beside.open("w", encoding="utf-8") as file:
            for batch in table.to_batches(WRITTEN_AT_ONCE):
                file.writelines(encode(row) + "\n" for row in batch.to_pylist())
