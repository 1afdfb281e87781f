"""What a run begins with, before anything is learnt: margins of its first pairs, and which beta fits them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fantasy_core.errors import UserError
from fantasy_core.preference import Objective, diagnose, simpo_beta
from train.errors import Errors, all_errors
from train.reference import Context, LiveReference
from train.watch import SATURATED


def calibrate(units: Sequence[Errors], objective: Objective, reference: Context) -> dict[str, float]:
    """Figures of the first pairs under the model as it begins.

    `logit`, `logit_std` and `pull` say how much of Eq. 1's gradient there is at this beta; `fitting_beta` is the one at
    which the logits' standard deviation would be 1 (SimPO's own, if its beta is 0).
    """
    with torch.no_grad():
        errors = all_errors(units, together=False)
        known = LiveReference(reference)(units, together=False) if objective.needs_reference else None
    gains = [torch.zeros_like(one) - one if known is None else known[n] - one for n, one in enumerate(errors)]
    chosen, rejected = _sides(gains, units)
    margin = chosen - rejected
    told = diagnose(objective.beta / 2 * margin, margin, chosen, rejected)
    if len(margin.unique()) > 1:
        told["fitting_beta"] = simpo_beta(rejected, chosen)  # of gains, whose signs are those of errors reversed
    told["pairs"] = len(margin)
    return told


def _sides(values: Sequence[Tensor], units: Sequence[Errors]) -> tuple[Tensor, Tensor]:
    pairs = [(own[c], own[r]) for own, unit in zip(values, units, strict=True) for c, r in unit.pairs]
    chosen, rejected = zip(*pairs, strict=True)
    return torch.stack(chosen), torch.stack(rejected)


def report(told: dict[str, float], objective: Objective) -> None:
    """The figures on stdout, and a warning on stderr where the loss is saturated before it begins."""
    fitting = f"{told['fitting_beta']:.3g}" if "fitting_beta" in told else "none, for the pairs are alike"
    print(
        f"at the start, {told['pairs']} pairs at beta {objective.beta:g}: accuracy {told['accuracy']:.2f}, "
        f"logit {told['logit']:.2f} +- {told['logit_std']:.2f}, pull {told['pull']:.2f}, spread 1 at beta {fitting}"
    )
    if objective.loss == "dpo" and told["pull"] < SATURATED:
        print(
            f"warning: only {told['pull']:.1%} of the gradient is there to begin with; the pairs are easy for this "
            f"beta, so lower it (spread 1: {fitting}) or make harder pairs",
            file=sys.stderr,
        )


def with_fitting_beta(objective: Objective, told: dict[str, float]) -> Objective:
    """SimPO's objective with its own beta. Raises UserError where the pairs do not tell it."""
    if "fitting_beta" not in told:
        raise UserError(
            "SimPO's beta cannot be found on these pairs",
            got=f"{told['pairs']} pairs, all with the same difference of errors",
            expected="some spread",
            do="give more --calibration-pairs, or a --beta",
        )
    return replace(objective, beta=told["fitting_beta"])
