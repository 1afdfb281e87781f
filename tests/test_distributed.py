"""Experts and gate trained on several devices, here by two processes on the CPU: they equal one, stop together, and
repeat bit for bit what was killed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from small_experts import random_expert
from test_train_preferences import data, expert_arguments, gate_arguments, lines_of, log_of  # noqa: F401 (a fixture)
from two_processes import PATIENCE, Launch, together

from fantasy_core.experts import save_expert
from fantasy_core.miniature import load_components
from fantasy_core.pair_rules import Pair
from fantasy_core.weights import open_tensors
from train import expert as expert_stage
from train import gate as gate_stage
from train.run import write_rows

CONFIGS = Path(expert_stage.__file__).parent / "accelerate"
LR = 1e-4
BETA = 2  # a logit, beta / 2 times the margin, is then known as well as the margin


@pytest.fixture(scope="module")
def pairs(data, tmp_path_factory) -> Path:  # noqa: F811
    """Two pairs to train on, three held out: an odd number, of which two processes take two each. And of all
    dimensions three candidates of one input with all their pairs, two of another, and one pair held out. The cache is
    one that does not say whose its four videos are, so that one of them may stand for a third of both inputs."""
    folder = tmp_path_factory.mktemp("pairs")
    shutil.copytree(data / "cache", folder / "cache")
    index = json.loads((folder / "cache" / "index.json").read_text())
    for entry in index["videos"].values():
        del entry["input"]
    (folder / "cache" / "index.json").write_text(json.dumps(index))
    trained = [Pair("v0", "v1", "i0", "ls", 1.0, "train"), Pair("v2", "v3", "i1", "ls", 1.0, "train")]
    looked_at = [Pair(*names, "i0", "ls", 1.0, "validation") for names in (("v1", "v0"), ("v0", "v2"), ("v3", "v2"))]
    write_rows(folder / "pairs_ls.jsonl", trained + looked_at)
    full = [Pair(*names, "i0", "full", 1.0, "train") for names in (("v0", "v1"), ("v0", "v2"), ("v1", "v2"))]
    full += [Pair("v2", "v3", "i1", "full", 1.0, split) for split in ("train", "validation")]
    write_rows(folder / "pairs_full.jsonl", full)
    return folder


def on(arguments: list[str], pairs: Path) -> list[str]:
    """The same arguments with the pairs and the cache of that folder."""
    for flag in ("--pairs", "--cache"):
        place = 1 + arguments.index(flag)
        arguments = [*arguments[:place], str(pairs / Path(arguments[place]).name), *arguments[place + 1 :]]
    return arguments


def expert_run(data: Path, pairs: Path, out: Path, **settings) -> list[str]:  # noqa: F811
    told = {"batch": 2, "iterations": 4, "save-every": 1, "held-out-every": 2, "lr": LR, "beta": BETA, **settings}
    return on(expert_arguments(data, out, **told), pairs)


@pytest.fixture(scope="module")
def one(data, pairs, tmp_path_factory) -> Path:  # noqa: F811
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one")
    together(folder, expert_stage.main, expert_run(data, pairs, folder / "run"), size=1)
    return folder / "run"


@pytest.fixture(scope="module")
def two(data, pairs, tmp_path_factory) -> Path:  # noqa: F811
    """The run of two processes that nobody disturbs, and what they printed beside it."""
    folder = tmp_path_factory.mktemp("two")
    together(folder, expert_stage.main, expert_run(data, pairs, folder / "run"))
    return folder / "run"


def same_run(out: Path, other: Path, result: str, lr: float = 0.0) -> None:
    """Equal lines of the log and equal tensors, to the bit; with `lr` the lines to 1e-6 (errors are near 1, and margins
    are differences of them) and the tensors to a hundredth of AdamW's step.

    Of these cross_attn.k is left out: the miniature's one text token has attention 1 whatever its key, so the gradient
    is 0, and AdamW steps along its rounding.
    """
    lines, others, close = log_of(out), log_of(other), 1e-6 if lr else 0
    assert [list(line) for line in lines] == [list(line) for line in others]
    for line, expected in zip(lines, others, strict=True):
        for key in expected:
            assert line[key] == pytest.approx(expected[key], rel=close, abs=close), (line["iteration"], key)
    a, b = (open_tensors(folder / result).entries for folder in (out, other))
    assert a.keys() == b.keys()
    for name in a:
        if not (lr and "cross_attn.k." in name):
            assert (a[name].read() - b[name].read()).abs().max() <= lr / 100, name


def test_two_processes_are_one(one, two):
    """The same units under the same draws: losses, held-out margins and the expert, but for sums in another order."""
    same_run(two, one, "ls.safetensors", LR)
    assert any("held_out_margin" in row for row in log_of(two))
    first, second = ((two.parent / f"{rank}.txt").read_text() for rank in (0, 1))
    assert "training: step 4/4" in first and "ls.safetensors" in first
    assert second == ""  # one of them tells


def test_sharded_blocks_are_the_same_run(data, pairs, two, tmp_path):  # noqa: F811
    """Gathered weights are those that were sharded: what two processes make is the same to the bit."""
    together(tmp_path, expert_stage.main, expert_run(data, pairs, tmp_path / "run", shard="blocks"))
    same_run(tmp_path / "run", two, "ls.safetensors")


def test_a_gate_on_sharded_blocks_with_inputs_of_different_size(data, pairs, tmp_path):  # noqa: F811
    """Three candidates on one process, two on the other: the latter makes a pass for company. Blocks are run again in
    the backward pass."""
    with load_components().dit() as dit:
        for seed, name in enumerate(("one", "other")):
            save_expert(tmp_path / f"{name}.safetensors", random_expert(dit, name, 2, seed))
    settings = {
        "batch": 2,
        "iterations": 2,
        "unit": "input",
        "checkpointing": "blocks",
        "lr": LR,
        "calibration-pairs": 2,
        "beta": BETA,
    }
    arguments = {
        name: on(gate_arguments(data, tmp_path / name, tmp_path / "one.safetensors", **settings), pairs)
        for name in ("alone", "sharded")
    }
    together(tmp_path, gate_stage.main, arguments["alone"], size=1)
    together(tmp_path, gate_stage.main, [*arguments["sharded"], "--shard", "blocks"])
    same_run(tmp_path / "sharded", tmp_path / "alone", "gate.safetensors", LR)
    assert len(log_of(tmp_path / "sharded")[-1]["held_out_margin"]) == 9


# ---- what does not fit ----


def refused(arguments: list[str]) -> int:
    return expert_stage.main([*arguments, "--dry-run"])


def test_a_batch_that_cannot_be_split_is_found_by_the_dry_run(data, pairs, tmp_path):  # noqa: F811
    launch = Launch(tmp_path, refused, expert_run(data, pairs, tmp_path / "run", batch=3))
    assert launch.wait() == [2, 2]
    assert "batch 3, 2 processes" in launch.told[0] and "give --batch 2" in launch.told[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "environment", "word"),
    [
        ({"shard": "blocks"}, {}, "one process"),
        ({}, {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "plug-in"),
        ({"device": "cuda:1"}, {"WORLD_SIZE": "2"}, "give --device cuda"),
        ({"device": "cuda"}, {"WORLD_SIZE": "2", "LOCAL_RANK": "99"}, "cuda:99"),
    ],
)
def test_launches_that_cannot_be(data, pairs, tmp_path, capsys, monkeypatch, settings, environment, word):  # noqa: F811
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert refused(expert_run(data, pairs, tmp_path / "run", **settings)) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_processes_that_go_astray_stop_together(data, pairs, tmp_path):  # noqa: F811
    """The mean loss is no number on either, whichever process it came from."""
    launch = Launch(tmp_path, expert_stage.main, expert_run(data, pairs, tmp_path / "run", lr="1e30", iterations=20))
    assert launch.wait() == [2, 2]
    for told in launch.told:
        assert "went astray" in told and "state.safetensors holds the state after iteration" in told
    assert not (tmp_path / "run" / "ls.safetensors").exists()


# ---- full disks and kills ----


def with_room(size: int, arguments: list[str]) -> int:
    """The command where no file of the first process may grow beyond `size` bytes: a write fails as on a full disk."""
    if os.environ.get("RANK", "0") == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # Python ignores the signal, so that writes fail
    return expert_stage.main(arguments)


def test_a_full_disk_keeps_the_last_checkpoint(data, pairs, two, tmp_path):  # noqa: F811
    """There is room for the log and not for the last checkpoint: both processes stop, also the one that has no more to
    do; the one before stays as it is and is named, and with room again the run ends as if nothing had been."""
    whole, state = expert_run(data, pairs, tmp_path / "run"), tmp_path / "run" / "checkpoint" / "state.safetensors"
    together(tmp_path, expert_stage.main, [*whole, "--iterations", "2"])
    before = state.read_bytes()
    launch = Launch(tmp_path, with_room, len(before) - 1, whole)
    assert launch.wait() == [2, 2]
    assert "cannot write its files" in launch.told[0] and f"{state} holds the state after iteration" in launch.told[0]
    assert "File too large" in launch.told[0] and "another process of this training is gone" in launch.told[1]
    assert state.read_bytes() == before and list(state.parent.iterdir()) == [state]
    together(tmp_path, expert_stage.main, whole)
    same_run(tmp_path / "run", two, "ls.safetensors")


def test_a_log_that_cannot_be_written_stops_the_run(data, pairs, one, tmp_path):  # noqa: F811
    """Room for three bytes of the twelfth line, which are not read when the run goes on."""
    settings, out = {"batch": 1, "iterations": 12, "save-every": 4}, tmp_path / "run"
    arguments = expert_run(data, pairs, out, **settings)
    together(tmp_path, expert_stage.main, [*arguments, "--iterations", "11"], size=1)
    size, before = (out / "log.jsonl").stat().st_size, (out / "checkpoint" / "state.safetensors").read_bytes()
    assert size > (out / "config.toml").stat().st_size, "else that is what finds no room"
    launch = Launch(tmp_path, with_room, size + 3, arguments, size=1)
    assert launch.wait() == [2]
    assert "cannot write its files" in launch.told[0] and "holds the state after iteration" in launch.told[0]
    assert (out / "checkpoint" / "state.safetensors").read_bytes() == before
    together(tmp_path, expert_stage.main, arguments, size=1)
    assert [row["iteration"] for row in log_of(out)] == list(range(12))


def kill_and_resume(folder: Path, arguments: list[str], out: Path, kills: list[tuple[int, ...]], seed: int) -> None:
    """SIGKILL these ranks at random moments after the log has grown, then let the run end. What a kill leaves of a
    checkpoint under way is removed."""
    rng = random.Random(seed)
    for ranks in kills:
        seen, end = len(lines_of(out)), time.monotonic() + PATIENCE
        launch = Launch(folder, expert_stage.main, arguments)
        while len(lines_of(out)) <= seen and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        launch.kill(*ranks)
        codes = launch.wait()
        assert all(codes[rank] in (-9, 0) for rank in ranks)
    together(folder, expert_stage.main, arguments)
    assert not list(out.rglob("*.part"))


def test_killed_the_run_repeats_bit_for_bit(data, pairs, two, tmp_path):  # noqa: F811
    """One of two is killed, then both."""
    kill_and_resume(tmp_path, expert_run(data, pairs, tmp_path / "run"), tmp_path / "run", [(1,), (0, 1)], 0)
    same_run(tmp_path / "run", two, "ls.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "blocks"])
def test_killed_many_times_the_run_repeats_bit_for_bit(data, pairs, tmp_path, shard):  # noqa: F811
    undisturbed = expert_run(data, pairs, tmp_path / "whole", iterations=12, shard=shard)
    together(tmp_path, expert_stage.main, undisturbed)
    killed = expert_run(data, pairs, tmp_path / "run", iterations=12, shard=shard)
    kill_and_resume(tmp_path, killed, tmp_path / "run", [(0,), (1,), (0, 1), (0,), (1,), (0, 1)], 1)
    same_run(tmp_path / "run", tmp_path / "whole", "ls.safetensors")


# ---- the launchers ----


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "fsdp2", "one_gpu", "torchrun"])
def test_launched_as_the_readme_says(data, pairs, one, tmp_path, launcher):  # noqa: F811
    """On the CPU, through the real launchers."""
    start = [sys.executable, "-m"]
    if launcher == "torchrun":
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    else:
        start += ["accelerate.commands.launch", "--config_file", str(CONFIGS / f"{launcher}.yaml")]
    shard = "blocks" if launcher == "fsdp2" else "none"
    command = [*start, "-m", "train.expert", *expert_run(data, pairs, tmp_path / "run", shard=shard)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    same_run(tmp_path / "run", one, "ls.safetensors", 0.0 if launcher == "one_gpu" else LR)
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["batch"] == 2
