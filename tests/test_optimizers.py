"""8-bit Adam where it cannot run, and checkpoints of quantised moments. With bitsandbytes: unverified on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fantasy_core.errors import UserError
from train.checkpoint import Checkpoint
from train.optimizers import check_optimizer, make_optimizer


def test_8_bit_adam_needs_a_gpu():
    with pytest.raises(UserError, match="device cpu"):
        check_optimizer("adamw8bit", torch.device("cpu"))
    check_optimizer("adamw", torch.device("cpu"))
    assert type(make_optimizer("adamw", [torch.nn.Parameter(torch.ones(2))], lr=1e-3)) is torch.optim.AdamW


class ByteMomentum(torch.optim.Optimizer):
    """SGD whose momentum lives as bitsandbytes' moments do: bytes, a scale for them, and steps as a Python int."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state |= {"step": 0, "state1": torch.zeros_like(p, dtype=torch.uint8), "absmax1": torch.ones(1)}
            moment = (state["state1"].float() / 127.5 - 1) * state["absmax1"] + p.grad
            state["absmax1"] = moment.abs().max().reshape(1)
            state["state1"] = ((moment / state["absmax1"] + 1) * 127.5).round().byte()
            state["step"] += 1
            p -= moment / (1 << state["step"])  # refuses a step that is no int


def test_a_checkpoint_holds_quantised_moments(tmp_path):
    """Four steps in one go, and two, a checkpoint, two: the same weights, bytes and count."""

    def run(first: int, last: int, checkpoint: Checkpoint | None, values: Tensor):
        p = torch.nn.Parameter(values.clone())
        optimizer = ByteMomentum([p])
        if checkpoint:
            assert checkpoint.load([p], optimizer) == first
        for iteration in range(first, last):
            p.grad = torch.linspace(-1, 1, 6) * (iteration + 1) + p.detach()
            optimizer.step()
        return p, optimizer

    checkpoint, start = Checkpoint(tmp_path, {}), torch.linspace(1, 2, 6)
    p, optimizer = run(0, 4, None, start)
    half, state = run(0, 2, None, start)
    checkpoint.save(2, [half], state)
    resumed, again = run(2, 4, checkpoint, torch.zeros(6))
    assert torch.equal(resumed, p) and again.state[resumed]["step"] == 4
    assert torch.equal(again.state[resumed]["state1"], optimizer.state[p]["state1"])
