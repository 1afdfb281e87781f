"""`inspect` on every kind of weight file: what it is, whether it fits a base, and what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from layouts import write_comfy_dit, write_diffusers_dit, write_official_dit
from lora_layouts import lora_state, write_lora
from safetensors.torch import save_file
from small_dits import TINY, random_dit, without_audio
from small_experts import random_expert

from fantasy_core.experts import load_expert, save_expert
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS
from fantasy_core.gate import FusionGate
from fantasy_core.gate_files import save_gate
from fantasy_core.miniature.components import WEIGHTS
from train.inspect import inspect, main

PLAIN = without_audio(TINY)


@pytest.fixture(scope="module")
def dit():
    return random_dit(PLAIN)


@pytest.fixture(scope="module")
def base(dit, tmp_path_factory):
    """The DiT as a ComfyUI file, fp32, so that its time embedding is bit for bit that of `dit`."""
    file = tmp_path_factory.mktemp("base") / "wan.safetensors"
    write_comfy_dit(file, dit, "fp32")
    return file


def test_our_expert(tmp_path, base):
    """24 pairs of rank 4: per block 8 x (4*96 + 96*4) + 2 image pairs the same size + 2 x 4*(96 + 160) numbers."""
    expert = random_expert(random_dit(TINY), "ls", linears=LINEARS + AUDIO_LINEARS)
    save_expert(tmp_path / "a.safetensors", expert, {"tlpo.beta": "500"})
    about = inspect(tmp_path / "a.safetensors", base)
    assert (about["kind"], about["dialect"], about["rank"], about["alpha"]) == ("a LoRA", "ours", [4], [4.0])
    assert about["blocks"] == 2 and about["linears"] == dict.fromkeys(LINEARS, 2)
    assert about["parameters"] == 2 * (10 * 4 * (96 + 96) + 2 * 4 * (96 + 160)) and about["dtype"] == {"float32": 48}
    assert about["bytes"] == 4 * about["parameters"]
    assert about["audio"] == "a.audio.safetensors" and about["hash"] == expert.hash
    first = list(about["metadata"])
    assert first[0].startswith("tlpo.") and about["metadata"]["tlpo.beta"] == "500"
    assert not [key for key in first[first.index("tlpo.rank") :] if key.startswith("tlpo.") and key > "tlpo.s"]
    assert about["mismatch"] == [] and about["unsupported"] == {} and "problems" not in about
    audio = inspect(tmp_path / "a.audio.safetensors", base)
    assert any("4 audio linears need FantasyTalking" in line for line in audio["mismatch"])
    assert "give a.safetensors" in audio["problems"][0]


def test_foreign_lora_against_a_base(tmp_path, dit, base):
    """alpha 8 at rank 4; one linear of two, so eleven are not changed; a bias and a text encoder by reason."""
    part = random_expert(dit, "style", linears=("ffn.0",), scale=2.0)
    state = lora_state(part, "kohya") | {"lora_te_x.lora_up.weight": torch.ones(2, 2), "x.diff_b": torch.ones(3)}
    save_file(state, tmp_path / "a.safetensors", {"ss_steps": "9"})
    about = inspect(tmp_path / "a.safetensors", base)
    assert (about["dialect"], about["alpha"], about["linears"]) == ("kohya", [8.0], {"ffn.0": 2})
    assert about["unsupported"] == {"text encoder": ["lora_te_x.lora_up.weight"], "biases": ["x.diff_b"]}
    assert about["hash"] == part.hash and about["metadata"] == {"ss_steps": "9"}
    (line,) = about["mismatch"]
    assert line.startswith("not changed: self_attn.q (2)") and "ffn.0" not in line and line.count("(2)") == 11


@pytest.mark.parametrize("layout", ["official", "diffusers", "ComfyUI"])
def test_a_lora_of_another_size(tmp_path, layout):
    """A LoRA of 2 blocks of width 96, a base of 1 block of width 72, in every layout of a base."""
    other = random_dit(replace(PLAIN, dim=72, num_layers=1))
    path = tmp_path / "base"
    if layout == "ComfyUI":
        path = tmp_path / "wan.safetensors"
        write_comfy_dit(path, other)
    elif layout == "official":
        path.mkdir()
        write_official_dit(path, other)
    else:
        write_diffusers_dit(path / "transformer", other)
    lora = write_lora(tmp_path / "lora", random_expert(random_dit(PLAIN), "x"), "peft")
    lines = inspect(lora, path)["mismatch"]
    assert "lacks: blocks.1.cross_attn.k" in lines[0] and "(5 of 12)" in lines[0]
    assert "other widths" in lines[1] and "96 -> 96, the base's 72 -> 72" in lines[1]


PROBLEMS = {
    "FLUX": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)}, "FLUX"),
    "half": ({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(2, 2)}, "A alone"),
    "NaN": (
        {f"diffusion_model.blocks.0.ffn.0.lora_{half}.weight": torch.full((2, 2), torch.nan) for half in "AB"},
        "NaN",
    ),
    "LoHa": ({"lora_unet_blocks_0_ffn_0.hada_w1_a": torch.ones(2, 2)}, "no low-rank pair"),
    "unknown": ({"weight": torch.ones(2)}, "no known layout"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_cannot_be_used_is_still_described(tmp_path, case):
    tensors, word = PROBLEMS[case]
    save_file(tensors, tmp_path / "a.safetensors")
    about = inspect(tmp_path / "a.safetensors")
    assert word in about["problems"][0] and about["tensors"] == len(tensors) and "hash" not in about
    if case == "LoHa":
        assert about["unsupported"] == {"LoHa": list(tensors)}


def test_gates(tmp_path, dit, base):
    """Form, granularity, experts by hash, the table's shape; another base is told, its own is not."""
    hashes = {"mn": "a" * 64, "ls": "b" * 64}
    gate = FusionGate(2, TINY.dim, 2, "module", num_linears=12, names=tuple(hashes))
    save_gate(tmp_path / "gate.safetensors", gate, hashes=hashes, host=dit)
    about = inspect(tmp_path / "gate.safetensors", base)
    assert about["kind"] == "a fusion gate" and about["experts"] == hashes and about["mismatch"] == []
    assert (about["form"], about["granularity"], about["timestep"]) == ("softmax", "module", "true")
    assert about["linears"] == list(LINEARS) and about["table"] == [1001, 2, 12, 2]
    assert about["base"].startswith("2x96:")
    (line,) = inspect(tmp_path / "gate.safetensors", WEIGHTS / "base.safetensors")["mismatch"]
    assert about["base"] in line and "this one is" in line
    save_file({"table": torch.ones(1001, 2, 1, 2)}, tmp_path / "bad.safetensors", {"gate.experts": "{"})
    assert "damaged" in inspect(tmp_path / "bad.safetensors")["problems"][0]


def test_models(tmp_path, dit, base):
    """The shipped miniature, a ComfyUI file, official and diffusers folders: sizes from headers and config.json."""
    about = inspect(WEIGHTS / "base.safetensors")
    assert about["kind"] == "a Wan transformer" and about["sizes"]["num_layers"] == 4
    assert inspect(WEIGHTS / "fantasytalking.safetensors")["kind"] == "FantasyTalking's audio weights"
    (tmp_path / "official").mkdir()
    write_official_dit(tmp_path / "official", dit)
    write_diffusers_dit(tmp_path / "diffusers" / "transformer", dit)
    for path in (base, tmp_path / "official", tmp_path / "diffusers", tmp_path / "diffusers" / "transformer"):
        about = inspect(path)
        assert (about["kind"], about["sizes"]["dim"], about["sizes"]["ffn_dim"]) == ("a Wan transformer", 96, 160)


def test_the_command_prints_text_and_json(tmp_path, dit, base, capsys):
    """JSON is the report itself; the text names the same facts."""
    path = write_lora(tmp_path, random_expert(dit, "style"), "diffusers")
    assert main([str(path), "--base", str(base), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect(path, base)
    assert main([str(path), "--base", str(base)]) == 0
    text = capsys.readouterr().out
    for line in ("kind: a LoRA", "dialect: diffusers", "rank: 4", "  ffn.0: 2", "mismatch: none", "unsupported: none"):
        assert line in text.splitlines(), line
    assert f"hash: {load_expert(path).hash}" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["absent.safetensors"], "not found"), (["lora", "--base", "lora"], "not a Wan transformer"), (["cut"], "cut")],
)
def test_errors_end_with_code_2(tmp_path, dit, capsys, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    path = write_lora(tmp_path, random_expert(dit, "style"))
    (tmp_path / "lora").write_bytes(path.read_bytes())
    (tmp_path / "cut").write_bytes(path.read_bytes()[:100])
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert word in shown and all(f"  {part}:" in shown for part in ("got", "expected", "do"))
