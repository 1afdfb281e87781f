"""A gate without pairs: scores of videos made under random weights are regressed on the weights.

    python -m train.gate fit --rollouts rollouts.jsonl --scores scores.jsonl --out runs/fit \\
        --expert mn=mn.safetensors ls=ls.safetensors vq=vq.safetensors --model miniature

A rollout is a video that was made with one table of weights: every expert's weight in a few ranges of timesteps and
blocks (cells), the same for the whole video. Within the videos of an input the mean of the three scores is fitted by a
quadratic of the weights (ridge, as strong as predicts best on inputs left out); its best table is gate.safetensors.
fit.json tells the headroom before any gate is trained: how far the best table of each class (weights that depend on
nothing, on the timestep, on the block, on both) is above all weights 1 and above the best constant, on inputs that
it was not fitted to, with intervals over inputs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fantasy_core.errors import UserError
from fantasy_core.experts import ExpertBank
from fantasy_core.flags import TRAINED
from fantasy_core.gate import GRID, TableGate
from fantasy_core.gate_files import save_gate
from fantasy_core.mixture import named
from fantasy_core.pair_rules import DIMENSIONS
from train.cache import CacheSettings, components_of
from train.pairs import Score
from train.run import command, made_from, read_rows, setting, write_json

RIDGES = (0.01, 1.0, 10.0, 100.0, 1000.0)
STARTS = 6
CLASSES = {"constant": (False, False), "timestep": (True, False), "block": (False, True), "both": (True, True)}


@dataclass(frozen=True)
class Rollout:
    """A line of rollouts.jsonl: `weights` [T][J][E] of ranges of timesteps (most noise first), of blocks, of experts;
    `times` [T - 1], the timesteps between the former, `blocks` [J - 1], the first blocks of the later ranges."""

    video: str
    input: str
    experts: list[str]
    times: list[float]
    blocks: list[int]
    weights: list


@dataclass(frozen=True)
class FitSettings:
    rollouts: Path = setting(help="rollouts.jsonl")
    scores: Path = setting(help="scores.jsonl of these videos")
    out: Path = setting(help="folder for gate.safetensors and fit.json")
    expert: tuple[str, ...] = setting(help="NAME=FILE of every expert")
    most: float = setting(2.5, "largest weight that the best table may have", least=0)
    resampled: int = setting(100, "resamples of the inputs, for the intervals", least=2)
    seed: int = setting(0, "of the starts and of the resampled inputs")
    model: str = setting(TRAINED[0], "the base", choices=TRAINED)
    wan: Path | None = setting(None, "folder or file of Wan2.1-I2V-14B, or T2V-1.3B")
    fantasytalking: Path | None = setting(None, "FantasyTalking's checkpoint")
    wav2vec: Path | None = setting(None, "folder of wav2vec2-base-960h")


class Surface:
    """y = l.x + x.Q.x within inputs: a ridge fit of scores y [n] on weights x [n, K]; `inputs` [n] are numbers."""

    def __init__(self, x: np.ndarray, y: np.ndarray, inputs: np.ndarray, ridge: float):
        features = within(quadratics(x), inputs)
        self.scale = features.std(0) + 1e-12
        scaled = features / self.scale
        normal = scaled.T @ scaled + ridge * np.eye(scaled.shape[1])
        self.slopes = np.linalg.solve(normal, scaled.T @ within(y[:, None], inputs)[:, 0]) / self.scale

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Scores [n], up to a constant."""
        return quadratics(x) @ self.slopes

    def best(self, spread: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
        """The x [K] = spread [K, P] @ p with p in [0, most] at which the surface is highest, from several starts."""
        from scipy.optimize import minimize

        bounds = [(0.0, most)] * spread.shape[1]
        starts = [np.ones(spread.shape[1]), *rng.uniform(0, most, (STARTS - 1, spread.shape[1]))]
        size = spread.shape[0]
        products = np.zeros((size, size))
        products[np.triu_indices(size)] = self.slopes[size:]
        bent = spread.T @ (products + products.T) @ spread  # second derivatives, of p
        slope = spread.T @ self.slopes[:size]

        def lost(p: np.ndarray) -> tuple[float, np.ndarray]:
            return -float(slope @ p + p @ bent @ p / 2), -(slope + bent @ p)

        found = [minimize(lost, p, jac=True, bounds=bounds, method="L-BFGS-B") for p in starts]
        return spread @ min(found, key=lambda one: one.fun).x


def quadratics(x: np.ndarray) -> np.ndarray:
    """[n, K] -> every weight, every square, every product of two."""
    rows, columns = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, rows] * x[:, columns]], 1)


def within(values: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Values [n, K] less the mean of their input: what an input is like does not count."""
    count = np.bincount(inputs)
    means = np.stack([np.bincount(inputs, column, len(count)) for column in values.T], 1) / count[:, None].clip(1)
    return values - means[inputs]


def choose_ridge(x: np.ndarray, y: np.ndarray, inputs: np.ndarray) -> float:
    """The ridge that predicts best on inputs left out, fifth by fifth."""

    def lost(ridge: float) -> float:
        total = 0.0
        for fold in range(5):
            out = inputs % 5 == fold
            predicted = within(Surface(x[~out], y[~out], inputs[~out], ridge)(x[out])[:, None], inputs[out])
            total += float(np.square(within(y[out][:, None], inputs[out]) - predicted).sum())
        return total

    return min(RIDGES, key=lost)


def spread_of(shape: Sequence[int], by_time: bool, by_block: bool) -> np.ndarray:
    """[T J E, P]: which parameter of a class every cell's weight is."""
    times, blocks, experts = shape
    place = np.zeros(shape, int)
    for t, j, e in np.ndindex(times, blocks, experts):
        place[t, j, e] = ((t if by_time else 0) * (blocks if by_block else 1) + (j if by_block else 0)) * experts + e
    return np.eye(place.max() + 1)[place.ravel()]


def headroom(x, y, inputs, shape, ridge: float, most: float, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """By class: what its best table, found on half of the inputs, is worth on the other half, above weights of 1 and
    above the best constant. Both ways round, averaged."""
    halves = [inputs % 2 == half for half in (0, 1)]
    surfaces = [Surface(x[half], y[half], inputs[half], ridge) for half in halves]
    found: dict[str, list[float]] = {name: [] for name in CLASSES}
    ones = np.ones((1, x.shape[1]))
    for own, other in (surfaces, surfaces[::-1]):
        for name, depends in CLASSES.items():
            table = own.best(spread_of(shape, *depends), most, rng)
            found[name].append(float(other(table[None])[0] - other(ones)[0]))
    over = {name: float(np.mean(values)) for name, values in found.items()}
    return {name: {"over_sum": value, "over_constant": value - over["constant"]} for name, value in over.items()}


def resampled(x, y, inputs, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rollouts of inputs drawn with replacement, each as an input of its own, even ones from even ones."""
    rows, names = [], []
    for half in (0, 1):
        there = np.unique(inputs[inputs % 2 == half])
        for number, name in enumerate(rng.choice(there, len(there))):
            own = np.flatnonzero(inputs == name)
            rows.append(own)
            names.append(np.full(len(own), 2 * number + half))
    chosen = np.concatenate(rows)
    return x[chosen], y[chosen], np.concatenate(names)


def read(settings: FitSettings) -> tuple[list[Rollout], np.ndarray, np.ndarray, np.ndarray]:
    """Rollouts, their weights [n, K], mean scores [n] and inputs [n]. Raises UserError for files that do not fit."""
    rollouts = list(read_rows(settings.rollouts, Rollout))
    scores = {s.video: [getattr(s, f"z_{d}") for d in DIMENSIONS] for s in read_rows(settings.scores, Score)}
    kinds = {json.dumps([r.experts, r.times, r.blocks, np.shape(r.weights)]) for r in rollouts}
    absent = sum(None in scores.get(r.video, [None]) for r in rollouts)
    inputs = {name: number for number, name in enumerate(sorted({r.input for r in rollouts}))}
    cells = np.size(rollouts[0].weights) if rollouts else 0
    needed = 2 * (cells + cells * (cells + 1) // 2)
    if len(kinds) != 1 or absent or len(rollouts) - len(inputs) < needed:
        raise UserError(
            "these rollouts cannot be fitted",
            got=f"{len(rollouts)} of {len(inputs)} inputs, {len(kinds)} kinds of cells, {absent} without a score",
            expected=f"one kind of cells, all scored, and {needed} more rollouts than inputs for {cells} cells",
            do="make more rollouts of each input with the same cells, and score all of them",
        )
    x = np.array([np.ravel(r.weights) for r in rollouts], float)
    y = np.array([np.mean(scores[r.video]) for r in rollouts])
    return rollouts, x, y, np.array([inputs[r.input] for r in rollouts])


def gate_of(rollout: Rollout, weights: np.ndarray, blocks: int) -> TableGate:
    """The gate with these weights [T, J, E], constant within its cells."""
    table = torch.empty(GRID, blocks, 1, len(rollout.experts))
    times, firsts = [GRID, *rollout.times, 0], [0, *rollout.blocks, blocks]
    for t, j in np.ndindex(*weights.shape[:2]):
        rows = slice(int(np.ceil(times[t + 1])), int(np.ceil(times[t])))
        table[rows, firsts[j] : firsts[j + 1], 0] = torch.from_numpy(weights[t, j]).float()
    return TableGate(table, tuple(rollout.experts))


def run(settings: FitSettings, dry_run: bool) -> None:
    rollouts, x, y, inputs = read(settings)
    shape, rng = np.shape(rollouts[0].weights), np.random.default_rng(settings.seed)
    bases = {name: getattr(settings, name) for name in ("model", "wan", "fantasytalking", "wav2vec")}
    with components_of(CacheSettings(out=settings.out, **bases)).dit() as dit:
        hashes = ExpertBank.load(dict(map(named, settings.expert)), dit).hashes
        if tuple(hashes) != tuple(rollouts[0].experts):
            raise UserError(
                "these are not the experts of the rollouts",
                got=", ".join(hashes),
                expected=", ".join(rollouts[0].experts),
                do="give the experts that the videos were made with, in this order",
            )
        ridge = choose_ridge(x, y, inputs)
        print(f"{len(x)} rollouts of {inputs.max() + 1} inputs, {x.shape[1]} weights, ridge {ridge:g}")
        if dry_run:
            return
        best = Surface(x, y, inputs, ridge).best(np.eye(x.shape[1]), settings.most, rng).reshape(shape)
        gate = gate_of(rollouts[0], best, len(dit.blocks))
        settings.out.mkdir(parents=True, exist_ok=True)
        save_gate(settings.out / "gate.safetensors", gate, hashes=hashes, host=dit)
    told = headroom(x, y, inputs, shape, ridge, settings.most, rng)
    drawn = [
        headroom(*resampled(x, y, inputs, rng), shape, ridge, settings.most, rng) for _ in range(settings.resampled)
    ]
    for name, row in told.items():
        for what in ("over_sum", "over_constant"):
            values = np.quantile([one[name][what] for one in drawn], (0.025, 0.975)).tolist()
            row[f"{what}_95"] = values
            print(f"{name}, {what.replace('_', ' ')}: {row[what]:+.3f} [{values[0]:+.3f}, {values[1]:+.3f}]")
    files = made_from({"rollouts": settings.rollouts, "scores": settings.scores})
    report = {"made_from": files, "ridge": ridge, "best": best.tolist(), "headroom": told}
    write_json(settings.out / "fit.json", report)
    print(settings.out / "gate.safetensors")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(FitSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
