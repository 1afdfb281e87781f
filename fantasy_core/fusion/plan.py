"""Which strategy runs which linear, and what that costs: arithmetic on facts known before a device is asked.

`stacked` costs 2 N R (in + out) FLOPs for N tokens, `merged` 2 R in out however many there are. They meet at
N* = in out / (in + out) / P tokens, whatever ranks and experts; P passes share one merged weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ..errors import UserError
from ..estimate import told_bytes
from .hosts import Host, host_of, split_address, weight_format

if TYPE_CHECKING:
    from ..experts import ExpertBank

NAMES = ("auto", "naive", "stacked", "merged")
KIND = {"k_img": "image", "v_img": "image", "k_proj": "audio", "v_proj": "audio"}  # and cross_attn.k, .v: text
DELTA = 0.01  # the size of an expert's change, relative to the output, that expected errors are told for
ROUNDING = 0.2125  # rms of rounding to nearest, in units of the dtype's eps


@dataclass(frozen=True)
class Tokens:
    """Tokens that reach the linears of a kind on this device, all samples of a batch together."""

    video: int
    text: int = 512
    image: int = 257
    audio: int = 0
    batch: int = 1


class Choice(NamedTuple):
    strategy: str
    why: str


def break_even(size_in: int, size_out: int, passes: int = 1) -> float:
    """N*: from so many tokens on, merging is cheaper than stacking."""
    return size_in * size_out / (size_in + size_out) / passes


def choose(
    size_in: int,
    size_out: int,
    tokens: int,
    *,
    strategy: str = "auto",
    passes: int = 1,
    weights: str = "float",
    grad: bool = False,
    per_sample: bool = False,
    threshold: float | None = None,
) -> Choice:
    """The strategy of one linear and the reason in words.

    tokens: rows of x on this device; weights: `float`, `stored` or `own` (`weight_format`); grad: gradients are
    recorded; per_sample: coefficients differ in the batch; threshold: a measured N* (`calibrate`). A strategy that was
    asked for is kept, except `merged` where it cannot be.
    """
    if strategy in ("naive", "stacked"):
        return Choice(strategy, "asked for")
    if grad:
        return Choice("stacked", "gradients are recorded")
    if per_sample:
        return Choice("stacked", "weights differ in the batch")
    if weights == "own":
        return Choice("stacked", "the linear has a forward of its own")
    if strategy == "merged":
        return Choice(strategy, "asked for")
    limit = break_even(size_in, size_out, passes) if threshold is None else threshold / passes
    name = f"{'' if threshold is None else 'measured '}N* = {limit:,.0f}"
    if tokens < limit:
        return Choice("stacked", f"{tokens:,} tokens < {name}")
    return Choice("merged", f"{tokens:,} tokens >= {name}" + (", dequantised first" if weights == "stored" else ""))


def kind_of(name: str) -> str:
    """What flows through a linear of a block: `self_attn.q` -> "video", `cross_attn.k` -> "text"."""
    return "text" if name in ("cross_attn.k", "cross_attn.v") else KIND.get(name.split(".")[-1], "video")


def expected_error(strategy: str, dtype: torch.dtype, experts: int) -> float:
    """rms error / size of the experts' change, for a change of 1 % of the output. Rounding the output alone is the
    floor; the weight or the base output is rounded once more, and Eq. 4 taken literally rounds after every expert."""
    roundings = 1 + experts if strategy == "naive" else 2
    return ROUNDING * torch.finfo(dtype).eps * roundings**0.5 / DELTA


@dataclass(frozen=True)
class LinearPlan:
    """One linear: sizes, all experts' ranks together, tokens, and what was chosen. `bytes` live during its forward."""

    size_in: int
    size_out: int
    rank: int
    experts: int
    tokens: int
    dtype: torch.dtype
    passes: int
    choice: Choice

    @property
    def flops(self) -> float:
        if self.choice.strategy == "merged":
            return 2 * self.rank * self.size_in * self.size_out / self.passes
        return 2 * self.tokens * self.rank * (self.size_in + self.size_out)

    @property
    def bytes(self) -> int:
        size = self.dtype.itemsize
        numbers = {"merged": self.size_in * self.size_out, "stacked": self.tokens * self.rank}
        return size * numbers.get(self.choice.strategy, 2 * self.tokens * self.size_out)

    @property
    def error(self) -> float:
        return expected_error(self.choice.strategy, self.dtype, self.experts)


@dataclass(frozen=True)
class Plan:
    """A strategy for every linear that some expert changes. `pass_flops`: the blocks of the base, one pass."""

    linears: Mapping[str, LinearPlan]
    pass_flops: int
    bank_bytes: int

    @property
    def flops_percent(self) -> float:
        """The experts' FLOPs in percent of a pass of the base."""
        return 100 * sum(linear.flops for linear in self.linears.values()) / self.pass_flops

    def explain(self) -> str:
        """A table, one line for each kind of linear, and the totals; printing is the caller's."""
        head = ("linear", "blocks", "strategy", "FLOPs", "memory", "error", "why")
        rows = [head, *(self._line(name, alike) for (name, _), alike in self._classes().items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        peak = max((linear.bytes for linear in self.linears.values()), default=0)
        lines += [
            "",
            f"experts: {self.flops_percent:.2f} % of the {self.pass_flops / 1e12:.4g} TFLOP of a pass, "
            f"{told_bytes(self.bank_bytes)} of weights, at most {told_bytes(peak)} more while a linear runs",
            f"error: rms, as a fraction of what the experts change when that is {DELTA:.0%} of the output",
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _classes(self) -> dict[tuple[str, Choice], list[LinearPlan]]:
        classes: dict[tuple[str, Choice], list[LinearPlan]] = {}
        for address, linear in self.linears.items():
            classes.setdefault((split_address(address)[1], linear.choice), []).append(linear)
        return classes

    def _line(self, name: str, alike: list[LinearPlan]) -> tuple[str, ...]:
        flops = 100 * sum(linear.flops for linear in alike) / self.pass_flops
        size, first = max(linear.bytes for linear in alike), alike[0]
        shown = f"{flops:.3f} %", told_bytes(size), f"{first.error:.2g}", first.choice.why
        return (name, str(len(alike)), first.choice.strategy, *shown)


def build_plan(
    host: nn.Module | Host,
    bank: ExpertBank,
    *,
    tokens: Tokens,
    passes: int = 1,
    strategy: str = "auto",
    per_sample: bool = False,
    grad: bool = False,
    streamed: bool = False,
    dtype: torch.dtype | None = None,
    thresholds: Mapping[tuple[int, int], float] | None = None,
) -> Plan:
    """Choose for every linear of the bank. Nothing is computed: the host may be on the meta device.

    passes: passes that share one merged weight; samples of a batch count as tokens instead. streamed: the experts
    wait in host memory, and the device holds those of one linear at a time. dtype: what the linears compute in, that
    of their weights if not given. thresholds: measured N* by (in, out). Raises UserError for an unknown strategy.
    """
    host = host_of(host)
    check_strategy(strategy, per_sample)
    shapes, linears = host.shapes(), {}
    for address, rows in bank.rows.items():
        linear, sizes = host.linears[address], shapes[address]
        count = getattr(tokens, kind_of(split_address(address)[1]))
        threshold, form = (thresholds or {}).get(sizes), weight_format(linear)
        facts = {"passes": passes, "weights": form, "grad": grad, "per_sample": per_sample, "threshold": threshold}
        choice = choose(*sizes, count, strategy=strategy, **facts)
        rank = rows.down.shape[0]
        computing = dtype or compute_dtype(linear)
        linears[address] = LinearPlan(*sizes, rank, len(bank.names), count, computing, passes, choice)
    sizes = [linear.dtype.itemsize * linear.rank * (linear.size_in + linear.size_out) for linear in linears.values()]
    return Plan(linears, pass_flops(host, tokens), max(sizes, default=0) if streamed else sum(sizes))


def check_strategy(strategy: str, per_sample: bool) -> None:
    """Raise UserError for a strategy that does not exist or that cannot weigh sample by sample."""
    if strategy not in NAMES or (strategy == "merged" and per_sample):
        raise UserError(
            "the experts cannot be run this way",
            got=f"strategy {strategy!r}" + (" with weights for each sample" if per_sample else ""),
            expected="auto, naive or stacked" if per_sample else ", ".join(NAMES),
            do="use auto",
        )


def compute_dtype(linear: nn.Module) -> torch.dtype:
    """What a linear computes in: the dtype of its weight, bf16 for those stored in fewer bytes."""
    dtype = getattr(getattr(linear, "weight", None), "dtype", torch.bfloat16)
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.bfloat16


def pass_flops(host: Host, tokens: Tokens) -> int:
    """Products with weights and attention of all blocks, one pass; attention to audio, some 10 rows, left out."""
    linears = sum(
        2 * size_in * size_out * getattr(tokens, kind_of(split_address(address)[1]))
        for address, (size_in, size_out) in host.shapes().items()
    )
    keys = (tokens.video + tokens.text + tokens.image) // tokens.batch
    return linears + host.num_blocks * 4 * tokens.video * keys * host.dim
