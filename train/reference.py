"""The reference's errors: computed in every iteration, or kept.

The reference is the frozen backbone, so what it makes of a video under a draw never changes. Kept, it is computed once
for all epochs, experts, gates and losses. What is kept is the map [F, h, w] before any mask is laid on it, in fp32, so
that masks may change later and a kept error equals a computed one bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.weights import open_tensors, save_tensors
from train.errors import Errors, Row, all_errors, error_maps
from train.run import write_json
from train.shards import Cache

Context = Callable[[], AbstractContextManager]


class LiveReference:
    """Errors [V] of every unit's videos under the model inside `context()`, computed when asked for."""

    def __init__(self, context: Context):
        self.context = context

    def __call__(self, units: Sequence[Errors], *, together: bool) -> list[Tensor]:
        with self.context(), torch.no_grad():
            return all_errors(units, together=together)


class KeptReference:
    """The same, each computed once and kept in a folder of the cache.

    The folder is named by what the errors depend on (`facts`: the base, how sigma is drawn), a file by the video's
    tensors and the draw: those of another base or of a video that was encoded anew are never found. Runs may share it
    while they go on, since every file is whole or not there.
    """

    def __init__(self, context: Context, cache: Cache, facts: Mapping[str, object]):
        self.context, self.cache = context, cache
        text = json.dumps(dict(facts), sort_keys=True)
        self.folder = cache.folder / "reference" / hashlib.sha256(text.encode()).hexdigest()[:12]
        if not (self.folder / "facts.json").is_file():
            write_json(self.folder / "facts.json", dict(facts))

    def __call__(self, units: Sequence[Errors], *, together: bool) -> list[Tensor]:
        device = next(units[0].dit.parameters()).device
        absent = {self.file(row): row for unit in units for row in unit.rows if not self.file(row).is_file()}
        self._keep(units[0].dit, absent, together)
        found = []
        for unit in units:
            maps = torch.stack([open_tensors(self.file(row)).entries["errors"].read() for row in unit.rows])
            found.append(unit.of(range(len(unit.rows)), maps.to(device)))
        return found

    def file(self, row: Row) -> Path:
        draw = "-".join(f"{key:x}" for key in row.draw.keys)
        return self.folder / f"{self.cache.videos[row.name]['hash'][:16]}-{draw}.safetensors"

    def _keep(self, dit, absent: Mapping[Path, Row], together: bool) -> None:
        if not absent:
            return
        with self.context(), torch.no_grad():
            rows = list(absent.values())
            parts = [rows] if together else [[row] for row in rows]
            maps = torch.cat([error_maps(dit, part) for part in parts]).cpu()
        for file, one in zip(absent, maps, strict=True):
            save_tensors(file, {"errors": one.clone()})
