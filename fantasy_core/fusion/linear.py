"""One linear with experts: what stands for its `forward` while they hang on the model (Eq. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from .hosts import weight_format
from .plan import Choice, break_even, choose
from .strategies import STRATEGIES, add_naive, add_stacked

if TYPE_CHECKING:
    from ..experts import Rows
    from .attach import Attached


class ExpertLinear:
    """What stands for the `forward` of one linear. y = W x + sum_i w_i B_i A_i x (Eq. 4)."""

    def __init__(self, attached: Attached, index: int, address: str, rows: Rows):
        self.attached, self.index, self.address, self.rows = attached, index, address, rows
        self.linear = attached.host.linears[address]
        self.replaced = vars(self.linear).get("forward")  # None: the linear runs the forward of its class
        self.plain, self.own = self.linear.forward, weight_format(self.linear) == "own"
        self.sizes = rows.down.shape[1], rows.up.shape[1]  # (in, out)
        self.choice: Choice | None = None
        self.left = False

    def __call__(self, x: Tensor, *args, **kwargs) -> Tensor:
        if self.left:
            return self.plain(x, *args, **kwargs)
        c = self._coefficients(x)
        weight = None if self.own else self.linear.weight  # read at each call: offloaded blocks exchange it
        self.choice = self._choose(x, c, weight)
        if weight is not None:
            return STRATEGIES[self.choice.strategy](x, weight, self.linear.bias, self.rows, c)
        add = add_naive if self.choice.strategy == "naive" else add_stacked
        return add(self.plain(x, *args, **kwargs), x, self.rows, c)

    def _coefficients(self, x: Tensor) -> Tensor:
        if self.attached.coefficients is None:
            raise UserError(
                "a linear with experts was run outside of its model's forward",
                got=f"{self.address}, and no weights from the gate",
                expected="a call of the model, which asks the gate first",
                do="call the model, not its `forward`; or call `weigh` first to run a block on its own",
            )
        return self.attached.coefficients[self.index].to(x.device, non_blocking=True)

    def _choose(self, x: Tensor, c: Tensor, weight: Tensor | None) -> Choice:
        attached, rows = self.attached, self.rows
        planned = attached.plan.linears[self.address].choice if attached.plan else None
        tokens, threshold = x.numel() // x.shape[-1], attached.thresholds.get(self.sizes)
        strategy = planned.strategy if planned else attached.strategy
        if strategy == "auto" and torch.compiler.is_compiling():  # `choose` cannot put a symbolic size into words
            limit = break_even(*self.sizes) if threshold is None else threshold
            strategy = "merged" if tokens >= limit else "stacked"
        tensors = [x, c, rows.down, rows.up] + ([] if weight is None else [weight])
        choice = choose(
            *self.sizes,
            tokens,
            strategy=strategy,
            weights="own" if weight is None else "stored" if weight.dtype.itemsize == 1 else "float",
            grad=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
            per_sample=c.ndim > 1,
            threshold=threshold,
        )
        return planned if planned and planned.strategy == choice.strategy else choice

    def hang(self) -> None:
        self.linear.forward = self

    def leave(self) -> None:
        """Give the linear the forward that it had. Where another has been put around this one since, step aside."""
        self.left = True
        if vars(self.linear).get("forward") is not self:
            return
        before = self.replaced
        while isinstance(before, ExpertLinear) and before.left:  # of a context that was left before this one
            before = before.replaced
        if before is None:
            del self.linear.forward
        else:
            self.linear.forward = before
