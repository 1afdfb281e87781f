"""Experts and gate trained by the commands on the miniature: exact at the start, learning, repeated bit for bit after a
kill, and everything that does not fit answered before training."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_cache import FRAMES, write_clip

from fantasy_core.experts import load_expert, save_expert
from fantasy_core.gate_files import load_gate
from fantasy_core.miniature import load_components
from fantasy_core.pair_rules import Pair
from fantasy_core.weights import open_tensors, save_tensors
from train import cache as cache_stage
from train import expert as expert_stage
from train import gate as gate_stage
from train.run import write_rows

VIDEOS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four clips as two inputs, cached with lip masks; clips 0 and 2 are preferred in everything."""
    folder = tmp_path_factory.mktemp("preferences")
    (folder / "masks").mkdir()
    rows = []
    for seed in range(VIDEOS):
        write_clip(folder / f"v{seed}.mp4", seed)
        mask = torch.zeros(FRAMES, 64, 64)
        mask[:, 36:44, 24:40] = 1
        save_tensors(folder / "masks" / f"v{seed}.safetensors", {"mask": mask})
        rows.append({"video": f"v{seed}", "input": f"i{seed // 2}", "path": f"v{seed}.mp4"})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--videos", f"{folder}/videos.jsonl", "--out", f"{folder}/cache", "--masks", f"{folder}/masks"]
    assert cache_stage.main(command) == 0
    for dimension in ("mn", "ls", "vq", "full"):
        pairs = [Pair(f"v{2 * i}", f"v{2 * i + 1}", f"i{i}", dimension, 1.0, "train") for i in range(VIDEOS // 2)]
        write_rows(folder / f"pairs_{dimension}.jsonl", pairs)
    return folder


def expert_arguments(data: Path, out: Path, dimension: str = "ls", **settings) -> list[str]:
    told = {"iterations": 6, "batch": 1, "rank": 2, "lr": 1e-3, "save-every": 2, "beta": 50, **settings}
    flags = [part for name, value in told.items() for part in (f"--{name}", str(value))]
    files = ["--pairs", f"{data}/pairs_{dimension}.jsonl", "--cache", f"{data}/cache", "--out", str(out)]
    return [*files, "--dimension", dimension, *flags]


def log_of(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "measured"} for row in rows]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """A run that nobody disturbs."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert expert_stage.main(expert_arguments(data, out)) == 0
    return out


def test_the_policy_begins_as_the_reference_exactly(alone):
    """B is zero: no margin at all, loss ln 2, half of the pull; then it learns and the margin grows."""
    first, *_, last = log_of(alone)
    assert first["margin"] == 0 and first["loss"] == pytest.approx(0.6931472) and first["pull"] == 0.5
    assert first["grad_norm"] > 0 and last["margin"] > 0 and last["loss"] < first["loss"]
    assert [row["iteration"] for row in log_of(alone)] == list(range(6))


def test_the_expert_is_a_file_that_says_what_it_is(alone):
    """All 14 linears where the host has them (12 in the miniature, without a CLIP branch), changed; with metadata."""
    expert = load_expert(alone / "ls.safetensors")
    assert (expert.name, {pair.rank for pair in expert.pairs.values()}) == ("ls", {2})
    assert len(expert.pairs) == 4 * 12 and all(pair.B.any() for pair in expert.pairs.values())
    told = expert.metadata
    assert told["tlpo.loss"] == "dpo" and told["tlpo.mask"] == "lips" and len(told["tlpo.pairs"]) == 64
    assert (alone / "ls.audio.safetensors").is_file()


def test_a_run_in_two_parts_is_the_run_in_one(data, alone, tmp_path):
    """Three iterations (a checkpoint at two and at the end), then to six: log and expert are the same bits."""
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", iterations=3)) == 0
    assert expert_stage.main(expert_arguments(data, tmp_path / "run")) == 0
    assert log_of(tmp_path / "run") == log_of(alone)
    same_expert(tmp_path / "run", alone)


def same_expert(one: Path, other: Path) -> None:
    a, b = (open_tensors(out / "ls.safetensors").entries for out in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(a[name].read(), b[name].read()) for name in a)


def test_killed_again_and_again_the_run_repeats_bit_for_bit(data, alone, tmp_path):
    """SIGKILL at random moments after the log has begun, until a run comes through: the same losses and expert."""
    out, rng, kills = tmp_path / "run", random.Random(0), 0
    command = [sys.executable, "-m", "train.expert", *expert_arguments(data, out, **{"save-every": 1})]
    for _ in range(12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kills < 3:
            deadline, seen = time.monotonic() + 60, len(lines_of(out))
            while len(lines_of(out)) <= seen and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.15))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        if process.wait() == 0:
            break
    assert kills == 3 and process.returncode == 0
    assert log_of(out) == log_of(alone)
    same_expert(out, alone)


def lines_of(out: Path) -> list[str]:
    return (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").is_file() else []


def test_only_the_lips_count_for_lip_sync(data, tmp_path):
    """The mask covers a small part; the errors, and with them the first gradient, are others than without it."""
    for name, masked in (("lips", "true"), ("whole", "false")):
        assert expert_stage.main(expert_arguments(data, tmp_path / name, iterations=1, masked=masked)) == 0
    lips, whole = (log_of(tmp_path / name)[0]["grad_norm"] for name in ("lips", "whole"))
    assert lips != pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize(
    "settings", [{"unit": "input"}, {"form": "prepass"}, {"loss": "ipo"}, {"checkpointing": "blocks"}]
)
def test_other_ways_to_the_same_pairs(data, alone, tmp_path, settings):
    """One pair an input here, so sharing its draw, the pre-pass and recomputed blocks lead to the same losses (fp32
    sums in another order); IPO begins at (1/2)^2."""
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", iterations=2, **settings)) == 0
    losses = [row["loss"] for row in log_of(tmp_path / "run")]
    if "loss" in settings:
        assert losses[0] == pytest.approx(0.25)
    else:
        assert losses == pytest.approx([row["loss"] for row in log_of(alone)[:2]], rel=1e-5)


def test_simpo_needs_no_reference(data, tmp_path):
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", iterations=1, loss="simpo", beta=1)) == 0
    (row,) = log_of(tmp_path / "run")
    assert row["gain_chosen"] < 0  # the error itself, there being no reference


# ---- the gate ----


def gate_arguments(data: Path, out: Path, expert: Path, **settings) -> list[str]:
    told = {"iterations": 3, "batch": 1, "lr": 1e-3, "save-every": 1, "beta": 50, **settings}
    flags = [part for name, value in told.items() for part in (f"--{name}", str(value))]
    files = ["--pairs", f"{data}/pairs_full.jsonl", "--cache", f"{data}/cache", "--out", str(out)]
    return [*files, "--expert", f"one={expert}", f"two={expert.parent}/other.safetensors", *flags]


@pytest.fixture(scope="module")
def experts(data, alone) -> Path:
    """Two experts that differ: the trained one, and one from another seed."""
    assert expert_stage.main(expert_arguments(data, alone.parent / "other", "vq", seed=1, lr=1e-2)) == 0
    for suffix in ("", ".audio"):
        source = alone.parent / "other" / f"vq{suffix}.safetensors"
        (alone / f"other{suffix}.safetensors").write_bytes(source.read_bytes())
    return alone / "ls.safetensors"


def test_the_gate_is_trained_and_fits_its_experts(data, experts, tmp_path):
    """From the average of two, 1/2 each; the experts' files stay as they are; the gate's file is for them alone."""
    before = experts.read_bytes()
    assert gate_stage.main(gate_arguments(data, tmp_path / "gate", experts)) == 0
    assert experts.read_bytes() == before
    hashes = {"one": load_expert(experts).hash, "two": load_expert(experts.parent / "other.safetensors").hash}
    with load_components().dit() as dit:
        gate = load_gate(tmp_path / "gate" / "gate.safetensors", hashes=hashes, host=dit)
    assert gate.weight.any() and (gate.bias.abs() <= 3.1e-3).all() and gate.bias.any()
    assert log_of(tmp_path / "gate")[0]["grad_norm"] > 0


def test_a_gate_in_two_parts_is_the_gate_in_one(data, experts, tmp_path):
    for out, parts in (("one", [3]), ("two", [1, 2, 3])):
        for iterations in parts:
            assert gate_stage.main(gate_arguments(data, tmp_path / out, experts, iterations=iterations)) == 0
    assert log_of(tmp_path / "one") == log_of(tmp_path / "two")
    a, b = (open_tensors(tmp_path / out / "gate.safetensors").entries for out in ("one", "two"))
    assert all(torch.equal(a[name].read(), b[name].read()) for name in a)


def test_starts_and_references_of_the_gate(data, experts, tmp_path):
    """Against its own start the first margin is zero; from the sum every weight begins at 1 (b = 1/2 for two)."""
    flags = {"iterations": 1, "lr": 1e-9}
    assert gate_stage.main(gate_arguments(data, tmp_path / "own", experts, reference="initial-gate", **flags)) == 0
    assert log_of(tmp_path / "own")[0]["margin"] == 0
    assert gate_stage.main(gate_arguments(data, tmp_path / "sum", experts, start="sum", **flags)) == 0
    assert log_of(tmp_path / "sum")[0]["margin"] != 0
    table = open_tensors(tmp_path / "sum" / "gate.safetensors").entries["table"].read()
    torch.testing.assert_close(table, torch.ones_like(table), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"granularity": "expert"}, {"granularity": "module"}, {"timestep": "false"}, {"gate-form": "linear"}]
)
def test_ablations_of_the_gate(data, experts, tmp_path, settings):
    assert gate_stage.main(gate_arguments(data, tmp_path / "gate", experts, iterations=1, **settings)) == 0
    assert log_of(tmp_path / "gate")[0]["grad_norm"] > 0


# ---- what does not fit ----


def test_what_does_not_fit_is_answered_before_training(data, experts, tmp_path, capsys):
    stranger, empty, test_only = (tmp_path / f"{name}.jsonl" for name in ("stranger", "empty", "test"))
    write_rows(stranger, [Pair("v0", "nobody", "i0", "mn", 1.0, "train")])
    empty.write_text("")
    write_rows(test_only, [Pair("v0", "v1", "i0", "mn", 1.0, "test")])
    out = ["--out", str(tmp_path / "run"), "--dimension", "mn", "--iterations", "1"]
    cache = ["--cache", f"{data}/cache"]
    for arguments, word in (
        ([*out, *cache, "--pairs", str(stranger)], "absent: nobody"),
        ([*out, *cache, "--pairs", str(empty)], "nothing to train on"),
        ([*out, *cache, "--pairs", str(test_only)], "no pairs of split 'train'"),
        ([*out, "--cache", str(tmp_path), "--pairs", f"{data}/pairs_mn.jsonl"], "no cache"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--beta", "-1"], "no such preference loss"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--loss", "ppo"], "dpo, ipo, simpo, hinge"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--anchor-weight", "-1"], "make no sense"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--batch", "0"], "int, 1 or more"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--rank", "0"], "int, 1 or more"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--save-every", "0"], "int, 1 or more"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--held-out-every", "-1"], "int, 0 or more"),
        ([*out, *cache, "--pairs", f"{data}/pairs_mn.jsonl", "--lr", "nan"], "float, 0 or more"),
    ):
        assert expert_stage.main([*arguments, "--dry-run"]) == 2, word
        assert word in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_another_run_in_the_folder_is_refused(data, alone, capsys):
    for more in ([], ["--dry-run"]):
        assert expert_stage.main([*expert_arguments(data, alone, lr=2e-3), *more]) == 2
        assert "another run" in capsys.readouterr().err


def test_a_dry_run_finds_experts_that_do_not_fit(data, experts, tmp_path, capsys):
    """An expert that is not there, and one of a base with 12 blocks (the miniature has fewer)."""
    wide = {"diffusion_model.blocks.11.self_attn.q.lora_A.weight": torch.ones(2, 96)}
    wide["diffusion_model.blocks.11.self_attn.q.lora_B.weight"] = torch.ones(96, 2)
    save_tensors(tmp_path / "wide.safetensors", wide)
    for name, word in (("nowhere.safetensors", "not found"), ("wide.safetensors", "lacks")):
        arguments = gate_arguments(data, tmp_path / "gate", experts)
        arguments[arguments.index("--expert") + 1] = f"one={tmp_path}/{name}"
        assert gate_stage.main([*arguments, "--dry-run"]) == 2
        assert word in capsys.readouterr().err and not (tmp_path / "gate").exists()


def test_experts_of_another_base_are_refused(data, experts, tmp_path, capsys):
    """Of equal shapes, with other weights: told by the fingerprint that train.expert writes; a quantised copy is let in
    by a flag."""
    told = load_expert(experts)
    assert told.metadata["tlpo.weights"] == load_components().fingerprint
    for suffix in ("", ".audio"):
        source = experts.with_name(f"other{suffix}.safetensors")
        (tmp_path / f"other{suffix}.safetensors").write_bytes(source.read_bytes())
    save_expert(tmp_path / "one.safetensors", told, {"tlpo.weights": "0123456789abcdef"})
    arguments = [*gate_arguments(data, tmp_path / "gate", tmp_path / "one.safetensors"), "--dry-run"]
    assert gate_stage.main(arguments) == 2
    assert "one: 0123456789abcdef" in capsys.readouterr().err
    assert gate_stage.main([*arguments, "--other-base", "true"]) == 0


def test_a_run_that_goes_astray_keeps_its_last_state(data, tmp_path, capsys):
    """A learning rate that no network bears: stopped at the first loss that is no number, checkpoint sound."""
    assert (
        expert_stage.main(expert_arguments(data, tmp_path / "run", lr="1e30", iterations=20, **{"save-every": 1})) == 2
    )
    assert "went astray" in capsys.readouterr().err
    assert open_tensors(tmp_path / "run" / "checkpoint" / "state.safetensors").metadata["iteration"]
    assert not (tmp_path / "run" / "ls.safetensors").exists()
