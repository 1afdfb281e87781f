"""The table of miniature_table.py: every row judged on the same held-out clips and noise, with paired intervals.

The gap of a row is the mean over the three scores of how far it goes from the baseline (0) to the real clips through
the codec (1). Differences are paired by clip and by seed of the experts; intervals resample both together and are
not corrected for their number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fantasy_core.media.files import replacing
from fantasy_core.miniature.components import load_components
from fantasy_core.pair_rules import DIMENSIONS
from fantasy_core.weights import open_tensors, save_tensors
from train.miniature_candidates import SHIFT, STEPS
from train.miniature_evaluate import Experts, ceiling, generate, held_out, score
from train.run import write_json

PIECE, RESAMPLED = 8, 4000
NAMES = {"ls": "lip sync", "mn": "motion", "vq": "quality, dB"}
Scores = dict[str, np.ndarray]  # dimension -> [seeds, clips]


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, in one version for every seed (None: the base alone)."""

    name: str
    label: str
    versions: tuple[Experts | None, ...]


@dataclass(frozen=True)
class Protocol:
    """What videos a row is judged on."""

    base: Path
    split: str
    clips: int
    frames: int
    scale: float = 1.0

    @property
    def about(self) -> dict[str, str]:
        told = {"split": self.split, "clips": self.clips, "frames": self.frames, "scale": self.scale}
        weights = load_components(folder=self.base).fingerprint
        return {name: str(value) for name, value in {**told, "steps": STEPS, "shift": SHIFT, "base": weights}.items()}


@torch.inference_mode()
def judge_piece(protocol: Protocol, experts: Experts | None, first: int, real: bool) -> dict[str, Tensor]:
    """Scores [B] of a few clips, sampled with noise of their own (in a process of its own)."""
    torch.set_num_threads(1)
    components = load_components(folder=protocol.base)
    clips = held_out(protocol.split, min(PIECE, protocol.clips - first), protocol.frames, first)
    if real:
        video = ceiling(components, clips)
    else:
        told = {"steps": STEPS, "shift": SHIFT, "scale": protocol.scale, "seed": first, "experts": experts}
        video = generate(components, clips, **told)
    found = score(video, clips)
    return {dimension: found[dimension].clone() for dimension in DIMENSIONS}


def judge_rows(protocol: Protocol, rows: Sequence[Row], out: Path) -> tuple[dict[str, Scores], Scores]:
    """Scores of every row, and of the real clips; kept in `out`, and read from there where they are."""
    about, files = protocol.about, {}
    for row in rows:
        for seed, experts in enumerate(row.versions):
            files[out / f"{row.name}-{seed}.safetensors"] = (experts, False)
    files[out / "real-0.safetensors"] = (None, True)
    told = {path: about | {"experts": experts.identity if experts else "none"} for path, (experts, _) in files.items()}
    absent = [path for path in files if not path.is_file() or dict(open_tensors(path).metadata) != told[path]]
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as workers:
        pieces = range(0, protocol.clips, PIECE)
        running = {
            p: [workers.submit(judge_piece, protocol, files[p][0], i, files[p][1]) for i in pieces] for p in absent
        }
        for path, jobs in tqdm(running.items(), desc=f"{protocol.split} clips", unit="row"):
            found = [job.result() for job in jobs]
            save_tensors(path, {d: torch.cat([one[d] for one in found]) for d in DIMENSIONS}, told[path])
    scores = {
        row.name: _stacked([out / f"{row.name}-{n}.safetensors" for n in range(len(row.versions))]) for row in rows
    }
    return scores, _stacked([out / "real-0.safetensors"])


def _stacked(paths: Sequence[Path]) -> Scores:
    held = [open_tensors(path).entries for path in paths]
    return {d: torch.stack([one[d].read() for one in held]).double().numpy() for d in DIMENSIONS}


# ---- statistics ----


def gap(row: Scores, baseline: Scores, real: Scores, clips: np.ndarray) -> float:
    """Mean over the dimensions of (row - baseline) / way, each a mean over seeds and these clips; the way from the
    baseline to real clips is that of all clips, and taken as known."""
    shares = []
    for d in DIMENSIONS:
        way = float(real[d].mean() - baseline[d].mean())
        shares.append(float(row[d][:, clips].mean() - baseline[d][:, clips].mean()) / way)
    return sum(shares) / len(shares)


def difference(
    a: Scores, b: Scores, measure, rng: np.random.Generator, seeds: int | None = None
) -> tuple[float, float, float]:
    """measure(a, clips) - measure(b, clips), with its 95 % interval over clips and seeds, drawn together and alike for
    both. seeds: of the experts (default: as many as versions): version n of a row is of their seed n modulo `seeds`, so
    several gates may be of one; which of these, is drawn within it."""
    clips, versions = next(iter(a.values())).shape[1], max(len(next(iter(row.values()))) for row in (a, b))
    seeds = seeds or versions
    every = np.arange(clips)
    told = measure(a, every) - measure(b, every)
    drawn = []
    for _ in range(RESAMPLED):
        chosen, experts = rng.integers(clips, size=clips), rng.integers(seeds, size=seeds)
        within = rng.random((seeds, versions))
        pair = (_reseeded(row, experts, within) for row in (a, b))
        one, other = (measure(row, chosen) for row in pair)
        drawn.append(one - other)
    return told, *np.quantile(drawn, (0.025, 0.975)).tolist()


def _reseeded(scores: Scores, experts: np.ndarray, within: np.ndarray) -> Scores:
    """The versions of drawn seeds of the experts, of each as many as it has, by numbers in 0..1; a row that has one
    version has no seed."""
    versions = len(next(iter(scores.values())))
    if versions == 1:
        return scores
    chosen = []
    for seed, numbers in zip(experts, within, strict=True):
        own = range(seed, versions, len(experts))
        chosen += [own[int(number * len(own))] for number in numbers[: len(own)]]
    return {d: values[chosen] for d, values in scores.items()}


def standing(interval: tuple[float, float, float]) -> str:
    """What an interval of a difference says of the claim that it is above zero."""
    _, low, high = interval
    return "holds" if low > 0 else "does not hold" if high < 0 else "not distinguishable"


# ---- the report ----


def compare(
    scores: Mapping[str, Scores],
    real: Scores,
    baseline: str,
    rows: Sequence[Row],
    claims: Sequence[tuple[str, str, str]],
    seeds: int | None = None,
) -> dict:
    """Everything that the report says, as numbers. claims: rows (better, worse), and in what: a dimension or `gap`.
    seeds: of the experts, see `difference`."""
    rng, low = np.random.default_rng(0), scores[baseline]
    measures = {d: (lambda one, clips, d=d: float(one[d][:, clips].mean())) for d in DIMENSIONS}
    measures["gap"] = lambda one, clips: gap(one, low, real, clips)
    every = np.arange(low["ls"].shape[1])
    table = {
        "real": {"label": "real clips through the codec", "seeds": 1}
        | {d: {"mean": measures[d](real, every)} for d in DIMENSIONS}
    }
    for row in rows:
        own = scores[row.name]
        told = {name: {"mean": measure(own, every)} for name, measure in measures.items()}
        if row.name != baseline:
            for name, measure in measures.items():
                told[name]["minus_baseline"] = difference(own, low, measure, rng, seeds)
            told["gap"]["seeds"] = [
                measures["gap"]({d: own[d][n : n + 1] for d in DIMENSIONS}, every) for n in range(len(row.versions))
            ]
        table[row.name] = {"label": row.label, "seeds": len(row.versions), **told}
    found = []
    labels = {row.name: row.label for row in rows}
    for better, worse, where in claims:
        if better in scores and worse in scores:
            interval = difference(scores[better], scores[worse], measures[where], rng, seeds)
            text = f"{labels[better]} > {labels[worse]}, {NAMES.get(where, where)}"
            found.append({"claim": text, "difference": interval, "standing": standing(interval)})
    return {"rows": table, "claims": found}


def markdown(result: dict) -> str:
    """The table and the claims."""
    lines = ["| method | seeds | " + " | ".join(NAMES.values()) + " | gap |", "|---|---|" + "---|" * (len(NAMES) + 1)]
    for row in result["rows"].values():
        cells = [_cell(row[d], digits) for d, digits in zip(NAMES, (3, 3, 2), strict=True)]
        lines.append(
            f"| {row['label']} | {row['seeds']} | "
            + " | ".join(cells)
            + f" | {_cell(row['gap'], 3) if 'gap' in row else ''} |"
        )
    lines += ["", "| claim | difference | |", "|---|---|---|"]
    for one in result["claims"]:
        lines.append(
            "| {} | {:+.3f} [{:+.3f}, {:+.3f}] | {} |".format(one["claim"], *one["difference"], one["standing"])
        )
    if result.get("headroom"):
        lines += ["", *_headroom(result["headroom"])]
    return "\n".join(lines) + "\n"


def _headroom(fits: Sequence[dict]) -> list[str]:
    """What weights may gain that depend on the timestep, on the block, on both: the mean over the seeds' fits, and
    each of these with its interval over inputs."""
    lines = ["| best weights that depend on | over the best constant, mean z | by seed |", "|---|---|---|"]
    for name in ("timestep", "block", "both"):
        told = [(one[name]["over_constant"], *one[name]["over_constant_95"]) for one in fits]
        mean = sum(value for value, *_ in told) / len(told)
        lines.append(
            f"| {name} | {mean:+.3f} | " + ", ".join("{:+.3f} [{:+.3f}, {:+.3f}]".format(*one) for one in told) + " |"
        )
    return lines


def _cell(told: dict, digits: int) -> str:
    if "minus_baseline" not in told:
        return f"{told['mean']:.{digits}f}"
    _, low, high = told["minus_baseline"]
    return f"{told['mean']:.{digits}f} ([{low:+.{digits}f}, {high:+.{digits}f}])"


def plot(result: dict, path: Path) -> None:
    """A bar of the gap for every row, with its interval."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"].values() if "minus_baseline" in row.get("gap", {})]
    figure = Figure(figsize=(8, 0.34 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        told, low, high = row["gap"]["minus_baseline"]
        axes.barh(place, told, color="#5b8def")
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.plot(row["gap"]["seeds"], [place] * len(row["gap"]["seeds"]), "o", color="#222", markersize=3, alpha=0.5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
    axes.set_xlabel("share of the way from the baseline to real clips,\nmean of three scores (dots: seeds)")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)


def write_report(result: dict, settings: dict, out: Path, name: str) -> None:
    """NAME.md, NAME.json and NAME.png in `out`."""
    write_json(out / f"{name}.json", {"settings": settings, **result})
    with replacing(out / f"{name}.md") as beside:
        beside.write_text(markdown(result), "utf-8")
    plot(result, out / f"{name}.png")
    print(json.dumps(settings))
    print(markdown(result))
