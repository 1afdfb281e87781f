"""Pairs that would teach something else without a word, refused before training."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_train_preferences import data, expert_arguments  # noqa: F401 (a fixture)

from fantasy_core.pair_rules import Pair
from fantasy_core.weights import open_tensors, save_tensors
from train import expert as expert_stage
from train.run import write_rows

WRONG = {
    "another dimension": (Pair("v0", "v1", "i0", "mn", 1.0, "train"), "v0 over v1 is a pair of mn"),
    "itself": (Pair("v0", "v0", "i0", "ls", 1.0, "train"), "v0 over v0 is one video"),
    "two inputs": (Pair("v0", "v3", "i0", "ls", 1.0, "train"), "of input i0, the videos are of i0, i1"),
    "another file": (
        Pair("v0", "v1", "i0", "ls", 1.0, "train", rejected_sha256="0" * 64),
        "v1 is another file in",
    ),
    "another input": (Pair("v0", "v1", "i1", "ls", 1.0, "train"), "of input i1, the videos are of i0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_pairs_that_do_not_fit(data, tmp_path, capsys, case):  # noqa: F811
    pair, told = WRONG[case]
    write_rows(tmp_path / "pairs.jsonl", [pair, Pair("v2", "v3", "i1", "ls", 1.0, "train")])
    given = expert_arguments(data, tmp_path / "run")
    given[given.index("--pairs") + 1] = str(tmp_path / "pairs.jsonl")
    assert expert_stage.main([*given, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert told in error and "1 faults" in error


def test_full_pairs_may_teach_a_dimension(data, tmp_path):  # noqa: F811
    """Folders of one's own give full pairs, whatever was preferred in them."""
    given = expert_arguments(data, tmp_path / "run", "mn")
    given[given.index("--pairs") + 1] = str(data / "pairs_full.jsonl")
    assert expert_stage.main([*given, "--dry-run"]) == 0


def test_masks_of_another_grid(data, tmp_path, capsys):  # noqa: F811
    """As a cache of an earlier version may hold them: told from headers, not in the middle of training."""
    shutil.copytree(data / "cache", tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("shard_*.safetensors")
    held = {name: entry.read() for name, entry in open_tensors(shard).entries.items()}
    save_tensors(shard, held | {"v1/lips": torch.ones(5, 16, 16)})
    given = expert_arguments(data, tmp_path / "run")
    given[given.index("--cache") + 1] = str(tmp_path / "cache")
    assert expert_stage.main([*given, "--dry-run"]) == 2
    assert "v1: mask [5, 16, 16], latents [16, 5, 8, 8]" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_run(data, tmp_path, capsys):  # noqa: F811
    for out in (tmp_path / "run", tmp_path / "run" / "below"):
        (tmp_path / "run").write_text("a file")
        assert expert_stage.main([*expert_arguments(data, out), "--dry-run"]) == 2
        assert "cannot be a folder of results" in capsys.readouterr().err
