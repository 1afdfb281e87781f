"""train.critic eval as a command: what it prints, and files with nothing to evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train import critic_eval as stage
from train.annotations import Annotation, Vote
from train.run import write_rows
from train.score_files import read_metrics

LABELS = {"a0": 1, "a1": 0, "b0": 1, "b1": 0}  # motion of two inputs, a and b
Z = {"a0": 2.0, "a1": -1.0, "b0": -1.0, "b1": -3.0}  # right on all but b0


def write_labels(folder: Path, split: str = "test") -> None:
    write_rows(
        folder / "annotations.jsonl",
        [
            Annotation(
                video, f"sha of {video}", video[0], "x", None, "mn", [Vote(n, label) for n in "abc"], None, label,
                "unanimous", split,
            )
            for video, label in LABELS.items()
        ],
    )  # fmt: skip


def write_scores(folder: Path, rows: list[dict], name: str = "scores.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(tmp_path) -> Path:
    write_labels(tmp_path)
    write_scores(tmp_path, [{"video": video, "z_mn": z} for video, z in Z.items()])
    return tmp_path


def evaluate(folder: Path, *more: str) -> int:
    given = ["--annotations", f"{folder}/annotations.jsonl", "--scores", f"{folder}/scores.jsonl"]
    return stage.main([*given, "--out", f"{folder}/out", *more])


def told(folder: Path) -> dict:
    return json.loads((folder / "out" / "report.json").read_text())


def test_table_2_and_its_file_are_printed(files, capsys):
    """Three of four are right."""
    assert evaluate(files) == 0
    out = capsys.readouterr().out
    assert "| ours, fixed | 75.0 (" in out and f"{files}/out/report.md" in out.splitlines()
    assert out.split("\n| ours")[0] in (files / "out" / "report.md").read_text()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_nothing_to_evaluate_is_an_error(files, capsys, more):
    """Labels of split train alone; then labels of tests, all scores of which failed."""
    write_labels(files, "train")
    assert evaluate(files, *more) == 2
    error = capsys.readouterr().err
    assert "no labelled test video has a score" in error and "0 labels in mn" in error and "--test-share" in error
    write_labels(files)
    write_scores(files, [{"video": video, "failed": "no face"} for video in Z])
    assert evaluate(files, *more) == 2
    error = capsys.readouterr().err
    assert "4 labels in mn" in error and "score these videos" in error and not (files / "out").exists()


def test_metrics_of_more_videos_than_people_saw(files, capsys):
    """a0 and b0 have much motion, and are Yes: all four right. Of the other two, which nobody labelled, is told."""
    rows = "".join(f"{video},SD,{1 + 3 * label}\n" for video, label in {**LABELS, "c0": 0, "c1": 1}.items())
    (files / "metrics.csv").write_text("video,metric,value\n" + rows)
    assert evaluate(files, "--metrics", f"{files}/metrics.csv") == 0
    assert told(files)["metrics"]["SD"]["mn"]["in_sample"]["n"] == 4
    assert told(files)["missing"]["not_annotated"]["SD"] == {"n": 2, "first": ["c0", "c1"]}
    assert "- 2 videos with a number of SD that nobody labelled: c0, c1" in (files / "out" / "report.md").read_text()


def test_a_folder_of_several_critics(files, capsys):
    """Ours (aa11) is right on three of four, the base (bb22) says Yes to all and is right on two."""
    rows = [{"video": video, "z_mn": z, "critic": "aa11", "views": "v"} for video, z in Z.items()]
    write_scores(files, rows + [row | {"critic": "bb22", "z_mn": 1.0} for row in rows])
    base = ["--base-scores", f"{files}/scores.jsonl"]
    assert evaluate(files, *base) == 2 and "choose by --critic HASH (and --views HASH)" in capsys.readouterr().err
    assert evaluate(files, *base, "--critic", "aa") == 2
    assert "choose by --base-critic HASH (and --base-views HASH)" in capsys.readouterr().err
    assert evaluate(files, *base, "--critic", "aa", "--views", "v", "--base-critic", "bb", "--base-views", "v") == 0
    accuracies = {name: of["mn"]["fixed"]["accuracy"] for name, of in told(files)["judges"].items()}
    assert accuracies == {"ours": 0.75, "base": 0.5}


METHODS = """video,method,metric,value,sha256
0,real,sd,4,sha of a0
0,ours,sd,1,sha of a1
0,ours,bd,9,sha of a1
1,real,sd,4,sha of b0
1,ours,sd,1,sha of b1
1,other,sd,7,sha of b2
a0,other,sd,7,sha of another file
"""


def test_metrics_of_several_methods_are_known_by_content(files):
    """The stems 0 and 1 are those of all methods' files; the hashes tell whose they are. A file that is named like a0
    and is another, and one that nobody labelled, do not count. Where an annotation has no hash, the name is the id."""
    (files / "metrics.csv").write_text(METHODS)
    assert evaluate(files, "--metrics", f"{files}/metrics.csv") == 0
    sd = told(files)["metrics"]["SD"]["mn"]["in_sample"]
    assert (sd["right"], sd["n"]) == (4, 4)
    assert told(files)["missing"]["not_annotated"]["SD"] == {"n": 2, "first": ["1 of other", "a0 of other"]}
    assert read_metrics(files / "metrics.csv", {"a0": "", "c": "sha of b2"}) ["SD"] == {
        "a0": 7.0, "c": 7.0, "0 of real": 4.0, "0 of ours": 1.0, "1 of real": 4.0, "1 of ours": 1.0,
    }  # fmt: skip


def test_two_videos_of_one_content_have_its_numbers(files):
    (files / "metrics.csv").write_text(METHODS)
    assert {"x": 4.0, "y": 4.0}.items() <= read_metrics(files / "metrics.csv", dict.fromkeys("xy", "sha of a0"))[
        "SD"
    ].items()
