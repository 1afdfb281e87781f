"""The gradient of an iteration's units: one video after another, or all in one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fantasy_core.preference import Diagnostics, Objective, accumulate_gradient
from train.distributed import World
from train.errors import Errors, all_errors


def gradient(
    form: str,
    units: Iterable[Errors],
    batch: int,
    parameters: Sequence[Tensor],
    objective: Objective,
    reference: Callable[..., list[Tensor]],
    world: World,
) -> list[Diagnostics]:
    """Add these units' part of the gradient of the mean loss of all `batch` units to `.grad`, one video of one unit
    after another (each is read when its turn comes), or (`joint`) from one graph over all of them; what to log of every
    unit."""
    if form == "joint":
        return joint_gradient(list(units), batch, parameters, objective, reference)
    lines = []
    for unit in units:
        missing = world.passes(len(unit.rows)) - len(unit.rows)  # other processes have more videos
        known = None
        if objective.needs_reference:
            (known,) = reference([unit], together=False)
            with torch.no_grad():
                for _ in range(missing):
                    unit(0)
        told = accumulate_gradient(unit, unit.pairs, parameters, objective, known, form=form, weight=1 / batch)
        for _ in range(missing):
            torch.autograd.grad(unit(0), parameters, allow_unused=True)
        lines.append({"loss": told[0], "sigma": unit.sigma, **told[1]})
    return lines


def joint_gradient(
    units: Sequence[Errors],
    batch: int,
    parameters: Sequence[Tensor],
    objective: Objective,
    reference: Callable[..., list[Tensor]],
) -> list[Diagnostics]:
    """All activations at once, and few, large calls, which is what small models want."""
    known = reference(units, together=True) if objective.needs_reference else [None] * len(units)
    lines, total = [], 0
    for unit, errors, reference_errors in zip(units, all_errors(units, together=True), known, strict=True):
        chosen, rejected = torch.tensor(unit.pairs, device=errors.device).T
        sides = (None, None) if reference_errors is None else (reference_errors[chosen], reference_errors[rejected])
        loss, told = objective(errors[chosen], errors[rejected], *sides)
        total = total + loss / batch
        lines.append({"loss": loss.item(), "sigma": unit.sigma, **told})
    torch.autograd.backward(total, inputs=list(parameters))
    return lines
