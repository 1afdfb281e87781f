"""One folder, one command after the other: what stands there is of the last one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plain_metrics import COLOURS, PLAIN, write_methods

from train.evaluate import main


@pytest.fixture
def videos(tmp_path) -> list[str]:
    write_methods(tmp_path, {"real": (0.5, 0.6)})
    return ["--method", *write_methods(tmp_path, {"a": (0.2, 0.3)}), "--reference", str(tmp_path / "real")]


@pytest.fixture
def study(tmp_path) -> list[str]:
    path = tmp_path / "study.csv"
    path.write_text("rater,clip,method,mn,ls,vq\n" + "".join(f"r{k},c,m,{k},5,6\n" for k in (1, 2)))
    return ["--ratings", str(path)]


def evaluated(out: Path, *flags: str) -> tuple[set[str], dict]:
    """The files of ours that are there after the command, and its evaluation.json."""
    assert main(["--out", str(out), "--workers", "0", *flags]) == 0
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "cache" not in path.parts}
    return files, json.loads((out / "evaluation.json").read_text("utf-8"))


ALWAYS = {"evaluation.json", "report.html"}
TABLES = {"table.md", "metrics.csv"}


def test_a_study_after_videos_stands_alone(tmp_path, videos, study, capsys):
    out = tmp_path / "out"
    files, _ = evaluated(out, *videos, "--metrics", PLAIN)
    assert files == ALWAYS | TABLES | {"plots/brightness.png", "plots/frames.png"}
    files, told = evaluated(out, *study)
    assert files == ALWAYS | {"study.md"} and set(told) == {"study", "made_from"}
    assert "removed, for it was of an earlier command: metrics.csv, plots/brightness.png" in capsys.readouterr().out
    files, told = evaluated(out, *videos, "--metrics", PLAIN)
    assert files == ALWAYS | TABLES | {"plots/brightness.png", "plots/frames.png"} and "study" not in told
    files, _ = evaluated(out, *videos, *study, "--metrics", PLAIN)
    assert files == ALWAYS | TABLES | {"study.md", "plots/brightness.png", "plots/frames.png"}


def test_plots_of_other_metrics_go(tmp_path, videos):
    out = tmp_path / "out"
    evaluated(out, *videos, "--metrics", PLAIN)
    files, _ = evaluated(out, *videos, "--metrics", COLOURS)
    assert {name for name in files if name.startswith("plots")} == {"plots/colours.png", "plots/kernel.png"}


def test_what_is_not_ours_stays(tmp_path, videos, study):
    """A table and pictures that no evaluation.json tells of; a damaged one and another program's tell of nothing."""
    own = {"table.md", "plots/mine.png", "plots/brightness.png"}
    for name, told in {"none": None, "damaged": '{"cells": {', "other": '{"cells": 1, "columns": [{}]}'}.items():
        out = tmp_path / name
        (out / "plots").mkdir(parents=True)
        for file in own:
            (out / file).write_text("my own")
        if told:
            (out / "evaluation.json").write_text(told)
        files, _ = evaluated(out, *study)
        assert files == ALWAYS | {"study.md"} | own
    out = tmp_path / "none"
    evaluated(out, *videos, "--metrics", PLAIN)
    assert "plots/mine.png" in evaluated(out, *study)[0]
