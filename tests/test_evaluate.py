"""train.evaluate from folders to tables, on videos of known brightness, in this process and in others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from plain_metrics import COLOURS, PLAIN, write_grey, write_methods
from planted_weights import planted_file
from source_tree import ROOT

from fantasy_core.manifest import sha256
from fantasy_core.metrics.contract import Video
from fantasy_core.metrics.inception import Fid
from fantasy_core.metrics.inception_model import Inception
from fantasy_core.metrics.sampling import at_rate
from train.evaluate import main
from train.evaluate_videos import Protocol, decoded, harmonised
from train.journal import Journal

SHADES = {"dark": (0.2, 0.3, 0.4), "light": (0.5, 0.6, 0.7)}


def evaluate(out: Path, methods: list[str], *more: str, metrics=(PLAIN,)) -> dict:
    code = main(["--out", str(out), "--workers", "0", "--method", *methods, "--metrics", *metrics, *map(str, more)])
    assert code == 0
    return json.loads((out / "evaluation.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def methods(tmp_path_factory) -> list[str]:
    return write_methods(tmp_path_factory.mktemp("methods"), SHADES, sound=True)


@pytest.fixture(scope="module")
def result(methods, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("out")
    return out, evaluate(out, methods)


def test_means_are_those_of_the_videos(result):
    """Greys of 0.2, 0.3, 0.4 that fall by 0.002 a frame, six frames: 0.3 less 0.005, within what H.264 changes."""
    cells = result[1]["cells"]
    assert cells["dark"]["brightness"]["mean"] == pytest.approx(0.295, abs=0.01)
    assert cells["light"]["brightness"]["mean"] == pytest.approx(0.595, abs=0.01)
    assert cells["dark"]["brightness"]["n"] == cells["dark"]["brightness"]["of"] == 3
    assert cells["dark"]["frames"]["mean"] == 6
    assert cells["dark"]["brightness"]["low"] < 0.295 < cells["dark"]["brightness"]["high"]


def test_the_table_says_which_is_better(result):
    out, told = result
    assert told["best"]["brightness"] == ["light"] and "frames" not in told["best"]
    table = (out / "table.md").read_text("utf-8")
    assert "| brightness ↑ | loudness ↓ |" in table and "**0.592**" in table.replace("0.593", "0.592")
    assert "3 inputs, as the files are: 6 x 10 fps, 32x32" in table
    test = next(test for test in told["tests"] if test["column"] == "brightness")
    assert (test["first"], test["second"], test["better"], test["above"]) == ("dark", "light", "light", 0)
    assert test["p"] == 2 / 8 and test["p_holm"] == 4 / 8  # with loudness two tests
    assert (out / "plots" / "brightness.png").stat().st_size > 3000


def test_every_number_has_what_it_depends_on(result):
    told = result[1]
    assert told["metrics"][PLAIN]["settings"] == {"gain": 1.0} and told["versions"][0]["numpy"] == np.__version__
    video = told["videos"]["dark"]["00"]
    assert len(video["sha256"]) == 64 and video["facts"]["fps"] == 10 and video["facts"]["width"] == 32
    assert video["values"]["brightness"] == pytest.approx(0.195, abs=0.01)


# ---- the cache ----


def lines(out: Path) -> int:
    return len(Journal(out / "cache" / "part-00000.jsonl").read())


def test_nothing_is_measured_twice(methods, tmp_path):
    first = evaluate(tmp_path, methods)
    kept, plots = lines(tmp_path), {p: p.stat().st_mtime_ns for p in (tmp_path / "plots").iterdir()}
    assert evaluate(tmp_path, methods) == first
    assert lines(tmp_path) == kept == 2 * 6  # brightness and cuts of six videos
    assert plots == {p: p.stat().st_mtime_ns for p in (tmp_path / "plots").iterdir()}


def test_other_settings_and_other_videos_are_measured_anew(tmp_path):
    methods, out = write_methods(tmp_path, SHADES), tmp_path / "out"
    plain = evaluate(out, methods)
    gained = evaluate(out, methods, "--options", f"{PLAIN}.gain=2")
    assert gained["cells"]["dark"]["brightness"]["mean"] == 2 * plain["cells"]["dark"]["brightness"]["mean"]
    write_grey(tmp_path / "dark" / "00.mp4", 0.9)
    changed = evaluate(out, methods)
    assert changed["videos"]["dark"]["00"]["values"]["brightness"] == pytest.approx(0.895, abs=0.01)
    assert changed["videos"]["dark"]["01"] == plain["videos"]["dark"]["01"]


def test_processes_say_what_this_one_says(result, methods, tmp_path):
    told = evaluate(tmp_path, methods, "--workers", "1")
    assert told["cells"] == result[1]["cells"] and told["videos"] == result[1]["videos"]


def test_a_killed_evaluation_goes_on(methods, tmp_path):
    """kill -9 after the first video: what was written stays, and the result is that of an undisturbed run."""
    whole = evaluate(tmp_path / "whole", methods)
    command = [sys.executable, "-m", "train.evaluate", "--out", str(tmp_path / "out"), "--workers", "0"]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    slow = "plain_metrics:Slow"
    run = subprocess.Popen(
        [*command, "--method", *methods, "--metrics", slow], env=os.environ | paths, stderr=subprocess.DEVNULL
    )
    part = tmp_path / "out" / "cache" / "part-00000.jsonl"
    for _ in range(600):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = part.read_bytes().count(b"\n")
    assert 0 < done < 12
    part.write_bytes(part.read_bytes() + b'{"key": "cut of')
    told = evaluate(tmp_path / "out", methods, metrics=(slow,))
    assert told["cells"] == whole["cells"]
    assert lines(tmp_path / "out") == 12


# ---- sets ----


def test_distances_of_sets_need_a_reference(methods, tmp_path):
    told = evaluate(tmp_path, methods, metrics=(COLOURS,))
    assert "--reference" in told["cells"]["dark"]["colours"]["reason"]
    assert told["cells"]["dark"]["colours"]["mean"] is None


def test_the_nearer_set_is_the_better_one(methods, tmp_path):
    """The reference is as light as one method: its distance is the lesser, with an interval around it, and the warning
    that so few samples are mostly bias is shown."""
    write_methods(tmp_path, {"real": SHADES["light"]})
    told = evaluate(tmp_path / "out", methods, "--reference", tmp_path / "real", metrics=(COLOURS,))
    far, near = told["cells"]["dark"]["colours"], told["cells"]["light"]["colours"]
    assert near["mean"] < far["mean"] and near["low"] <= near["mean"] <= near["high"]
    assert told["best"]["colours"] == ["light"] and told["cells"]["light"]["colours_samples"]["mean"] == 18
    assert any("mostly bias" in warning for warning in told["warnings"])
    test = next(test for test in told["tests"] if test["column"] == "colours")
    assert test["better"] == "light" and test["low"] < test["difference"] < test["high"] and test["p"] is None
    kept = lines(tmp_path / "out")
    assert evaluate(tmp_path / "out", methods, "--reference", tmp_path / "real", metrics=(COLOURS,)) == told
    assert lines(tmp_path / "out") == kept


def test_features_that_are_gone_are_measured_again(methods, tmp_path):
    write_methods(tmp_path, {"real": SHADES["light"]})
    told = evaluate(tmp_path / "out", methods, "--reference", tmp_path / "real", metrics=(COLOURS,))
    shutil.rmtree(tmp_path / "out" / "cache" / "features")
    assert evaluate(tmp_path / "out", methods, "--reference", tmp_path / "real", metrics=(COLOURS,)) == told


# ---- frame rate and size ----


def test_all_are_brought_to_one_rate_and_size(methods, tmp_path):
    """0.6 s at 20 frames a second are 12 frames; the brightness of greys does not change with their size."""
    told = evaluate(tmp_path, methods, "--fps", "20", "--size", "64")
    assert told["cells"]["dark"]["frames"]["mean"] == 12
    assert told["cells"]["dark"]["brightness"]["mean"] == pytest.approx(0.295, abs=0.01)
    assert "brought to 20 fps (what is shown in the middle of each interval) and 64 px" in (
        tmp_path / "table.md"
    ).read_text("utf-8")
    assert list(told["kinds"]) == ["20 fps, 64x64"]


def test_frames_are_sized_as_they_come(tmp_path):
    """The same pictures as sizing all of them at the end makes."""
    (method,) = write_methods(tmp_path, {"a": (0.3, 0.5)})
    path = sorted(Path(method.partition("=")[2]).iterdir())[0]
    whole = harmonised(decoded(path, Protocol()), Protocol(20, "48x32"))
    found = decoded(path, Protocol(20, "48x32"))
    assert np.array_equal(found.frames, whole.frames) and found.frames.shape[1:] == (32, 48, 3)
    assert np.array_equal(found.times, whole.times)


def test_another_rate_is_neither_early_nor_late():
    """Frames taken from 25 a second at 16, 12 and 10 are shown, on the mean of 8 s, when they were, within a quarter of
    a frame; the first shown at each tick would be half an interval less half a frame early: 11 ms at 16."""
    video = Video(Path("a"), np.zeros((200, 1, 1, 3), np.uint8), np.arange(200) / 25)
    for fps in (16, 12, 10):
        middles = (at_rate(video, fps, 0.5) + 0.5) / 25 - (np.arange(8 * fps) + 0.5) / fps
        assert abs(middles.mean()) < 0.01 and abs(middles).max() <= 0.02 + 1e-9
    assert (at_rate(video, 25, 0.5) == np.arange(200)).all()


def test_fid_by_its_own_network(tmp_path):
    """Inception with planted weights, one frame of each of two clips; the set that is the reference itself has
    distance 0 and is no rival, its values are those of the metric alone, and its settings carry the file's hash."""
    weights = planted_file(Inception, tmp_path / "inception.pth")
    methods = write_methods(tmp_path, {name: shades[:2] for name, shades in SHADES.items()}, frames=1)
    flags = ("--reference", tmp_path / "dark", "--weights", f"fid={weights}", "--resamples", "3")
    told = evaluate(tmp_path / "out", methods, *flags, metrics=("fid",))
    assert told["cells"]["dark"]["fid"]["mean"] == pytest.approx(0, abs=1e-6)
    assert told["cells"]["light"]["fid"]["mean"] > 1e-5 and "fid" not in told["best"]
    assert told["cells"]["light"]["fid"]["low"] < told["cells"]["light"]["fid"]["mean"]
    assert told["metrics"]["fid"]["settings"]["weights_sha256"] == sha256(weights)
    assert any("never run here with their real weights: fid" in warning for warning in told["warnings"])
    metric, files = Fid(weights), {name: sorted((tmp_path / name).iterdir()) for name in SHADES}
    sets = {n: np.concatenate([metric.measure(decoded(f, Protocol())).features for f in of]) for n, of in files.items()}
    wanted = metric.compare(sets["light"], sets["dark"]).values["fid"]
    assert told["cells"]["light"]["fid"]["mean"] == pytest.approx(wanted, rel=1e-6)


def test_scores_that_were_measured_elsewhere(tmp_path):
    """Q-Align's scores by path: equal files of two methods keep scores of their own, a video without a row is named,
    and no frame is decoded for them."""
    methods = write_methods(tmp_path, {"a": (0.3, 0.5), "b": (0.3, 0.5)})
    rows = [(f"{tmp_path}/{m}/{k:02d}.mp4", d, 3 + k) for m in "ab" for k in (0, 1) for d in ("iqa", "aes")]
    rows = [row for row in rows if "b/01" not in row[0]] + [(f"{tmp_path}/b/01.mp4", "iqa", 1.5)]
    (tmp_path / "q.csv").write_text("video,metric,value\n" + "".join(f"{v},{m},{x}\n" for v, m, x in rows))
    told = evaluate(tmp_path / "out", methods, "--weights", f"scores={tmp_path / 'q.csv'}", metrics=("scores",))
    assert told["cells"]["a"]["iqa"]["mean"] == 3.5 and told["cells"]["b"]["iqa"]["mean"] == 2.25
    assert told["cells"]["b"]["aes"]["n"] == 1 and told["videos"]["b"]["01"]["reasons"]["aes"] == "no row in q.csv"
    assert lines(tmp_path / "out") == 2  # the cuts of two contents, and no score
