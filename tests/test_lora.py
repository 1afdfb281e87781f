"""LoRA files: every naming in use, the strength they tell, what no expert can hold, and files that are refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_layouts import DIALECTS, lora_state, write_lora
from safetensors.torch import save_file
from small_dits import TINY, random_dit
from small_experts import random_expert

from fantasy_core.errors import UserError
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS
from fantasy_core.weights import open_lora, read_pairs
from fantasy_core.weights.lora import misfits, refuse_unsupported
from fantasy_core.weights.lora_names import Key, family, parse, reasons

Q = "diffusion_model.blocks.0.self_attn.q"
PAIR = {f"{Q}.lora_A.weight": torch.ones(2, 8), f"{Q}.lora_B.weight": torch.ones(6, 2)}


@pytest.fixture(scope="module")
def expert():
    """All 14 linears of a tiny DiT's blocks at rank 4, alpha 8: scale 2."""
    return random_expert(random_dit(TINY), "style", linears=LINEARS + AUDIO_LINEARS, scale=2.0)


def written(folder, tensors, metadata=None):
    save_file(tensors, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


def rejects(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in:\n{caught.value}"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_naming_gives_the_same_pairs(tmp_path, expert, dialect):
    """Values and addresses are those that were written; without alpha in the file the scale is 1, with it 8/4 = 2."""
    lora = open_lora(write_lora(tmp_path, expert, dialect))
    read = {address: (A, B, scale) for address, A, B, scale in read_pairs(lora)}
    assert read.keys() == expert.pairs.keys() and not lora.unsupported and not lora.own
    for address, pair in expert.pairs.items():
        A, B, scale = read[address]
        assert torch.equal(A, pair.A) and torch.equal(B, pair.B)
        assert scale == (2 if DIALECTS[dialect][2] or dialect.startswith("peft") else 1)


def test_dialects_are_named(tmp_path, expert):
    names = {
        "ComfyUI": "ComfyUI", "kohya": "kohya", "Wan-Fun": "kohya", "diffusers": "diffusers", "bare": "bare",
        "OneTrainer": "kohya with diffusers' names", "peft": "peft", "peft of diffusers": "peft with diffusers' names",
    }  # fmt: skip
    for dialect, name in names.items():
        assert open_lora(write_lora(tmp_path / dialect, expert, dialect)).dialect == name


@given(
    st.integers(0, 99),
    st.sampled_from(LINEARS + AUDIO_LINEARS),
    st.sampled_from(sorted(DIALECTS)),
    st.sampled_from((0, 1)),
)
def test_names_of_any_block(block, name, dialect, half):
    rename, ends, _ = DIALECTS[dialect]
    address = f"blocks.{block}.{name}"
    key = parse(f"{rename(address)}.{ends[half]}")
    assert (key.address, key.role) == (address, "AB"[half])


@given(st.text(st.sampled_from("blocks._0attn1qlora_ABweight.downalphaunet"), max_size=60))
def test_no_name_breaks_the_parser(text):
    for name in (text, f"diffusion_model.blocks.{text}", f"lora_unet_blocks_{text}.alpha"):
        key = parse(name)
        assert key is None or isinstance(key, Key)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": 16}, 16 / 4),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(4)),
        ({"lora_alpha": 16, "alpha_pattern": {"ffn.2": 1, "self_attn.q": 2}}, {"ffn.2": 1 / 4, "self_attn.q": 2 / 4}),
    ],
)
def test_peft_settings_give_the_scale(tmp_path, expert, settings, scale):
    """alpha/r; alpha/sqrt(r) when rank-stabilised; alpha_pattern overrides by the end of a module's name."""
    pairs = open_lora(write_lora(tmp_path, expert, "peft", **settings)).pairs
    for address, pair in pairs.items():
        expected = scale.get(address.split(".", 2)[2], 4.0) if isinstance(scale, dict) else scale
        assert pair.scale == pytest.approx(expected)


def test_diffusers_metadata_gives_the_scale(tmp_path):
    """A pipeline writes peft's settings into the metadata, behind `transformer.`: alpha 6, rank 2, scale 3."""
    told = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 6})}
    assert open_lora(written(tmp_path, PAIR, told)).pairs["blocks.0.self_attn.q"].scale == 3


UNSUPPORTED = {
    f"{Q}.dora_scale": "DoRA",
    "base_model.model.blocks.0.ffn.0.lora_magnitude_vector": "DoRA",
    "diffusion_model.blocks.0.ffn.0.lokr_w1": "LoKr",
    "lora_unet_blocks_1_ffn_2.hada_w1_a": "LoHa",
    f"{Q}.diff": "full weights",
    f"{Q}.diff_b": "biases",
    "transformer.blocks.0.attn1.to_q.lora_B.bias": "biases",
    "diffusion_model.blocks.0.norm3.diff_b": "norms",
    "diffusion_model.blocks.0.self_attn.norm_q.diff": "norms",
    "diffusion_model.blocks.0.diff_m": "modulation",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "text encoder",
    "diffusion_model.time_embedding.0.lora_A.weight": "linears outside the blocks",
    "lora_unet_time_projection_1.lora_up.weight": "linears outside the blocks",
    "diffusion_model.head.head.lora_A.weight": "linears outside the blocks",
    "diffusion_model.blocks.1.ffn.2.alpha": "scales without a pair",
    "diffusion_model.blocks.0.vace.lora_A.weight": "unknown",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_tensors_are_listed_by_reason(tmp_path, name):
    """The rest is read; the tensor is listed by what it is, and refused unless someone says that it may be left out."""
    lora = open_lora(written(tmp_path, {**PAIR, name: torch.ones(1)}))
    assert lora.unsupported == (name,) and reasons(lora.unsupported) == {UNSUPPORTED[name]: [name]}
    assert list(lora.pairs) == ["blocks.0.self_attn.q"]
    rejects(lambda: refuse_unsupported(lora), UNSUPPORTED[name], name, "ignore_unsupported")


OTHERS = {
    "FLUX": ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"],
    "HunyuanVideo": ["diffusion_model.single_blocks.3.linear1.lora_A.weight"],
    "SDXL": ["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"],
    "Stable Diffusion 3": ["diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight"],
    "Qwen-Image": ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"],
    "a language model": ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"],
}


@pytest.mark.parametrize("model", OTHERS)
def test_loras_of_other_models_are_told(tmp_path, model):
    assert model in family(OTHERS[model])
    rejects(lambda: open_lora(written(tmp_path, {n: torch.ones(2, 2) for n in OTHERS[model]})), model, "Wan2.1")


BROKEN = {
    "A without B": ({f"{Q}.lora_A.weight": torch.ones(2, 8)}, ("not complete", "A alone")),
    "B without A": ({f"{Q}.lora_B.weight": torch.ones(6, 2)}, ("not complete", "B alone")),
    "rank mismatch": ({**PAIR, f"{Q}.lora_B.weight": torch.ones(6, 3)}, ("[2, 8]", "[6, 3]", "one rank")),
    "rank 0": ({f"{Q}.lora_A.weight": torch.ones(0, 8), f"{Q}.lora_B.weight": torch.ones(6, 0)}, ("rank 0",)),
    "convolution": ({**PAIR, f"{Q}.lora_A.weight": torch.ones(2, 8, 1, 1)}, ("[2, 8, 1, 1]",)),
    "int8": ({**PAIR, f"{Q}.lora_A.weight": torch.ones(2, 8, dtype=torch.int8)}, ("quantised", "int8")),
    "twice": ({**PAIR, "lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(2, 8)}, ("the same weight",)),
    "alpha is NaN": ({**PAIR, f"{Q}.alpha": torch.tensor(math.nan)}, ("alpha", "nan at blocks.0.self_attn.q")),
    "two alphas": ({**PAIR, f"{Q}.alpha": torch.ones(2)}, ("alpha", "a finite number")),
    "LoKr alone": ({f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.alpha": torch.ones(1)}, ("no low-rank", "LoKr")),
    "a model": ({"patch_embedding.weight": torch.ones(2, 2)}, ("is no LoRA", "a Wan transformer")),
    "empty": ({}, ("is no LoRA", "it is empty")),
    "peft without settings": (
        {f"base_model.model.{name.removeprefix('diffusion_model.')}": t for name, t in PAIR.items()},
        ("strength", "adapter_config.json"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(tmp_path, case):
    tensors, words = BROKEN[case]
    rejects(lambda: open_lora(written(tmp_path, tensors)), "a.safetensors", *words)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_values_that_are_no_numbers_are_refused(tmp_path, value, half):
    tensors = {name: tensor.clone() for name, tensor in PAIR.items()}
    tensors[f"{Q}.{half}.weight"][1, 1] = value
    lora = open_lora(written(tmp_path, tensors))
    rejects(lambda: list(read_pairs(lora)), "blocks.0.self_attn.q", "finite")


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": "high"}', '{"lora_alpha": 4, "alpha_pattern": {"(": 1}}'])
def test_damaged_settings_are_refused(tmp_path, expert, text):
    folder = write_lora(tmp_path, expert, "peft")
    (folder / "adapter_config.json").write_text(text)
    rejects(lambda: open_lora(folder), "alpha", "adapter_config.json")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (torch.float16, torch.float16, torch.float16),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e4m3fn, torch.float16, torch.float32),
    ],
)
def test_one_type_that_holds_all(tmp_path, a, b, expected):
    """All tensors come in the smallest type that can be computed with and holds each of them exactly."""
    tensors = {f"{Q}.lora_A.weight": torch.randn(2, 8).to(a), f"{Q}.lora_B.weight": torch.randn(6, 2).to(b)}
    ((_, A, B, _),) = read_pairs(open_lora(written(tmp_path, tensors)))
    assert A.dtype == B.dtype == expected
    assert torch.equal(A.double(), tensors[f"{Q}.lora_A.weight"].double())


def test_torch_containers_and_the_order_of_pairs(tmp_path, expert):
    """A .pt reads like a .safetensors; pairs come block by block (2 before 10) whatever the order in the file."""
    torch.save({"state_dict": dict(reversed(lora_state(expert).items()))}, tmp_path / "a.pt")
    lora = open_lora(tmp_path / "a.pt")
    assert lora.pairs.keys() == expert.pairs.keys()
    many = {name.replace("blocks.0", f"blocks.{n}"): t.clone() for n in (10, 2, 0) for name, t in PAIR.items()}
    assert [a.split(".")[1] for a in open_lora(written(tmp_path, many)).pairs] == ["0", "2", "10"]


def test_misfits():
    """What a model lacks and what is of another width, each once."""
    lora, host = {"x": (8, 6), "y": (8, 6), "z": (8, 6)}, {"x": (8, 6), "y": (8, 7)}
    assert misfits(lora, host) == (["z"], ["y"])
