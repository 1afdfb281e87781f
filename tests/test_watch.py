"""What a run tells about itself: held-out pairs at nine noise levels, the gate's statistics, warnings."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_train_preferences import data, expert_arguments, gate_arguments  # noqa: F401 (a fixture)

from fantasy_core.gate import FusionGate
from fantasy_core.pair_rules import Pair
from fantasy_core.preference import Objective
from train import expert as expert_stage
from train import gate as gate_stage
from train.errors import draw_sigma
from train.run import write_rows
from train.watch import WINDOW, Watch, gate_statistics, sigma_quantiles


@pytest.mark.parametrize("distribution", ["logit-normal", "uniform"])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_tenth_of_the_draws_lies_between_two_quantiles(distribution, shift):
    """Of 2000 draws, 200 in each of ten bins within five binomial deviations (13.4); the median is shift / (1 +
    shift): shift x / (1 + (shift - 1) x) at x = 1/2."""
    edges = sigma_quantiles(distribution, shift)
    assert edges == sorted(edges) and edges[4] == pytest.approx(shift / (1 + shift))
    draws = torch.tensor([draw_sigma(7, index, distribution, shift) for index in range(2000)], dtype=torch.float64)
    counts = torch.bincount(torch.searchsorted(torch.tensor(edges, dtype=torch.float64), draws), minlength=10)
    assert (counts - 200).abs().max() < 5 * math.sqrt(2000 * 0.1 * 0.9)


@pytest.fixture(scope="module")
def split_pairs(data, tmp_path_factory):  # noqa: F811
    """Input 0 to train on, input 1 held out; and the same pair held out the wrong way round."""
    folder = tmp_path_factory.mktemp("split")
    trained = Pair("v0", "v1", "i0", "mn", 1.0, "train")
    write_rows(folder / "pairs.jsonl", [trained, Pair("v2", "v3", "i1", "mn", 1.0, "validation")])
    write_rows(folder / "turned.jsonl", [trained, Pair("v3", "v2", "i1", "mn", 1.0, "validation")])
    return folder


def run_on(pairs, data, out, **settings) -> list[dict]:  # noqa: F811
    arguments = expert_arguments(data, out, "mn", **{"held-out-every": 2, "iterations": 3, **settings})
    arguments[arguments.index("--pairs") + 1] = str(pairs)
    assert expert_stage.main(arguments) == 0
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_held_out_pairs_are_measured_and_never_trained_on(data, split_pairs, tmp_path):  # noqa: F811
    """Every second iteration and at the end; nine margins. Turned round, the held-out pair has the opposite margins,
    bit for bit, and training is the same: it has no part in it. Looking changes nothing either."""
    straight = run_on(split_pairs / "pairs.jsonl", data, tmp_path / "a")
    turned = run_on(split_pairs / "turned.jsonl", data, tmp_path / "b")
    unseen = run_on(split_pairs / "pairs.jsonl", data, tmp_path / "c", **{"held-out-every": 0})
    assert ["held_out_margin" in row for row in straight] == [False, True, True]
    assert not any("held_out_margin" in row for row in unseen)
    margins, opposite = straight[-1]["held_out_margin"], turned[-1]["held_out_margin"]
    assert len(margins) == 9 and any(margins) and margins == [-m for m in opposite]
    assert straight[-1]["held_out_accuracy"] == [float(m > 0) for m in margins]
    assert [row["loss"] for row in straight] == [row["loss"] for row in turned] == [row["loss"] for row in unseen]


def test_resumed_the_held_out_margins_are_the_same(data, split_pairs, tmp_path):  # noqa: F811
    whole = run_on(split_pairs / "pairs.jsonl", data, tmp_path / "whole")
    run_on(split_pairs / "pairs.jsonl", data, tmp_path / "parts", iterations=2)
    parts = run_on(split_pairs / "pairs.jsonl", data, tmp_path / "parts")
    assert parts[-1]["held_out_margin"] == whole[-1]["held_out_margin"]


def test_without_held_out_pairs_a_word_is_said(data, tmp_path, capsys):  # noqa: F811
    run_on(data / "pairs_mn.jsonl", data, tmp_path / "run", iterations=1)
    assert "no pairs of split 'validation'" in capsys.readouterr().out


def test_the_gate_tells_its_weights(data, tmp_path):  # noqa: F811
    """Two experts from 1/2 each; AdamW moves b by its rate an iteration, W more slowly in effect: `moved` is small and
    grows, and the mean weights stay between the extremes."""
    for name in ("one", "two"):
        arguments = expert_arguments(data, tmp_path / name, "mn", iterations=1, seed=len(name), lr=1e-2)
        assert expert_stage.main(arguments) == 0
    arguments = gate_arguments(data, tmp_path / "gate", tmp_path / "one" / "mn.safetensors", lr=1e-2)
    arguments[arguments.index("--expert") + 2] = f"two={tmp_path}/two/mn.safetensors"
    assert gate_stage.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "gate" / "log.jsonl").read_text().splitlines()]
    moved = [row["moved"] for row in rows]
    assert 0 < moved[0] < moved[-1] < 0.5
    assert all(row["weight_min"] <= min(row["weight_one"], row["weight_two"]) for row in rows)
    assert all(row["weight_max"] >= max(row["weight_one"], row["weight_two"]) for row in rows)


def test_statistics_of_a_gate_by_hand():
    """Two blocks, two experts, b of block 0 raised by 0.3 for the first: weights .8 .5 / .5 .5; means .65 and .5, moved
    0.3 in one of four numbers: 0.075."""
    start, gate = (FusionGate(2, 4, 2, timestep=False) for _ in range(2))
    with torch.no_grad():
        gate.bias[0, 0, 0] = 0.3
    told = gate_statistics(gate, start, ("a", "b"), [0.1, 0.9], None)
    expected = {"weight_a": 0.65, "weight_b": 0.5, "weight_min": 0.5, "weight_max": 0.8, "moved": 0.075}
    assert told == pytest.approx(expected)


HEALTHY = {"pull": 0.4, "gain_chosen": 0.01, "margin": 0.02}


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (HEALTHY, None),
        (HEALTHY | {"pull": 0.001}, "saturated"),
        (HEALTHY | {"gain_chosen": -0.01}, "displacement"),
        (HEALTHY | {"moved": 1e-5}, "hardly moved"),
        (HEALTHY | {"moved": 0.1}, None),
    ],
)
def test_warnings_come_once_and_only_where_due(line, word, capsys):
    watch = Watch(Objective("dpo", 1000))
    for _ in range(WINDOW - 1):
        watch(line)
    assert capsys.readouterr().err == ""
    for _ in range(WINDOW):
        watch(line)
    told = capsys.readouterr().err
    assert told.count("warning") == (word is not None) and (word is None or word in told)


def test_simpo_has_no_gains_to_warn_of(capsys):
    watch = Watch(Objective("simpo", 1.0))
    for _ in range(WINDOW):
        watch(HEALTHY | {"gain_chosen": -1.0})
    assert capsys.readouterr().err == ""
