"""The table's chain at its smallest (what must hold whatever is learnt, not who wins), and its statistics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fantasy_core.experts import load_expert
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_report import difference, gap, standing
from train.miniature_rows import RANKS, Size
from train.miniature_table import make_table

SMALL = Size(
    9,
    3,
    3,
    0,
    seeds=1,
    gate_seeds=2,
    iterations=1,
    gate_iterations=1,
    clips=3,
    margin=0,
    mean_margin=0,
    mined_margin=0,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("table")
    return out, make_table(out, split="validation", full=False, size=SMALL)


def test_the_whole_chain_ends_in_a_table(table):
    out, result = table
    told = result["rows"]
    assert list(told)[:2] == ["real", "baseline"] and told["tlpo"]["seeds"] == 2
    assert told["baseline"]["gap"]["mean"] == 0
    for name, row in told.items():
        assert all(np.isfinite(row[d]["mean"]) for d in DIMENSIONS), name
    assert len(told["tlpo"]["gap"]["seeds"]) == 2
    assert {one["standing"] for one in result["claims"]} <= {"holds", "does not hold", "not distinguishable"}
    assert json.loads((out / "table_validation.json").read_text())["settings"]["clips"] == "3"
    text = (out / "table_validation.md").read_text()
    assert all(row["label"] in text for row in told.values())
    for name in ("table_validation", "gate_tlpo", "gate_tlpo_printed"):
        assert (out / f"{name}.png").stat().st_size > 5000


def test_made_again_the_table_is_the_same_and_nothing_is_sampled(table):
    out, result = table
    times = {file: file.stat().st_mtime_ns for file in out.glob("scores_validation/*")}
    again = make_table(out, split="validation", full=False, size=SMALL)
    assert again == result
    assert times == {file: file.stat().st_mtime_ns for file in out.glob("scores_validation/*")}


@pytest.mark.slow
def test_with_its_ablations(table):
    """From the same folder: IPO, SimPO, gates of other kinds and ranks, experts in a part of the steps or blocks are
    rows too, and what was there stays as it was. (A schedule is fitted to 200 rollouts, too many for a test.)"""
    out, plain = table
    before = {file: file.read_bytes() for file in out.glob("*-0/*.safetensors")}
    rows = make_table(out, split="validation", full=True, size=SMALL)["rows"]
    added = rows.keys() - plain["rows"].keys()
    assert {"ipo", "simpo", "tlpo_softmax", "tlpo_module_level", "ls_late_steps", "vq_first_blocks"} <= added
    assert {f"tlpo_rank{rank}" for rank in RANKS} <= added and rows["tlpo"] == plain["rows"]["tlpo"]
    assert all(np.isfinite(row[d]["mean"]) for row in rows.values() for d in DIMENSIONS)
    assert all(file.read_bytes() == content for file, content in before.items())
    held = load_expert(out / "mn_rank4-0" / "mn.safetensors")
    assert {pair.rank for pair in held.pairs.values()} == {4}


# ---- statistics ----


def flat(value: float, seeds: int = 2, clips: int = 8) -> dict:
    return {d: np.full((seeds, clips), value) for d in DIMENSIONS}


def test_the_gap_is_the_share_of_the_way_to_real_clips():
    """From 1 to 3 the value 2 is half the way; in one dimension 3 and two unmoved it is (1 + 0 + 0) / 3."""
    base, real, clips = flat(1), flat(3), np.arange(8)
    assert gap(flat(2), base, real, clips) == pytest.approx(0.5)
    assert gap(flat(1) | {"ls": flat(3)["ls"]}, base, real, clips) == pytest.approx(1 / 3)


def test_differences_are_paired_by_clip():
    """Clips that differ by far more than the rows do: paired, a constant difference of 0.1 has no spread at all; and
    between rows that differ in one clip of eight by 8, the interval of the mean (1) reaches zero."""
    rng, mean = np.random.default_rng(0), lambda one, clips: float(one["ls"][:, clips].mean())
    hard = {"ls": np.tile(np.arange(8.0) * 10, (2, 1))}
    told = difference({"ls": hard["ls"] + 0.1}, hard, mean, rng)
    assert told == pytest.approx((0.1, 0.1, 0.1)) and standing(told) == "holds"
    one = hard["ls"].copy()
    one[:, 3] += 8
    told = difference({"ls": one}, hard, mean, rng)
    assert told[0] == pytest.approx(1) and told[1] == 0 and standing(told) == "not distinguishable"
    assert standing(difference(hard, {"ls": hard["ls"] + 0.1}, mean, rng)) == "does not hold"


def test_seeds_widen_the_interval():
    """Two seeds, 0 and 2 on every clip: a resample of both has a mean of 0, 1 or 2, with chances 1/4, 1/2, 1/4."""
    mean = lambda one, clips: float(one["ls"][:, clips].mean())  # noqa: E731
    two = {"ls": np.array([[0.0] * 8, [2.0] * 8])}
    assert difference(two, {"ls": np.zeros((1, 8))}, mean, np.random.default_rng(0)) == pytest.approx((1, 0, 2))


def test_differences_are_paired_by_seed():
    """Seeds that differ by far more than the rows do: 0.1 on every seed and clip has no spread. So it is where gates
    of five seeds stand over experts of three (0, 1, 2, 0, 1), whose levels they have, against the experts themselves:
    0.1 but for the weights of the levels 0, 1, 2, of which five gates have two of 0, two of 1 and one of 2 (mean 0.8),
    and the experts one each (mean 1)."""
    mean, rng = lambda one, clips: float(one["ls"][:, clips].mean()), np.random.default_rng(0)  # noqa: E731
    experts = {"ls": np.arange(3.0)[:, None].repeat(8, 1)}
    assert difference({"ls": experts["ls"] + 0.1}, experts, mean, rng, 3) == pytest.approx((0.1, 0.1, 0.1))
    gates = {"ls": np.array([0.0, 1, 2, 0, 1])[:, None].repeat(8, 1)}
    assert difference({"ls": gates["ls"] + 0.1}, gates, mean, rng, 3) == pytest.approx((0.1, 0.1, 0.1))
    told, low, high = difference({"ls": gates["ls"] + 0.1}, experts, mean, rng, 3)
    assert told == pytest.approx(0.8 + 0.1 - 1)
    # Drawn seeds 0, 2, 2: levels 0 0 2 2 against 0 2 2, a third less; without a 2 both weigh alike. None is outside.
    assert (low, high) == pytest.approx((0.1 - 1 / 3, 0.1))
