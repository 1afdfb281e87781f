"""What a run of training leaves behind while it goes: its state, whole or not at all, and a line an iteration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.errors import UserError
from fantasy_core.media.files import replacing
from fantasy_core.weights import open_tensors, save_tensors


class Checkpoint:
    """state.safetensors in OUT/checkpoint, written whole: trained tensors, AdamW's moments, the iteration; bound to the
    settings and data of its run by `identity`."""

    def __init__(self, out: Path, identity: dict):
        self.file = out / "checkpoint" / "state.safetensors"
        text = json.dumps(identity, sort_keys=True, default=str)
        self.identity, self.hash = identity, hashlib.sha256(text.encode()).hexdigest()

    @property
    def last(self) -> str:
        """What there is to go on from, in words."""
        if self.file.is_file():
            return f"{self.file} holds the state after iteration {open_tensors(self.file).metadata['iteration']}"
        return "no checkpoint had been written yet"

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A file of the run that cannot be written (a full disk) becomes a UserError that names the last good state."""
        try:
            yield
        except (OSError, UserError) as error:
            raise UserError(
                "the run cannot write its files",
                got=f"{error.what}: {error.got}" if isinstance(error, UserError) else str(error),
                expected="a folder with room and the right to write",
                do=f"free some space, then give the same command again; {self.last}",
            ) from error

    @contextmanager
    def fits(self, needed: str, smaller: str) -> Iterator[None]:
        """A device that is out of memory becomes a UserError that names the last good state. needed: how much it
        takes; smaller: what to do, which must leave the run what it is."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                "the device's memory is too small for this training",
                got=str(error).partition("\n")[0],
                expected=needed,
                do=f"{smaller}, and give the same command again; {self.last}",
            ) from error

    def save(self, iteration: int, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for left in self.file.parent.glob(f".{self.file.name}.*.part"):
            left.unlink()  # of a run that was killed while it wrote
        tensors = {f"{i}.value": p.detach() for i, p in enumerate(parameters)}
        for i, parameter in enumerate(parameters):
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        save_tensors(self.file, tensors, {"iteration": str(iteration), "run": self.hash})

    def check(self, needed: bool = False) -> None:
        """Raise UserError when there is a checkpoint of another run, or none where one is needed."""
        if needed and not self.file.is_file():
            raise UserError(
                f"there is no run to go on with in {self.file.parents[1]}",
                got=f"no {self.file}",
                expected="a checkpoint (--resume)",
                do="give the run's --out, or leave out --resume to begin one",
            )
        if self.file.is_file() and open_tensors(self.file).metadata.get("run") != self.hash:
            raise UserError(
                f"{self.file.parent} belongs to another run",
                got="a checkpoint that was made with other settings or data",
                expected="the settings and the data of this run: " + ", ".join(map(str, self.identity)),
                do="give the settings in that folder's config.toml (--config), or train into another folder",
            )

    def load(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Fill parameters and optimizer; the iteration to go on with, 0 without a checkpoint. Raises UserError for the
        checkpoint of another run."""
        if not self.file.is_file():
            return 0
        self.check()
        held = open_tensors(self.file)
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                parameter.copy_(held.entries[f"{i}.value"].read().to(parameter))
                names = [name for name in held.entries if name.startswith(f"{i}.") and name != f"{i}.value"]
                if names:
                    state = {name.partition(".")[2]: held.entries[name].read() for name in names}
                    optimizer.state[parameter] = {name: _as_it_was(t, parameter) for name, t in state.items()}
        return int(held.metadata["iteration"])


def _as_it_was(saved: Tensor, parameter: Tensor) -> Tensor | int:
    """A part of an optimiser's state in the form that it had: whole numbers are bitsandbytes' steps, AdamW counts in a
    tensor on the CPU, and moments lie beside their parameter."""
    if saved.ndim == 0:
        return saved.clone() if saved.is_floating_point() else int(saved)
    return saved.to(parameter.device).clone()


class Log:
    """log.jsonl: a line an iteration; lines of iterations that a resumed run repeats are dropped. What is measured and
    not computed, and so differs from run to run, is in a line's `measured` (`meter.Meter`)."""

    def __init__(self, path: Path, first: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in path.read_text("utf-8").split("\n") if path.is_file() else []:
            try:
                if json.loads(line)["iteration"] < first:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the line that a kill cut short
        with replacing(path) as beside:
            beside.write_text("".join(kept), "utf-8")
        self.file = path.open("a", encoding="utf-8")

    def write(self, iteration: int, line: dict) -> None:
        self.file.write(json.dumps({"iteration": iteration, **line}) + "\n")
        self.file.flush()
