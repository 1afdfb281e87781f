"""Clips made worse: each kind by hand, strengths in their range, and the rows that the next stages read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from talking import RATE, write_footage

from fantasy_core.audio import load_voice
from fantasy_core.media import read_video
from train import degrade as stage
from train import pairs
from train.degrade import KINDS, DegradeSettings, blur, compress, drawn, freeze, overexpose, shift, tremble


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@given(seconds=st.floats(-1.5, 1.5))
def test_sound_is_shifted_by_so_many_samples(seconds):
    """A click at 0.5 s of one at 1000 Hz comes at 0.5 s + the shift, or is gone; nothing else sounds."""
    sound = np.zeros(1000)
    sound[500] = 1
    moved, at = shift(sound, 1000, seconds), 500 + round(seconds * 1000)
    assert len(moved) == 1000 and moved.sum() == (0 <= at < 1000) and (not moved.sum() or moved[at] == 1)


def test_blur_by_hand():
    """A step from 0 to 1 under a Gaussian of sigma 0.05 x 40 = 2 pixels: at the first pixel of the upper side, half a
    pixel behind the edge, Phi(0.25) = 0.599. Even pictures stay, at their edges too."""
    step = torch.zeros(1, 3, 40, 40)
    step[..., 20:] = 1
    assert blur(step, 0.05)[0, 0, 20, 20].item() == pytest.approx(0.599, abs=0.003)
    assert blur(torch.full((2, 3, 40, 60), 0.3), 0.05).numpy() == pytest.approx(0.3, abs=1e-6)


def test_compression_loses_more_at_higher_rates():
    """Noise cannot be kept: what is left of its deviation falls with the rate factor, the mean stays."""
    noise = torch.rand(3, 3, 64, 64)
    left = [compress(noise, crf) for crf in (36, 50)]
    assert left[0].shape == noise.shape and left[1].std() < 0.7 * left[0].std() < noise.std()
    assert all(abs(part.mean() - 0.5) < 0.03 for part in left)


def test_overexposure_clips():
    assert overexpose(torch.tensor([0.2, 0.5, 0.9]), 2.0).tolist() == pytest.approx([0.4, 1.0, 1.0])


@given(count=st.integers(1, 60), hold=st.integers(4, 16))
def test_frozen_frames_are_held_and_none_comes_early(count, hold):
    """Every frame is itself or the first of its span; the spans held begin at multiples of `hold`; of each pair of
    whole spans one is held."""
    frames = torch.arange(float(count))[:, None, None, None].expand(-1, 3, 2, 2)
    shown = freeze(frames, hold, rng())[:, 0, 0, 0].long()
    assert all(shown[k] in (k, k // hold * hold) for k in range(count))
    for start in range(0, count - 2 * hold + 1, 2 * hold):
        assert len(set(shown[start : start + 2 * hold].tolist())) == hold + 1


def test_trembling_moves_whole_pictures():
    """A dot in the middle of 50 x 50 moves by at most 0.04 x 50 = 2 pixels, both ways, differently from frame to
    frame; an even picture stays."""
    dots = torch.zeros(30, 3, 50, 50)
    dots[:, :, 25, 25] = 1
    places = torch.nonzero(tremble(dots, 0.04, rng())[:, 0])[:, 1:] - 25
    assert len(places) == 30 and places.min() == -2 and places.max() == 2
    assert torch.equal(tremble(torch.full((3, 3, 8, 8), 0.4), 0.5, rng()), torch.full((3, 3, 8, 8), 0.4))


def test_strengths_are_drawn_within_their_range_and_again():
    """By seed, kind and video; over 200 videos they fill the range; 0 and 1 are its ends."""
    settings = DegradeSettings(Path("v"), Path("o"))
    for kind, about in KINDS.items():
        found = [drawn(kind, f"v{i}", settings)[0] for i in range(200)]
        width = about.most - about.least
        assert about.least <= min(found) < about.least + 0.1 * width
        assert about.most - 0.1 * width < max(found) <= about.most
        assert (
            found[0]
            == drawn(kind, "v0", settings)[0]
            != drawn(kind, "v0", DegradeSettings(Path("v"), Path("o"), seed=1))[0]
        )
        ends = [drawn(kind, "v0", DegradeSettings(Path("v"), Path("o"), strength=at))[0] for at in (0.0, 1.0)]
        assert ends == pytest.approx([about.least, about.most])


@pytest.fixture
def clip(tmp_path) -> Path:
    """One clip of 21 frames of 32 x 48 with noise as sound, and its row."""
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    frames = torch.rand(21, 3, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    write_footage(tmp_path / "real" / "clips" / "a.mp4", frames, sound, 23.0)
    row = {
        "video": "a",
        "input": "i",
        "path": "clips/a.mp4",
        "sha256": "0",
        "source": "real",
        "variant": 0,
        "fps": 23.0,
    }
    row |= {"frames": 21, "width": 48, "height": 32, "split": "test", "origin": "raw.mp4", "prompt": "p"}
    (tmp_path / "real" / "videos.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]


def arguments(folder: Path, *kinds: str) -> list[str]:
    return ["--videos", f"{folder}/real/videos.jsonl", "--out", f"{folder}/worse", "--kinds", *kinds]


def test_the_command_writes_videos_and_rows(clip):
    """All kinds: originals and copies in one file, of one input and split, every path a video of 21 frames with sound;
    a second run writes none again; another strength writes them anew."""
    assert stage.main(arguments(clip, *KINDS)) == 0
    rows = rows_of(clip / "worse")
    assert [row["variant"] for row in rows] == [0, *KINDS] and {row["input"] for row in rows} == {"i"}
    assert [row["source"] for row in rows] == ["real"] + ["degraded"] * 6
    assert {(row["split"], row["prompt"]) for row in rows} == {("test", "p")}
    assert len({row["video"] for row in rows}) == len({row["sha256"] for row in rows}) == 7
    paths = [clip / "worse" / row["path"] for row in rows]
    assert all(len(list(read_video(path))) == 21 for path in paths)
    longer = [len(load_voice(path)) - 21 / 23 * RATE for path in paths]
    assert all(-1 < samples < 1024 for samples in longer), "AAC ends with a whole frame of 1024"
    times = [path.stat().st_mtime_ns for path in paths]
    assert stage.main(arguments(clip, *KINDS)) == 0
    assert [path.stat().st_mtime_ns for path in paths] == times and rows_of(clip / "worse") == rows
    assert stage.main([*arguments(clip, "blur"), "--strength", "1"]) == 0
    assert rows_of(clip / "worse")[1]["strength"] == 0.015 and paths[2].stat().st_mtime_ns != times[2]


def test_pairs_are_made_of_them(clip):
    """train.pairs sets the real clip over each of its copies; scores.jsonl need only name them."""
    assert stage.main(arguments(clip, "shift", "freeze")) == 0
    scores = "".join(json.dumps({"video": row["video"]}) + "\n" for row in rows_of(clip / "worse"))
    (clip / "scores.jsonl").write_text(scores)
    flags = ["--videos", f"{clip}/worse/videos.jsonl", "--scores", f"{clip}/scores.jsonl", "--out", f"{clip}/pairs"]
    assert pairs.main([*flags, "--check-real", "false"]) == 0
    found = [json.loads(line) for line in (clip / "pairs" / "pairs_full.jsonl").read_text().splitlines()]
    assert sorted((row["chosen"], row["rejected"]) for row in found) == [("a", "a.freeze"), ("a", "a.shift")]


def test_a_dry_run_writes_nothing_and_wrong_kinds_are_answered(clip, capsys):
    assert stage.main([*arguments(clip, "shift"), "--dry-run"]) == 0
    assert "shift (ls)" in capsys.readouterr().out and not (clip / "worse").exists()
    assert stage.main(arguments(clip, "melt")) == 2 and "compress" in capsys.readouterr().err
    (clip / "real" / "clips" / "a.mp4").unlink()
    assert stage.main(arguments(clip, "shift")) == 2 and "no such file" in capsys.readouterr().err
