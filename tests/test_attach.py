"""Experts on a WanDiT: every strategy is Eq. 4, one gate evaluation a forward, and nothing is left behind."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from eq4 import constant, errors, random_gate, watched
from small_dits import TINY, audio_tokens, inputs, random_dit, without_audio
from small_experts import random_bank

from fantasy_core.errors import UserError
from fantasy_core.experts import ExpertBank
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, NAMES, Tokens, attach, build_plan, host_of
from fantasy_core.gate import FusionGate
from fantasy_core.weights import tensors_hash

ALL = LINEARS + AUDIO_LINEARS
SMALL = replace(without_audio(TINY), clip_dim=0, in_dim=16)  # text to video: 10 linears in each of 2 blocks


def small(seed: int = 0):
    """A DiT without audio and image, three experts on all linears, the paper's gate, inputs of one sample."""
    dit = random_dit(SMALL).requires_grad_(False)
    bank = random_bank(dit, seed=seed)
    return dit, bank, random_gate(dit, bank, "block", seed), inputs(SMALL, 1)


def state_of(model: torch.nn.Module) -> list:
    """`__dict__` of every module, with what its hooks, parameters and children are."""
    shown = [[(key, dict(v) if isinstance(v, dict) else v) for key, v in vars(m).items()] for m in model.modules()]
    return [[(key, value if isinstance(value, dict) else id(value)) for key, value in module] for module in shown]


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@torch.no_grad()
def test_every_strategy_is_eq_4(strategy, dtype, tolerance):
    """Unequal ranks, alpha/r = 1/2, other weights for each of the 28 linears: all of them within the tolerance.

    Merging pays from N* = 96 * 96 / 192 = 48 tokens on: `auto` merges for 257 image tokens, and stacks for 18 of the
    video (3 x 2 x 3 patches), 6 of the text and 3 x 7 of the audio.
    """
    dit = random_dit(TINY).to(dtype)
    bank = random_bank(dit, (3, 1, 4), linears=ALL, scale=0.5).to(dtype)
    with watched(dit) as seen, attach(dit, bank, random_gate(dit, bank), strategy) as attached:
        dit(**inputs(TINY, 1), audio=audio_tokens(TINY, 1))
    found = errors(dit, bank, attached.w, seen)
    assert len(found) == 28 and max(found.values()) <= tolerance, found
    merging = {address for address, choice in attached.chosen.items() if choice.strategy == "merged"}
    image = {address for address in found if address.endswith("_img")}
    assert len(attached.chosen) == 28 and merging == {"auto": image, "merged": found.keys()}.get(strategy, set())
    assert strategy in ("auto", "merged") or {c.strategy for c in attached.chosen.values()} == {strategy}


@pytest.mark.parametrize("strategy", ["auto", "stacked", "naive"])
@torch.no_grad()
def test_samples_of_a_batch_have_weights_of_their_own(strategy):
    """Two samples at timesteps 987.3 and 12.5 in a batch: each linear is Eq. 4, and each sample as if alone."""
    dit, given, audio = random_dit(TINY), inputs(TINY), audio_tokens(TINY)
    bank = random_bank(dit, linears=ALL)
    gate = random_gate(dit, bank)
    with watched(dit) as seen, attach(dit, bank, gate, strategy) as attached:
        together = dit(**given, audio=audio)
    assert max(errors(dit, bank, attached.w, seen).values()) <= 1e-6
    assert {choice.strategy for choice in attached.chosen.values()} == {"naive" if strategy == "naive" else "stacked"}
    for i in range(2):
        one = {name: tensor[i : i + 1] for name, tensor in given.items()}
        with attach(dit, bank, gate, "naive"):
            alone = dit(**one, audio=type(audio)(audio.tokens[i : i + 1], audio.lengths[i : i + 1]))
        assert (together[i : i + 1] - alone).abs().max() <= 2e-5 * alone.abs().max()
    assert (attached.w[0] - attached.w[1]).abs().max() > 0.05


@torch.no_grad()
def test_one_timestep_promised_for_a_batch():
    """Batched guidance: the samples share a timestep, so that a batch of 3 can be merged; a broken promise is told."""
    dit, bank, gate, _ = small()
    given = inputs(SMALL, 3) | {"timestep": torch.full((3,), 640.0)}
    with watched(dit) as seen, attach(dit, bank, gate, "merged", per_sample=False) as attached:
        dit(**given)
        assert max(errors(dit, bank, attached.w, seen).values()) <= 1e-6
        assert {choice.strategy for choice in attached.chosen.values()} == {"merged"}
        with pytest.raises(UserError, match=r"timesteps 987.3, 12.5, 500 with per_sample=False"):
            dit(**inputs(SMALL, 3))


def test_merged_cannot_weigh_sample_by_sample():
    dit, bank, gate, _ = small()
    refused = "strategy 'merged' with weights for each sample"
    with pytest.raises(UserError, match=refused), attach(dit, bank, gate, "merged", per_sample=True):
        pass
    with attach(dit, bank, gate, "merged"), pytest.raises(UserError, match=refused):
        dit(**inputs(SMALL, 2))
    with pytest.raises(UserError, match="strategy 'fast'"), attach(dit, bank, gate, "fast"):
        pass


@pytest.mark.parametrize("strategy", NAMES)
@torch.no_grad()
def test_zero_weights_are_the_base_bit_for_bit(strategy):
    dit, bank, _, given = small()
    base = dit(**given)
    with attach(dit, bank, constant(0, 0, 0), strategy):
        assert torch.equal(dit(**given), base)
    with attach(dit, bank, constant(0, 0, 1e-2), strategy):
        assert not torch.equal(dit(**given), base)


@pytest.mark.parametrize("strategy", ["naive", "stacked", "merged"])
@torch.no_grad()
def test_weights_are_bit_identical_after_fifty_steps(strategy):
    """The gate changes its mind at every step; W is what it was, and so is what the base makes of it."""
    dit, bank, gate, given = small()
    before, base = tensors_hash(dit.state_dict()), dit(**given)
    with attach(dit, bank, gate, strategy) as attached:
        for step in range(50):
            dit(**given | {"timestep": torch.tensor([1000.0 - 20 * step])})
    assert attached.evaluations == 50
    assert tensors_hash(dit.state_dict()) == before and torch.equal(dit(**given), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_the_gate_is_asked_once_a_forward_and_in_fp32(dtype, autocast):
    """By keyword or by place, in bf16 or under autocast: the very t_emb of the model, before SiLU, and its timestep."""
    dit, bank, _, given = small()
    t_emb, asked = dit.to(dtype).embed_time(given["timestep"])[0], []

    def gate(*told):
        asked.append((*told, torch.is_autocast_enabled("cpu")))
        return torch.full((1, 2, 1, 3), 0.5)

    with attach(dit, bank, gate), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        dit(**given)
        dit(given["latents"], given["timestep"], given["text"])
        dit.embed_time(torch.tensor([3.0]))  # no forward of the model: nothing is asked
    assert len(asked) == 2
    for embedded, timestep, cast in asked:
        assert embedded.dtype == timestep.dtype == torch.float32 and not cast
        assert torch.equal(embedded, t_emb) and torch.equal(timestep, given["timestep"])


@torch.no_grad()
def test_nothing_is_left_behind():
    """Inside, state_dict() has the same names and the same tensors; afterwards every `__dict__` is what it was, also
    after an exception in the model."""
    dit, bank, gate, given = small()
    state, places = state_of(dit), {name: tensor.data_ptr() for name, tensor in dit.state_dict().items()}
    with attach(dit, bank, gate):
        assert {name: tensor.data_ptr() for name, tensor in dit.state_dict().items()} == places
        assert state_of(dit) != state and len(list(dit.modules())) == len(state)
    assert state_of(dit) == state
    with pytest.raises(UserError, match="text"), attach(dit, bank, gate):
        dit(**given | {"text": torch.zeros(1, 4, 1)})
    assert state_of(dit) == state


@pytest.mark.parametrize("order", list(permutations(range(3))))
@torch.no_grad()
def test_contexts_nest_and_are_left_in_any_order(order):
    """Three banks, opened 0, 1, 2 and left in any order: after each, the model is that of the banks still there."""
    dit, _, _, given = small()
    state, banks = state_of(dit), [random_bank(dit, (2,), ("one",), seed) for seed in range(3)]
    contexts = [attach(dit, bank, constant(1.0), "merged") for bank in banks]
    for context in contexts:
        context.__enter__()
    left = [0, 1, 2]
    for index in (*order, None):
        with ExitStack() as fresh:
            other = random_dit(SMALL)
            for i in left:
                fresh.enter_context(attach(other, banks[i], constant(1.0), "naive"))
            assert torch.allclose(dit(**given), other(**given), atol=3e-6)
        if index is not None:
            contexts[index].__exit__(None, None, None)
            left.remove(index)
    assert state_of(dit) == state


@torch.no_grad()
def test_a_plan_decides_where_it_can():
    """The plan of 4096 video tokens merges; it is followed for 18, but not where weights differ in the batch."""
    dit, bank, gate, given = small()
    plan = build_plan(dit, bank, tokens=Tokens(video=4096, text=6))
    assert {linear.choice.strategy for linear in plan.linears.values()} == {"merged", "stacked"}
    with watched(dit) as seen, attach(dit, bank, gate, plan=plan) as attached:
        dit(**given)
        assert attached.chosen == {address: linear.choice for address, linear in plan.linears.items()}
        assert max(errors(dit, bank, attached.w, seen).values()) <= 1e-6
        dit(**inputs(SMALL, 2))
        assert {choice.strategy for choice in attached.chosen.values()} == {"stacked"}
    part = build_plan(dit, random_bank(dit, linears=("ffn.0",)), tokens=Tokens(video=9))
    with pytest.raises(UserError, match="plan was made for other experts"), attach(dit, bank, gate, plan=part):
        pass


@torch.no_grad()
def test_measured_thresholds_decide():
    """N* of 96 -> 160 said to be 10 tokens, all others N* = 48 or 60: of 18 tokens only ffn.0 is merged."""
    dit, bank, gate, given = small()
    with attach(dit, bank, gate, thresholds={(96, 160): 10.0}) as attached:
        dit(**given)
    merging = {address for address, choice in attached.chosen.items() if choice.strategy == "merged"}
    assert merging == {"blocks.0.ffn.0", "blocks.1.ffn.0"}


@torch.no_grad()
def test_only_linears_that_ran_are_reported():
    dit = random_dit(TINY)
    bank = random_bank(dit, linears=("self_attn.q", *AUDIO_LINEARS))
    with attach(dit, bank, constant(1, 1, 1)) as attached:
        assert attached.chosen == {} and attached.w is None
        dit(**inputs(TINY, 1), audio=audio_tokens(TINY, 1))
        assert len(attached.chosen) == 6
        dit(**inputs(TINY, 1))
        assert set(attached.chosen) == {"blocks.0.self_attn.q", "blocks.1.self_attn.q"}


def test_a_linear_does_not_run_on_the_weights_of_another_step():
    """`forward` called by itself asks no gate: refused, rather than run on the last step's weights."""
    dit, bank, gate, given = small()
    x, linear = torch.randn(1, 5, TINY.dim), host_of(dit).linears["blocks.1.self_attn.q"]
    with attach(dit, bank, gate) as attached, torch.no_grad():
        dit(**given)
        with pytest.raises(UserError, match="outside of its model's forward"):
            dit.forward(**given)
        attached.weigh(torch.randn(1, TINY.dim), torch.tensor([3.0]))
        with watched(dit) as seen:
            linear(x)
        assert errors(dit, bank, attached.w, seen)["blocks.1.self_attn.q"] <= 1e-6


WRONG = {
    "blocks": (1, 3, 1, 3), "experts": (1, 2, 1, 2), "linears": (1, 2, 5, 3), "samples": (3, 2, 1, 3),
    "dimensions": (1, 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("shape", WRONG.values(), ids=WRONG)
def test_weights_of_a_wrong_shape(shape):
    dit, bank, _, given = small()
    with attach(dit, bank, lambda t_emb, timestep: torch.zeros(shape)), pytest.raises(UserError) as caught:
        dit(**given)
    assert caught.value.got == f"shape {list(shape)}" and caught.value.expected.startswith("[1, 2, 1 or 12 or 14, 3]:")


def test_twelve_weights_do_not_reach_the_audio_linears():
    dit = random_dit(TINY)
    bank = random_bank(dit, linears=ALL)
    with attach(dit, bank, lambda t_emb, t: torch.zeros(1, 2, 12, 3)), pytest.raises(UserError, match=r"1 or 14, 3\]"):
        dit(**inputs(TINY, 1))


def test_gates_banks_and_timesteps_of_other_models():
    """Told before the model is touched; timesteps for each token (Wan2.2) when they come."""
    dit, bank, gate, given = small()
    other = random_bank(random_dit(replace(SMALL, dim=48)))
    cases = {
        "weights for mn, ls in 2 blocks": (bank, FusionGate(2, 96, 2, names=("mn", "ls"))),
        "weights for mn, ls, vq in 3 blocks": (bank, FusionGate(3, 96, 3, names=bank.names)),
        "reads t_emb 48 wide": (bank, FusionGate(2, 48, 3, names=bank.names)),
        "experts of blocks.0.cross_attn.k": (other, gate),
        "experts of no linear": (ExpertBank.stack([], dit), FusionGate(2, 96, 0)),
    }
    state = state_of(dit)
    for message, (experts, weighing) in cases.items():
        with pytest.raises(UserError, match=message), attach(dit, experts, weighing):
            pass
    assert state_of(dit) == state
    with attach(dit, bank, gate), pytest.raises(UserError, match=r"timesteps of shape \[1, 18\]"):
        dit(**given | {"timestep": torch.full((1, 18), 500.0)})
    with pytest.raises(UserError, match="Linear"), attach(torch.nn.Linear(3, 3), bank, gate):
        pass
