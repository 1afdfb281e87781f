"""The dry run of train.evaluate: settings and time of the metrics, what is left to do, and folders that are refused."""

from __future__ import annotations

import json
import re

import pytest
from plain_metrics import COLOURS, OPENING, PLAIN, write_grey, write_methods

from train.evaluate import main

SLOW = "plain_metrics:Slow"


@pytest.fixture
def methods(tmp_path) -> list[str]:
    return write_methods(tmp_path, {"a": (0.2, 0.3), "b": (0.5, 0.6)}, sound=True)


def planned(tmp_path, capsys, methods, *metrics: str) -> str:
    given = ["--out", str(tmp_path / "out"), "--method", *methods, "--metrics", *metrics, "--dry-run"]
    assert main(given) == 0
    return capsys.readouterr().out


def test_a_plan_tells_settings_and_time_and_writes_nothing(methods, tmp_path, capsys):
    """A metric that takes half a second a video: four videos are 2 s and more (less what decoding took longer when it
    was timed alone)."""
    told = planned(tmp_path, capsys, methods, SLOW, "dynamics", "fid", "--options", "dynamics.mask=none")
    assert "a: 2 videos" in told and "no weights: pt_inception" in told and not (tmp_path / "out").exists()
    assert f"{SLOW}: {SLOW}.gain=1.0\n" in told
    assert "dynamics: dynamics.flow=dis dynamics.mask=none dynamics.raft=(none)" in told  # not its file, `task`
    slow, seconds = re.search(r"Slow: ([\d.]+) s", told), re.search(r"like it: about ([\d.]+) s", told)
    assert float(slow[1]) > 0.4 and float(seconds[1]) >= 2


def test_a_plan_counts_what_is_in_the_cache(methods, tmp_path, capsys):
    """Of four videos none is left after an evaluation, one after it was made anew, four of another metric."""
    assert main(["--out", str(tmp_path / "out"), "--workers", "0", "--method", *methods, "--metrics", PLAIN]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    told = planned(tmp_path, capsys, methods, PLAIN)
    assert "0 of 4 videos are to be measured" in told and "tried on" not in told
    write_grey(tmp_path / "a" / "01.mp4", 0.35)
    told = planned(tmp_path, capsys, methods, PLAIN)
    assert "1 of 4 videos are" in told and "tried on 01.mp4" in told
    assert "4 of 4 videos are" in planned(tmp_path, capsys, methods, SLOW)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_plan_counts_each_metric_by_itself(methods, tmp_path, capsys):
    """After an evaluation by one metric another one is to be measured of all four videos, the first of none; the
    metrics of sets are measured of three real videos too."""
    out = ["--out", str(tmp_path / "out"), "--workers", "0", "--method", *methods]
    assert main([*out, "--metrics", PLAIN]) == 0
    for number in range(3):
        write_grey(tmp_path / "real" / f"{number}.mp4", 0.4)
    capsys.readouterr()
    told = planned(tmp_path, capsys, methods, PLAIN, COLOURS, "--reference", str(tmp_path / "real"))
    assert "7 of 7 videos are to be measured" in told
    assert re.search(rf"{PLAIN}: [\d.]+ s for each of 0,", told)
    assert re.search(rf"{COLOURS}: [\d.]+ s for each of 7,", told)


def test_a_plan_tries_what_cannot_be_opened(methods, tmp_path, capsys):
    """A file of another model, and a broken video, which is not the one to try with."""
    (tmp_path / "network").write_text("text")
    (tmp_path / "a" / "00.mp4").write_bytes(b"no video")
    told = planned(tmp_path, capsys, methods, OPENING, "--options", f"{OPENING}.weights={tmp_path / 'network'}")
    assert "tried on 01.mp4" in told and "failed: network is no network: text" in told
    for path in tmp_path.glob("?/*.mp4"):
        path.write_bytes(b"no video")
    assert "tried" not in planned(tmp_path, capsys, methods, PLAIN)


def test_methods_inside_methods_are_refused(methods, tmp_path, capsys):
    """Videos below a folder are its own: those of b in a would be compared with themselves."""
    write_grey(tmp_path / "a" / "more" / "02.mp4", 0.4)
    given = ["--out", str(tmp_path / "out"), "--metrics", PLAIN, "--method"]
    assert main([*given, methods[0], f"inner={tmp_path / 'b' / '..' / 'a' / 'more'}"]) == 2
    assert "a folder lies in another one" in capsys.readouterr().err
    assert main([*given, methods[0], "--reference", str(tmp_path / "a" / "more")]) == 2
    assert "a folder lies in another one" in capsys.readouterr().err
    assert main([*given, *methods, "--reference", str(tmp_path / "a"), "--dry-run"]) == 0
    capsys.readouterr()
    assert main([*given, methods[0], "--dry-run"]) == 0 and "a: 3 videos" in capsys.readouterr().out


def test_masks_beside_videos_are_no_inputs(methods, tmp_path):
    """00.mask.mp4 is the mask of 00.mp4; a video of that name without the other is an input like any."""
    write_grey(tmp_path / "a" / "00.mask.mp4", 1.0)
    write_grey(tmp_path / "b" / "07.mask.mp4", 0.5)
    out = tmp_path / "out"
    assert main(["--out", str(out), "--workers", "0", "--method", *methods, "--metrics", PLAIN]) == 0
    assert json.loads((out / "evaluation.json").read_text("utf-8"))["inputs"] == ["00", "01", "07.mask"]
