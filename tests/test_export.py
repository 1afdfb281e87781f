"""Experts and gate for hosts without a gate: what the command writes does what the gate did."""

from __future__ import annotations

import pytest
import torch
from small_dits import audio_tokens, inputs
from small_experts import random_expert

from fantasy_core.experts import ExpertBank, load_expert, save_expert
from fantasy_core.fusion import attach
from fantasy_core.gate import FusionGate, TableGate
from fantasy_core.gate_files import load_gate, save_gate
from fantasy_core.miniature import load_components
from fantasy_core.miniature.components import WEIGHTS
from train.export import main

BASE = ["--base", str(WEIGHTS / "base.safetensors")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two experts and a random gate of theirs; and the miniature's DiT."""
    folder = tmp_path_factory.mktemp("export")
    with load_components().dit() as dit:
        experts = [random_expert(dit, name, seed=i) for i, name in enumerate(("mn", "ls"))]
        for expert in experts:
            save_expert(folder / f"{expert.name}.safetensors", expert)
        gate = FusionGate(4, 256, 2, names=("mn", "ls"))
        torch.nn.init.normal_(gate.weight, std=0.05)
        save_gate(folder / "gate.safetensors", gate, hashes={e.name: e.hash for e in experts}, host=dit)
    return folder, dit


def experts(folder) -> list[str]:
    return ["--expert", f"mn={folder}/mn.safetensors", f"ls={folder}/ls.safetensors"]


def velocity(dit, bank, gate) -> torch.Tensor:
    torch.manual_seed(0)
    given = inputs(dit.config, batch=1, size=(3, 4, 4), text=1)
    with torch.no_grad(), attach(dit, bank, gate):
        return dit(**given, audio=audio_tokens(dit.config, 1))


def test_average_of_a_gate_that_does_not_change_with_time_is_the_gate(made):
    """A ramp over blocks has one weight for each block at every step, so its average over steps is itself."""
    folder, dit = made
    out = folder / "one.safetensors"
    assert main([*BASE, *experts(folder), "--gate", "blocks:mn=0..2;ls=1..0.2", "--averaged", str(out)]) == 0
    bank = ExpertBank.load([folder / "mn.safetensors", folder / "ls.safetensors"], dit)
    ramp = torch.stack([torch.linspace(0, 2, 4), torch.linspace(1, 0.2, 4)], 1)[None, :, None]
    gated = velocity(dit, bank, TableGate(ramp, ("mn", "ls"), torch.zeros(1)))
    one = velocity(dit, ExpertBank.load([out], dit), TableGate(torch.ones(1, 4, 1, 1), ("one",), torch.zeros(1)))
    assert (gated - one).abs().max() < 1e-5 * gated.abs().max()


def test_kohyas_names_hold_the_same(made):
    """One file, its audio linears in it, alpha the rank; read back it is the LoRA of --averaged."""
    folder, _ = made
    given = [*BASE, *experts(folder), "--gate", "blocks:mn=0..2;ls=1..0.2"]
    assert main([*given, "--averaged", f"{folder}/a.safetensors"]) == 0
    assert main([*given, "--kohya", f"{folder}/k.safetensors"]) == 0
    assert not (folder / "k.audio.safetensors").exists()
    assert load_expert(folder / "k.safetensors", "a").hash == load_expert(folder / "a.safetensors", "a").hash


def test_average_over_the_steps_of_a_schedule(made):
    """Rank 8 = both ranks; each row of B carries the mean of its expert's weight over the 30 steps, read off the table
    in the gate's file, which errs by its interpolation alone: no base model is needed."""
    folder, dit = made
    out = folder / "mean.safetensors"
    assert main([*BASE, *experts(folder), "--gate", f"{folder}/gate.safetensors", "--averaged", str(out)]) == 0
    mean = load_expert(out).pairs["blocks.2.ffn.0"]
    whole = [load_expert(folder / f"{name}.safetensors").pairs["blocks.2.ffn.0"] for name in ("mn", "ls")]
    hashes = {name: load_expert(folder / f"{name}.safetensors").hash for name in ("mn", "ls")}
    gate = load_gate(folder / "gate.safetensors", hashes=hashes)
    u = torch.linspace(1, 0, 31)[:-1]
    with torch.no_grad():
        w = gate(dit.embed_time(1000 * 5 * u / (1 + 4 * u))[0])[:, 2, 0].mean(0)
    expected = w[0] * whole[0].B @ whole[0].A + w[1] * whole[1].B @ whole[1].A
    assert mean.rank == 8
    assert (mean.B @ mean.A - expected).abs().max() < 1e-4 * expected.abs().max()


def test_strengths_by_step(made, capsys):
    folder, _ = made
    flags = [*BASE, *experts(folder), "--strengths", "--steps", "3"]
    assert main([*flags, "--gate", "steps:mn=0.5,1,2"]) == 0
    assert capsys.readouterr().out == "mn: 0.5, 1, 2\nls: 1, 1, 1\n"
    assert main([*flags, "--gate", f"{folder}/gate.safetensors"]) == 2
    assert "differ" in capsys.readouterr().err


def test_peft_takes_one_expert(made, capsys):
    folder, _ = made
    assert main([*BASE, *experts(folder), "--peft", f"{folder}/adapter"]) == 2
    assert "one expert" in capsys.readouterr().err
    assert main([*BASE, "--expert", f"mn={folder}/mn.safetensors", "--peft", f"{folder}/adapter"]) == 0
    assert load_expert(folder / "adapter").hash == load_expert(folder / "mn.safetensors").hash
