"""Where merging and stacking meet on this device, measured: N* counts FLOPs, and backends do not do all at one rate.

CPUs without a fast half precision product are the case in point. Both are timed once for each shape of weight, at most
1024 wide and for so many tokens that their FLOPs are equal, so that the ratio of the times is the correction of N*.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .hosts import Host, host_of
from .plan import break_even, compute_dtype
from .strategies import add_stacked, merge

if TYPE_CHECKING:
    from ..experts import ExpertBank, Rows

WIDTH, ROUNDS = 1024, 3
Clock = Callable[[], float]


def measure(host: nn.Module | Host, bank: ExpertBank, clock: Clock = time.perf_counter) -> dict[tuple[int, int], float]:
    """Measured N* of every shape (in, out) that the bank changes, on the host's device and in its dtype.

    `build_plan` and `attach` take it as `thresholds`. `clock` tells seconds.
    """
    host, found = host_of(host), {}
    shapes = host.shapes()
    for address, rows in bank.rows.items():
        linear, shape = host.linears[address], shapes[address]
        if shape not in found and len(rows.scale):
            found[shape] = threshold(*shape, rows, compute_dtype(linear), linear.weight.device, clock)
    return found


@torch.no_grad()
def threshold(
    size_in: int, size_out: int, rows: Rows, dtype: torch.dtype, device: torch.device, clock: Clock = time.perf_counter
) -> float:
    """Measured N* of one shape: that of the FLOPs times how much longer a merge takes than stacking N* tokens."""
    narrow_in, narrow_out = min(size_in, WIDTH), min(size_out, WIDTH)
    tokens = max(1, round(break_even(narrow_in, narrow_out)))
    sample, c = _narrowed(rows, narrow_in, narrow_out), torch.ones(len(rows.scale), device=device)
    shapes = (narrow_out, narrow_in), (tokens, narrow_in), (tokens, narrow_out)
    weight, x, y = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    merging = fastest(lambda: merge(weight, sample, c), device, clock)
    stacking = fastest(lambda: add_stacked(y, x, sample, c, fresh=True), device, clock)
    return break_even(size_in, size_out) * merging / stacking


def fastest(work: Callable[[], Tensor], device: torch.device, clock: Clock) -> float:
    """Seconds of the fastest of a few rounds, after one that is not counted."""
    times = []
    for _ in range(1 + ROUNDS):
        _wait(device)
        start = clock()
        work()
        _wait(device)
        times.append(clock() - start)
    return max(min(times[1:]), 1e-9)


def _narrowed(rows: Rows, size_in: int, size_out: int) -> Rows:
    return type(rows)(rows.down.detach()[:, :size_in], rows.up.detach()[:, :size_out], rows.scale, rows.ranks)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
