"""Gates made by hand: the weight of every LoRA by step and block, for experts and for any other LoRAs.

| text | means |
|---|---|
| `constant:0.3,0.5,0.2` or `constant:mn=0.3,ls=0.5` | one weight a LoRA (or one for all), everywhere |
| `steps:mn=0.2,0.6,1;ls=1` | a weight for each denoising step; a shorter list is stretched over the steps |
| `blocks:mn=0..1;ls=1..0.2` | from the first block to the last in a straight line |
| `table:FILE`, or the table itself after `table:` | rows of step or timestep, block and a weight for each LoRA |

A LoRA that a `name=` list leaves out has weight 1. A table has a header and rows; commas, semicolons or blanks stand
between the cells:

    step  block  mn   ls   vq
    0     *      0.2  1.0  0.5
    29    0-19   1.0  0.2  0.5
    29    20-39  0.5  0.2  1.0

Lines that begin with # are left out. `step` counts from 0 (or `timestep`, 1000 = pure noise; or neither),
`block` is a number, a range or `*` (or there is no
such column). Between the rows of a block weights go in a straight line over the timestep; beyond them they stay.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError, some
from .flow import timestep
from .gate import TableGate

KINDS = ("constant", "steps", "blocks", "table")
STRONGEST = 1e4  # a weight or a strength beyond leaves no number of the model's finite
FORMS = "constant:0.3,0.5,0.2, steps:NAME=0.2,1;..., blocks:NAME=0..1;..., or table:FILE"


def manual_gate(text: str, names: tuple[str, ...], num_blocks: int, sigmas: Tensor) -> TableGate:
    """The gate that `text` describes, for LoRAs `names` in their order.

    sigmas [S + 1]: the schedule of `flow.schedule`, whose steps the text counts. Raises UserError for what cannot be
    read.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise _unreadable("the gate", repr(text[:60]), FORMS)
    times = torch.tensor([timestep(sigma) for sigma in sigmas.tolist()[:-1]])  # [S], falling
    if kind == "constant":
        return constant(_weights(rest, names), names, num_blocks)
    if kind == "steps":
        return curve({name: _numbers(numbers) for name, numbers in _by_name(rest, names)}, names, num_blocks, times)
    if kind == "blocks":
        return ramp({name: _ends(ends) for name, ends in _by_name(rest, names)}, names, num_blocks)
    return table(_table_text(rest), names, num_blocks, times)


def constant(weights: Iterable[float], names: tuple[str, ...], num_blocks: int) -> TableGate:
    """One weight for each LoRA."""
    row = torch.tensor(list(weights)).view(1, 1, 1, -1)
    return TableGate(row.expand(-1, num_blocks, -1, -1), names, torch.zeros(1))


def curve(steps: dict[str, list[float]], names: tuple[str, ...], num_blocks: int, times: Tensor) -> TableGate:
    """A list of weights for each LoRA over the steps, whose timesteps are `times` [S], falling."""
    columns = [_stretched(steps.get(name, [1.0]), len(times)) for name in names]
    rows = torch.stack(columns, 1).flip(0)[:, None, None]  # [S, 1, 1, E], timesteps rising
    return TableGate(rows.expand(-1, num_blocks, -1, -1), names, times.flip(0))


def ramp(ends: dict[str, tuple[float, float]], names: tuple[str, ...], num_blocks: int) -> TableGate:
    """From a weight in the first block to one in the last."""
    columns = [torch.linspace(*ends.get(name, (1.0, 1.0)), num_blocks) for name in names]
    return TableGate(torch.stack(columns, 1)[None, :, None], names, torch.zeros(1))


def table(text: str, names: tuple[str, ...], num_blocks: int, times: Tensor) -> TableGate:
    """The gate of a table with a header (see above); `times` [S] are the timesteps that its steps mean."""
    lines = _cells(text)
    header = lines[0] if lines else []
    time = next((column for column in ("step", "timestep") if column in header), None)
    if sorted(header) != sorted([*names, *({time, "block"} & set(header))]) or len(lines) < 2:
        raise _unreadable(
            "the table of the gate", f"columns {', '.join(header) or 'none'}, {max(len(lines) - 1, 0)} rows",
            f"step or timestep, block, {', '.join(names)}, and a row at least",
        )  # fmt: skip
    points: dict[int, dict[float, Tensor]] = {block: {} for block in range(num_blocks)}
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(header):
            raise _unreadable(f"line {number} of the gate's table", " ".join(cells), f"{len(header)} cells")
        row = dict(zip(header, cells, strict=True))
        at = _time(row[time], time, times) if time else 0.0
        weights = torch.tensor([_number(row[name]) for name in names])
        for block in _blocks(row.get("block", "*"), num_blocks):
            if at in points[block]:
                raise _unreadable(f"line {number} of the gate's table", f"block {block} again", "each time once")
            points[block][at] = weights
    if empty := [block for block, found in points.items() if not found]:
        raise _unreadable("the table of the gate", f"no row for block {some(empty)}", f"rows for {num_blocks} blocks")
    knots = torch.tensor(sorted({at for found in points.values() for at in found}))
    return TableGate(torch.stack([_sampled(points[j], knots) for j in range(num_blocks)], 1)[:, :, None], names, knots)


def _cells(text: str) -> list[list[str]]:
    """The cells of a table's lines, between semicolons (then a comma may be a decimal point), tabs or commas, where the
    header has some, else between blanks; in quotes or not. An empty cell stays one."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    mark = next((mark for mark in ";\t," if lines and mark in lines[0]), None)
    if mark is None:
        return [line.split() for line in lines]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark, skipinitialspace=True)]
    return [[cell.replace(",", ".") for cell in row] for row in rows] if mark == ";" else rows


def _sampled(points: dict[float, Tensor], knots: Tensor) -> Tensor:
    """The straight lines through points {timestep: [E]} at `knots` [K] -> [K, E]."""
    at = sorted(points)
    alone = TableGate(torch.stack([points[t] for t in at])[:, None, None], (), torch.tensor(at))
    return alone(None, knots)[:, 0, 0]


def _stretched(values: list[float], steps: int) -> Tensor:
    """A list of weights over `steps` steps, in straight lines between its entries."""
    if len(values) > steps:
        raise _unreadable("the curve of the gate", f"{len(values)} weights", f"at most one for each of {steps} steps")
    at = torch.linspace(0, len(values) - 1, steps)
    low = at.floor().long().clamp(max=max(len(values) - 2, 0))
    known = torch.tensor([*values, values[-1]])
    return torch.lerp(known[low], known[low + 1], at - low)


def _weights(text: str, names: tuple[str, ...]) -> list[float]:
    if "=" in text:
        given = dict(_by_name(text.replace(",", ";"), names))
        return [_number(given.get(name, "1")) for name in names]
    values = _numbers(text.replace(";", ","))
    if len(values) not in (1, len(names)):
        what, got = "the constant gate", f"{len(values)} weights"
        raise _unreadable(what, got, f"one for each of {', '.join(names)}, or one for all")
    return values * (len(names) // len(values))


def _by_name(text: str, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """`mn=0.2,1;ls=1` -> [("mn", "0.2,1"), ("ls", "1")]."""
    parts = [part.partition("=") for part in text.split(";") if part.strip()]
    found = [(name.strip(), value) for name, _, value in parts]
    unknown = [name for name, _ in found if name not in names]
    if unknown or not found or len(dict(found)) != len(found):
        raise _unreadable("the gate", repr(text), f"NAME=... for some of {', '.join(names)}, each once")
    return found


def _numbers(text: str) -> list[float]:
    return [_number(part) for part in re.split(r"[,\s]+", text.strip())]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= STRONGEST:  # NaN too
        raise _unreadable("a weight of the gate", repr(text), f"a number from -{STRONGEST:g} to {STRONGEST:g}")
    return value


def _ends(text: str) -> tuple[float, float]:
    first, dots, last = text.partition("..")
    return _number(first), _number(last if dots else first)


def _time(cell: str, column: str, times: Tensor) -> float:
    value = _number(cell)
    if column == "timestep":
        if not 0 <= value <= 1000:
            raise _unreadable("a timestep of the gate's table", cell, "0 to 1000, which is pure noise")
        return value
    if value != int(value) or not 0 <= value < len(times):
        raise _unreadable("a step of the gate's table", cell, f"0 to {len(times) - 1}")
    return times[int(value)].item()


def _blocks(cell: str, num_blocks: int) -> range:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", cell)
    found = range(num_blocks) if cell == "*" else range(0)
    if match:
        found = range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found or found[-1] >= num_blocks:
        raise _unreadable("a block of the gate's table", cell, f"0 to {num_blocks - 1}, a range like 0-3, or *")
    return found


def _table_text(rest: str) -> str:
    """What stands in the file `rest`, or `rest` itself when it is more than a line."""
    if "\n" in rest:
        return rest
    if not rest.strip():
        raise _unreadable("the table of the gate", "no file after table:", "a text or CSV file")
    try:
        return Path(rest).read_text("utf-8-sig")  # spreadsheets begin UTF-8 with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("the table of the gate", str(error), "a text or CSV file") from error


def _unreadable(what: str, got: str, expected: str) -> UserError:
    return UserError(f"{what} cannot be read", got=got, expected=expected, do=f"write it like {FORMS}")
