"""What a preference run tells about itself: margins of held-out pairs by noise level, and warnings in words."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.flow import timestep
from fantasy_core.gate import weights_at
from fantasy_core.pair_rules import Pair
from fantasy_core.preference import Objective
from train.distributed import World
from train.errors import NOISE, Draw, sigma_of
from train.reference import Context, LiveReference
from train.shards import Cache
from train.tables import rows_of
from train.trainer import PairData

QUANTILES = tuple(n / 10 for n in range(1, 10))
HELD_OUT_SEED = 0  # the same noise in every run, whatever its seed, so that runs compare
WINDOW, SATURATED, STILL = 50, 0.02, 1e-3  # iterations; share of the pull; change of a gate's weights


def sigma_quantiles(distribution: str, shift: float) -> list[float]:
    """The noise levels below which 10 %, 20 % ... 90 % of training's draws lie."""
    normal = torch.special.ndtri(torch.tensor(QUANTILES, dtype=torch.float64))
    return [sigma_of(z, distribution, shift) for z in normal]


class HeldOut:
    """Pairs of split `validation` under fixed noise at nine fixed quantiles of sigma: whether what is learned holds for
    videos that were not trained on, and at which noise levels. Several processes share the pairs."""

    def __init__(self, pairs: Path, cache: Cache, sigmas: list[float], *, masked: bool, most: int, world: World):
        self.data = PairData(pairs, cache, masked=masked, split="validation")
        self.units, self.sigmas, self.world = self.data.units[:most], sigmas, world
        self.known: list[Tensor] | None = None  # the reference's errors [P, 2] at every sigma; they never change

    def __call__(self, dit, objective: Objective, reference: Context) -> dict[str, list[float]]:
        """Mean margin and accuracy at every quantile; in `reference()` the model is the reference."""
        if objective.needs_reference and self.known is None:
            self.known = [self._errors(dit, sigma, reference) for sigma in self.sigmas]
        told = []
        for number, sigma in enumerate(self.sigmas):
            chosen, rejected = self._errors(dit, sigma, nullcontext).unbind(1)
            known = self.known[number].unbind(1) if self.known else (None, None)
            told.append(objective(chosen, rejected, *known)[1])
        return {f"held_out_{name}": [one[name] for one in told] for name in ("margin", "accuracy")}

    def _errors(self, dit, sigma: float, model: Context) -> Tensor:
        """Errors [P, 2] of chosen and rejected under the model in a context."""
        found, errors_of = [], LiveReference(model)
        for number in self.world.places(len(self.units)):
            unit, draw = self.units[number], Draw(sigma, (HELD_OUT_SEED, NOISE, number))
            (errors,) = errors_of([self.data.errors(dit, unit, draw)], together=False)
            found.append(errors[list(unit.pairs[0])])
        return self.world.gather(torch.stack(found), len(self.units))


def held_out(
    pairs: Path, cache: Cache, sigmas: list[float], *, masked: bool, most: int, world: World
) -> HeldOut | None:
    """None, and a word about it, where there are no pairs to hold out."""
    if any(pair.split == "validation" for pair in rows_of(pairs, Pair)):
        return HeldOut(pairs, cache, sigmas, masked=masked, most=most, world=world)
    print("no pairs of split 'validation': nothing will be measured on held-out pairs")
    return None


@torch.no_grad()
def gate_statistics(gate, start, names: tuple[str, ...], sigmas: list[float], time_embedding) -> dict[str, float]:
    """Over blocks and the nine noise levels: every expert's mean weight, the extremes, and how far the weights are
    from where they began (the mean of |w - w_start|)."""
    times = timestep(torch.tensor(sigmas, device=gate.bias.device))
    w, before = (weights_at(one, times, time_embedding) for one in (gate, start))  # [9, J, M, E]
    means = {f"weight_{name}": float(w[..., i].mean()) for i, name in enumerate(names)}
    return means | {
        "weight_min": float(w.min()),
        "weight_max": float(w.max()),
        "moved": float((w - before).abs().mean()),
    }


class Watch:
    """Reads along and warns on stderr, of each thing once, by the means of the last 50 iterations."""

    def __init__(self, objective: Objective):
        self.objective, self.lines, self.told = objective, deque(maxlen=WINDOW), set()

    def __call__(self, line: dict) -> None:
        self.lines.append(line)
        if len(self.lines) == WINDOW:
            for name, warning in self.warnings().items():
                if name not in self.told:
                    self.told.add(name)
                    print(f"\nwarning: {warning}", file=sys.stderr)

    def warnings(self) -> dict[str, str]:
        """What is wrong over the window, by its name."""
        mean = {name: sum(line[name] for line in self.lines) / len(self.lines) for name in ("pull", "gain_chosen")}
        rising = sum(line["margin"] for line in self.lines) > 0
        found = {}
        if self.objective.loss == "dpo" and mean["pull"] < SATURATED:
            found["saturation"] = (
                f"the loss is saturated: {mean['pull']:.1%} of the gradient is left; the pairs are easy for this beta, "
                "so lower it or make harder pairs"
            )
        if self.objective.needs_reference and rising and mean["gain_chosen"] < 0:
            found["displacement"] = (
                f"the margin grows, but the chosen videos' own error rises too (gain {mean['gain_chosen']:.2g}): "
                "likelihood displacement; --anchor-weight 1 holds against it, or a higher --beta or a lower --lr"
            )
        if self.lines[-1].get("moved", 1.0) < STILL:
            found["still gate"] = (
                f"the gate has hardly moved: its weights changed by {self.lines[-1]['moved']:.1g} on average; "
                "raise --lr, or give b its own with --bias-lr"
            )
        return found
