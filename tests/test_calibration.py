"""What a run begins with: told before the first iteration, and SimPO's beta found by it."""

from __future__ import annotations

import json

import pytest
import torch
from test_train_preferences import alone, data, expert_arguments, experts, gate_arguments, log_of  # noqa: F401

from fantasy_core.experts import load_expert
from train import expert as expert_stage
from train import gate as gate_stage


def test_simpo_finds_its_beta_on_the_first_pairs(data, tmp_path, capsys):  # noqa: F811
    """A beta of 0 is the one at which beta/2 (e_rejected - e_chosen) has a standard deviation of 1; it is told, kept,
    and the first loss is that of this beta: the mean of -log sigmoid(beta/2 m - 1/2) over the two pairs."""
    arguments = expert_arguments(
        data, tmp_path / "run", loss="simpo", beta=0, iterations=1, batch=2, **{"calibration-pairs": 2}
    )
    assert expert_stage.main(arguments) == 0
    told = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert f"spread 1 at beta {told['fitting_beta']:.3g}" in capsys.readouterr().out
    beta = float(load_expert(tmp_path / "run" / "ls.safetensors").metadata["tlpo.beta"])
    assert beta == told["fitting_beta"]  # the expert says which it was
    (row,) = log_of(tmp_path / "run")
    assert row["logit_std"] == 0  # each unit is a pair of its own
    # both are margins of the same two pairs under the same draws; the logit takes off gamma, 1/2
    assert row["logit"] == pytest.approx(told["fitting_beta"] / 2 * told["margin"] - 0.5, rel=1e-4)
    logits = torch.tensor([-1.0, 1.0]) + row["logit"]  # two numbers of spread 1 lie at their mean -1 and +1
    expected = -torch.nn.functional.logsigmoid(logits).mean().item()
    assert row["loss"] == pytest.approx(expected, rel=1e-3)


def test_a_gate_tells_what_it_begins_with(data, experts, tmp_path, capsys):  # noqa: F811
    """The margin of its first iteration, under the same draws; a resumed run does not look again."""
    for iterations in (1, 2):
        flags = {"iterations": iterations, "batch": 2, "calibration-pairs": 2}
        assert gate_stage.main(gate_arguments(data, tmp_path / "gate", experts, **flags)) == 0
        told = json.loads((tmp_path / "gate" / "calibration.json").read_text())
        assert told["margin"] == pytest.approx(log_of(tmp_path / "gate")[0]["margin"], rel=1e-4)
    assert told["pairs"] == 2 and "at the start, 2 pairs" in capsys.readouterr().out


def test_a_loss_that_is_saturated_from_the_start_is_told(data, experts, tmp_path, capsys):  # noqa: F811
    """At a beta of 1e12 every pair that the start tells apart rightly has no pull left; whether it does is the pairs'
    affair, so the sign decides what is expected."""
    flags = {"iterations": 1, "batch": 2, "beta": 1e12, "calibration-pairs": 2}
    assert gate_stage.main(gate_arguments(data, tmp_path / "gate", experts, **flags)) == 0
    told = json.loads((tmp_path / "gate" / "calibration.json").read_text())
    assert told["pull"] == pytest.approx(1 - told["accuracy"])
    assert ("is there to begin with" in capsys.readouterr().err) == (told["accuracy"] == 1)


def test_pairs_that_do_not_tell_simpos_beta(data, tmp_path, capsys):  # noqa: F811
    """One pair of videos under one kept noise, seen twice, has no spread."""
    rows = (data / "pairs_ls.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(rows[0] + "\n")
    flags = {"loss": "simpo", "beta": 0, "calibration-pairs": 2, "reference-errors": "cached", "reference-draws": 1}
    arguments = expert_arguments(data, tmp_path / "run", **flags)
    arguments[arguments.index("--pairs") + 1] = str(tmp_path / "one.jsonl")
    assert expert_stage.main(arguments) == 2
    assert "SimPO's beta cannot be found" in capsys.readouterr().err
