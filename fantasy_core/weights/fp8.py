"""fp8 files: the stored weight, times its scale where there is one, is the weight.

Two dialects are in use: `X.scale_weight` (with a marker tensor `scaled_fp8`), and `X.weight_scale` (with
`X.comfy_quant`, a JSON text as bytes). Each may bring an activation scale (`X.scale_input`, `X.input_scale`) that
dequantised weights do not need. A model takes fp8 weights dequantised, or keeps its linears as they are stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UserError, some
from ..fp8_linear import FP8, Fp8Linear, unscaled
from .files import Lazy, TensorSet

SCALES = (".scale_weight", ".weight_scale")
IGNORED = (".scale_input", ".input_scale")


@dataclass(frozen=True)
class Scaled(Lazy):
    """A dequantised weight, read as float32, and what it is made of."""

    weight: Lazy
    scale: Lazy


def dequantised(tensors: TensorSet) -> TensorSet:
    """The same set with every scaled fp8 weight replaced by its float32 product, computed when read; no scales left.

    fp8 weights without a scale stay as they are (they are plain casts). Raises UserError for other quantisations.
    """
    scales, entries = {}, {}
    for name, lazy in tensors.entries.items():
        scales |= {name.removesuffix(end) + ".weight": lazy for end in SCALES if name.endswith(end)}
    for name, lazy in tensors.entries.items():
        if name.endswith(".comfy_quant"):
            _check_format(tensors, name, lazy)
        elif not name.endswith(SCALES + IGNORED) and name.split(".")[-1] != "scaled_fp8":
            entries[name] = _scaled(lazy, scales.pop(name)) if name in scales else lazy
    if scales:
        raise UserError(
            f"{tensors.path.name} has scales without weights",
            got=some(scales),
            expected="a weight beside every scale",
            do="the file is incomplete: fetch it again",
        )
    return TensorSet(tensors.path, entries, tensors.metadata)


def refuse_integers(tensors: TensorSet) -> TensorSet:
    """The set itself when all tensors are floating point; otherwise UserError (int8, nvfp4, other packed weights)."""
    packed = [f"{name} ({lazy.dtype})" for name, lazy in tensors.entries.items() if not lazy.dtype.is_floating_point]
    if packed:
        raise UserError(
            f"{tensors.path.name} holds quantised weights",
            got=some(packed),
            expected="floating point: fp32, fp16, bf16, fp8 or fp8-scaled",
            do="use the fp16, bf16 or fp8 file of the same model, or this one inside ComfyUI",
        )
    return tensors


def keep_fp8(blocks: nn.Module, tensors: TensorSet, prefix: str) -> TensorSet:
    """Give `blocks` (on meta) an Fp8Linear for every linear whose weight is stored in fp8. Returns the set with these
    weights as they are stored and their scales under X.scale_weight."""
    entries = dict(tensors.entries)
    for name, linear in list(blocks.named_modules()):
        lazy = entries.get(f"{prefix}.{name}.weight")
        stored = lazy.weight if isinstance(lazy, Scaled) else lazy
        if type(linear) is not nn.Linear or stored is None or stored.dtype not in FP8:
            continue
        entries[f"{prefix}.{name}.weight"], scale = stored, None
        if isinstance(lazy, Scaled):
            entries[f"{prefix}.{name}.scale_weight"], scale = lazy.scale, lazy.scale.shape
        blocks.set_submodule(name, Fp8Linear(linear, stored.dtype, scale))
    return TensorSet(tensors.path, entries, tensors.metadata)


def _scaled(weight: Lazy, scale: Lazy) -> Lazy:
    return Scaled(weight.shape, torch.float32, lambda: unscaled(weight.read(), scale.read().float()), weight, scale)


def _check_format(tensors: TensorSet, name: str, lazy: Lazy) -> None:
    try:
        form = str(json.loads(bytes(lazy.read().tolist()))["format"])
    except (ValueError, KeyError, TypeError) as error:
        got, expected = str(error), 'the JSON text {"format": ...} as bytes'
        raise UserError(f"{name} cannot be read", got=got, expected=expected, do="fetch the file again") from error
    if not form.startswith("float8"):
        raise UserError(
            f"{tensors.path.name} holds quantised weights",
            got=f"{name}: {form}",
            expected="float8_e4m3fn or float8_e5m2",
            do="use the fp16, bf16 or fp8 file of the same model, or this one inside ComfyUI",
        )
