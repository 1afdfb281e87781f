"""Wan2.1 with FantasyTalking through the command, on tiny random models in the published layouts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from layouts import CONFIG, Tiny, tiny_clip, tiny_dit, tiny_text, tiny_vae, write_fantasytalking_ckpt
from PIL import Image
from sounds import encode

from fantasy_core.animate import main
from fantasy_core.components import WanComponents
from fantasy_core.errors import UserError
from fantasy_core.manifest import settings_of
from fantasy_core.media import read_video

SIZES = replace(CONFIG, clip_dim=160, text_dim=32)  # those of the tiny encoders


def write_wav2vec(folder) -> None:
    """A random wav2vec2 with the real convolution stack, as wide as the tiny transformer's audio features."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": SIZES.audio_dim, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions)).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of Wan2.1, FantasyTalking's checkpoint, wav2vec2, a portrait and a voice of 0.6 s."""
    folder = tmp_path_factory.mktemp("models")
    with_audio = tiny_dit(SIZES)
    Tiny(tiny_dit(SIZES, audio=False), tiny_text(), tiny_clip(), tiny_vae()).write_official(folder / "wan")
    write_fantasytalking_ckpt(folder / "fantasytalking_model.ckpt", with_audio)
    write_wav2vec(folder / "wav2vec")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(folder / "p.png")
    encode(folder / "a.wav", rng.uniform(-0.3, 0.3, (1, 9600)).astype(np.float32), 16_000)
    return folder


def flags_for(models, out, *more: str) -> list[str]:
    """13 frames of 32 x 32 in two windows of 9, two steps of three passes."""
    named = {"--wan": "wan", "--fantasytalking": "fantasytalking_model.ckpt", "--wav2vec": "wav2vec"}
    named |= {"--portrait": "p.png", "--audio": "a.wav"}
    paths = [part for flag, name in named.items() for part in (flag, f"{models}/{name}")]
    small = ["--size", "32x32", "--window", "9", "--overlap", "5", "--steps", "2", "--text-scale", "3"]
    return ["--model", "wan2.1-i2v-14b", *paths, *small, "--dtype", "fp32", "--out", str(out), *more]


def frames_of(path) -> torch.Tensor:
    return torch.stack([frame for _, frame in read_video(path)])


def test_wan_speaks_with_and_without_offload(models, tmp_path, capsys):
    """Text, CLIP, VAE, wav2vec2 and the DiT with its audio linears in one run. With offload the weights lie elsewhere
    in memory, so sums may round differently (6e-6 in the latents, a few pixels after H.264); a prompt changes the
    picture. Of the checkpoint 3 + 2 x 2 blocks tensors are told."""
    videos = {}
    for name, more in {"plain": [], "offload": ["--offload", "blocks"], "prompt": ["--prompt", "a man sings"]}.items():
        assert main(flags_for(models, tmp_path / f"{name}.mp4", *more)) == 0
        videos[name] = frames_of(tmp_path / f"{name}.mp4")
    assert videos["plain"].shape == (13, 3, 32, 32)
    change = {name: (video - videos["plain"]).abs().mean().item() for name, video in videos.items()}
    assert change["offload"] < 0.5 / 255 < change["prompt"] and change["offload"] < 0.1 * change["prompt"]
    assert "dialect `official`, 7 tensors" in capsys.readouterr().err
    record = settings_of(tmp_path / "plain.mp4")
    assert record["negative_prompt"].startswith("人物静止不动，静止，色调艳丽") and record["model"] == "wan2.1-i2v-14b"
    assert record["weights"] == settings_of(tmp_path / "offload.mp4")["weights"]


def test_dry_run_reads_headers_alone(models, tmp_path, capsys):
    assert main(flags_for(models, tmp_path / "v.mp4", "--dry-run", "--offload", "blocks")) == 0
    told = capsys.readouterr()
    assert "2 window(s)" in told.out and "2 steps x 3 pass(es)" in told.out
    assert "FantasyTalking, dialect" not in told.err
    assert not list(tmp_path.iterdir())


def test_other_weights_have_another_fingerprint(models, tmp_path):
    paths = [models / name for name in ("wan", "fantasytalking_model.ckpt", "wav2vec")]
    other = write_fantasytalking_ckpt(tmp_path / "other.ckpt", tiny_dit(SIZES).half().float())
    assert WanComponents(*paths).fingerprint == WanComponents(*paths).fingerprint
    assert WanComponents(*paths).fingerprint != WanComponents(paths[0], other, paths[2]).fingerprint


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("wan/Wan2.1_VAE.pth", lambda path: path.unlink(), "lacks vae"),
        ("wan/diffusion_pytorch_model-00002-of-00002.safetensors", lambda path: path.unlink(), "00002-of-00002"),
        ("wan/diffusion_pytorch_model-00001-of-00002.safetensors", lambda path: path.write_bytes(b"x"), "00001-of"),
        ("fantasytalking_model.ckpt", lambda path: path.write_bytes(path.read_bytes()[:500]), "fantasytalking_model"),
        ("wav2vec/config.json", lambda path: path.unlink(), "config.json"),
    ],
)
def test_damaged_models_are_refused_before_anything_runs(models, tmp_path, capsys, name, damage, told):
    """The same folder with one file damaged: four parts, exit code 2, no video."""
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    damage(copy / name)
    assert main(flags_for(copy, tmp_path / "v.mp4")) == 2
    error = capsys.readouterr().err
    assert told in error and "do:" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_text_to_video_model_is_refused(tmp_path, models):
    tiny = tiny_dit(replace(SIZES, in_dim=16, clip_dim=0), audio=False)
    Tiny(tiny, tiny_text(), tiny_clip(), tiny_vae()).write_official(tmp_path / "wan")
    with pytest.raises(UserError, match="image-to-video"):
        WanComponents(tmp_path / "wan", models / "fantasytalking_model.ckpt", models / "wav2vec")
