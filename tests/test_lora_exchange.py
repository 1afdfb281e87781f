"""Experts between libraries: our files through the loaders of diffusers, peft and ComfyUI, and theirs through ours.

Every comparison is of whole models' outputs, against the weights that our own arithmetic merges: fp32, max/max.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from comfyui import inside_comfyui
from lora_layouts import diffusers_name
from safetensors.torch import load_file
from small_dits import TINY, inputs, random_dit, without_audio
from small_experts import random_bank, random_expert

from fantasy_core.experts import Expert, ExpertBank, averaged, load_expert, save_expert, to_kohya, to_peft
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS, host_of
from fantasy_core.weights.names import to_diffusers

TOLERANCE = 1e-6
PLAIN = without_audio(TINY)


@pytest.fixture(scope="module")
def dit():
    return random_dit(PLAIN)


@pytest.fixture(scope="module")
def diffusers_wan(dit):
    """diffusers' Wan with the same weights."""
    from diffusers import WanTransformer3DModel

    sizes = {"num_attention_heads": TINY.num_heads, "attention_head_dim": TINY.head_dim, "eps": TINY.eps}
    sizes |= {"in_channels": TINY.in_dim, "out_channels": TINY.out_dim, "num_layers": TINY.num_layers}
    sizes |= {"text_dim": TINY.text_dim, "freq_dim": TINY.freq_dim, "ffn_dim": TINY.ffn_dim}
    model = WanTransformer3DModel(**sizes, image_dim=TINY.clip_dim, added_kv_proj_dim=TINY.dim)
    model.load_state_dict({to_diffusers(name): tensor for name, tensor in dit.state_dict().items()})
    return model.eval()


def merged(model, expert: Expert):
    """A copy of a model whose weights hold the expert, W + scale * B A, through the bank's own rows."""
    model, bank = copy.deepcopy(model), ExpertBank.stack([expert], model)
    with torch.no_grad():
        for address, rows in bank.rows.items():
            up = rows.up.double() * rows.coefficients(torch.ones(1)).double()[:, None]
            host_of(model).linears[address].weight += (up.T @ rows.down.double()).float()
    return model


@torch.no_grad()
def ours(model) -> torch.Tensor:
    torch.manual_seed(1)
    return model(**inputs(PLAIN))


@torch.no_grad()
def theirs(model) -> torch.Tensor:
    torch.manual_seed(1)
    given = inputs(PLAIN)
    latents = torch.cat([given["latents"], given["condition"]], 1)
    return model(latents, given["timestep"], given["text"], given["clip"], return_dict=False)[0]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def assert_same(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor, record) -> None:
    """Equal to the merged result, which itself is far from the base."""
    record("max difference / max", difference(found, expected))
    assert difference(found, expected) <= TOLERANCE
    assert difference(base, expected) > 1e-3, "the expert does nothing"


@pytest.mark.parametrize("case", ["own", "unequal", "averaged"])
def test_diffusers_loads_our_file(tmp_path, diffusers_wan, dit, case, record_property):
    """Through the pipeline's own conversion and its loader; with the audio pair beside; with unequal ranks (which
    diffusers has misread); an average of three experts of scale 1/2 and ranks 2, 3, 4."""
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    expert = random_expert(random_dit(TINY), "mn", linears=LINEARS + AUDIO_LINEARS, scale=0.7)
    if case == "unequal":
        expert = random_expert(dit, "mn", 2, linears=LINEARS[:5])
        pairs = {**expert.pairs, "blocks.1.ffn.0": random_expert(dit, "mn", 6, 1, scale=3.0).pairs["blocks.1.ffn.0"]}
        expert = Expert("mn", pairs)
    if case == "averaged":
        expert = averaged(random_bank(dit, (2, 3, 4), scale=0.5), torch.tensor([0.5, 1.0, -0.7]))
    save_expert(tmp_path / "mn.safetensors", expert)
    state = WanLoraLoaderMixin.lora_state_dict(str(tmp_path / "mn.safetensors"), local_files_only=True)
    model = copy.deepcopy(diffusers_wan)
    WanLoraLoaderMixin.load_lora_into_transformer(state, model, adapter_name="mn")
    fitting = Expert("mn", {a: pair for a, pair in expert.pairs.items() if ".processor." not in a})
    assert_same(theirs(model), theirs(merged(diffusers_wan, fitting)), theirs(diffusers_wan), record_property)


def test_diffusers_loads_kohyas_names(tmp_path, diffusers_wan, dit, record_property):
    """The same through diffusers' conversion of musubi-tuner's files; and our own reader finds the same expert."""
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    expert = random_expert(dit, "mn", 3, linears=LINEARS, scale=0.7)
    to_kohya(tmp_path / "mn.safetensors", expert)
    state = WanLoraLoaderMixin.lora_state_dict(load_file(tmp_path / "mn.safetensors"))
    model = copy.deepcopy(diffusers_wan)
    WanLoraLoaderMixin.load_lora_into_transformer(state, model, adapter_name="mn")
    assert_same(theirs(model), theirs(merged(diffusers_wan, expert)), theirs(diffusers_wan), record_property)
    save_expert(tmp_path / "own.safetensors", expert)
    assert load_expert(tmp_path / "mn.safetensors", "mn").hash == load_expert(tmp_path / "own.safetensors", "mn").hash


def test_diffusers_refuses_audio_keys_in_the_main_file(tmp_path, diffusers_wan):
    """Why there is a twin: with the audio linears in one file diffusers loads nothing at all."""
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin

    save_expert(tmp_path / "mn.safetensors", random_expert(random_dit(TINY), linears=LINEARS + AUDIO_LINEARS))
    both = load_file(tmp_path / "mn.safetensors") | load_file(tmp_path / "mn.audio.safetensors")
    with pytest.raises(ValueError, match="processor"):
        WanLoraLoaderMixin.lora_state_dict(both)


@pytest.mark.parametrize("audio", [False, True])
def test_peft_loads_our_export(tmp_path, audio, record_property):
    """PeftModel.from_pretrained on a WanDiT, the audio linears included; nothing outside the blocks is wrapped."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    base = random_dit(TINY if audio else PLAIN)
    linears = LINEARS + AUDIO_LINEARS if audio else LINEARS
    expert = random_expert(base, "mn", linears=linears, scale=0.7)
    to_peft(expert, tmp_path / "adapter")
    model = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    wrapped = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(wrapped) == len(expert.pairs) == 2 * len(linears)
    assert_same(ours(model), ours(merged(base, expert)), ours(base), record_property)
    again = load_expert(tmp_path / "adapter", "mn")
    save_expert(tmp_path / "mn.safetensors", expert)
    assert again.hash == load_expert(tmp_path / "mn.safetensors").hash


SETTINGS = {
    "alpha over rank": {"r": 4, "lora_alpha": 10},
    "rank-stabilised": {"r": 4, "lora_alpha": 10, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 4, "rank_pattern": {"ffn.2": 2}, "alpha_pattern": {"ffn.2": 6, "q": 1}},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_we_load_what_peft_saves(tmp_path, dit, case, record_property):
    from peft import LoraConfig, get_peft_model

    names = [name for name in LINEARS if name != "cross_attn.v_img"]
    config = LoraConfig(target_modules=rf"blocks\.\d+\.({'|'.join(names)})", init_lora_weights=False, **SETTINGS[case])
    model = get_peft_model(copy.deepcopy(dit), config).eval()
    _quieten(model)
    model.save_pretrained(tmp_path / "adapter")
    expert = load_expert(tmp_path / "adapter")
    assert len(expert.pairs) == 2 * 11
    assert_same(ours(merged(dit, expert)), ours(model), ours(dit), record_property)


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("pipeline", [False, True])
def test_we_load_what_diffusers_saves(tmp_path, diffusers_wan, case, pipeline, record_property):
    """The model's save_lora_adapter (bare names) and the pipeline's save_lora_weights (behind `transformer.`)."""
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    patterns = {"ffn.2": "ffn.net.2", "q": "to_q"}
    settings = {
        key: {patterns[name]: number for name, number in value.items()} if isinstance(value, dict) else value
        for key, value in SETTINGS[case].items()
    }
    targets = [diffusers_name(f"blocks.0.{name}").split(".", 2)[2] for name in LINEARS]
    model = copy.deepcopy(diffusers_wan)
    model.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, **settings))
    _quieten(model)
    if pipeline:
        layers, told = get_peft_model_state_dict(model), model.peft_config["default"].to_dict()
        WanLoraLoaderMixin.save_lora_weights(str(tmp_path), layers, transformer_lora_adapter_metadata=told)
    else:
        model.save_lora_adapter(str(tmp_path))
    expert = load_expert(tmp_path)
    assert len(expert.pairs) == 2 * 12
    assert_same(theirs(merged(diffusers_wan, expert)), theirs(model), theirs(diffusers_wan), record_property)


def _quieten(model) -> None:
    """peft's random B has the scale of a weight; a change of a tenth keeps fp32 rounding small beside the tolerance."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.1)


@pytest.mark.comfy
def test_comfyui_takes_every_key_of_our_file(tmp_path, record_property):
    from fantasy_core.miniature.components import WEIGHTS
    from fantasy_core.weights import load_dit

    base = WEIGHTS / "base.safetensors"
    expert = random_expert(load_dit(base, dtype=torch.float32), "mn", scale=0.5)
    save_expert(tmp_path / "mn.safetensors", expert)
    found = inside_comfyui("lora_mapping", tmp_path, base, tmp_path / "mn.safetensors")
    assert not found["left over"], json.dumps(found["left over"][:3])
    assert found["patched"] == sorted(f"diffusion_model.{address}.weight" for address in expert.pairs)
    pair = expert.pairs["blocks.0.ffn.2"]
    change = 0.5 * pair.B @ pair.A
    record_property("ComfyUI's change against ours", difference(found["change"], change))
    assert difference(found["change"], change) < 1e-5, "the difference of two fp32 weights loses a digit"
