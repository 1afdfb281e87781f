"""Experts on every kind of host: diffusers' Wan, peft layers, weights stored in fp8, bf16, offloaded blocks."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from eq4 import constant, defined, errors, random_gate, watched
from small_dits import TINY, audio_tokens, inputs, random_dit, without_audio
from small_experts import random_bank
from test_wan import diffusers_wan

from fantasy_core import offload
from fantasy_core.errors import UserError
from fantasy_core.experts import Expert, ExpertBank
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, NAMES, attach, host_of
from fantasy_core.fusion.hosts import weight_format
from fantasy_core.weights import tensors_hash
from fantasy_core.weights.names import to_diffusers

IMAGE = replace(without_audio(TINY), text_len=512)  # 512 text tokens: diffusers tells text and image apart by that
TARGETS = r".*(self_attn|cross_attn)\.(q|k|v|o|k_img|v_img)|.*ffn\.(0|2)"
LINEAR = "blocks.1.self_attn.q"


def pair_of_hosts():
    """A WanDiT and diffusers' Wan with the same weights, a bank for both, and inputs of both."""
    dit = random_dit(IMAGE)
    given = inputs(IMAGE, 1, text=512)
    theirs = torch.cat([given["latents"], given["condition"]], 1), given["timestep"], given["text"], given["clip"]
    return dit, diffusers_wan(dit), random_bank(dit, scale=0.5), given, theirs


def with_peft(dit, experts: list[Expert], alpha: float):
    """A copy of the DiT with real peft adapters, alpha/r as given, all active."""
    from peft import LoraConfig, inject_adapter_in_model

    model = deepcopy(dit)
    for expert in experts:
        rank = next(iter(expert.pairs.values())).rank
        config = LoraConfig(r=rank, lora_alpha=alpha * rank, target_modules=TARGETS)
        inject_adapter_in_model(config, model, expert.name)
        for address, linear in host_of(model).linears.items():
            linear.lora_A[expert.name].weight.data = expert.pairs[address].A.clone()
            linear.lora_B[expert.name].weight.data = expert.pairs[address].B.clone()
    for linear in host_of(model).linears.values():
        linear.set_adapter([expert.name for expert in experts])
    return model.eval()


@pytest.mark.parametrize("strategy", NAMES)
@torch.no_grad()
def test_both_hosts_agree(strategy):
    """The same bank and gate on WanDiT and on diffusers' model: within 5e-5 of an output of std 1, as without them."""
    dit, theirs, bank, given, args = pair_of_hosts()
    gate = random_gate(dit, bank)
    with attach(dit, bank, gate, "naive") as ours:
        expected = dit(**given)
    with watched(theirs) as seen, attach(theirs, bank, gate, strategy) as attached:
        got = theirs(*args).sample
        named = dict(zip(("hidden_states", "timestep", "encoder_hidden_states"), args, strict=False))
        tupled = theirs(**named, encoder_hidden_states_image=args[3], return_dict=False)[0]
    assert len(seen) == 24 and max(errors(theirs, bank, attached.w, seen).values()) <= 1e-6
    assert torch.allclose(attached.w, ours.w, atol=1e-5) and attached.evaluations == 2
    assert (got - expected).abs().max() <= 5e-5 < 0.01 < (expected - dit(**given)).abs().max()
    assert torch.equal(got, tupled)


@pytest.mark.parametrize("strategy", ["stacked", "merged"])
@torch.no_grad()
def test_one_expert_alone_is_peft_with_that_adapter(strategy):
    """A gate fixed on expert `ls` is the expert by itself, and what peft makes of it with alpha/r = 1/2."""
    dit, _, bank, given, _ = pair_of_hosts()
    with attach(dit, bank, constant(0, 1, 0), strategy):
        fixed = dit(**given)
    with attach(dit, ExpertBank.stack([bank.expert("ls")], dit), constant(1), strategy):
        alone = dit(**given)
    theirs = with_peft(dit, [bank.expert("ls")], 0.5)(**given)
    size = (theirs - dit(**given)).abs().max()
    assert (fixed - alone).abs().max() <= 1e-4 * size and (fixed - theirs).abs().max() <= 1e-4 * size
    assert size > 0.01


@torch.no_grad()
def test_constant_weights_are_diffusers_adapter_weights():
    """Three experts loaded into diffusers' model by `load_lora_adapter`, weighed 0.3, 0.5, 0.2 by `set_adapters`."""
    dit, theirs, _, given, args = pair_of_hosts()
    bank = random_bank(dit)  # alpha = r, as in our files
    with attach(dit, bank, constant(0.3, 0.5, 0.2), "merged"):
        ours = dit(**given)
    for name in bank.names:
        state = {}
        for address, pair in bank.expert(name).pairs.items():
            prefix = "transformer." + to_diffusers(address)
            state |= {f"{prefix}.lora_A.weight": pair.A.clone(), f"{prefix}.lora_B.weight": pair.B.clone()}
        theirs.load_lora_adapter(state, prefix="transformer", adapter_name=name)
    theirs.set_adapters(list(bank.names), [0.3, 0.5, 0.2])
    assert (theirs(*args).sample - ours).abs().max() <= 5e-5


@pytest.mark.parametrize("strategy", ["auto", "naive", "stacked"])
@torch.no_grad()
def test_experts_are_added_to_what_peft_computes(strategy):
    """On a model with a peft adapter of its own the bank comes on top: together they are one bank of four experts."""
    dit, _, bank, given, _ = pair_of_hosts()
    fourth = random_bank(dit, (3,), ("style",), seed=9, scale=0.5).expert("style")
    model = with_peft(dit, [fourth], 0.5)
    assert weight_format(host_of(model).linears[LINEAR]) == "own"
    with attach(dit, ExpertBank.stack([*map(bank.expert, bank.names), fourth], dit), constant(0.3, 0.5, 0.2, 1)):
        expected = dit(**given)
    with attach(model, bank, constant(0.3, 0.5, 0.2), strategy) as attached:
        assert torch.allclose(model(**given), expected, atol=2e-5)
    assert attached.chosen[LINEAR].strategy == ("naive" if strategy == "naive" else "stacked")


def test_fused_projections_are_refused():
    _, theirs, bank, _, _ = pair_of_hosts()
    theirs.fuse_qkv_projections()
    with pytest.raises(UserError, match=r"fused projections in blocks.0.attn1"):
        host_of(theirs)
    theirs.unfuse_qkv_projections()
    with attach(theirs, bank, constant(1, 1, 1)):
        pass


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fp8_weights_are_dequantised_and_never_requantised(strategy, dtype):
    """Weights kept in fp8 run as their exact values in the model's dtype do, and are the same bytes afterwards."""
    dit = random_dit(TINY).to(dtype)
    bank = random_bank(dit, linears=LINEARS + AUDIO_LINEARS)
    stored = deepcopy(dit)
    for address, linear in host_of(stored).linears.items():
        linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
        host_of(dit).linears[address].weight.data = linear.weight.data.to(dtype)
    before, given, audio = tensors_hash(stored.state_dict()), inputs(TINY, 1), audio_tokens(TINY, 1)
    gate = random_gate(dit, bank)
    with attach(stored, bank, gate, strategy) as attached:
        got = stored(**given, audio=audio)
    with attach(dit, bank, gate, strategy):
        assert torch.equal(got, dit(**given, audio=audio))
    assert tensors_hash(stored.state_dict()) == before
    assert strategy != "merged" or {choice.strategy for choice in attached.chosen.values()} == {"merged"}
    assert strategy != "auto" or "dequantised first" in attached.chosen["blocks.0.cross_attn.k_img"].why


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
@torch.no_grad()
def test_layerwise_casting_of_diffusers(storage):
    """Its stored weights are merged as they are; outside of it, another wrapper's linear keeps its own forward."""
    dit, theirs, bank, _, args = pair_of_hosts()
    theirs.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    linear = host_of(theirs).linears[LINEAR]
    assert linear.weight.dtype == storage and weight_format(linear) in ("stored", "float")
    plain = diffusers_wan(dit)
    plain.load_state_dict({name: tensor.float() for name, tensor in theirs.state_dict().items()})
    gate, before, base = random_gate(dit, bank), tensors_hash(theirs.state_dict()), theirs(*args).sample
    for strategy in ("merged", "stacked", "naive"):
        with attach(theirs, bank, gate, strategy) as attached:
            got = theirs(*args).sample
        with attach(plain, bank, gate, strategy):
            assert torch.equal(got, plain(*args).sample)
        assert attached.chosen[LINEAR].strategy == strategy
    assert tensors_hash(theirs.state_dict()) == before and torch.equal(theirs(*args).sample, base)
    with attach(theirs, bank, gate, "merged"):
        assert weight_format(linear) == "own"  # a second context adds to the first
    assert weight_format(linear) != "own"


@torch.no_grad()
def test_bf16_loses_less_than_eq_4_taken_literally():
    """All linears of a bf16 model with their bf16 inputs, rms error over that of rounding the exact output (the floor):
    merged and stacked round twice, sqrt(2) = 1.41 of it, `naive` once more for every expert."""
    dit = random_dit(TINY).bfloat16()
    bank = random_bank(dit, linears=LINEARS + AUDIO_LINEARS).place("cpu", torch.bfloat16)
    loss, linears = {}, host_of(dit).linears
    for strategy in ("naive", "stacked", "merged"):
        with watched(dit) as seen, attach(dit, bank, random_gate(dit, bank), strategy) as attached:
            dit(**inputs(TINY, 1), audio=audio_tokens(TINY, 1))
        ratios = []
        for address, (x, y) in seen.items():
            exact = defined(linears[address], x, bank, address, attached.w)
            ratios.append(((y - exact).square().mean() / (exact.bfloat16() - exact).square().mean()).item())
        assert len(ratios) == 28
        loss[strategy] = (sum(ratios) / len(ratios)) ** 0.5
    assert loss["merged"] <= 1.5 and loss["stacked"] <= 1.5 and max(loss["merged"], loss["stacked"]) < loss["naive"], (
        loss
    )


@pytest.mark.parametrize("order", ["offload outside", "offload inside"])
@pytest.mark.parametrize("strategy", ["merged", "stacked"])
@torch.inference_mode()
def test_offloaded_blocks(order, strategy):
    """Blocks that pass through two slots, with experts hung on before or after: bit for bit what resident ones do."""
    dit = random_dit(replace(TINY, num_layers=3)).bfloat16()
    bank = random_bank(dit, linears=LINEARS + AUDIO_LINEARS)
    gate, given, audio = random_gate(dit, bank), inputs(TINY, 1), audio_tokens(TINY, 1)
    with attach(dit, bank, gate, strategy):
        expected = dit(**given, audio=audio)
    before, contexts = tensors_hash(dit.state_dict()), [offload.blocks(dit, "cpu"), attach(dit, bank, gate, strategy)]
    with ExitStack() as stack:
        for context in contexts if order == "offload outside" else reversed(contexts):
            stack.enter_context(context)
        assert torch.equal(dit(**given, audio=audio), expected) and torch.equal(dit(**given, audio=audio), expected)
    assert tensors_hash(dit.state_dict()) == before
    assert not torch.equal(dit(**given, audio=audio), expected)
