"""A metric's network from the file its makers published: opened without running it, checked, hashed."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from ..errors import UserError
from ..manifest import sha256
from ..media import check_file
from ..weights.files import Lazy, TensorSet, open_tensors
from ..weights.strict import check, fill

Net = TypeVar("Net", bound=nn.Module)
Thing = TypeVar("Thing")
COUNT = "num_batches_tracked"  # of training, unused here; files older than torch 0.4.1 have none


class Network(Generic[Net]):
    """A network by its file, which is checked and hashed at once and read at the first `open()`.

    Raises UserError for a file that is absent, damaged, holds more than tensors, or is of another model.
    """

    def __init__(self, make: Callable[[], Net], path: str | Path, what: str, device: str = "cpu"):
        self._make, self._what, self._device = make, what, device
        self._path = check_file(path, f"weights of {what}")
        check(self._empty().state_dict(), self._tensors(), what)
        self.sha256, self._opened = sha256(self._path), []

    def open(self) -> Net:
        """The network in eval mode and float32."""
        if not self._opened:
            filled = fill(self._empty(), self._tensors(), self._what, device=self._device, dtype=_type)
            self._opened.append(filled)
        return self._opened[0]

    def _empty(self) -> Net:
        with torch.device("meta"):
            return self._make()

    def _tensors(self) -> TensorSet:
        return _with_counts(open_tensors(self._path))


def folder_sha256(folder: Path, endings: tuple[str, ...]) -> str | None:
    """What a folder's files with these endings are: the sha256 of one; of several that of their hashes and names, as
    `sha256sum` lists them; None where there is none. Hidden files are left out."""
    places = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in endings and path.is_file())
    files = [path for path in places if not any(part.startswith(".") for part in path.parts)]
    if len(files) == 1:
        return sha256(folder / files[0])
    lines = "".join(f"{sha256(folder / path)}  {path.as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else None


def on_device(device: str) -> dict[str, str]:
    """For settings: the kind of a device that rounds otherwise than the processor does. Raises UserError for one that
    torch does not know or this machine does not have; nothing is put on it."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise _no_device(device, str(error).splitlines()[0]) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise _no_device(device, f"{torch.cuda.device_count()} of that kind")
    return {} if found.type == "cpu" else {"device": found.type}


def _no_device(name: str, got: str) -> UserError:
    do = "set the metric's device to cpu, or install torch for this GPU"
    return UserError("the device cannot be used", got=f"{name}: {got}", expected="cpu, or a GPU like cuda:0", do=do)


class Held(Generic[Thing]):
    """What a context manager gives, entered at the first `open()` and left when this goes: loaded once, for all
    videos."""

    def __init__(self, enter: Callable[[], AbstractContextManager[Thing]]):
        self._enter, self._given = enter, []

    def open(self) -> Thing:
        if not self._given:
            with ExitStack() as entered:
                self._given.append(entered.enter_context(self._enter()))
                weakref.finalize(self, entered.pop_all().close)
        return self._given[0]


def _type(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(COUNT) else torch.float32


def _with_counts(tensors: TensorSet) -> TensorSet:
    counts = {name.removesuffix("running_mean") + COUNT for name in tensors.entries if name.endswith("running_mean")}
    zero = Lazy((), torch.int64, lambda: torch.zeros((), dtype=torch.int64))
    return TensorSet(tensors.path, dict.fromkeys(counts, zero) | tensors.entries, tensors.metadata)
