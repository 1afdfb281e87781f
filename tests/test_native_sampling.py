"""Whole sampling runs in ComfyUI against the core on the same weights, noise and sigmas (fp32, a tiny I2V model).

One ComfyUI process runs all cases (`inside_comfyui/sampling_cases.py`); each test compares some of them.
"""

from __future__ import annotations

import pytest
import torch
from comfyui import inside_comfyui
from native_wan import CONFIG, METADATA, NAMES, base_state, native_bank, native_dit, native_gate, write_files
from safetensors.torch import save_file

from fantasy_core.audio import AudioTokens
from fantasy_core.encoders import image_condition
from fantasy_core.flow import guided, sample, schedule
from fantasy_core.fusion import attach
from fantasy_core.manual_gates import manual_gate
from fantasy_core.miniature import load_components

pytestmark = pytest.mark.comfy
LIMIT = 5e-5


@pytest.fixture(scope="module")
def given() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "text": random(1, 7, CONFIG.text_dim), "negative": random(1, 7, CONFIG.text_dim),
        "clip": random(1, 257, CONFIG.clip_dim), "image": torch.rand(1, 64, 64, 3, generator=generator),
        "tokens": random(1, 5, 6, CONFIG.audio_token_dim), "lengths": torch.tensor([[2, 6, 6, 5, 1]]),
        "long tokens": random(1, 13, 6, CONFIG.audio_token_dim), "long face": torch.rand(1, 1, 13, 4, 4),
        "long lengths": torch.tensor([[2, 6, 6, 5, 1, 6, 6, 3, 6, 6, 6, 4, 6]]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(given, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("sampling")
    write_files(folder)
    save_file(base_state(native_dit(seed=1)), folder / "other.safetensors", METADATA)
    torch.save(given, folder / "inputs.pt")
    return inside_comfyui("sampling_cases", folder, folder)


def velocity_fn(given, dit, s: float, a: float):
    """Three-way guidance of the core, from the image condition on."""
    components = load_components()
    condition = image_condition(components.encode, given["image"].movedim(-1, 1) * 2 - 1, 17)
    voice = AudioTokens(given["tokens"], given["lengths"])
    told = {"negative": given["negative"], "condition": condition, "clip": given["clip"]}
    return guided(dit, given["text"], voice, text_scale=s, audio_scale=a, **told)


def expected(given, found, s: float, a: float) -> torch.Tensor:
    with torch.no_grad():
        return sample(velocity_fn(given, native_dit(), s, a), found["noise"], schedule(4, 5.0))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("s,a,passes", [(5.0, 3.0, 3), (4.0, 4.0, 2), (1.0, 1.0, 1), (1.0, 3.0, 2), (3.0, 0.0, 2)])
def test_tlpo_sampler(found, given, s, a, passes):
    """Latents after four steps, and no pass that counts zero."""
    assert apart(found[f"tlpo {s} {a}"], expected(given, found, s, a)) < LIMIT
    assert found[f"rows {s} {a}"] == 4 * passes


def test_gated_experts_are_sampled(found, given):
    dit = native_dit()
    with attach(dit, native_bank(dit), native_gate(dit), "naive"), torch.no_grad():
        latents = sample(velocity_fn(given, dit, 5.0, 3.0), found["noise"], schedule(4, 5.0))
    assert apart(found["gated 5.0 3.0"], latents) < LIMIT
    assert apart(found["gated 5.0 3.0"], found["tlpo 5.0 3.0"]) > 0.05


def test_the_stock_guider_gives_the_same(found):
    assert apart(found["stock dual guider"], found["tlpo 5.0 3.0"]) < LIMIT


@pytest.mark.parametrize("s,a,passes", [(5.0, 3.0, 3), (4.0, 4.0, 2), (1.0, 1.0, 1)])
def test_audio_guidance_in_a_plain_ksampler(found, s, a, passes):
    """ModelSamplingSD3 at shift 5 and scheduler simple have the same sigmas at four steps."""
    assert apart(found[f"ksampler {s} {a}"], found[f"tlpo {s} {a}"]) < LIMIT
    assert found[f"ksampler rows {s} {a}"] == 4 * passes


def test_sigmas(found):
    """FantasyTalking's: 5 u / (1 + 4 u) for u = 1, 29/30 ... 0; with denoise 1/2 the lower half of twice the steps."""
    u = torch.linspace(1, 0, 31, dtype=torch.float64)
    torch.testing.assert_close(found["sigmas"], (5 * u / (1 + 4 * u)).float())
    assert torch.equal(found["sigmas, half"], found["sigmas"][15:])


def test_a_pair_of_models_shares_one_gate_by_sigma(found, given):
    """Sigmas of 4 steps at shift 5: 1, 0.9375, 0.8333, 0.625, 0. The second model takes over at the first below 0.8,
    and the gate's steps go on counting."""
    assert apart(found["the same model twice"], found["tlpo 5.0 3.0"]) < LIMIT
    dits = [native_dit(seed) for seed in (0, 1)]
    heard = {name: tensor for name, tensor in dits[0].state_dict().items() if ".processor." in name}
    dits[1].load_state_dict(heard, strict=False)  # one adapter for both
    banks = [native_bank(native_dit()) for _ in dits]
    gate = manual_gate("steps:mn=0,1;ls=0.5;vq=1,0", NAMES, CONFIG.num_layers, schedule(4, 5.0))
    fns = [velocity_fn(given, dit, 5.0, 3.0) for dit in dits]
    with torch.no_grad(), attach(dits[0], banks[0], gate, "naive"), attach(dits[1], banks[1], gate, "naive"):
        latents = sample(lambda x, sigma: fns[sigma < 0.8](x, sigma), found["noise"], schedule(4, 5.0))
    assert apart(found["pair"], latents) < LIMIT


@pytest.mark.parametrize("retain", ["", "0"])
@pytest.mark.parametrize("fix", [False, True])
def test_every_context_window_hears_its_own_frames(found, retain, fix):
    """13 latent frames in windows of 5: tokens, mask and face are those of the window's frames, also where ComfyUI puts
    a frame before the window (`fix`) or the video's first frame at its beginning (`retain`)."""
    errors = found[f"windows {retain!r} {fix}"]
    assert len(errors) >= 3 * 4 and not errors.any()
    assert (found[f"anchors {retain!r} {fix}"] > 0) == fix


def test_interrupt_leaves_the_base_alone(found):
    assert found["interrupted"] and found["base after interrupt"] == 0


def test_merging_is_announced_to_the_memory_estimate(found):
    """D, the cast W and their sum of the largest linear, 384 x 256 in fp32, at least, and at most a frame more."""
    stacked, merged = found["memory"].tolist()
    transient = 3 * 384 * 256 * 4
    assert transient <= merged - stacked <= transient + stacked / 5


def test_gate_plot(found):
    height, width, channels, drawn = found["plot"].tolist()[1:]
    assert height > 200 and width > 500 and channels == 3 and drawn
