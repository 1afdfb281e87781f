"""train.gate fit: a surface that is known is found again, and its headroom; the gate it writes; what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_experts import random_bank

from fantasy_core.expert_files import load_expert, save_expert
from fantasy_core.gate_files import load_gate
from fantasy_core.miniature import load_components
from train import gate as gate_stage
from train import miniature
from train.gate_fit import Surface, headroom, spread_of, within

SHAPE = (2, 2, 2)  # timesteps, blocks, experts
BEST = np.array([[[0.5, 1.0], [1.5, 2.0]], [[1.0, 0.5], [2.0, 1.5]]])


def rollouts(inputs: int, each: int, noise: float = 0.0):
    """Weights in 0..2 and scores: an input's own level, less |x - BEST|^2."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 2, (inputs * each, BEST.size))
    numbers = np.repeat(np.arange(inputs), each)
    level = 100 * rng.standard_normal(inputs)[numbers]
    return x, level - np.square(x - BEST.ravel()).sum(1) + noise * rng.standard_normal(len(x)), numbers


def test_a_known_surface_is_found_again():
    """A parabola is a quadratic: its top is found to the ridge's bias, in spite of inputs a hundred times as far apart
    as it is high."""
    x, y, inputs = rollouts(30, 8)
    surface = Surface(x, y, inputs, 1e-6)
    assert surface.best(np.eye(8), 2.5, np.random.default_rng(0)) == pytest.approx(BEST.ravel(), abs=1e-3)
    assert within(surface(x)[:, None], inputs)[:, 0] == pytest.approx(within(y[:, None], inputs)[:, 0], abs=1e-3)


def test_classes_of_tables_and_their_headroom():
    """The top of a class is the mean of BEST over what the class cannot tell apart. What is lost there is the sum of
    squares of BEST around these means: constant 8 * 0.3125 = 2.5 (both experts have 0.5, 1, 1.5, 2 in some order, with
    a variance of 0.3125 around 1.25); by timestep, four pairs that differ by 1: 4 * 2 * 0.25 = 2; by block, four that
    differ by 0.5: 4 * 2 * 0.0625 = 0.5; both 0. Weights of 1 lose 0.25 + 0 + 0.25 + 1 = 1.5 in each expert, so 3."""
    x, y, inputs = rollouts(40, 8)
    told = headroom(x, y, inputs, SHAPE, 1e-6, 2.5, np.random.default_rng(0))
    lost = {"constant": 2.5, "timestep": 2.0, "block": 0.5, "both": 0.0}
    for name, value in lost.items():
        assert told[name]["over_sum"] == pytest.approx(3 - value, abs=1e-2), name
        assert told[name]["over_constant"] == pytest.approx(2.5 - value, abs=1e-2), name


def test_without_an_effect_there_is_no_headroom():
    """Scores of noise alone: on inputs that it was not fitted to, the best table is worth nothing, on average over
    eight draws, although it looks good where it was fitted."""
    found, seen = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, inputs = rng.uniform(0, 2, (320, 8)), np.repeat(np.arange(40), 8)
        y = rng.standard_normal(320)
        found.append(headroom(x, y, inputs, SHAPE, 10.0, 2.0, rng)["both"]["over_sum"])
        surface = Surface(x, y, inputs, 10.0)
        best = surface.best(np.eye(8), 2.0, rng)
        seen.append(float(surface(best[None])[0] - surface(np.ones((1, 8)))[0]))
    assert min(seen) > 0.3 and abs(np.mean(found)) < np.mean(seen) / 3


def test_spreads_say_which_cells_share_a_weight():
    both = spread_of((1, 2, 2), False, True) @ np.array([1.0, 2, 3, 4])
    assert both.tolist() == [1, 2, 3, 4]
    assert (spread_of((2, 1, 2), False, False) @ np.array([1.0, 2])).tolist() == [1, 2, 1, 2]
    assert (spread_of((2, 2, 1), True, False) @ np.array([1.0, 2])).tolist() == [1, 1, 2, 2]


# ---- the command ----


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> dict[str, Path]:
    """Two small random experts of the miniature."""
    folder = tmp_path_factory.mktemp("experts")
    with load_components().dit() as dit:
        bank = random_bank(dit, ranks=(2, 2), names=("one", "two"))
    for name in bank.names:
        save_expert(folder / f"{name}.safetensors", bank.expert(name))
    return {name: folder / f"{name}.safetensors" for name in bank.names}


def written(folder: Path, files: dict[str, Path], **changed) -> list[str]:
    """Rollouts of the known surface in files, and the command's arguments."""
    x, y, inputs = rollouts(40, 8)
    told = {"experts": ["one", "two"], "times": [600.0], "blocks": [1]} | changed
    lines = [
        {"video": str(n), "input": str(i), "weights": row.reshape(SHAPE).tolist(), **told}
        for n, (row, i) in enumerate(zip(x, inputs, strict=True))
    ]
    scores = [{"video": str(n)} | dict.fromkeys(("z_mn", "z_ls", "z_vq"), value) for n, value in enumerate(y)]
    for name, rows in (("rollouts", lines), ("scores", scores)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [f"{name}={path}" for name, path in files.items()]
    told = ["--rollouts", f"{folder}/rollouts.jsonl", "--scores", f"{folder}/scores.jsonl", "--out", f"{folder}/fit"]
    return ["fit", *told, "--expert", *named, "--model", "miniature"]


def test_the_best_table_is_written_as_a_gate(experts, tmp_path):
    assert gate_stage.main([*written(tmp_path, experts), "--resampled", "2"]) == 0
    gate = load_gate(
        tmp_path / "fit" / "gate.safetensors", hashes={name: load_expert(path).hash for name, path in experts.items()}
    )
    w = gate(None, torch.tensor([1000.0, 600.0, 599.0, 0.0]))[:, :, 0]  # [4, J, 2]
    for row, t in enumerate((0, 0, 1, 1)):
        assert w[row, 0].tolist() == pytest.approx(BEST[t, 0].tolist(), abs=0.05)
        assert w[row, 1].tolist() == w[row, -1].tolist() == pytest.approx(BEST[t, 1].tolist(), abs=0.05)
    told = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert told["headroom"]["both"]["over_constant"] == pytest.approx(2.5, abs=0.2)
    low, high = told["headroom"]["both"]["over_constant_95"]
    assert low <= high


def test_what_does_not_fit(experts, tmp_path, capsys):
    arguments = written(tmp_path, experts, experts=["two", "one"])
    assert gate_stage.main([*arguments, "--dry-run"]) == 2
    assert "not the experts of the rollouts" in capsys.readouterr().err
    arguments = written(tmp_path, experts)
    (tmp_path / "scores.jsonl").write_text('{"video": "0", "z_mn": 1, "z_ls": 1, "z_vq": 1}\n')
    assert gate_stage.main([*arguments, "--dry-run"]) == 2
    assert "319 without a score" in capsys.readouterr().err
    assert not (tmp_path / "fit").exists()


def test_the_miniature_makes_rollouts(experts, tmp_path):
    """Two inputs, eight videos each, every one under weights of its own; another table, another score."""
    files = [f"{name}={path}" for name, path in experts.items()]
    told = ["--stage", "rollouts", "--out", str(tmp_path), "--clips", "2", "--frames", "5", "--expert", *files]
    assert miniature.main(told) == 0
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and len({str(row["weights"]) for row in rows}) == 16
    assert np.shape(rows[0]["weights"]) == (2, 2, 2) and rows[0]["experts"] == ["one", "two"]
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len({row["z_vq"] for row in scores}) == 16
