"""Experts: the stacked bank, files written and read back, hashes, and the average for hosts without a gate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_layouts import DIALECTS, lora_state, write_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_dits import TINY, meta_dit, random_dit, without_audio
from small_experts import random_bank, random_expert

from fantasy_core.errors import UserError
from fantasy_core.experts import Expert, ExpertBank, LowRank, averaged, load_expert, save_expert
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS

ALL = LINEARS + AUDIO_LINEARS


@pytest.fixture(scope="module")
def dit():
    return random_dit(TINY)


@pytest.fixture(scope="module")
def whole(dit):
    """14 linears, rank 4, scale 1/2: a power of two, so that folding it into B rounds nothing."""
    return random_expert(dit, "mn", linears=ALL, scale=0.5)


def rejects(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in:\n{caught.value}"


def deltas(expert: Expert) -> dict[str, torch.Tensor]:
    """scale * B A of every linear, in fp64."""
    return {address: pair.scale * (pair.B.double() @ pair.A.double()) for address, pair in expert.pairs.items()}


def same_change(first: Expert, second: Expert, tolerance: float = 0) -> bool:
    a, b = deltas(first), deltas(second)
    return a.keys() == b.keys() and all((a[n] - b[n]).abs().max() <= tolerance * a[n].abs().max() for n in a)


def test_a_bank_holds_views_of_unequal_ranks(dit):
    """Ranks 2, 0 (absent) and 5 on one linear: 7 rows; each expert comes back as it was, in the bank's own memory."""
    experts = [random_expert(dit, "a", 2), random_expert(dit, "b", 3, 1, ("ffn.0",)), random_expert(dit, "c", 5, 2)]
    bank = ExpertBank.stack(experts, dit)
    rows = bank.rows["blocks.1.self_attn.q"]
    assert rows.ranks == (2, 0, 5) and rows.down.shape == (7, 96) and rows.owner.tolist() == [0, 0, 2, 2, 2, 2, 2]
    for expert in experts:
        found = bank.expert(expert.name)
        assert found.hash == expert.hash == bank.hashes[expert.name]
        assert {pair.A.untyped_storage().data_ptr() for pair in found.pairs.values()} <= {
            held.down.untyped_storage().data_ptr() for held in bank.rows.values()
        }


def test_absent_experts_do_not_change_the_type(dit):
    half = [random_expert(dit, name, 2, linears=(linear,)) for name, linear in (("a", "ffn.0"), ("b", "ffn.2"))]
    half = [replace(e, pairs={a: LowRank(p.A.half(), p.B.half()) for a, p in e.pairs.items()}) for e in half]
    assert {rows.down.dtype for rows in ExpertBank.stack(half, dit).rows.values()} == {torch.float16}


def test_a_bank_is_placed_with_its_hashes_and_exact_scales(dit):
    """bf16 weights, fp32 scales (1/3 is not a bf16 number), and hashes that still name the files."""
    bank = random_bank(dit, scale=1 / 3)
    placed = bank.place("cpu", torch.bfloat16)
    rows = placed.rows["blocks.0.ffn.2"]
    assert rows.down.dtype == rows.up.dtype == torch.bfloat16 and not rows.down.requires_grad
    assert torch.equal(rows.scale, torch.full((12,), 1 / 3)) and placed.hashes == bank.hashes
    assert bank.rows["blocks.0.ffn.2"].down.dtype == torch.float32
    assert torch.equal(rows.down, bank.rows["blocks.0.ffn.2"].down.bfloat16())


def test_experts_that_do_not_fit_are_refused(dit):
    expert = random_expert(dit)
    rejects(lambda: ExpertBank.stack([expert, expert], dit), "same name", "mn", "name of its own")
    deeper = replace(expert, pairs={"blocks.2.ffn.0": expert.pairs["blocks.0.ffn.0"]})
    rejects(lambda: ExpertBank.stack([deeper], dit), "lacks", "blocks.2.ffn.0", "2 blocks")
    wider = meta_dit(replace(TINY, dim=108))
    rejects(lambda: ExpertBank.stack([expert], wider), "another width", "attn.k 96 -> 96", "attn.k 108 -> 108")
    mute = meta_dit(without_audio(TINY))
    rejects(lambda: ExpertBank.stack([random_expert(dit, linears=ALL)], mute), "FantasyTalking", "k_proj")


def test_saving_and_loading(tmp_path, dit, whole):
    """Names, ranks and metadata of the contract; the audio pair beside; the same numbers and the same hash again."""
    save_expert(tmp_path / "style.safetensors", whole, {"tlpo.beta": "500", "ss_network_alpha": "1"})
    main, audio = (load_file(tmp_path / f"style{end}.safetensors") for end in ("", ".audio"))
    key = "diffusion_model.blocks.1.cross_attn.k_img.lora_{}.weight"
    assert len(main) == 2 * 12 * 2 and main[key.format("A")].shape == (4, 96) and main[key.format("B")].shape == (96, 4)
    assert sorted(audio) == [
        f"diffusion_model.blocks.{n}.cross_attn.processor.{kv}_proj.lora_{half}.weight"
        for n in (0, 1) for kv in "kv" for half in "AB"
    ]  # fmt: skip
    with safe_open(tmp_path / "style.safetensors", "pt") as file:
        told = file.metadata()
    assert told["tlpo.dimension"] == "mn" and told["tlpo.beta"] == "500" and told["tlpo.rank"] == "4"
    assert told["ss_network_dim"] == told["ss_network_alpha"] == "4", "alpha = r is a fact that no caller overrides"
    assert told["ss_network_module"] and told["modelspec.architecture"].endswith("/lora")
    loaded = load_expert(tmp_path / "style.safetensors")
    assert loaded.name == "mn" and all(pair.scale == 1 for pair in loaded.pairs.values())
    assert loaded.hash == whole.hash and same_change(loaded, whole)
    assert load_expert(tmp_path / "style.safetensors", "soft").name == "soft"


def test_names_come_from_the_dimension_then_the_file(tmp_path, dit, whole):
    save_expert(tmp_path / "painterly.v2.safetensors", replace(whole, name="style"))
    assert load_expert(tmp_path / "painterly.v2.safetensors").name == "painterly.v2"
    assert load_expert(write_lora(tmp_path / "wan-2.1-style", whole, "peft")).name == "wan-2.1-style"


def test_an_old_audio_twin_does_not_survive(tmp_path, dit, whole):
    """Saved with audio, then without over it: the linears of the first are gone from disk and from the result."""
    save_expert(tmp_path / "mn.safetensors", whole)
    save_expert(tmp_path / "mn.safetensors", random_expert(dit, seed=7))
    assert not (tmp_path / "mn.audio.safetensors").exists()
    assert load_expert(tmp_path / "mn.safetensors").hash == random_expert(dit, seed=7).hash


def test_unequal_experts_are_written_equal(tmp_path, dit):
    """Rank 2 in block 0, rank 3 with alpha 9 in block 1, and one linear in block 1 alone: rank 3 everywhere, zeros for
    the rest, and the same change."""
    first, second = random_expert(dit, "x", 2, linears=("ffn.0",)), random_expert(dit, "x", 3, scale=3.0)
    pairs = {"blocks.0.ffn.0": first.pairs["blocks.0.ffn.0"]}
    pairs |= {f"blocks.1.{name}": second.pairs[f"blocks.1.{name}"] for name in ("ffn.0", "self_attn.q")}
    save_expert(tmp_path / "x.safetensors", Expert("x", pairs, {"lora_adapter_metadata": '{"lora_alpha": 99}'}))
    loaded = load_expert(tmp_path / "x.safetensors")
    assert len(loaded.pairs) == 4 and {pair.rank for pair in loaded.pairs.values()} == {3}
    found, expected = deltas(loaded), deltas(Expert("x", pairs))
    assert not found["blocks.0.self_attn.q"].any()
    for address, change in expected.items():
        assert (found[address] - change).abs().max() <= 1e-7 * change.abs().max()
    rejects(lambda: save_expert(tmp_path / "y.safetensors", Expert("y", {})), "nothing")


def broken(path, change):
    """Rewrite a file with other tensors, its metadata kept."""
    with safe_open(path, "pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, told)


OWN = {
    "a linear is missing": (lambda t: [t.pop(name) for name in list(t) if "blocks.1.ffn.2." in name], "blocks.1.ffn.2"),
    "a block is missing": (lambda t: [t.pop(name) for name in list(t) if "blocks.1." in name], "blocks.1.cross_attn.k"),
    "another rank": (
        lambda t: t.update({n: torch.ones(2, 96) if "lora_A" in n else torch.ones(96, 2) for n in t if "attn.o." in n}),
        "one rank",
    ),
    "an alpha": (lambda t: t.update({"diffusion_model.blocks.0.ffn.0.alpha": torch.tensor(1.0)}), "alpha = rank"),
    "a bias": (lambda t: t.update({"diffusion_model.blocks.0.ffn.0.diff_b": torch.ones(160)}), "biases"),
}


@pytest.mark.parametrize("case", OWN)
def test_our_own_files_are_read_strictly(tmp_path, dit, case):
    change, word = OWN[case]
    save_expert(tmp_path / "mn.safetensors", random_expert(dit))
    broken(tmp_path / "mn.safetensors", change)
    rejects(lambda: load_expert(tmp_path / "mn.safetensors", ignore_unsupported=True), "mn.safetensors", word)


def test_strictness_without_our_list_of_linears(tmp_path):
    """A file that says `tlpo.` but not which linears promises 12 of every block, 10 on a base without image branch."""
    for config, count in ((TINY, 24), (replace(TINY, clip_dim=0), 20)):
        expert = random_expert(random_dit(config))
        save_file(lora_state(expert), tmp_path / "a.safetensors", {"tlpo.dimension": "ls"})
        assert len(load_expert(tmp_path / "a.safetensors").pairs) == count
        broken(tmp_path / "a.safetensors", lambda t: [t.pop(name) for name in list(t) if "blocks.0.ffn.0." in name])
        rejects(lambda: load_expert(tmp_path / "a.safetensors"), "missing: blocks.0.ffn.0", f"{count} linears")


def test_the_audio_twin_is_asked_for(tmp_path, dit, whole):
    save_expert(tmp_path / "mn.safetensors", whole)
    (tmp_path / "mn.audio.safetensors").rename(tmp_path / "elsewhere.audio.safetensors")
    rejects(lambda: load_expert(tmp_path / "mn.safetensors"), "processor.k_proj", "put mn.audio.safetensors")
    rejects(lambda: load_expert(tmp_path / "elsewhere.audio.safetensors"), "give elsewhere.safetensors")
    save_file(lora_state(whole), tmp_path / "mn.audio.safetensors")
    rejects(lambda: load_expert(tmp_path / "mn.safetensors"), "beside it", "audio linears alone")


def test_foreign_files_are_read_leniently(tmp_path, dit):
    """One linear of each block, a bias and a text encoder: refused with a list, or read without them when told to."""
    part = random_expert(dit, "style", 2, linears=("self_attn.q",), scale=2.0)
    state = lora_state(part, "kohya") | {"lora_te_x.alpha": torch.ones(1)}
    save_file(state | {"lora_unet_blocks_0_ffn_0.diff_b": torch.ones(9)}, tmp_path / "a.safetensors")
    rejects(lambda: load_expert(tmp_path / "a.safetensors"), "biases: 1", "text encoder: 1", "ignore_unsupported")
    loaded = load_expert(tmp_path / "a.safetensors", ignore_unsupported=True)
    assert loaded.name == "a" and same_change(loaded, part)
    bank = ExpertBank.load({"s": tmp_path / "a.safetensors"}, dit, ignore_unsupported=True)
    assert bank.names == ("s",) and set(bank.rows) == {"blocks.0.self_attn.q", "blocks.1.self_attn.q"}
    rejects(lambda: ExpertBank.load([tmp_path / "a.safetensors"], dit), "biases")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_hash_is_that_of_the_numbers(tmp_path, dit, dialect):
    """Naming, container, name, metadata, alpha folded into B, and fp32 for bf16 do not matter; one bit does."""
    expert = random_expert(dit, "mn", linears=ALL)
    expert = replace(expert, pairs={a: LowRank(p.A.bfloat16(), p.B.bfloat16()) for a, p in expert.pairs.items()})
    path = write_lora(tmp_path, expert, dialect)
    assert load_expert(path).hash == expert.hash
    if path.is_file():
        torch.save(load_file(path), tmp_path / "b.pt")
        assert load_expert(tmp_path / "b.pt", "other").hash == expert.hash
    twice = {a: LowRank(p.A.float(), p.B.float() * 2, 0.5) for a, p in expert.pairs.items()}
    assert Expert("x", twice, {"a": "b"}).hash == expert.hash
    next(iter(twice.values())).B[0, 0] += 2**-8
    assert Expert("x", twice).hash != expert.hash
    assert Expert("x", dict(list(expert.pairs.items())[1:])).hash != expert.hash


@given(st.lists(st.sampled_from((0.0, 0.25, -1.5, 2.0)), min_size=3, max_size=3).filter(any))
def test_the_average_is_eq_4(weights):
    """sum_i w_i s_i B_i A_i in fp64, one weight for each expert; those of weight 0 take no rank."""
    dit = meta_dit(TINY)
    experts = [random_expert(random_dit(TINY), n, r, r, ("ffn.2",), 0.5) for n, r in (("a", 1), ("b", 2), ("c", 3))]
    found = averaged(ExpertBank.stack(experts, dit), torch.tensor(weights))
    for address, change in deltas(found).items():
        expected = sum(w * deltas(expert)[address] for w, expert in zip(weights, experts, strict=True))
        assert (change - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert found.pairs["blocks.0.ffn.2"].rank == sum(r for w, r in zip(weights, (1, 2, 3), strict=True) if w)


def test_averages_by_block_and_linear(tmp_path, dit):
    """Weights [J, M, E]: block 1's ffn.0 is linear 10 of LINEARS; where nothing has weight no linear is changed."""
    bank, weights = random_bank(dit), torch.zeros(2, 14, 3)
    weights[1, 10] = torch.tensor([0.5, 0.0, 2.0])
    found = averaged(bank, weights)
    assert list(found.pairs) == ["blocks.1.ffn.0"] and found.pairs["blocks.1.ffn.0"].rank == 8
    expected = 0.5 * deltas(bank.expert("mn"))["blocks.1.ffn.0"] + 2 * deltas(bank.expert("vq"))["blocks.1.ffn.0"]
    assert (deltas(found)["blocks.1.ffn.0"] - expected).abs().max() <= 1e-6 * expected.abs().max()
    by_block = averaged(bank, torch.tensor([[[1.0, 0, 0]], [[0, 0, 1.0]]]))
    assert torch.equal(by_block.pairs["blocks.0.ffn.2"].A, bank.expert("mn").pairs["blocks.0.ffn.2"].A)
    assert torch.equal(by_block.pairs["blocks.1.ffn.2"].A, bank.expert("vq").pairs["blocks.1.ffn.2"].A)
    save_expert(tmp_path / "mix.safetensors", by_block)
    loaded = load_expert(tmp_path / "mix.safetensors")
    assert same_change(loaded, by_block) and json.loads(loaded.metadata["tlpo.experts"])[0][0] == "mn"
    for shape in ((2,), (3, 1, 3), (2, 5, 3), (1, 2, 14, 3)):
        accepted = shape == (3, 1, 3)  # more blocks than the experts change
        call = lambda shape=shape: averaged(bank, torch.ones(shape))  # noqa: E731
        assert accepted and call() or rejects(call, "do not fit", str(list(shape))) is None
    rejects(lambda: averaged(bank, torch.zeros(3)), "changes nothing")
