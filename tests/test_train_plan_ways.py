"""What the other ways of training cost: errors that are kept, offloaded blocks, one graph over a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_train_plan import EXPERT, FULL, I2V, MINIATURE
from test_train_preferences import data, expert_arguments  # noqa: F401

from fantasy_core.estimate import told_flops, weight_bytes
from train import expert as expert_stage
from train.cost import Training, memory, reference_work, uniform_ranks, unit_work


def test_other_ways_cost_what_they_save():
    """Errors that are kept in three of four visits leave a quarter of the reference's work; two of 40 blocks on the
    device leave the rest of the base and 2/40 of the blocks; one graph over eight videos has eight times the
    activations and one buffer."""
    live, kept = unit_work(EXPERT, FULL, 2), unit_work(replace(EXPERT, kept=0.75), FULL, 2)
    assert live.flops - kept.flops == pytest.approx(0.75 * 2 * reference_work(EXPERT, FULL).flops)
    resident, offloaded = memory(EXPERT, FULL, 2), memory(replace(EXPERT, offload=True), FULL, 2)
    _, blocks, block = weight_bytes(I2V, torch.bfloat16)
    assert resident.base - offloaded.base == blocks - 2 * block == pytest.approx(blocks * 38 / 40)
    quarter = memory(replace(EXPERT, shards=4), FULL, 2)
    assert resident.base - quarter.base == blocks - blocks // 4 - 2 * block
    joint = memory(replace(EXPERT, form="joint"), FULL, 8)
    assert joint.activations == 8 * resident.activations and joint.buffers == resident.buffers / 2


def test_kept_errors_are_those_of_later_visits(data, tmp_path, capsys):  # noqa: F811
    """Two units with two noises each: four first visits of 21, so that 17/21 of the reference's passes are not run."""
    flags = {"batch": 3, "iterations": 7, "reference-errors": "cached", "reference-draws": 2}
    assert expert_stage.main([*expert_arguments(data, tmp_path / "run", **flags), "--dry-run"]) == 0
    training = Training(MINIATURE, uniform_ranks(MINIATURE, 2), dtype=torch.float32, kept=17 / 21)
    assert f"{told_flops(21 * unit_work(training, (5, 4, 4), 2).flops)} = 7," in capsys.readouterr().out
