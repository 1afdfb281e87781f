"""What train.cache is given and refuses before it encodes anything, in the dry run too; masks that change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sounds import encode
from test_cache import FRAMES, write_clip

from fantasy_core.errors import UserError
from fantasy_core.media import VideoWriter
from fantasy_core.weights import save_tensors
from train import cache as stage
from train.shards import Cache

SIZE = (FRAMES, 64, 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "v.mp4"
    write_clip(path, 0)
    return path


def listed(folder: Path, *paths: Path, names: tuple[str, ...] = ("v0", "v1")) -> list[str]:
    rows = [{"video": name, "input": name, "path": str(path)} for name, path in zip(names, paths, strict=False)]
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--videos", f"{folder}/videos.jsonl", "--out", f"{folder}/cache"]


def refused(given: list[str], capsys) -> str:
    """What is told, by the dry run and by the run alike; nothing is encoded."""
    told = []
    for more in (["--dry-run"], []):
        assert stage.main([*given, *more]) == 2
        told.append(capsys.readouterr().err.partition("error:")[2])
    assert told[0] == told[1] and "do:" in told[0]
    assert not list(Path(given[3]).glob("shard_*"))
    return told[0]


WRONG_MASKS = {
    "another size": (torch.zeros(FRAMES, 128, 128), "shape [17, 128, 128]"),
    "too few frames": (torch.zeros(5, 64, 64), "shape [5, 64, 64]"),
    "no frames' axis": (torch.zeros(64, 64), "shape [64, 64]"),
}


@pytest.mark.parametrize("case", WRONG_MASKS)
def test_masks_of_another_shape(clip, tmp_path, capsys, case):
    mask, told = WRONG_MASKS[case]
    save_tensors(tmp_path / "v0.safetensors", {"mask": mask})
    error = refused([*listed(tmp_path, clip), "--masks", str(tmp_path)], capsys)
    assert "v0: " in error and told in error and "[17, 64, 64]" not in told


def test_masks_that_are_not_there(clip, tmp_path, capsys):
    assert "mask of v0" in refused([*listed(tmp_path, clip), "--masks", str(tmp_path)], capsys)
    save_tensors(tmp_path / "v0.safetensors", {"lips": torch.zeros(SIZE)})
    assert "tensors lips" in refused([*listed(tmp_path, clip), "--masks", str(tmp_path)], capsys)


@pytest.mark.parametrize(("value", "told"), [(255.0, "to 255"), (float("nan"), "nan"), (-1.0, "from -1")])
def test_masks_of_other_values(clip, tmp_path, capsys, value, told):
    """Values are read when the video is encoded."""
    mask = torch.zeros(SIZE)
    mask[:, 20:30] = value
    save_tensors(tmp_path / "v0.safetensors", {"mask": mask})
    assert stage.main([*listed(tmp_path, clip), "--masks", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is no mask of v0" in error and told in error and "in 0..1" in error


def test_a_mask_that_is_corrected_is_taken(clip, tmp_path, capsys):
    """An empty mask is told and cached as none; the right one in its place is another entry, and the same again is
    not encoded twice."""
    given = [*listed(tmp_path, clip), "--masks", str(tmp_path)]
    save_tensors(tmp_path / "v0.safetensors", {"mask": torch.zeros(SIZE)})
    assert stage.main(given) == 0 and "lips" not in Cache(tmp_path / "cache")["v0"]
    mask = torch.zeros(SIZE)
    mask[:, 32:40, 24:40] = 1
    save_tensors(tmp_path / "v0.safetensors", {"mask": mask})
    assert stage.main(given) == 0
    lips = Cache(tmp_path / "cache")["v0"]["lips"]
    assert lips[:, 4, 3:5].eq(1).all() and lips.sum() == 5 * 2  # rows 32..39 are latent row 4, columns 24..39 two
    capsys.readouterr()
    assert stage.main(given) == 0 and "1 of them cached already" in capsys.readouterr().out


def test_rates_and_silent_files_are_found_by_the_dry_run(clip, tmp_path, capsys):
    with VideoWriter(tmp_path / "silent.mp4", 23) as writer:
        writer.write(torch.rand(5, 3, 64, 64))
    encode(tmp_path / "tone.wav", torch.sin(torch.arange(16000) / 8)[None].numpy() * 0.3, 16000)
    with VideoWriter(tmp_path / "fast.mp4", 30, sound=tmp_path / "tone.wav") as writer:
        writer.write(torch.rand(5, 3, 64, 64))
    error = refused(listed(tmp_path, tmp_path / "silent.mp4", tmp_path / "fast.mp4"), capsys)
    assert "v0: no sound" in error and "v1: 30.00 frames a second" in error
    assert "2 videos cannot be encoded" in error


def test_an_id_stands_once(clip, tmp_path, capsys):
    assert "more than once: v0" in refused(listed(tmp_path, clip, clip, names=("v0", "v0")), capsys)


@pytest.mark.parametrize("entry", [{"shard": 1}, "text", {}])
def test_an_index_whose_entry_is_damaged(tmp_path, entry):
    (tmp_path / "index.json").write_text(json.dumps({"facts": {}, "videos": {"v0": entry}}))
    with pytest.raises(UserError, match="is damaged"):
        Cache(tmp_path)
