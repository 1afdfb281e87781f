"""LoRA files of any naming, by the official addresses of the linears they change.

`open_lora` reads the header alone and says what is there; `read_pairs` fetches the values. The scale of a linear is
alpha/r from `.alpha`, from peft's adapter_config.json (or its copy in diffusers' metadata), or 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, some
from .files import Lazy, TensorSet, open_tensors
from .fp8 import refuse_integers
from .kinds import kind
from .lora_names import OFFICIAL, Key, family, parse, reasons

PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DIFFUSERS_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
Shapes = Mapping[str, tuple[int, int]]  # (in, out) by address


@dataclass(frozen=True)
class Pair:
    """A [r, in] and B [out, r] of one linear, still in their file, and the scale alpha/r."""

    A: Lazy
    B: Lazy
    scale: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of the linear."""
        return self.A.shape[1], self.B.shape[0]


@dataclass(frozen=True)
class Lora:
    """A LoRA file: its pairs by official address, in the order of blocks; what else is in it; how it was named."""

    path: Path
    dialect: str
    pairs: Mapping[str, Pair]
    unsupported: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def own(self) -> bool:
        """Whether we wrote it: then it is loaded strictly."""
        return _is_own(self.metadata)

    @property
    def dtype(self) -> torch.dtype:
        """The type that holds all of its tensors exactly; fp8, which nothing computes in, becomes bf16."""
        stored = [lazy.dtype for pair in self.pairs.values() for lazy in (pair.A, pair.B)]
        return reduce(torch.promote_types, (torch.bfloat16 if d.itemsize == 1 else d for d in stored))

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {address: pair.shape for address, pair in self.pairs.items()}


def open_lora(path: str | Path) -> Lora:
    """Open a LoRA file, or a folder with peft's adapter_model or diffusers' pytorch_lora_weights.

    Raises UserError for a file that is no LoRA or another model's, for A without B, for shapes that do not pair, and
    for quantised integers. Tensors that are no low-rank change of a block's linear are listed in `unsupported`.
    """
    tensors = _open(Path(path))
    keys = {name: key for name in tensors.entries if (key := parse(name))}
    parts = _by_address(tensors, keys)
    halves = {address: found for address, found in parts.items() if found.keys() & {"A", "B"}}
    if not halves:
        raise _mistaken(tensors)
    used = {name: key for name, key in keys.items() if key.address in halves}
    refuse_integers(tensors.renamed(lambda name: name if name in used and used[name].role != "alpha" else None))
    _check_pairs(tensors.path, halves)
    settings = _settings(tensors)
    _check_alpha(tensors.path, [key for key in used.values() if key.dialect.startswith("peft")], halves, settings)
    scales = _scales(tensors, halves, settings, {key.address: key.module for key in used.values()})
    order = sorted(halves, key=_order)
    pairs = {address: Pair(halves[address]["A"], halves[address]["B"], scales[address]) for address in order}
    unsupported = tuple(name for name in tensors.entries if name not in used)
    dialect = "ours" if _is_own(tensors.metadata) else " + ".join(sorted({key.dialect for key in used.values()}))
    return Lora(tensors.path, dialect, pairs, unsupported, tensors.metadata)


def read_pairs(lora: Lora) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """(address, A, B, scale) of every pair, all tensors in `lora.dtype`. Raises UserError for NaN or infinity."""
    for address, pair in lora.pairs.items():
        A, B = (lazy.read().to(lora.dtype) for lazy in (pair.A, pair.B))
        if not (A.isfinite().all() and B.isfinite().all()):
            raise UserError(
                f"{lora.path} holds numbers that are none",
                got=f"NaN or infinity at {address}",
                expected="finite weights",
                do="use an earlier checkpoint of this LoRA: its training had diverged, or the file is damaged",
            )
        yield address, A, B, pair.scale


def refuse_unsupported(lora: Lora) -> None:
    """Raise UserError when the file holds more than low-rank changes of the blocks' linears."""
    if lora.unsupported:
        kinds = (f"{reason}: {len(names)}, e.g. {names[0]}" for reason, names in reasons(lora.unsupported).items())
        raise UserError(
            f"{lora.path} changes more than an expert can",
            got="; ".join(kinds),
            expected="A and B of linears in the model's blocks, nothing else",
            do="load it with ignore_unsupported to use the rest without these, or as an ordinary LoRA in ComfyUI",
        )


def misfits(shapes: Shapes, host: Shapes) -> tuple[list[str], list[str]]:
    """Addresses that the host lacks, and those that have another width there."""
    absent = [address for address in shapes if address not in host]
    return absent, [address for address in shapes if address in host and shapes[address] != host[address]]


def lora_file(folder: Path) -> Path | None:
    """The LoRA in a folder that peft or diffusers saved, or None."""
    found = (folder / name for name in PEFT_FILES + DIFFUSERS_FILES)
    return next((path for path in found if path.is_file()), None)


def _open(path: Path) -> TensorSet:
    return open_tensors(lora_file(path) or path)


def _is_own(metadata: Mapping[str, str]) -> bool:
    return any(key.startswith("tlpo.") for key in metadata)


def _order(address: str) -> tuple[int, int]:
    _, block, linear = address.split(".", 2)
    return int(block), list(OFFICIAL).index(linear)


def _by_address(tensors: TensorSet, keys: Mapping[str, Key]) -> dict[str, dict[str, Lazy]]:
    """{address: {role: tensor}}. Raises UserError when two tensors mean the same."""
    own = tensors.renamed(lambda name: f"{keys[name].address}|{keys[name].role}" if name in keys else None)
    parts: dict[str, dict[str, Lazy]] = {}
    for name, lazy in own.entries.items():
        address, role = name.split("|")
        parts.setdefault(address, {})[role] = lazy
    return parts


def _check_pairs(path: Path, parts: Mapping[str, Mapping[str, Lazy]]) -> None:
    lone = [
        f"{address} ({'A' if 'A' in found else 'B'} alone)"
        for address, found in parts.items()
        if len(found.keys() & {"A", "B"}) < 2
    ]
    if lone:
        raise UserError(
            f"{path} is not complete",
            got=some(lone),
            expected="A and B (down and up) of every linear",
            do="fetch the file again, or ask its maker",
        )
    wrong = {
        address: (found["A"].shape, found["B"].shape)
        for address, found in parts.items()
        if len(found["A"].shape) != 2 or len(found["B"].shape) != 2 or found["A"].shape[0] != found["B"].shape[1]
    }
    if wrong or any(0 in found["A"].shape for found in parts.values()):
        raise UserError(
            f"{path} holds A and B that do not make a pair",
            got=some(f"{address} A {list(a)}, B {list(b)}" for address, (a, b) in wrong.items()) or "rank 0",
            expected="A [rank, in] and B [out, rank] of one rank",
            do="the file is damaged or was converted wrongly: fetch it again, or ask its maker",
        )


def _mistaken(tensors: TensorSet) -> UserError:
    names, found = tensors.entries, kind(tensors.entries)
    other = family(names) if found == "a LoRA" else None
    if other:
        what, do = f"{tensors.path} is a LoRA for another model", "use a LoRA that was trained on Wan2.1"
    elif found == "a LoRA":
        what, do = f"{tensors.path} has no low-rank pair of a Wan linear", "use a plain LoRA that was trained on Wan2.1"
    else:
        what, do = f"{tensors.path} is no LoRA", "give the file of the LoRA"
    kinds = ", ".join(f"{len(held)} x {reason}" for reason, held in reasons(names).items() if reason != "unknown")
    told = "; ".join(filter(None, (f"for {other}" if other else found, kinds if found == "a LoRA" else "")))
    return UserError(
        what,
        got=(f"{told}; " if told else "") + f"its tensors begin with {some(names, 3) or 'nothing: it is empty'}",
        expected="A and B of linears of Wan's blocks, such as diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        do=do,
    )


def _check_alpha(path: Path, keys: Collection[Key], parts: Mapping[str, Mapping[str, Lazy]], settings: dict) -> None:
    """peft keeps alpha in adapter_config.json alone, and it is seldom the rank: without it the strength is unknown."""
    if "lora_alpha" not in settings and any("alpha" not in parts[key.address] for key in keys):
        raise UserError(
            f"the strength of {path} is unknown",
            got="names of peft, and no adapter_config.json beside it",
            expected="adapter_config.json with `lora_alpha`",
            do='put the adapter_config.json that was saved with it beside it, or write one: {"lora_alpha": 16} '
            "with the number that it was trained with",
        )


def _scales(
    tensors: TensorSet, parts: Mapping[str, Mapping[str, Lazy]], settings: dict, modules: Mapping[str, str]
) -> dict[str, float]:
    """The scale of every address; `modules` says how the file calls it. Raises UserError for what is no number."""
    try:
        scales = {address: _scale(found, settings, modules[address]) for address, found in parts.items()}
        if broken := [f"{scale} at {address}" for address, scale in scales.items() if not math.isfinite(scale)]:
            raise ValueError(f"scale {some(broken)}")
    except (ValueError, TypeError, AttributeError, RuntimeError, re.error) as error:
        raise _no_alpha(tensors.path, error) from error
    return scales


def _no_alpha(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the scales (alpha) of {path} cannot be read",
        got=str(error),
        expected="a finite number `alpha` for each linear, or adapter_config.json with `lora_alpha`",
        do="fetch the file and adapter_config.json again, or ask its maker",
    )


def _settings(tensors: TensorSet) -> dict:
    """peft's settings: adapter_config.json beside the file, or what diffusers copied of it into the metadata."""
    beside = tensors.path.parent / "adapter_config.json"
    try:
        told = json.loads(tensors.metadata.get("lora_adapter_metadata", "{}"))
        if not told and beside.is_file() and tensors.path.name in PEFT_FILES:
            told = json.loads(beside.read_text("utf-8"))
        return {key.removeprefix("transformer."): value for key, value in told.items()}
    except (ValueError, AttributeError) as error:
        raise _no_alpha(tensors.path, error) from error


def _scale(found: Mapping[str, Lazy], settings: Mapping, module: str) -> float:
    """alpha/r, or alpha/sqrt(r) for rank-stabilised LoRAs; 1 where nothing tells alpha."""
    rank = found["A"].shape[0]
    if "alpha" in found:
        return float(found["alpha"].read()) / rank
    if "lora_alpha" not in settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}  # regular expressions for the end of a module's name (peft)
    told = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
    alpha = float(next(told, settings["lora_alpha"]))
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
