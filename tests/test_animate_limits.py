"""What a voice, a strength, a size or a picture of a gate may be, and what the command refuses before it loads."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest
import soundfile
import torch
from sounds import encode, whole
from test_mixture import NAMES, QUICK, experts, folder  # noqa: F401 (a fixture)

from fantasy_core.animate import main
from fantasy_core.audio import load_voice
from fantasy_core.media import VideoWriter
from fantasy_core.miniature.components import WEIGHTS
from fantasy_core.weights import save_tensors

PORTRAIT = str(WEIGHTS.parent / "assets/portrait.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7, 8, 9, 16, 24])
def test_sound_of_many_channels(tmp_path, channels):
    """Channel c holds (c + 1) / 100 times one noise: they come back in their places, their mean is the voice, and a
    video may carry them (beyond two as stereo or, where no layout has names for them, as mono)."""
    noise = np.random.default_rng(0).uniform(-1, 1, 20000).astype(np.float32)
    shares = (1 + np.arange(channels, dtype=np.float32)) / 100
    soundfile.write(tmp_path / "a.wav", noise[:, None] * shares, 16000, subtype="FLOAT")
    sound, rate = whole(tmp_path / "a.wav")
    assert rate == 16000 and sound.shape == (channels, 20000)
    assert np.allclose(sound, noise * shares[:, None], atol=1e-6)
    assert torch.allclose(load_voice(tmp_path / "a.wav"), torch.from_numpy(noise * shares.mean()), atol=1e-6)
    with VideoWriter(tmp_path / "v.mp4", 10, sound=tmp_path / "a.wav") as writer:
        writer.write(torch.zeros(10, 3, 16, 16))
    heard, _ = whole(tmp_path / "v.mp4")
    assert heard.shape[0] == (1 if channels in (1, 9, 16, 24) else 2) and np.abs(heard).max() > 0


def refused(capsys, *flags: str) -> str:
    given = {"--portrait": PORTRAIT, **dict(zip(flags[::2], flags[1::2], strict=True))}
    assert main([*(part for pair in given.items() for part in pair), *QUICK]) == 2
    error = capsys.readouterr().err
    assert "expected:" in error and "do:" in error and "Traceback" not in error
    return error


@pytest.mark.parametrize("peak", [1e5, 1e9, 3e38])
def test_sound_that_is_none(tmp_path, capsys, peak):
    """Floats of a broken file: the encoder hangs on 1e9. Up to 1e4 is a voice of another scale, and is clipped."""
    noise = np.random.default_rng(0).uniform(-1, 1, 20000)
    soundfile.write(tmp_path / "a.wav", noise * peak, 16000, subtype="FLOAT")
    error = refused(capsys, "--audio", f"{tmp_path}/a.wav", "--out", f"{tmp_path}/v.mp4")
    assert "broken, for sound is between -1 and 1" in error and [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    soundfile.write(tmp_path / "a.wav", noise * 1e4, 16000, subtype="FLOAT")
    assert main(["--portrait", PORTRAIT, "--audio", f"{tmp_path}/a.wav", "--out", f"{tmp_path}/v.mp4", *QUICK]) == 0
    assert np.abs(whole(tmp_path / "v.mp4")[0]).max() < 5  # clipped noise overshoots where AAC rounds it


def test_a_video_does_not_replace_what_it_is_made_from(tmp_path, capsys):
    """By whatever path it is named, in a manifest too; two outs of one file are found there."""
    encode(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, (1, 16000)), 16_000)
    voice = tmp_path / "voice.mp4"
    with VideoWriter(voice, 10, sound=tmp_path / "a.wav") as writer:
        writer.write(torch.zeros(10, 3, 64, 64))
    before = voice.read_bytes()
    (tmp_path / "below").mkdir()
    error = refused(capsys, "--audio", str(voice), "--out", f"{tmp_path}/below/../voice.mp4")
    assert "would replace what it is made from" in error
    line = {"portrait": PORTRAIT, "audio": "voice.mp4"}
    outs = ("voice.mp4", "v.mp4", "below/../v.mp4")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line | {"out": out}) + "\n" for out in outs))
    assert main(["--manifest", f"{tmp_path}/m.jsonl", *QUICK]) == 2
    told = capsys.readouterr().err
    assert "would replace" in told and "the same out as an earlier line" in told
    assert voice.read_bytes() == before and (tmp_path / "v.mp4").is_file()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--size", "160000x160000"), "at most 4096"),
        (("--device", "meta"), "a device without memory"),
        (("--lora", "{f}/mn.safetensors:nan"), "a strength is no number"),
        (("--lora", "{f}/mn.safetensors:1e39"), "a strength is no number"),
        (("--lora", "{f}/mn.safetensors:0,8"), "a strength is no number"),
        (("--lora", "{f}/nowhere.safetensors:0.5"), "not found"),
        (("--expert", "mn={f}/mn.safetensors", "--gate", "constant:1e39"), "-10000 to 10000"),
        (("--expert", "mn={f}/mn.safetensors", "--gate", "Constant:1"), "constant:0.3,0.5,0.2"),
        (("--expert", "mn={f}/mn.safetensors", "--gate", "table:"), "no file after table:"),
        (("--expert", "mn={f}/mn.safetensors", "--gate-plot", "{f}/nofolder/g.png"), "no folder"),
        (("--expert", "mn={f}/mn.safetensors", "--gate-plot", "{f}/g.xyz"), "the name g.xyz"),
        (("--expert", "mn={f}/mn.safetensors", "--gate-plot", "{f}"), "cannot write"),
    ],
)
def test_what_is_known_before_anything_is_loaded(folder, capsys, flags, told):  # noqa: F811
    """By the dry run as well."""
    given = ["--portrait", PORTRAIT, "--audio", f"{folder}/a.wav", "--out", f"{folder}/limits.mp4", *QUICK]
    given += [part.replace("{f}", str(folder)) for part in flags]
    for more in ([], ["--dry-run"]):
        assert main([*given, *more]) == 2
        error = capsys.readouterr().err
        assert told in error and "do:" in error and "Traceback" not in error


def test_a_colon_may_belong_to_a_path(folder, tmp_path):  # noqa: F811
    (tmp_path / "a:0.5").mkdir()
    file = tmp_path / "a:0.5" / "mn.safetensors"
    file.write_bytes((folder / "mn.safetensors").read_bytes())
    given = ["--portrait", PORTRAIT, "--audio", f"{folder}/a.wav", "--out", f"{tmp_path}/v.mp4", *QUICK, "--dry-run"]
    assert main([*given, "--lora", str(file)]) == 0 and main([*given, "--lora", f"{file}:0.8"]) == 0


def test_weights_may_be_read_by_others(tmp_path):
    """As any new file may: 0644 with the usual mask, 0600 where the user wants it so."""
    import os

    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == mode


def test_experts_stay_usable(folder, tmp_path):  # noqa: F811
    """What is refused above is not what a user writes: strengths and gates of every usual form pass."""
    given = ["--portrait", PORTRAIT, "--audio", f"{folder}/a.wav", "--out", f"{tmp_path}/v.mp4", *QUICK, "--dry-run"]
    for gate in ("constant:0.5", "steps:mn=0,1", "blocks:ls=-1..2", f"{folder}/gate.safetensors"):
        assert main([*given, *experts(folder, *NAMES), "--gate", gate, "--gate-plot", f"{tmp_path}/g.png"]) == 0
    assert main([*given, "--lora", f"{folder}/mn.safetensors:-0.5", f"{folder}/ls.safetensors"]) == 0
