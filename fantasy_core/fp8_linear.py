"""A linear that stays in fp8: half the memory of bf16 for a frozen base, in training too."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def unscaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """What a stored weight [out, in] means, in fp32: itself times its scale, which is one number or one a row [out]."""
    if scale is None:
        return weight.float()
    return weight.float() * (scale[:, None] if scale.numel() > 1 and scale.ndim == 1 else scale)


class Fp8Linear(nn.Linear):
    """A frozen nn.Linear on a weight [out, in] in fp8 and, under ComfyUI's name of it, its `scale_weight`.

    The weight is formed in the dtype of x when it is used, once more in the backward pass, and not kept in between.
    Results and gradients are those of a linear that holds the dequantised weight. `.to(dtype)` leaves both as they are.
    """

    def __init__(self, like: nn.Linear, dtype: torch.dtype, scale_shape: tuple[int, ...] | None):
        device = like.weight.device
        super().__init__(like.in_features, like.out_features, like.bias is not None, device)
        self.weight = nn.Parameter(torch.empty_like(like.weight, dtype=dtype), requires_grad=False)
        scale = None if scale_shape is None else nn.Parameter(torch.ones(scale_shape, device=device), False)
        self.register_parameter("scale_weight", scale)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.scale_weight, None if self.bias is None else self.bias.to(x.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class _Product(torch.autograd.Function):
    """x W^T + bias; of the tensors, the backward pass needs those that stay in memory anyway."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, unscaled(weight, scale).to(x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight, scale = ctx.saved_tensors
        return gradient @ unscaled(weight, scale).to(gradient.dtype), None, None, None
