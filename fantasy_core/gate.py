"""The fusion gate: how much every expert counts, by block and timestep (Eq. 3).

A gate is called once per forward of the model, as `gate(t_emb, timestep) -> w [B, J, M, E]`: weights per sample, block,
linear of a block (M = 1: all alike) and expert. `FusionGate` is the paper's and its ablations, trained. `TableGate`
reads its weights off a table, for gates made by hand (`manual_gates`) and for hosts without t_emb. `Beside` adds
experts of fixed weight, such as a distilled LoRA at 1, to any gate.

Shape letters: B batch, J blocks, M linears of a block or 1, E experts, d width of t_emb.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import UserError
from .wan import sinusoid

GRANULARITIES = ("block", "expert", "module")
FORMS = ("softmax", "linear")
GRID = 1001  # timesteps 0, 1 ... 1000 of a coefficient table


class FusionGate(nn.Module):
    """w^l(t) = softmax(W^l t_emb) + b^l (Eq. 3), in the dtype of W, which is fp32.

    granularity: `block`, one gate a block (the paper's); `expert`, one for all blocks; `module`, one for each of
    `num_linears` linears of each block. timestep False: softmax(logits) + b, the same at every timestep. form `linear`
    (not the paper's): w = b + slope (2 sigma - 1), which reads the timestep itself. All start at weights of 1/E
    (`linear`: 0), as the paper's zero bias does.
    """

    def __init__(
        self,
        num_blocks: int,
        dim: int,
        num_experts: int,
        granularity: str = "block",
        timestep: bool = True,
        num_linears: int = 1,
        *,
        form: str = "softmax",
        names: tuple[str, ...] = (),
    ):
        super().__init__()
        _check_kind(granularity, form, num_linears)
        self.num_blocks, self.dim, self.num_experts, self.num_linears = num_blocks, dim, num_experts, num_linears
        self.granularity, self.form, self.timestep = granularity, form, timestep
        self.names = names or tuple(str(i) for i in range(num_experts))
        shape = (1 if granularity == "expert" else num_blocks, num_linears, num_experts)
        learned = "slope" if form == "linear" else "weight" if timestep else "logits"
        self.register_parameter(learned, nn.Parameter(torch.zeros(*shape, *(dim,) * (learned == "weight"))))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, t_emb: Tensor | None, timestep: Tensor | None = None) -> Tensor:
        """t_emb [B, d] (before SiLU), timestep [B] in 0..1000 -> w [B, J, M, E]; what a form does not use may be
        None."""
        given = next(tensor for tensor in (t_emb, timestep) if tensor is not None)
        with torch.autocast(given.device.type, enabled=False):
            if self.form == "linear":
                sigma = timestep.float().view(-1, 1, 1, 1) / 1000
                w = self.bias + self.slope * (2 * sigma - 1)
            elif self.timestep:
                logits = torch.einsum("bd,jmed->bjme", t_emb.to(self.weight.dtype), self.weight)
                w = logits.softmax(-1) + self.bias  # Eq. 3
            else:
                w = (self.logits.softmax(-1) + self.bias).expand(len(given), -1, -1, -1)
        return w.expand(-1, self.num_blocks, -1, -1)


class TableGate(nn.Module):
    """Weights read off `table` [K, J, M, E] at ascending timesteps `knots` [K] by linear interpolation; the first and
    the last row hold beyond their ends. Without knots the table is that of the timesteps 0..1000."""

    def __init__(self, table: Tensor, names: tuple[str, ...], knots: Tensor | None = None):
        super().__init__()
        self.names, (_, self.num_blocks, self.num_linears, self.num_experts) = names, table.shape
        knots = torch.arange(len(table)) if knots is None else knots
        self.register_buffer("table", table.float())
        self.register_buffer("knots", knots.float())

    def forward(self, t_emb: Tensor | None, timestep: Tensor) -> Tensor:
        """timestep [B] -> w [B, J, M, E]."""
        if len(self.knots) == 1:
            return self.table.expand(len(timestep), -1, -1, -1)
        t = timestep.float().clamp(self.knots[0], self.knots[-1])
        above = torch.searchsorted(self.knots, t).clamp(1, len(self.knots) - 1)
        low, high = self.knots[above - 1], self.knots[above]
        part = ((t - low) / (high - low)).view(-1, 1, 1, 1)
        return torch.lerp(self.table[above - 1], self.table[above], part)


class Beside(nn.Module):
    """A gate's experts, followed by experts of constant weight: w [B, J, M, E + n]."""

    def __init__(self, gate: nn.Module | None, constants: dict[str, float], num_blocks: int):
        super().__init__()
        self.gate, self.num_blocks = gate, num_blocks
        self.num_linears = gate.num_linears if gate else 1
        self.names = (*(gate.names if gate else ()), *constants)
        self.num_experts = len(self.names)
        self.register_buffer("constants", torch.tensor(list(constants.values()), dtype=torch.float32))

    def forward(self, t_emb: Tensor | None, timestep: Tensor) -> Tensor:
        """-> w [B, J, M, E + n]."""
        fixed = self.constants.expand(len(timestep), self.num_blocks, self.num_linears, -1)
        return fixed if self.gate is None else torch.cat([self.gate(t_emb, timestep), fixed], -1)


def embed_times(time_embedding: nn.Module, timesteps: Tensor) -> Tensor:
    """What a host's `time_embedding` makes of timesteps [B] -> t_emb [B, d] fp32 (before SiLU)."""
    first = next(module for module in time_embedding.modules() if isinstance(module, nn.Linear))
    wave = sinusoid(timesteps.to(first.weight.device), first.in_features)
    return time_embedding(wave.to(first.weight.dtype)).float()


@torch.no_grad()
def weights_at(gate: nn.Module, timesteps: Tensor, time_embedding: nn.Module | None = None) -> Tensor:
    """The gate's weights [S, J, M, E] at timesteps [S]; a gate that reads t_emb needs the host's time embedding."""
    t_emb = None if time_embedding is None else embed_times(time_embedding, timesteps)
    return gate(t_emb, timesteps.float())


def coefficient_table(gate: nn.Module, time_embedding: nn.Module | None = None) -> Tensor:
    """The weights at timestep 0, 1 ... 1000 -> [1001, J, M, E], for hosts without t_emb.

    Between two of them linear interpolation errs by at most |w''| / 8 of the interval.
    """
    return weights_at(gate, torch.arange(GRID, dtype=torch.float32), time_embedding)


def step_strengths(w: Tensor) -> Tensor:
    """w [S, J, M, E] at the steps of a schedule -> one strength a step and LoRA [S, E], for hosts that know no more.

    Raises UserError when the weights are not the same in all blocks.
    """
    spread = (w - w[:, :1, :1]).abs().amax((0, 1, 2))  # [E]
    if spread.max() > 1e-6:
        raise UserError(
            "this gate cannot be given as one strength a step",
            got=f"weights that differ by up to {spread.max():.3g} between blocks",
            expected="a gate of granularity `expert`, a constant one, or a curve over steps",
            do="export the averaged LoRA instead, or use a host that runs the gate",
        )
    return w[:, 0, 0]


def check_gate(gate: Callable[..., Tensor], *, experts: tuple[str, ...], num_blocks: int) -> None:
    """Raise UserError unless the gate weighs these experts, in this order, in so many blocks."""
    found = tuple(getattr(gate, "names", experts)), getattr(gate, "num_blocks", num_blocks)
    if found != (experts, num_blocks):
        raise UserError(
            "the gate does not fit the experts",
            got=f"weights for {', '.join(found[0])} in {found[1]} blocks",
            expected=f"weights for {', '.join(experts)} in {num_blocks} blocks",
            do="use the gate that was made for these experts and this model, or name the experts as the gate does",
        )


def _check_kind(granularity: str, form: str, num_linears: int) -> None:
    if granularity not in GRANULARITIES or form not in FORMS or (granularity != "module" and num_linears != 1):
        raise UserError(
            "there is no such gate",
            got=f"granularity {granularity!r}, form {form!r}, {num_linears} linears",
            expected=f"granularity {', '.join(GRANULARITIES)}; form {', '.join(FORMS)}; linears only with `module`",
            do="choose one of these",
        )
