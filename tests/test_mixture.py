"""Experts, LoRAs and gates of every kind through the command, on the miniature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_experts import random_expert
from sounds import encode

from fantasy_core.animate import main
from fantasy_core.experts import save_expert
from fantasy_core.gate import FusionGate
from fantasy_core.gate_files import save_gate
from fantasy_core.manifest import settings_of
from fantasy_core.media import read_video
from fantasy_core.miniature import load_components
from fantasy_core.miniature.components import WEIGHTS
from fantasy_core.wan import PRESETS, WanDiT

QUICK = ["--steps", "2", "--max-frames", "5"]
NAMES = ("mn", "ls", "vq")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A portrait of the miniature's world, a voice, three experts and the gate that a trainer might have made."""
    folder = tmp_path_factory.mktemp("mixture")
    encode(folder / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, (1, 8000)).astype(np.float32), 16_000)
    with load_components().dit() as dit:
        experts = [random_expert(dit, name, seed=i) for i, name in enumerate(NAMES)]
        for expert in experts:
            save_expert(folder / f"{expert.name}.safetensors", expert)
        gate = FusionGate(4, 256, 3, names=NAMES)
        torch.nn.init.normal_(gate.weight, std=0.5)
        hashes = {expert.name: expert.hash for expert in experts}
        save_gate(folder / "gate.safetensors", gate, hashes=hashes, host=dit)
    return folder


def animate(folder, out: str, *flags: str) -> torch.Tensor:
    """Frames [T, 3, H, W] of the video that these flags make."""
    given = ["--portrait", str(WEIGHTS.parent / "assets/portrait.png"), "--audio", f"{folder}/a.wav"]
    assert main([*given, "--out", f"{folder}/{out}.mp4", *QUICK, *flags]) == 0
    return torch.stack([frame for _, frame in read_video(folder / f"{out}.mp4")])


def experts(folder, *names: str) -> list[str]:
    return ["--expert", *(f"{name}={folder}/{name}.safetensors" for name in names)]


def test_silent_experts_leave_the_video_as_it_is(folder):
    plain = animate(folder, "plain")
    silent = animate(folder, "silent", *experts(folder, *NAMES), "--gate", "constant:0,0,0")
    assert torch.equal(plain, silent)
    assert "experts" not in settings_of(folder / "plain.mp4")


def test_gates_of_every_kind(folder):
    """Every gate gives a picture of its own, and the record tells experts, gate and strategy."""
    (folder / "t.csv").write_text("block,mn,ls,vq\n0-1,3,0,0\n2-3,0,0,3\n")
    gates = {
        "file": f"{folder}/gate.safetensors", "constant": "constant:2,0,1", "steps": "steps:mn=3,0;ls=0;vq=0",
        "blocks": "blocks:mn=3..0;ls=0;vq=0..3", "table": f"table:{folder}/t.csv",
    }  # fmt: skip
    videos = {kind: animate(folder, kind, *experts(folder, *NAMES), "--gate", gate) for kind, gate in gates.items()}
    pictures = [animate(folder, "plain"), *videos.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    record = settings_of(folder / "file.mp4")
    assert set(record["experts"]) == set(NAMES) and record["strategy"] == "auto" and len(record["gate"]) == 64
    assert settings_of(folder / "constant.mp4")["gate"] == "constant:2,0,1"


def test_a_lora_beside_the_gate_is_an_expert_of_fixed_weight(folder):
    """mn under the gate at 0.5 with ls at 2 beside it = both under a constant gate; without a gate each counts 1."""
    beside = animate(
        folder, "beside", *experts(folder, "mn"), "--gate", "constant:0.5", "--lora", f"{folder}/ls.safetensors:2"
    )
    both = animate(folder, "both", *experts(folder, "mn", "ls"), "--gate", "constant:0.5,2")
    assert torch.equal(beside, both)
    assert settings_of(folder / "beside.mp4")["loras"]["ls"][1] == 2
    alone = animate(folder, "alone", "--lora", f"{folder}/mn.safetensors")
    assert torch.equal(alone, animate(folder, "default", *experts(folder, "mn")))


def test_strategies_agree(folder):
    """They round differently, at 1e-6 of the latents; H.264 may turn that into a grey level."""
    gate = ["--gate", f"{folder}/gate.safetensors"]
    videos = [animate(folder, s, *experts(folder, *NAMES), *gate, "--strategy", s) for s in ("stacked", "merged")]
    assert (videos[0] - videos[1]).abs().max() <= 1 / 255


def test_gate_plot_and_dry_run(folder, capsys):
    """Dry run: a line of the plan for every kind of linear, nothing written."""
    flags = [*experts(folder, *NAMES), "--gate", f"{folder}/gate.safetensors"]
    animate(folder, "plotted", *flags, "--gate-plot", f"{folder}/gate.png")
    assert Image.open(folder / "gate.png").width > 500
    given = ["--portrait", str(WEIGHTS.parent / "assets/portrait.png"), "--audio", f"{folder}/a.wav"]
    assert main([*given, "--out", f"{folder}/dry.mp4", *QUICK, *flags, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(linear in printed for linear in ("self_attn.q", "cross_attn.v", "ffn.2")) and "experts:" in printed
    assert "may choose otherwise" not in printed and not (folder / "dry.mp4").exists()
    assert main([*given, "--out", f"{folder}/dry.mp4", *QUICK, *flags, "--dtype", "bf16", "--dry-run"]) == 0
    assert "the run measures what merging costs" in capsys.readouterr().out


def wide_expert(folder) -> str:
    """An expert of a model of another width."""
    from dataclasses import replace

    save_expert(folder / "wide.safetensors", random_expert(WanDiT(replace(PRESETS["miniature"], dim=128)), "mn"))
    return f"mn={folder}/wide.safetensors"


def test_bad_input(folder, capsys):
    """Each is told in four parts, exit code 2, before a model is loaded."""
    mn, gate = f"mn={folder}/mn.safetensors", f"{folder}/gate.safetensors"
    for flags, told in [
        (["--gate", "constant:1"], "a gate without experts"),
        (["--expert", f"{folder}/mn.safetensors"], "an expert without a name"),
        (["--expert", mn, mn], "same name"),
        (["--expert", mn, "--lora", f"{folder}/mn.safetensors"], "same name"),
        (["--lora", f"{folder}/mn.safetensors:0.5", f"{folder}/mn.safetensors:1"], "same name"),
        (["--expert", mn, "--gate", gate], "made for other experts"),
        (["--expert", mn, "--gate", f"{folder}/ls.safetensors"], "is no gate"),
        (["--expert", mn, "--gate", "constant:1,2"], "cannot be read"),
        (["--expert", f"mn={folder}/nowhere.safetensors"], "not found"),
        (["--expert", f"mn={gate}"], "no LoRA"),
        (["--expert", wide_expert(folder)], "another width"),
    ]:
        given = ["--portrait", str(WEIGHTS.parent / "assets/portrait.png"), "--audio", f"{folder}/a.wav"]
        assert main([*given, "--out", f"{folder}/bad.mp4", *QUICK, *flags]) == 2
        error = capsys.readouterr().err
        assert told in error and "expected:" in error and "do:" in error
        assert not (folder / "bad.mp4").exists()


def test_half_precision_on_a_cpu(folder):
    """Where merging pays is measured there. Whatever was chosen, bf16 moves the picture less than half as far from that
    of fp32 as the experts have moved it."""
    flags = [*experts(folder, *NAMES), "--gate", "constant:3,3,3"]
    half, single = animate(folder, "half", *flags, "--dtype", "bf16"), animate(folder, "single", *flags)
    assert (half - single).abs().mean() < 0.5 * (animate(folder, "plain") - single).abs().mean()
