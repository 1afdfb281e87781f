"""WanDiT: parity with diffusers' Wan, the audio path against naive loops, precision, sizes and errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_dits import TINY, audio_tokens, inputs, meta_dit, random_dit, without_audio

from fantasy_core.audio import AudioTokens
from fantasy_core.errors import UserError
from fantasy_core.wan import PRESETS, WanConfig, WanDiT, sinusoid
from fantasy_core.weights.names import from_diffusers, to_diffusers

VARIANTS = {
    "image and clip": replace(TINY, text_len=512),
    "image without clip": replace(TINY, text_len=512, clip_dim=0),
    "text to video": replace(TINY, text_len=512, clip_dim=0, in_dim=16, num_heads=2),
}


def diffusers_wan(dit: WanDiT):
    from diffusers import WanTransformer3DModel

    config = dit.config
    theirs = WanTransformer3DModel(
        patch_size=config.patch_size,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        image_dim=config.clip_dim or None,
        added_kv_proj_dim=config.dim if config.clip_dim else None,
    )
    theirs.load_state_dict({to_diffusers(name): tensor for name, tensor in dit.state_dict().items()})
    return theirs.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_parity_with_diffusers(variant):
    """Same weights, same inputs, several shapes, two timesteps in a batch: within 5e-5 of an output of std 1."""
    dit = random_dit(without_audio(VARIANTS[variant]))
    theirs = diffusers_wan(dit)
    for size in ((1, 4, 6), (3, 8, 4)):
        given = inputs(dit.config, size=size, text=512)
        channels = [given["latents"]] if given["condition"] is None else [given["latents"], given["condition"]]
        expected = theirs(torch.cat(channels, 1), given["timestep"], given["text"], given["clip"]).sample
        assert expected.std() > 0.5
        assert (dit(**given) - expected).abs().max() <= 5e-5


def test_names_are_those_of_diffusers_own_converter():
    """Every name of a DiT with image and audio branch: our map equals diffusers', and the way back is its inverse."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    names = list(meta_dit(TINY).state_dict())
    converted = convert_wan_transformer_to_diffusers({name: torch.tensor(i) for i, name in enumerate(names)})
    assert [to_diffusers(name) for name in names] == sorted(converted, key=lambda name: int(converted[name]))
    assert [from_diffusers(to_diffusers(name)) for name in names] == names
    assert to_diffusers("blocks.1.ffn.0.scale_weight") == "blocks.1.ffn.net.0.proj.scale_weight"
    assert to_diffusers("vace_blocks.1.q") == from_diffusers("vace_blocks.1.q") == "vace_blocks.1.q"


@torch.no_grad()
def test_short_text_is_padded_with_zeros():
    dit = random_dit(TINY)
    given = inputs(TINY, text=2)
    padded = torch.cat([given["text"], torch.zeros(2, TINY.text_len - 2, TINY.text_dim)], dim=1)
    assert torch.equal(dit(**given), dit(**{**given, "text": padded}))


def test_checkpointing_gives_the_same_gradients():
    given, audio, gradients = inputs(TINY), audio_tokens(TINY), []
    for checkpointing in ("none", "blocks", "attention"):
        dit = random_dit(TINY).train()
        dit.checkpointing = checkpointing
        dit(**given, audio=audio).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in dit.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any() and all(torch.equal(gradient, other[name]) for other in gradients[1:]), name


def test_sinusoid_is_the_closed_form_of_an_unrounded_timestep():
    """cos(t / 10000^(i/h)) then the sines, in double precision: 999.9 radians would lose 5e-5 in fp32."""
    t, half = torch.tensor([999.9, 12.5]), 4
    angles = [[float(x) / 10000 ** (i / half) for i in range(half)] for x in t]
    expected = torch.tensor([[*map(math.cos, row), *map(math.sin, row)] for row in angles])
    assert (sinusoid(t, 8) - expected).abs().max() <= 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_time_in_fp32(dtype):
    """Time embedding, norms, modulation and head stay fp32 and exact; the linears of the blocks are cast."""
    dit, given, audio = random_dit(TINY), inputs(TINY), audio_tokens(TINY)
    expected, t_emb = dit(**given, audio=audio), dit.embed_time(given["timestep"])
    dit.to(dtype)
    for before, after in zip(t_emb, dit.embed_time(given["timestep"]), strict=True):
        assert after.dtype == torch.float32 and torch.equal(before, after)
    kept = {name for name, parameter in dit.named_parameters() if parameter.dtype == torch.float32}
    assert {"head.head.weight", "blocks.0.modulation", "blocks.0.norm3.weight"} <= kept
    assert dit.blocks[1].ffn[2].weight.dtype == dit.patch_embedding.weight.dtype == dtype
    ours = dit(**given, audio=audio)
    assert ours.dtype == torch.float32
    assert 0 < (ours - expected).abs().max() < 0.15 * expected.std()
    assert dit.float().blocks[0].self_attn.q.weight.dtype == torch.float32


@torch.no_grad()
def test_half_precision_weights_assigned_from_a_file_still_make_fp32_time():
    dit, given = random_dit(TINY), inputs(TINY)
    other = meta_dit(TINY)
    other.load_state_dict({name: tensor.bfloat16() for name, tensor in dit.state_dict().items()}, assign=True)
    t_emb, modulation = other.embed_time(given["timestep"])
    assert t_emb.dtype == modulation.dtype == torch.float32
    assert (t_emb - dit.embed_time(given["timestep"])[0]).abs().max() < 0.05  # bf16 of the weights, not of the timestep
    assert other(**given).isfinite().all()


@torch.no_grad()
def test_autocast_is_close_to_fp32():
    dit, given, audio = random_dit(TINY), inputs(TINY), audio_tokens(TINY)
    expected = dit(**given, audio=audio)
    with torch.autocast("cpu", torch.bfloat16):
        ours = dit(**given, audio=audio, audio_scale=torch.ones(2))
    assert 0 < (ours - expected).abs().max() < 0.15 * expected.std()


@torch.no_grad()
def test_meta_construction_then_assignment():
    dit, given = random_dit(TINY), inputs(TINY)
    other = meta_dit(TINY)
    other.load_state_dict(dit.state_dict(), assign=True)
    assert torch.equal(dit(**given), other(**given))


def test_rope_made_in_inference_mode_serves_training():
    dit, given = random_dit(TINY), inputs(TINY, size=(2, 10, 2))
    with torch.inference_mode():
        dit(**given)
    dit(**given).sum().backward()
    assert dit.blocks[0].self_attn.q.weight.grad.any()


@torch.no_grad()
def test_compiles_in_one_graph():
    """fullgraph refuses graph breaks; the eager backend runs the traced graph without a compiler."""
    dit, given, audio = random_dit(replace(TINY, num_layers=1)), inputs(TINY), audio_tokens(TINY)
    compiled = torch.compile(dit, fullgraph=True, backend="eager")
    assert torch.equal(compiled(**given, audio=audio), dit(**given, audio=audio))


@pytest.mark.parametrize("name", PRESETS)
def test_config_from_the_shapes_of_every_preset(name):
    """What no tensor tells (heads that are not 128 wide, text_len, the width of audio features) is given."""
    config = PRESETS[name]
    untold = {"text_len": config.text_len, "audio_dim": config.audio_dim, "num_heads": config.num_heads}
    untold = {} if name.startswith("wan2.1") else untold
    assert WanConfig.from_state_dict(meta_dit(config).state_dict(), **untold) == config


def test_parameter_counts_of_the_released_models():
    """16,394,878,784 parameters (Wan2.1 I2V 14B) and 40 blocks x 2 x 2048 x 5120 for audio (FantasyTalking)."""
    shapes = {name: tensor.numel() for name, tensor in meta_dit(PRESETS["wan2.1-i2v-14b"]).state_dict().items()}
    audio = sum(count for name, count in shapes.items() if ".processor." in name)
    assert audio == 40 * 2 * 2048 * 5120 == 838_860_800
    assert sum(shapes.values()) - audio == 16_394_878_784


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 16, 3, 5, 6), "condition": torch.zeros(2, 20, 3, 5, 6)}, "multiples of"),
        ({"latents": torch.zeros(16, 3, 4, 6)}, "latents does not fit"),
        ({"timestep": torch.zeros(1)}, "timestep does not fit"),
        ({"text": torch.zeros(2, 7, 16)}, r"expected: shape \[2, 6, 16\]"),
        ({"text": torch.zeros(2, 4, 15)}, "text does not fit"),
        ({"condition": None}, "got:      nothing"),
        ({"condition": torch.zeros(2, 16, 3, 4, 6)}, "condition does not fit"),
        ({"clip": torch.zeros(2, 257, 41)}, "clip does not fit"),
        ({"audio": AudioTokens(torch.zeros(2, 4, 7, 48), None)}, r"expected: shape \[2, 3, 7, 48\]"),
        ({"audio": AudioTokens(torch.zeros(2, 3, 7, 48), torch.ones(1, 3))}, "audio lengths does not fit"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        random_dit(TINY)(**{**inputs(TINY), **change})


def test_inputs_the_model_has_no_branch_for_are_refused():
    plain = replace(TINY, clip_dim=0, in_dim=16, audio_token_dim=0)
    given, dit = inputs(plain), random_dit(plain)
    for extra in (
        {"clip": torch.zeros(2, 257, 40)},
        {"condition": torch.zeros(2, 20, 3, 4, 6)},
        {"audio": AudioTokens(torch.zeros(2, 3, 7, 48))},
    ):
        with pytest.raises(UserError, match="this model takes none"):
            dit(**{**given, **extra})


def test_other_files_and_wrong_heads_are_refused():
    with pytest.raises(UserError, match="patch_embedding.weight"):
        WanConfig.from_state_dict({"encoder.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="width 96 with 5 heads"):
        replace(TINY, num_heads=5)
