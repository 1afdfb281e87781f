"""Weight files, read lazily and strictly.

A file is opened as a `TensorSet`: names, shapes and types at once, values only when `read()` is called. safetensors and
torch's zip files are memory-mapped, so a tensor that needs no conversion is never copied. Nothing here knows what a
model is.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError, some

STEMS = ("diffusion_pytorch_model", "model")  # how diffusers and transformers call the weights of a folder
SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.safetensors")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Lazy:
    """A tensor that is still in its file: shape and dtype are known, `read()` fetches it (CPU, the file's dtype)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class TensorSet:
    """The tensors of one file or of all shards of one model, by name."""

    path: Path
    entries: dict[str, Lazy]
    metadata: dict[str, str] = field(default_factory=dict)

    def meta(self) -> dict[str, torch.Tensor]:
        """{name: tensor on the meta device}: shapes for `WanConfig.from_state_dict` without reading any weights."""
        return {name: torch.empty(lazy.shape, dtype=lazy.dtype, device="meta") for name, lazy in self.entries.items()}

    def renamed(self, rename: Callable[[str], str | None]) -> TensorSet:
        """The same tensors under other names; None drops one. Raises UserError when two tensors get the same name."""
        entries, origin = {}, {}
        for name, lazy in self.entries.items():
            new = rename(name)
            if new in entries:
                raise UserError(
                    f"two tensors of {self.path} mean the same weight",
                    got=f"{origin[new]} and {name}, both {new}",
                    expected="every weight once",
                    do="use the file as its maker published it, not a merge of two layouts",
                )
            if new is not None:
                entries[new], origin[new] = lazy, name
        return TensorSet(self.path, entries, self.metadata)


def open_tensors(path: str | Path) -> TensorSet:
    """Open a .safetensors, a .safetensors.index.json, a folder with either, or a torch .pth/.ckpt/.pt/.bin.

    The kind is told from the content, not from the suffix. Raises UserError for a file that is missing, corrupt,
    truncated or GGUF, for a pickle that holds anything but tensors (it is not run), for a missing shard, and for an
    index and shards that disagree.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError("weights not found", got=str(path), expected="an existing file or folder", do="check the path")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    head = _head(path)
    if head.startswith(b"GGUF"):
        raise UserError(
            f"{path.name} is a GGUF file",
            got="quantised weights that only a ComfyUI loader can compute with",
            expected="safetensors or torch weights",
            do="use the GGUF file inside ComfyUI, or pass the fp16, bf16 or fp8 safetensors of the same model here",
        )
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path.name} holds no weights",
            got="a Git LFS pointer (a small text file)",
            expected="the weights themselves",
            do="run `git lfs pull` in that folder, or download the file again",
        )
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{path} cannot be read",
        got=f"{path.stat().st_size} bytes; {reason}",
        expected="a complete weight file",
        do="free memory or swap space: the file has to be mapped"
        if "allocate memory" in reason
        else "the file is damaged or its download was cut short: fetch it again and compare its size or checksum",
    )


def _open_safetensors(path: Path) -> TensorSet:
    try:
        with safe_open(path, framework="np") as file:  # checks the header against the size; reads no values
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            told = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
            metadata = dict(file.metadata() or {})
        spans = _spans(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    foreign = [f"{name}: {dtype}" for name, (dtype, _) in told.items() if dtype not in DTYPES]
    if foreign:
        raise UserError(
            f"{path.name} stores tensors in a type that cannot be computed with here",
            got=some(foreign),
            expected=", ".join(DTYPES),
            do="use the fp16, bf16 or fp8 file of the same model",
        )
    entries = {
        name: Lazy(shape, DTYPES[dtype], partial(_map, path, DTYPES[dtype], shape, *spans[name]))
        for name, (dtype, shape) in told.items()
    }
    return TensorSet(path, entries, metadata)


def _spans(path: Path) -> dict[str, tuple[int, int]]:
    """First and last byte of every tensor of a safetensors file whose header has been checked."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: tuple(8 + length + end for end in told["data_offsets"]) for name, told in header.items()}


def _map(path: Path, dtype: torch.dtype, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
    """Map one tensor, privately: writing into it does not reach the file.

    One by one, because a private mapping of a whole file larger than the memory is refused by the system.
    """
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.memmap(path, np.uint8, "c", start, (stop - start,))).view(dtype).view(shape)


def _open_torch(path: Path) -> TensorSet:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path.name} was refused",
            got="a pickle that holds more than tensors, or is damaged; it was not run. " + _culprit(error),
            expected="a file with tensors alone",
            do="do not open this file with other programs unless you trust its maker; prefer the safetensors version",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _unreadable(path, error) from error
    tensors = dict(_flatten(content))
    if not tensors:
        got, expected = type(content).__name__, "a dict of tensors"
        raise UserError(f"{path.name} holds no tensors", got=got, expected=expected, do="check the path")
    return TensorSet(path, {name: Lazy(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()})


def _culprit(error: Exception) -> str:
    found = re.search(r"(?:Unsupported (?:global|operand|class)[^\n]*|GLOBAL [^\n]*)", str(error))
    return found.group(0)[:160] if found else str(error).splitlines()[0][:160]


def _flatten(content: object, prefix: str = ""):
    """(dotted name, tensor) of nested dicts; a wrapper that only says `state_dict` or `model` adds no name."""
    if isinstance(content, torch.Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        lone = not prefix and len(content) == 1 and next(iter(content)) in ("state_dict", "model", "module")
        for key, value in content.items():
            yield from _flatten(value, "" if lone else f"{prefix}.{key}" if prefix else str(key))


def _open_folder(folder: Path) -> TensorSet:
    for stem in STEMS:
        for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
            if (folder / name).is_file():
                return open_tensors(folder / name)
        shards = {m["part"]: m for m in map(SHARD.fullmatch, _names(folder)) if m and m["stem"] == stem}
        if shards:
            return _open_shards_without_index(folder, stem, int(next(iter(shards.values()))["parts"]))
    raise UserError(
        f"no weights in {folder}",
        got=some(_names(folder)) or "an empty folder",
        expected=" or ".join(f"{stem}.safetensors (or its shards and {stem}.safetensors.index.json)" for stem in STEMS),
        do="check the path, or finish the download",
    )


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _open_shards_without_index(folder: Path, stem: str, parts: int) -> TensorSet:
    files = [f"{stem}-{part:05d}-of-{parts:05d}.safetensors" for part in range(1, parts + 1)]
    sets = _open_shards(folder, files)
    weight_map = {name: file for file in files for name in sets[file].entries}
    return _join(folder, weight_map, sets)


def _open_index(path: Path) -> TensorSet:
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if any(Path(file).name != file for file in files):
        raise UserError(
            f"{path.name} points outside its folder",
            got=some(file for file in files if Path(file).name != file),
            expected="names of files beside the index",
            do="do not use this index",
        )
    return _join(path.parent, weight_map, _open_shards(path.parent, files))


def _open_shards(folder: Path, files: list[str]) -> dict[str, TensorSet]:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} shards are missing in {folder}",
            got=f"no {some(missing)}",
            expected=f"all {len(files)} shards",
            do="finish the download of this folder",
        )
    return {file: open_tensors(folder / file) for file in files}


def _join(folder: Path, weight_map: Mapping[str, str], sets: Mapping[str, TensorSet]) -> TensorSet:
    absent = [name for name, file in weight_map.items() if name not in sets[file].entries]
    extra = [name for file, shard in sets.items() for name in shard.entries if weight_map.get(name) != file]
    if absent or extra:
        raise UserError(
            f"the index and the shards in {folder} disagree",
            got=f"named but not there: {some(absent) or 'none'}; there but not named: {some(extra) or 'none'}",
            expected="every tensor in the shard that the index names, once",
            do="fetch the index and all shards of the same version again",
        )
    return TensorSet(folder, {name: sets[file].entries[name] for name, file in weight_map.items()})


def tensors_hash(tensors: TensorSet | Mapping[str, torch.Tensor]) -> str:
    """sha256 (hex) of names, types, shapes and values in the order of the names.

    The same for a dict, a safetensors file or its shards; metadata and the order in the file do not matter.
    """
    entries = tensors.entries if isinstance(tensors, TensorSet) else tensors
    digest = hashlib.sha256()
    for name in sorted(entries):
        tensor = entries[name].read() if isinstance(entries[name], Lazy) else entries[name].detach().cpu()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
