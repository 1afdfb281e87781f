"""The miniature's held-out videos by the command that evaluates real ones: files in between change next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from plain_metrics import write_grey

from fantasy_core.miniature import load_components
from fantasy_core.pair_rules import DIMENSIONS
from train.evaluate import main as evaluate
from train.miniature import main as miniature
from train.miniature_evaluate import ceiling, generate, held_out, score
from train.miniature_videos import SHIPPED

FRAMES, COUNT, STEPS = 9, 2, 2


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("videos")
    told = ["--split", "test", "--count", str(COUNT), "--frames", str(FRAMES), "--steps", str(STEPS)]
    assert miniature(["--stage", "videos", "--out", str(out), *told]) == 0
    return out


def test_files_are_judged_as_the_table_judges(videos):
    """What is in memory and what comes back from the files (8 bits, BT.709, H.264 at crf 8): lip sync and motion within
    0.02, and quality, the distance to the nearest drawing, within 0.0016 of the range by root mean square (0.0014 was
    measured), which is 1 dB of 36.7 and less of worse ones."""
    methods = [f"{name}={videos / name}" for name in ("real", "base", "experts")]
    out = videos / "evaluation"
    assert evaluate(["--method", *methods, "--metrics", "judge", "--out", str(out), "--workers", "0"]) == 0
    told = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert not told["errors"] and list(told["kinds"]) == ["23 fps, 256x256"]
    clips, components = held_out("test", COUNT, FRAMES), load_components()
    with torch.inference_mode():
        sampling = {"steps": STEPS, "shift": 12.0, "scale": 1.0, "seed": 0}
        wanted = {"real": ceiling(components, clips), "base": generate(components, clips, **sampling)}
        wanted["experts"] = generate(components, clips, **sampling, experts=SHIPPED)
        for name, video in wanted.items():
            direct = score(video, clips)
            for d in DIMENSIONS:
                cell, known = told["cells"][name][d]["mean"], float(direct[d].mean())
                if d == "vq":
                    assert abs(10 ** (-cell / 20) - 10 ** (-known / 20)) < 0.0016, name
                else:
                    assert cell == pytest.approx(known, abs=0.02), (name, d)
    assert told["cells"]["base"]["ls"] != told["cells"]["experts"]["ls"]


def test_videos_that_are_there_stay(videos):
    times = {path: path.stat().st_mtime_ns for path in videos.glob("*/test_*.mp4")}
    assert len(times) == 3 * COUNT
    told = ["--split", "test", "--count", str(COUNT), "--frames", str(FRAMES), "--steps", str(STEPS)]
    assert miniature(["--stage", "videos", "--out", str(videos), *told]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in videos.glob("*/test_*.mp4")}


def test_other_videos_and_other_rates_are_refused(videos, tmp_path):
    write_grey(tmp_path / "a" / "00.mp4", 0.5)
    told = ["--metrics", "judge", "--workers", "0"]
    assert evaluate(["--method", f"a={tmp_path / 'a'}", "--out", str(tmp_path / "o"), *told]) == 0
    (error,) = json.loads((tmp_path / "o" / "evaluation.json").read_text("utf-8"))["errors"]
    assert "no video of the miniature" in error["what"] and error["metric"] == "judge"
    base = ["--method", f"base={videos / 'base'}", "--out", str(tmp_path / "p"), *told]
    assert evaluate([*base, "--fps", "25"]) == 0
    errors = json.loads((tmp_path / "p" / "evaluation.json").read_text("utf-8"))["errors"]
    assert len(errors) == COUNT and "25.00 fps, 256x256" in errors[0]["got"]
