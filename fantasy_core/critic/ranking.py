"""Which of several takes is best by the critic's scores: a weighted sum, Pareto fronts, or thresholds.

z = logit(Yes) - logit(No) is compared, not the score sigmoid(z), which cannot tell two very good takes apart. Equal
takes stand in the order they were given: the same scores give the same ranking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..pair_rules import DIMENSIONS

RULES = ("weighted sum", "Pareto first", "must pass")
Zs = Mapping[str, float | None]  # by dimension; None where it cannot be judged


@dataclass(frozen=True)
class Rule:
    """weights: of the dimensions, 0 or more. least: the score in 0..1 that a take must have, for `must pass`."""

    name: str
    weights: Mapping[str, float]
    least: Mapping[str, float]

    def __post_init__(self):
        bad = [d for d in DIMENSIONS if not 0 <= self.weights[d] < math.inf or not 0 <= self.least[d] <= 1]
        if self.name not in RULES or bad or not any(self.weights[d] > 0 for d in DIMENSIONS):
            raise UserError(
                "takes cannot be ranked like this",
                got=f"rule {self.name!r}, weights {dict(self.weights)}, least scores {dict(self.least)}",
                expected=f"{' or '.join(RULES)}; weights of 0 or more, one of them above 0; least scores from 0 to 1",
                do="give a weight to what matters",
            )

    @property
    def counted(self) -> list[str]:
        """The dimensions that decide: all others need not be asked."""
        needed = self.least if self.name == "must pass" else {}
        return [d for d in DIMENSIONS if self.weights[d] > 0 or needed.get(d, 0) > 0]


@dataclass(frozen=True)
class Ranked:
    """A take and why it stands where it does.

    take: its number among those given. mean: of z by the weights, over what could be judged (None: nothing could).
    front: 0 for a take that no other is better than in every respect, 1 without these, and so on (`Pareto first`).
    missed: dimensions below the threshold (`must pass`). unknown: dimensions that count and could not be judged: such a
    take comes after all others.
    """

    take: int
    mean: float | None
    front: int | None
    missed: tuple[str, ...]
    unknown: tuple[str, ...]


def rank(takes: Sequence[Zs], rule: Rule) -> list[Ranked]:
    """The takes, best first. Within a front, and among those that pass or do not, the weighted mean decides."""
    unknown = [tuple(d for d in rule.counted if take.get(d) is None) for take in takes]
    judged = [number for number, missing in enumerate(unknown) if not missing]
    fronts = dict(zip(judged, pareto_fronts([_point(takes[n], rule.counted) for n in judged]), strict=True))
    found = []
    for number, take in enumerate(takes):
        front = fronts.get(number) if rule.name == "Pareto first" else None
        missed = missed_by(take, rule) if rule.name == "must pass" else ()
        found.append(Ranked(number, weighted_mean(take, rule.weights), front, missed, unknown[number]))
    return sorted(found, key=_order)


def _order(one: Ranked) -> tuple:
    mean = -math.inf if one.mean is None else one.mean
    return len(one.unknown), one.front or 0, bool(one.missed), -mean, one.take


def _point(take: Zs, dimensions: Sequence[str]) -> list[float]:
    return [value for d in dimensions if (value := take[d]) is not None]


def weighted_mean(take: Zs, weights: Mapping[str, float]) -> float | None:
    """sum w z / sum w over the dimensions that could be judged."""
    known = [(weights[d], value) for d in DIMENSIONS if weights[d] > 0 and (value := take.get(d)) is not None]
    return sum(w * z for w, z in known) / sum(w for w, _ in known) if known else None


def missed_by(take: Zs, rule: Rule) -> tuple[str, ...]:
    """Dimensions whose score is below the rule's least."""
    return tuple(d for d in rule.counted if (value := take.get(d)) is not None and _score(value) < rule.least[d])


def _score(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def pareto_fronts(points: Sequence[Sequence[float]]) -> list[int]:
    """The front of each point: 0 for those that none dominates, 1 for those that only points of 0 do, and so on. Equal
    points do not dominate each other."""
    left, front, found = set(range(len(points))), 0, [0] * len(points)
    while left:
        best = {n for n in left if not any(dominates(points[other], points[n]) for other in left)}
        for number in best:
            found[number] = front
        left, front = left - best, front + 1
    return found


def dominates(better: Sequence[float], worse: Sequence[float]) -> bool:
    """At least as good in everything, and better in something."""
    pairs = list(zip(better, worse, strict=True))
    return all(b >= w for b, w in pairs) and any(b > w for b, w in pairs)
