"""Gradients through attached experts, with and without activation checkpointing, and torch.compile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from eq4 import random_gate
from small_dits import TINY, inputs, random_dit, without_audio
from small_experts import random_bank
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import CheckpointError

from fantasy_core.fusion import attach, host_of

SMALL = replace(without_audio(TINY), clip_dim=0, in_dim=16, num_layers=2)
ADDRESS = "blocks.0.ffn.0"


def trainee(granularity: str = "block"):
    """A frozen DiT, a frozen bank, and a gate to train."""
    dit = random_dit(SMALL).requires_grad_(False)
    bank = random_bank(dit)
    return dit, bank, random_gate(dit, bank, granularity)


def losses(dit, *timesteps: float) -> list[torch.Tensor]:
    """One squared mean of the output for each timestep."""
    given = inputs(SMALL, 1)
    return [dit(**given | {"timestep": torch.tensor([t])}).square().mean() for t in timesteps]


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("batch", [1, 2])
def test_gradcheck(batch):
    """One linear in fp64, weights for all samples or for each: d/dx, d/dw, d/dA and d/dB by finite differences."""
    dit = random_dit(SMALL).requires_grad_(False).double()
    bank = random_bank(dit, (2, 1), ("mn", "ls"), linears=("ffn.0",), scale=0.5).double()
    rows, linear = bank.rows[ADDRESS].requires_grad_(True), host_of(dit).linears[ADDRESS]
    w = torch.randn(batch, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(batch, 3, TINY.dim, dtype=torch.float64, requires_grad=True)
    with attach(dit, bank, lambda t_emb, timestep: w) as attached:

        def run(w, x, down, up):  # the same tensors that gate and bank hold
            attached.weigh(torch.zeros(batch, TINY.dim), torch.zeros(batch))
            return linear(x)[..., :4]

        assert torch.autograd.gradcheck(run, (w, x, rows.down, rows.up), fast_mode=True)
        assert attached.chosen[ADDRESS] == ("stacked", "gradients are recorded")


@pytest.mark.parametrize("granularity", ["block", "module"])
def test_gradients_reach_the_gate_alone(granularity):
    """Stacked gradients are those of the definition; base and bank, which are frozen, get none."""
    dit, bank, gate = trainee(granularity)
    given, found = inputs(SMALL, 2), {}
    for strategy in ("naive", "auto"):
        gate.zero_grad()
        with attach(dit, bank, gate, strategy) as attached:
            dit(**given).square().mean().backward()
        found[strategy] = gradients(gate)
    for ours, naive in zip(found["auto"], found["naive"], strict=True):
        assert ours.any() and torch.allclose(ours, naive, rtol=1e-3, atol=1e-5 * naive.abs().max())
    assert {choice.strategy for choice in attached.chosen.values()} == {"stacked"}
    assert all(parameter.grad is None for parameter in [*dit.parameters(), *bank.parameters()])


def test_gradients_reach_the_experts_that_are_trained():
    """The gate is given, one linear's rows are trained: the loss falls along their gradient as it says."""
    dit, bank, gate = trainee()
    rows = bank.rows[ADDRESS].requires_grad_(True)
    gate.requires_grad_(False)
    given = inputs(SMALL, 1)
    with attach(dit, bank, gate) as attached:
        loss = dit(**given).square().mean()
        loss.backward()
        stacked = {address for address, choice in attached.chosen.items() if choice.strategy == "stacked"}
        assert ADDRESS in stacked and rows.down.grad.any() and rows.up.grad.any()
        slope = sum(part.grad.square().sum() for part in (rows.down, rows.up))
        step = 1e-3 / slope.sqrt()
        with torch.no_grad():
            for part in (rows.down, rows.up):
                part -= step * part.grad
            fallen = loss - dit(**given).square().mean()
    assert abs(fallen / (step * slope) - 1) < 0.1


def test_merging_where_no_gradient_passes():
    """Frozen gate and experts: gradients are enabled but none is recorded, so that merging is allowed."""
    dit, bank, gate = trainee()
    gate.requires_grad_(False)
    with attach(dit, bank, gate, "merged") as attached:
        assert not losses(dit, 500.0)[0].requires_grad
    assert {choice.strategy for choice in attached.chosen.values()} == {"merged"}


@pytest.mark.parametrize("how", ["blocks", "attention"])
@pytest.mark.parametrize("backward", ["together", "in order", "reversed"])
def test_checkpointing_recomputes_with_the_weights_of_its_own_forward(backward, how):
    """Two forwards at different timesteps before any backward: blocks that are run again see their own weights."""
    found = []
    for checkpointing in ("none", how):
        torch.manual_seed(0)
        dit, bank, gate = trainee()
        dit.checkpointing = checkpointing
        with attach(dit, bank, gate):
            parts = losses(dit, 950.0, 20.0)
            parts = [sum(parts)] if backward == "together" else parts[:: -1 if backward == "reversed" else 1]
            for loss in parts:
                loss.backward()
        found.append(gradients(gate))
    for plain, recomputed in zip(*found, strict=True):
        assert plain.any() and torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-6 * plain.abs().max())


def test_checkpointing_in_diffusers():
    """The same on diffusers' model, whose gradient checkpointing passes the blocks its own way."""
    from test_wan import diffusers_wan

    config, found = replace(SMALL, text_len=512), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = diffusers_wan(random_dit(config)).requires_grad_(False).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        bank = random_bank(model)
        gate = random_gate(model, bank, "block")
        given = inputs(config, 1, text=512)
        with attach(model, bank, gate):
            outputs = [model(given["latents"], torch.tensor([t]), given["text"]).sample for t in (950.0, 20.0)]
            sum(output.square().mean() for output in outputs).backward()
        found.append(gradients(gate))
    for plain, recomputed in zip(*found, strict=True):
        assert plain.any() and torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-6 * plain.abs().max())


def test_recomputing_after_the_context_is_refused_by_torch():
    """Without experts the blocks would compute something else: an error, never another gradient."""
    dit, bank, gate = trainee()
    dit.checkpointing = "blocks"
    with attach(dit, bank, gate):
        (loss,) = losses(dit, 500.0)
    with pytest.raises(CheckpointError):
        loss.backward()


def test_one_graph_over_six_steps():
    """torch.compile, six steps with other weights each, merged and stacked linears: one graph, the eager results.

    The same compiled model knows that the experts came, and that they went.
    """
    dit = random_dit(replace(SMALL, num_layers=1)).requires_grad_(False)
    bank = random_bank(dit, linears=("self_attn.q", "ffn.0"))
    gate, given, counter = random_gate(dit, bank, "block"), inputs(SMALL, 1), CompileCounter()
    torch._dynamo.reset()
    compiled, weights = torch.compile(dit, backend=counter, fullgraph=True), []
    with torch.no_grad():
        with attach(compiled, bank, gate, thresholds={(96, 96): 1.0, (96, 160): 1e9}) as attached:
            for t in (987.0, 800.0, 600.0, 400.0, 200.0, 12.0):
                got = compiled(**given | {"timestep": torch.tensor([t])})
                weights.append(attached.w.clone())
                assert torch.allclose(got, dit(**given | {"timestep": torch.tensor([t])}), atol=1e-6)
            assert counter.frame_count == 1
            assert {choice.strategy for choice in attached.chosen.values()} == {"merged", "stacked"}
        assert len({tuple(w.flatten().tolist()) for w in weights}) == 6
        assert torch.allclose(compiled(**given), dit(**given), atol=1e-6) and counter.frame_count == 2


def test_a_compiled_model_takes_other_sizes():
    """18, 27, 36, 75 video tokens, N* = 96 * 96 / 192 = 48: sizes are symbolic from the second on, and `auto` begins to
    merge where it does without torch.compile."""
    dit = random_dit(replace(SMALL, num_layers=1)).requires_grad_(False)
    bank = random_bank(dit, linears=("self_attn.q",))
    gate, chosen, counter = random_gate(dit, bank, "block"), [], CompileCounter()
    torch._dynamo.reset()
    with torch.no_grad(), attach(dit, bank, gate) as attached:
        compiled = torch.compile(dit, backend=counter)
        for size in ((3, 4, 6), (3, 6, 6), (3, 8, 6), (3, 10, 10)):
            given = inputs(SMALL, 1, size=size)
            got = compiled(**given)
            chosen.append(attached.chosen["blocks.0.self_attn.q"].strategy)
            assert torch.allclose(got, dit(**given), atol=1e-6)
            assert chosen[-1] == attached.chosen["blocks.0.self_attn.q"].strategy
    assert chosen == ["stacked", "stacked", "stacked", "merged"] and counter.frame_count <= 4
