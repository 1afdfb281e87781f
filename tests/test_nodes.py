"""Single nodes inside ComfyUI: frames of a voice, face masks, encoders, gates by hand, and what they refuse.

One ComfyUI process runs all cases (`inside_comfyui/node_cases.py`); each test compares some of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui import inside_comfyui
from native_wan import CONFIG, METADATA, base_state, write_files
from safetensors.torch import save_file
from small_dits import random_dit

from fantasy_core.audio import as_voice, trim
from fantasy_core.wav2vec import Wav2Vec

pytestmark = pytest.mark.comfy


def speech(seconds: float, rate: int) -> torch.Tensor:
    """Noise that swells and fades four times a second, [1, 1, n]."""
    time = torch.arange(int(seconds * rate)) / rate
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(8))
    return (0.3 * noise * torch.sin(2 * torch.pi * 2 * time) ** 2)[None, None]


@pytest.fixture(scope="module")
def given() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {
        "stereo": torch.rand(1, 2, 88200, generator=generator) - 0.5,  # two seconds
        "mask": torch.rand(9, 40, 64, generator=generator),
        "speech": speech(1.6, 22050),
    }


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory):
    """wav2vec2-base with random weights, at full size: ComfyUI reads no other."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nodes")
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder / "wav2vec2")
    return folder


@pytest.fixture(scope="module")
def found(given, wav2vec2) -> dict:
    folder = wav2vec2
    write_files(folder)
    shallow = random_dit(replace(CONFIG, num_layers=2))
    save_file(base_state(shallow), folder / "shallow.safetensors", METADATA)
    torch.save(given, folder / "given.pt")
    return inside_comfyui("node_cases", folder, folder)


@pytest.mark.parametrize(
    "case,frames,fps",
    [("within", 45, 23), ("official", 49, 23), ("most", 29, 23), ("first", 25, 23), ("25", 49, 25)],
)
def test_audio_to_frames(found, given, case, frames, fps):
    """Two seconds at 23 fps are 46 frames: 45 = 4 * 11 + 1 fit; FantasyTalking takes 4 * 11 + 5. From 20 on 26 are
    left. The sound is cut, or filled with silence, to frames / fps."""
    samples = round(frames / fps * 44100)
    assert found[f"frames {case}"].tolist() == pytest.approx([frames, samples, fps, frames / fps])
    begin = round(20 / 23 * 44100) if case == "first" else 0
    heard = given["stereo"][..., begin:][..., :samples]
    assert torch.equal(found[f"sound {case}"][..., : heard.shape[-1]], heard)
    assert not found[f"sound {case}"][..., heard.shape[-1] :].any()


def test_face_mask_over_latent_frames(found, given):
    """40 x 64 pixels are 3 x 4 tokens of 16 (the last row is half one); frame 0 alone, then the mean of each four; one
    mask stands for all frames, and the last of a short list holds on."""
    tokens = torch.nn.functional.adaptive_avg_pool2d(given["mask"][None], (3, 4))[0]
    assert found["face"].shape == (1, 1, 3, 3, 4)
    torch.testing.assert_close(found["face"][0, 0, 0], tokens[0])
    torch.testing.assert_close(found["face"][0, 0, 2], tokens[5:9].mean(0))
    torch.testing.assert_close(found["face, one"][0, 0], tokens[:1].expand(3, -1, -1))
    torch.testing.assert_close(found["face, short"][0, 0, 1], (tokens[1] + 3 * tokens[2]) / 4)


def test_features_are_those_of_the_core(found, given, wav2vec2):
    """ComfyUI's wav2vec2 on the voice that the node resampled, cut to 33 frames and normalised, against transformers'.
    The stock encode node does not normalise: close, and not the same."""
    expected = Wav2Vec(wav2vec2 / "wav2vec2")(trim(as_voice(given["speech"][0], 22050), 33, 23))
    assert found["features"].shape == expected.shape == (1, 71, 768)
    assert (found["features"] - expected).abs().max() < 5e-5 * expected.abs().max()
    assert found["encoded"].shape[1] >= 71


def test_long_voices_are_encoded_in_pieces(found):
    """75 s through an encoder without context beyond its reach: the pieces join without a seam."""
    assert found["pieces"] < 1e-5


def test_manual_gates(found):
    """[timestep, block, expert] at 1000, 500 and 0; three blocks, experts mn, ls, vq."""
    for case in ("constant", "constant, with its name"):
        torch.testing.assert_close(found[case], torch.tensor([0.3, 0.5, 0.2]).expand(3, 3, 3))
    torch.testing.assert_close(found["constant, one for all"], torch.full((3, 3, 3), 0.4))
    torch.testing.assert_close(found["constant, by line"], torch.tensor([0.3, 0.5, 1.0]).expand(3, 3, 3))
    # four steps at shift 1: timesteps 1000, 750, 500, 250; mn falls from 1 to 0 by thirds
    mn = torch.tensor([1.0, 1 / 3, 0.0])
    torch.testing.assert_close(found["curve"][:, 1], torch.stack([mn, torch.ones(3), torch.full((3,), 0.5)], 1))
    torch.testing.assert_close(found["curve, sigmas"][:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(found["ramp"][0], torch.tensor([[1.0, 0, 1], [0.5, 0.5, 1], [0, 1, 1]]))
    torch.testing.assert_close(found["table"][:, 2, 0], mn)


REFUSED = {
    "one line": ["rows"],
    "nonsense": ["'a'", "a number"],
    "adapter of another depth": ["3 blocks", "2 blocks"],
    "experts of another depth": ["lacks", "2 blocks"],
    "gate of other experts": ["made for other experts", "vq"],
    "twice the same": ["same name", "mn"],
    "no voice": ["audio_encoder and audio", "connect"],
    "silence": ["silence"],
    "a LoRA as adapter": ["a LoRA", "as an expert"],
    "a file that went": ["gone.safetensors", "loras"],
    "no Wan": ["no Wan video model", "Load Diffusion Model"],
    "a mask over two models": ["mask", "one model"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(found, case):
    for word in [*REFUSED[case], "got:", "expected:", "do:"]:
        assert word in found["told"][case], found["told"][case]
