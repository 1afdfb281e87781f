"""Four ways to run a linear with its experts: pure callables (x, weight, bias, rows, c) -> y.

    y = x W^T + bias + ((x down^T) * c) up,    x [B, L, in] or [..., in], c [R] or, one for each sample, [B, R]

`naive` is the definition. `stacked` weighs in the rank dimension: any weight format, weights that differ in the batch,
exact gradients that save R numbers a token. `merged` makes W + D just before use and costs nothing per token; W itself
is never written, so nothing drifts. c holds gate weight and alpha/r (`Rows.coefficients`), fp32. Weights stored in fp8
are dequantised to the dtype of x, merged there and never requantised.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ..experts import Rows

Strategy = Callable[[Tensor, Tensor, Tensor | None, "Rows", Tensor], Tensor]


def naive(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, c: Tensor) -> Tensor:
    """Eq. 4 literally, one expert after another."""
    return add_naive(base(x, weight, bias), x, rows, c)


def stacked(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, c: Tensor) -> Tensor:
    """All experts at once: one product down, c in the rank dimension, one product up that adds to the base output."""
    return add_stacked(base(x, weight, bias), x, rows, c, fresh=True)


def merged(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, c: Tensor) -> Tensor:
    """One product with W + D. c [R]: one mixture for all tokens."""
    weight = dequantised(weight, x)
    with torch.autocast(x.device.type, enabled=False):  # it would round W once more
        weight = merge(weight, rows, c)
    return base(x, weight, bias)


STRATEGIES: dict[str, Strategy] = {"naive": naive, "stacked": stacked, "merged": merged}


def base(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear without experts."""
    return F.linear(x, dequantised(weight, x), None if bias is None else dequantised(bias, x))


def dequantised(stored: Tensor, x: Tensor) -> Tensor:
    """A weight in the dtype of x: exactly, where it is stored in fewer bytes. Autocast brings others to its own."""
    autocast = torch.is_autocast_enabled(x.device.type) and stored.dtype.itemsize > 1
    return stored if autocast else stored.to(x.dtype)


def add_naive(y: Tensor, x: Tensor, rows: Rows, c: Tensor) -> Tensor:
    """y + sum_i w_i B_i (A_i x), where y [..., out] is what the linear made of x by whatever means."""
    if silent(c):
        return y
    down, up = _rows_like(rows, y)
    for first, last in pairwise(rows.offsets):
        if last > first:
            delta = F.linear(F.linear(x.to(y.dtype), down[first:last]), up[first:last].T)  # B_i (A_i x)
            y = y + (_over_tokens(c[..., first : first + 1], delta) * delta).to(y.dtype)  # Eq. 4
    return y


def add_stacked(y: Tensor, x: Tensor, rows: Rows, c: Tensor, fresh: bool = False) -> Tensor:
    """y + ((x down^T) * c) up; `fresh` allows to write into y, which is done where no gradient is recorded."""
    if silent(c):
        return y
    down, up = _rows_like(rows, y)
    return expand(y, compress(x.to(y.dtype), down, c), up, fresh)


def compress(x: Tensor, down: Tensor, c: Tensor) -> Tensor:
    """u = (x down^T) * c [..., R], the product weighed in the rank dimension and rounded once."""
    u = F.linear(x, down)
    recorded = torch.is_grad_enabled() and (u.requires_grad or c.requires_grad)
    c = _over_tokens(c, u)
    return (u * c).to(u.dtype) if recorded else u.mul_(c)


def expand(y: Tensor, u: Tensor, up: Tensor, fresh: bool = False) -> Tensor:
    """y + u up, u [..., R], up [R, out]."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (y, u, up))
    flat, u = y.reshape(-1, y.shape[-1]), u.reshape(-1, u.shape[-1])
    added = flat.addmm_(u, up) if fresh and not recorded else torch.addmm(flat, u, up)
    return added.view(y.shape)


def merge(weight: Tensor, rows: Rows, c: Tensor) -> Tensor:
    """W + D in the dtype of W with one rounding: the product is added up in fp32, W is read and not written."""
    if silent(c):
        return weight
    wide = accumulating(weight)
    up, down = weighed(rows.up.to(weight.device), c, wide), rows.down.to(weight.device, wide)
    return torch.addmm(weight.to(wide), up, down).to(weight.dtype)


def weighed(up: Tensor, c: Tensor, dtype: torch.dtype) -> Tensor:
    """(up * c)^T [out, R] in dtype, multiplied in fp32 or more: D = weighed(up, c) down."""
    return (up.to(torch.promote_types(dtype, torch.float32)) * c[:, None]).to(dtype).T


def accumulating(weight: Tensor) -> torch.dtype:
    """The dtype to form D in. GPUs add up half precision products in fp32; CPUs do so slowly, and fp32 is faster."""
    return torch.float32 if weight.device.type == "cpu" and weight.dtype.itemsize < 4 else weight.dtype


def silent(c: Tensor) -> bool:
    """Whether no expert speaks, where that can be known without waiting for a device: then the base is left as it is,
    to the sign of its zeros (-0 + 0 = 0). Elsewhere adding zero changes no other bit."""
    if torch.compiler.is_compiling() or c.device.type != "cpu" or torch.is_grad_enabled():
        return c.shape[-1] == 0
    return not c.any()


def _rows_like(rows: Rows, y: Tensor) -> tuple[Tensor, Tensor]:
    return rows.down.to(y.device, y.dtype, non_blocking=True), rows.up.to(y.device, y.dtype, non_blocking=True)


def _over_tokens(c: Tensor, u: Tensor) -> Tensor:
    """[R], and weights for each token [B, L, R], as they are; [B, R] -> [B, 1, ..., R] beside u [B, ..., R]."""
    return c if c.ndim in (1, u.ndim) else c.view(c.shape[0], *[1] * (u.ndim - 2), c.shape[-1])
