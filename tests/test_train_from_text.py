"""The cheap base: Wan2.1 T2V in its official layout, without portrait and voice, from videos to experts and a gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import CONFIG, Tiny, tiny_clip, tiny_dit, tiny_text, tiny_vae
from test_train_preferences import expert_arguments, log_of

from fantasy_core.components import WanFromText
from fantasy_core.errors import UserError
from fantasy_core.experts import ExpertBank
from fantasy_core.flow import draw_noise, timestep, velocity_target, x_sigma
from fantasy_core.fusion import LINEARS, attach, host_of
from fantasy_core.gate_files import load_gate
from fantasy_core.media import VideoWriter
from fantasy_core.pair_rules import Pair
from fantasy_core.weights import open_tensors
from train import cache as cache_stage
from train import expert as expert_stage
from train import export as export_stage
from train import gate as gate_stage
from train.cost import cached_bytes
from train.errors import Draw, Row, error_maps
from train.run import write_rows
from train.shards import Cache

T2V = replace(CONFIG, in_dim=16, text_dim=32, clip_dim=0, audio_dim=0, audio_token_dim=0)
FPS, FRAMES, SIZE = 16, 9, (64, 96)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A tiny T2V in the official layout, and four videos of two prompts, without sound."""
    folder = tmp_path_factory.mktemp("text")
    Tiny(tiny_dit(T2V), tiny_text(), tiny_clip(), tiny_vae()).write_official(folder / "wan")
    (folder / "wan" / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth").unlink()  # T2V has none
    rows = []
    for number in range(4):
        torch.manual_seed(number)
        with VideoWriter(folder / f"v{number}.mp4", FPS) as writer:
            writer.write(torch.rand(1, 3, *SIZE).expand(FRAMES, -1, -1, -1).contiguous())
        row = {"video": f"v{number}", "input": f"i{number // 2}", "path": f"v{number}.mp4"}
        rows.append(row | {"prompt": ("a person speaks", "a person sings")[number // 2]})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cache_stage.main([*cache_arguments(folder), "--out", f"{folder}/cache"]) == 0
    for dimension in ("mn", "vq", "full"):
        pairs = [Pair(f"v{2 * i}", f"v{2 * i + 1}", f"i{i}", dimension, 1.0, "train") for i in range(2)]
        write_rows(folder / f"pairs_{dimension}.jsonl", pairs)
    return folder


def cache_arguments(folder: Path) -> list[str]:
    model = ["--model", "wan2.1-t2v-1.3b", "--wan", f"{folder}/wan"]  # whose own rate is 16 frames a second
    return ["--videos", f"{folder}/videos.jsonl", *model]


def base(folder: Path) -> dict[str, object]:
    return {"model": "wan2.1-t2v-1.3b", "wan": folder / "wan", "dtype": "fp32"}


@pytest.fixture(scope="module")
def experts(data, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("experts")
    for name in ("mn", "vq"):
        assert expert_stage.main(expert_arguments(data, out / name, name, **base(data))) == 0
    return {name: out / name / f"{name}.safetensors" for name in ("mn", "vq")}


def test_a_cache_holds_what_the_model_knows(data, capsys):
    """Latents and text: 2 prompts, 4 videos of 3 latent frames; no sound was asked for. The plan says its size."""
    cache, components = Cache(data / "cache"), WanFromText(data / "wan")  # texts are encoded in bf16
    assert all(set(cache[name]) == {"latents", "text"} for name in cache.videos) and len(cache.videos) == 4
    assert cache["v0"]["latents"].shape == (16, 3, 8, 12) and cache.facts["weights"] == components.fingerprint
    assert cache.facts["fps"] == FPS == components.defaults.fps
    assert torch.equal(cache["v0"]["text"], components.text(["a person speaks"])[0])
    stored = sum(tensor.numel() * tensor.element_size() for tensor in cache["v0"].values())
    text = (T2V.text_len - len(cache["v0"]["text"])) * T2V.text_dim * 4  # counted at its full length
    assert cached_bytes(T2V, FRAMES, *SIZE, dtype=torch.float32) == stored + text


def test_errors_are_those_of_the_model_alone(data):
    """(v - v*)^2 by hand: noise of the draw, x at its sigma, the text; nothing else goes in."""
    cache, draw = Cache(data / "cache"), Draw(0.7, (0, 1, 2))
    held = cache["v1"]
    with WanFromText(data / "wan", dtype=torch.float32).dit() as dit, torch.no_grad():
        (found,) = error_maps(dit, [Row("v1", held, draw)])
        latents, noise = held["latents"][None].float(), draw_noise((16, 3, 8, 12), 0, 1, 2)[None]
        time = torch.tensor([float(timestep(torch.tensor(0.7, dtype=torch.float64)))])
        velocity = dit(x_sigma(latents, noise, 0.7), time, held["text"][None])
    by_hand = (velocity - velocity_target(latents, noise)).square().mean(1)[0]
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-6)


def test_experts_and_a_gate_are_trained(data, experts, tmp_path):
    """Twelve linears a block less the two of an image that T2V lacks; the gate weighs both experts and moves."""
    bank = ExpertBank.load(experts, tiny_dit(T2V))
    pairs = bank.expert("mn").pairs
    usual = {name for name in LINEARS if not name.endswith("_img")}
    assert {address.split(".", 2)[2] for address in pairs} == usual and len(pairs) == len(usual) * T2V.num_layers
    assert all(pair.B.abs().max() > 0 for pair in pairs.values())
    flags = {"iterations": 4, "batch": 1, "lr": 1e-2, "beta": 50, "save-every": 2, **base(data)}
    given = ["--pairs", f"{data}/pairs_full.jsonl", "--cache", f"{data}/cache", "--out", str(tmp_path / "gate")]
    given += ["--expert", *(f"{name}={path}" for name, path in experts.items())]
    given += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert gate_stage.main(given) == 0
    gate = load_gate(tmp_path / "gate" / "gate.safetensors", hashes=bank.hashes, host=tiny_dit(T2V))
    dit = tiny_dit(T2V)
    with attach(host_of(dit), bank, gate, "stacked"), torch.no_grad():
        assert dit(torch.zeros(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.zeros(1, 1, T2V.text_dim)).isfinite().all()
    assert len(log_of(tmp_path / "gate")) == 4


def test_a_run_goes_on_and_shows_samples(data, experts, tmp_path):
    """Two iterations and four more end as six at once; a sample is guided by its prompt, away from the empty one."""
    for iterations in (2, 6):
        given = {"iterations": iterations, "sample-every": 3, "sample-count": 1, "sample-steps": 2, **base(data)}
        assert expert_stage.main(expert_arguments(data, tmp_path / "mn", "mn", **given)) == 0
    one, other = (open_tensors(path).entries for path in (tmp_path / "mn" / "mn.safetensors", experts["mn"]))
    assert one.keys() == other.keys() and all(torch.equal(one[name].read(), other[name].read()) for name in one)
    assert len(list((tmp_path / "mn" / "samples").glob("*.mp4"))) >= 3


def test_experts_leave_for_other_hosts(data, experts, tmp_path):
    """One LoRA of both, added up, under ComfyUI's names."""
    given = ["--expert", *(f"{name}={path}" for name, path in experts.items())]
    assert export_stage.main(["--base", f"{data}/wan", *given, "--averaged", str(tmp_path / "lora.safetensors")]) == 0
    names = open_tensors(tmp_path / "lora.safetensors").entries
    assert names and all(name.startswith("diffusion_model.blocks.") for name in names)


def test_a_base_without_a_voice_learns_no_lip_sync(data, tmp_path, capsys):
    given = expert_arguments(data, tmp_path / "ls", "mn", **base(data))
    given[given.index("--dimension") + 1] = "ls"
    assert expert_stage.main([*given, "--dry-run"]) == 2
    assert "cannot learn lip sync" in capsys.readouterr().err


def test_image_and_text_models_are_told_apart(data, tmp_path, capsys):
    """Neither is loaded in the other's place, and a cache of one is refused for the training of another."""
    Tiny.make().write_official(tmp_path / "i2v")
    with pytest.raises(UserError, match="not a text-to-video model"):
        WanFromText(tmp_path / "i2v")
    given = expert_arguments(data, tmp_path / "mn", "mn", **base(data) | {"model": "miniature"})
    assert expert_stage.main([*given, "--dry-run"]) == 2
    assert "another model" in capsys.readouterr().err
