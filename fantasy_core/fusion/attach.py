"""Hang experts and their gate on a WanDiT or diffusers' Wan for as long as a context is open (Eq. 3, 4).

The gate is asked once in every forward of the model, as soon as t_emb is there. Each linear that some expert changes
has its `forward` replaced, and chooses its strategy by what it is called with. The model's weights are read when they
are used and never written; `state_dict()` stays what it was, and leaving gives every linear its own forward back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UserError, some
from ..gate import check_gate
from .coefficients import RankPlaces
from .hosts import Host, host_of
from .linear import ExpertLinear
from .plan import Choice, Plan, check_strategy

if TYPE_CHECKING:
    from ..experts import ExpertBank

Gate = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def attach(
    host: nn.Module | Host,
    bank: ExpertBank,
    gate: Gate,
    strategy: str = "auto",
    *,
    per_sample: bool | None = None,
    plan: Plan | None = None,
    thresholds: Mapping[tuple[int, int], float] | None = None,
) -> Iterator[Attached]:
    """Within the context the host runs with the bank's experts, weighed by `gate(t_emb [B, d], timestep [B]) -> w
    [B, J, M, E]` (both arguments and w fp32; M = 1, 12 or 14 linears in the order of LINEARS + AUDIO_LINEARS).

    per_sample: None weighs every sample of a batch by itself, which cannot be merged; False promises one timestep for
    the whole batch, as in batched guidance (checked where the timesteps are on the CPU); True is None, and refuses
    `merged` at once. plan: use what it chose for each linear where that is possible. thresholds: measured N* by
    (in, out) (`calibrate`).

    Experts are brought to a linear's device and dtype at each call; move the bank there once (`bank.place`) unless it
    is to wait in host memory, as offloaded blocks do. Gradients reach whatever requires them in gate, bank and model;
    with activation checkpointing, keep the context open until the backward pass is done. Contexts nest, and may be
    left in any order. A compiled model has one graph, however the weights change.

    Raises UserError for a bank or gate that does not fit the host, and for a strategy that cannot be.
    """
    host = host_of(host)
    check_strategy(strategy, per_sample is True)
    check_gate(gate, experts=bank.names, num_blocks=host.num_blocks)
    _check_fit(host, bank, gate, plan)
    attached = Attached(host, bank, gate, strategy, per_sample, plan, thresholds or {})
    hooks = [
        host.model.register_forward_pre_hook(attached.begin, with_kwargs=True),
        host.time_embedding.register_forward_hook(attached.embedded),
        host.model.register_forward_hook(attached.finish),
    ]
    try:
        for linear in attached.linears:
            linear.hang()
        yield attached
    finally:
        for linear in attached.linears:
            linear.leave()
        for hook in hooks:
            hook.remove()


class Attached:
    """What hangs on a host.

    `w` [B, J, M, E]: what the gate said last; `evaluations`: how often it was asked (torch.compile does not count).
    """

    def __init__(
        self,
        host: Host,
        bank: ExpertBank,
        gate: Gate,
        strategy: str,
        per_sample: bool | None,
        plan: Plan | None,
        thresholds: Mapping[tuple[int, int], float],
    ):
        self.host, self.names, self.gate = host, bank.names, gate
        self.strategy, self.per_sample, self.plan, self.thresholds = strategy, per_sample, plan, thresholds
        self.w: Tensor | None = None
        self.evaluations = 0
        self.timestep: Tensor | None = None  # of the forward under way, until the gate has seen it
        self.coefficients: tuple[Tensor, ...] | None = None  # of the forward under way: one c for each linear
        self.linears = [ExpertLinear(self, i, address, rows) for i, (address, rows) in enumerate(bank.rows.items())]
        self.ranks = RankPlaces(bank, next(host.time_embedding.parameters()).device)

    @property
    def chosen(self) -> dict[str, Choice]:
        """{address: the strategy it ran with, and why} of the last forward."""
        return {linear.address: linear.choice for linear in self.linears if linear.choice is not None}

    def begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the model's forward: (latents, timestep, text) in both hosts."""
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        if timestep.ndim != 1:
            raise UserError(
                "the gate needs one timestep for each sample",
                got=f"timesteps of shape {list(timestep.shape)}",
                expected="[B]",
                do="use a model with one timestep a sample (Wan2.1), or leave the experts out",
            )
        self.timestep = timestep

    def embedded(self, time_embedding: nn.Module, args: tuple, t_emb: Tensor) -> None:
        """After the time embedding; outside of a forward of the model it concerns nobody."""
        if self.timestep is not None:
            timestep, self.timestep = self.timestep, None
            self.weigh(t_emb, timestep)

    def weigh(self, t_emb: Tensor, timestep: Tensor) -> None:
        """Ask the gate (Eq. 3) once for all linears, from t_emb [B, d] and timestep [B]. A model's forward does this;
        call it to run blocks on their own."""
        with torch.autocast(t_emb.device.type, enabled=False):
            w = self.gate(t_emb.float(), timestep.float())
        self._check_weights(w, len(t_emb))
        if self.per_sample is False and len(w) > 1:
            _check_promise(timestep)
        shared = len(w) == 1 or self.per_sample is False
        check_strategy(self.strategy, not shared)
        self.w, self.coefficients = w, self.ranks.coefficients(w[0] if shared else w)
        if not torch.compiler.is_compiling():
            self.evaluations += 1
            for linear in self.linears:
                linear.choice = None

    def _check_weights(self, w: Tensor, batch: int) -> None:
        blocks, counts = self.host.num_blocks, self.ranks.linears
        fits = w.ndim == 4 and w.shape[2] in counts and len(w) in (1, batch)
        if not fits or (w.shape[1], w.shape[3]) != (blocks, len(self.names)):
            raise UserError(
                "the gate's weights do not fit this model and its experts",
                got=f"shape {list(w.shape)}",
                expected=f"[{batch}, {blocks}, {' or '.join(map(str, sorted(counts)))}, {len(self.names)}]: samples, "
                "blocks, linears of a block, experts",
                do="use the gate that was made for these experts and this model",
            )

    def finish(self, model: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        """After the model's forward: no linear has weights until the next, but where activation checkpointing runs
        the blocks again in the backward pass, which comes by the output first."""
        c, self.coefficients = self.coefficients, None
        out = output if isinstance(output, Tensor) else output[0]
        if out.requires_grad and not torch.compiler.is_compiling():
            out.register_hook(lambda gradient: setattr(self, "coefficients", c))


def _check_promise(timestep: Tensor) -> None:
    """Raise UserError for samples of several timesteps where one was promised; a device is not asked to wait."""
    if timestep.device.type == "cpu" and not torch.compiler.is_compiling() and bool((timestep != timestep[0]).any()):
        raise UserError(
            "the samples of this batch need weights of their own",
            got=f"timesteps {', '.join(f'{t:g}' for t in timestep.tolist())} with per_sample=False",
            expected="one timestep for all samples",
            do="attach with per_sample=None",
        )


def _check_fit(host: Host, bank: ExpertBank, gate: Gate, plan: Plan | None) -> None:
    """Raise UserError for a bank, gate or plan of another model."""
    shapes = host.shapes()
    wrong = [name for name, rows in bank.rows.items() if shapes.get(name) != (rows.down.shape[1], rows.up.shape[1])]
    if wrong or not bank.rows:
        what, got = "the experts were stacked for another model", f"experts of {some(wrong) or 'no linear'}"
        raise UserError(
            what, got=got, expected=_sizes(host), do="stack them for this model: ExpertBank.load(files, host)"
        )
    if getattr(gate, "dim", host.dim) != host.dim:
        what, got = "the gate was made for another model", f"a gate that reads t_emb {gate.dim} wide"
        raise UserError(what, got=got, expected=_sizes(host), do="use the gate of this model")
    absent = [] if plan is None else bank.rows.keys() - plan.linears.keys()
    if absent:
        what, got = "the plan was made for other experts", f"nothing about {some(absent)}"
        raise UserError(
            what, got=got, expected="a plan for every linear that they change", do="call build_plan with them"
        )


def _sizes(host: Host) -> str:
    return f"{host.num_blocks} blocks of width {host.dim}"
