"""Preference losses: numbers derived by hand, closed forms in fp64, faults of public code, exact gradients by video.

The example of the first tests: errors of policy 0.010 (chosen) and 0.020 (rejected), of the reference 0.012 and 0.018.
Gains 0.002 and -0.002, margin 0.004; with beta 500 the logit is 500/2 * 0.004 = 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_dits import inputs, random_dit, without_audio
from small_experts import random_bank
from torch import nn

from fantasy_core.errors import UserError
from fantasy_core.flow import draw_noise, velocity_target
from fantasy_core.fusion import attach
from fantasy_core.preference import (
    LOSSES,
    Objective,
    accumulate_gradient,
    flow_dpo,
    ipo,
    simpo,
    simpo_beta,
    video_error,
)
from fantasy_core.wan import PRESETS

EXAMPLE = [torch.tensor([value], dtype=torch.float64) for value in (0.010, 0.020, 0.012, 0.018)]
SOFT = math.log(1 + math.exp(-1))  # -log sigmoid(1) = 0.3133


def test_flow_dpo_by_hand():
    """-log sigmoid(1) = 0.3133; the gradient is beta/2 sigmoid(-1) = 250 * 0.2689 = 67.24 for the chosen error, its
    negative for the rejected one: the chosen error falls, the rejected one rises."""
    chosen, rejected = (EXAMPLE[i].clone().requires_grad_() for i in (0, 1))
    loss, told = flow_dpo(chosen, rejected, *EXAMPLE[2:], beta=500)
    assert loss.item() == pytest.approx(SOFT)
    slopes = [slope.item() for slope in torch.autograd.grad(loss, (chosen, rejected))]
    assert slopes == pytest.approx([250 / (1 + math.e), -250 / (1 + math.e)])
    expected = {"logit": 1.0, "logit_std": 0.0, "margin": 0.004, "accuracy": 1.0, "gain_chosen": 0.002}
    expected |= {"gain_rejected": -0.002, "pull": 1 / (1 + math.e)}
    assert told == pytest.approx(expected)


def test_the_other_losses_by_hand():
    """IPO (1 - 1/2)^2; hinge relu(1 - 1); a tenth of the labels swapped: 0.9 log(1 + e^-1) + 0.1 log(1 + e); SimPO with
    beta 300: 150 * 0.01 - 0.5 = 1; SFT adds a third of the chosen error."""
    assert ipo(*EXAMPLE, beta=500)[0].item() == pytest.approx(0.25)
    assert Objective("hinge", 500)(*EXAMPLE)[0].item() == pytest.approx(0.0, abs=1e-12)
    assert Objective("hinge", 250)(*EXAMPLE)[0].item() == pytest.approx(0.5)
    smooth = Objective("dpo", 500, label_smoothing=0.1)(*EXAMPLE)[0].item()
    assert smooth == pytest.approx(0.9 * SOFT + 0.1 * (SOFT + 1))
    assert simpo(*EXAMPLE[:2], beta=300)[0].item() == pytest.approx(SOFT)
    assert Objective("dpo", 500, sft_weight=1 / 3)(*EXAMPLE)[0].item() == pytest.approx(SOFT + 0.01 / 3)


def test_the_anchor_holds_the_chosen_video():
    """A chosen error 0.003 above the reference's costs 250 * 0.003 = 0.75 with beta 500, and pulls it down with a slope
    of 250 more; one below costs nothing. At weight 1 that exceeds any pull of Eq. 1, which is at most beta/2."""
    plain, anchored = Objective("dpo", 500), Objective("dpo", 500, anchor_weight=1.0)
    assert anchored(*EXAMPLE)[0].item() == plain(*EXAMPLE)[0].item()
    chosen = torch.tensor([0.015], dtype=torch.float64, requires_grad=True)
    rest = [torch.tensor([value], dtype=torch.float64) for value in (0.030, 0.012, 0.018)]
    (one, _), (other, _) = anchored(chosen, *rest), plain(chosen, *rest)
    assert (one - other).item() == pytest.approx(0.75)
    slopes = [torch.autograd.grad(loss, chosen)[0].item() for loss in (one, other)]
    assert slopes[0] - slopes[1] == pytest.approx(250)
    with pytest.raises(UserError, match="no sense"):
        Objective("simpo", 500, anchor_weight=1.0)


def test_at_the_reference_the_loss_is_ln_2():
    """No margin: ln 2, half of the pull is left, slopes beta/4; nothing is counted as right."""
    errors = [torch.tensor([0.3, 0.1], dtype=torch.float64) for _ in range(4)]
    errors[0].requires_grad_()
    loss, told = flow_dpo(*errors[:2], errors[0].detach(), errors[1], beta=5000)
    assert loss.item() == pytest.approx(math.log(2)) and told["pull"] == 0.5 and told["accuracy"] == 0.0
    assert torch.autograd.grad(loss, errors[0])[0].tolist() == pytest.approx([625.0, 625.0])  # 5000/4, mean of two


def test_ipo_has_its_minimum_at_the_margin_of_1_over_beta():
    """And uses its own beta: a public script reads one that does not exist."""
    zero, margins = torch.zeros(1, dtype=torch.float64), torch.linspace(0, 4e-4, 401, dtype=torch.float64)
    losses = torch.stack([ipo(-m[None], zero, zero, zero, beta=5000)[0] for m in margins])
    assert margins[losses.argmin()].item() == pytest.approx(1 / 5000) and losses.min() < 1e-9


@given(
    loss=st.sampled_from(LOSSES),
    errors=st.lists(st.floats(0, 2), min_size=4, max_size=4),
    step=st.floats(1e-4, 0.1),
)
def test_every_loss_falls_with_the_chosen_error(loss, errors, step):
    """And never falls with the rejected one's fall: a public ORPO has the sign the other way round. IPO only below its
    target margin."""
    e = [torch.tensor([value], dtype=torch.float64) for value in errors]
    objective, better = Objective(loss, 0.5), [e[0] - step, *e[1:]]
    before, after = objective(*e)[0], objective(*better)[0]
    if loss == "ipo" and objective(*better)[1]["logit"] > 0.5:
        return
    assert after <= before
    assert objective(e[0], e[1] - step, *e[2:])[0] >= before or loss == "ipo"


def test_simpo_beta_brings_differences_to_a_spread_of_one():
    """Differences 0.1 and 0.3 have standard deviation 0.1: beta / 2 = 10."""
    chosen, rejected = torch.tensor([0.5, 0.25]), torch.tensor([0.6, 0.55])
    assert simpo_beta(chosen, rejected) == pytest.approx(20.0, rel=1e-5)
    with pytest.raises(UserError, match="calibrated"):
        simpo_beta(chosen, chosen + 0.25)


@pytest.mark.parametrize("wrong", [{"loss": "orpo"}, {"beta": 0.0}, {"beta": math.nan}, {"label_smoothing": 0.5}])
def test_objectives_that_do_not_exist(wrong):
    with pytest.raises(UserError, match="no such preference loss"):
        Objective(**wrong)


def test_error_over_the_mask_by_hand():
    """Two channels, one frame, two cells: squared differences 1, 4 | 9, 16. All: 7.5. The first cell alone: (1 + 9) /
    2; a half mask of it is the same, for area is divided out; weights 1 and 1/2: (1 + 9 + (4 + 16) / 2) / (2 * 1.5)."""
    target = torch.zeros(1, 2, 1, 1, 2)
    velocity = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 1, 2)
    for mask, expected in ((None, 7.5), ([1, 1], 7.5), ([1, 0], 5.0), ([0.5, 0], 5.0), ([1, 0.5], 20 / 3)):
        mask = None if mask is None else torch.tensor(mask).float().view(1, 1, 1, 2)
        assert video_error(velocity, target, mask).tolist() == pytest.approx([expected])
    with pytest.raises(UserError, match="empty lip mask"):
        video_error(velocity, target, torch.zeros(1, 1, 1, 2))


def test_error_is_a_mean_in_fp32_by_sample():
    """Not a sum, whose beta would be 2 million times smaller; bf16 velocities are squared in fp32."""
    velocity = torch.full((2, 16, 3, 4, 4), 1.0078125, dtype=torch.bfloat16)  # 1 + 2^-7; its square is 1.0156860
    velocity[1] = 2
    error = video_error(velocity, torch.zeros_like(velocity))
    assert error.dtype == torch.float32 and error.tolist() == pytest.approx([1.0156860, 4.0])
    mask = torch.ones(2, 3, 4, 4)
    assert torch.equal(video_error(velocity, torch.zeros_like(velocity), mask), error)


def test_noise_is_normal():
    """A public trainer drew it uniform in 0..1 and gave the method up as unstable."""
    noise = draw_noise((100_000,), 0)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and noise.min() < -3


# ---- exact gradients, one video at a time ----


class Small(nn.Module):
    """Errors of four videos under one small network, fp64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).double()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.videos, self.targets = torch.randn(2, 4, 6, dtype=torch.float64)
        self.runs = 0

    def error(self, video: int) -> torch.Tensor:
        self.runs += 1
        return (self.net(self.videos[video]) - self.targets[video]).square().mean()

    def joint(self, pairs, objective, reference) -> list[torch.Tensor]:
        """The gradient of the pairs' mean loss by autograd, all graphs at once."""
        errors = torch.stack([self.error(v) for v in range(4)])
        chosen, rejected = torch.tensor(pairs).T
        known = (None, None) if reference is None else (reference[chosen], reference[rejected])
        loss, _ = objective(errors[chosen], errors[rejected], *known)
        return list(torch.autograd.grad(loss, list(self.net.parameters())))


ALL_PAIRS = list(combinations(range(4), 2))


@pytest.mark.parametrize("form", ["buffers", "prepass"])
@pytest.mark.parametrize("pairs", [[(0, 1)], [(2, 0), (2, 3)], ALL_PAIRS], ids=["pair", "two", "group"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_those_of_all_graphs_at_once(loss, pairs, form):
    small, reference = Small(), torch.rand(4, dtype=torch.float64)
    objective = Objective(loss, beta=3.0, label_smoothing=0.1 if loss == "dpo" else 0.0, sft_weight=0.2)
    objective = replace(objective, anchor_weight=0.3 if objective.needs_reference else 0.0)
    reference = reference if objective.needs_reference else None
    expected = small.joint(pairs, objective, reference)
    small.net[0].bias.grad = torch.ones(8, dtype=torch.float64)  # gradients are added to what is there
    small.runs = 0
    loss_value, told, errors = accumulate_gradient(
        small.error, pairs, list(small.parameters()), objective, reference, form=form, weight=0.5
    )
    used = {video for pair in pairs for video in pair}
    assert len(errors) == len(used) and small.runs <= len(used) * (1 if form == "buffers" else 2)
    for parameter, gradient in zip(small.net.parameters(), expected, strict=True):
        before = 1.0 if parameter is small.net[0].bias else 0.0
        assert (parameter.grad - before - 0.5 * gradient).abs().max() < 1e-12
    assert small.unused.grad is None and math.isfinite(loss_value) and set(told) >= {"margin", "pull"}


def test_a_group_is_the_mean_of_its_pairs():
    """Six pairs of four videos at once, against one after another, to 1e-10."""
    group, alone, reference = Small(), Small(), torch.rand(4, dtype=torch.float64)
    loss, _, _ = accumulate_gradient(group.error, ALL_PAIRS, list(group.parameters()), Objective(beta=3.0), reference)
    losses = [
        accumulate_gradient(
            alone.error, [pair], list(alone.parameters()), Objective(beta=3.0), reference, weight=1 / 6
        )[0]
        for pair in ALL_PAIRS
    ]
    assert loss == pytest.approx(sum(losses) / 6, rel=1e-12)
    assert (group.runs, alone.runs) == (4, 12)
    for a, b in zip(group.net.parameters(), alone.net.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-10


def saved_bytes(run) -> int:
    """The most bytes that autograd keeps for backward passes at any moment of `run`."""
    live = {"now": 0, "most": 0}

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            live["now"] += self.size
            live["most"] = max(live["most"], live["now"])

        def __del__(self):
            live["now"] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return live["most"]


def test_experts_on_a_dit_and_half_of_the_activations(record_property):
    """Rank-4 experts on a WanDiT in fp32: a pair one after another has the gradient of the pair at once, and autograd
    keeps half as much at its peak."""
    config = without_audio(PRESETS["tiny"])
    dit = random_dit(config).requires_grad_(False)
    bank = random_bank(dit, ranks=(4,), names=("mn",))
    parameters = [p for name, p in bank.named_parameters() if p.requires_grad_() is p]
    told, target = inputs(config, batch=2), None
    told["timestep"] = torch.full((2,), 600.0)
    noise = torch.randn_like(told["latents"])
    target = velocity_target(told["latents"], noise)

    def gate(t_emb, timestep):
        return torch.ones(len(timestep), config.num_layers, 1, 1)

    gate.names, gate.num_blocks = ("mn",), config.num_layers

    def error(video: int) -> torch.Tensor:
        own = {name: tensor[video : video + 1] for name, tensor in told.items()}
        return video_error(dit(**own), target[video : video + 1])[0]

    objective, reference = Objective(beta=10.0), torch.tensor([1.0, 1.1])

    def joint():
        loss, _ = objective(error(0)[None], error(1)[None], reference[:1], reference[1:])
        loss.backward()

    with attach(dit, bank, gate, "stacked"):
        both = saved_bytes(joint)
        expected = [parameter.grad.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        one = saved_bytes(lambda: accumulate_gradient(error, [(0, 1)], parameters, objective, reference))
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 2e-5 * gradient.abs().max() + 1e-9
    record_property("saved bytes, one after another / at once", one / both)
    assert one < 0.51 * both
