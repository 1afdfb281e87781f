"""The labelling commands: Label Studio's projects, tasks and exports, tables, the way to the arbiter and back."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS
from train import annotate
from train.annotations import Vote, read_annotations
from train.label_studio import FOLDER, LAST_WORDS, PROJECTS, question, read_export
from train.shown_videos import Listed
from train.splits import split_of

# ---- Label Studio ----


def test_projects_ask_what_the_critic_is_asked():
    """Every control is of the one video, at $url; the questions are Talking-Critic's, but for its last words."""
    for project in PROJECTS:
        view = ElementTree.parse(FOLDER / f"{project}.xml").getroot()
        assert view.find("Video").attrib == {"name": "clip", "value": "$url"}
        controls = [*view.iter("Choices"), *view.iter("Number")]
        assert {one.get("toName") for one in controls} == {"clip"} and {one.get("required") for one in controls} == {
            "true"
        }
        assert [one.get("name") for one in controls] == (["answer"] if project == "arbiter" else list(DIMENSIONS))
        assert all([c.get("value") for c in one.iter("Choice")] == ["Yes", "No"] for one in view.iter("Choices"))
    said = [one.get("value") for one in ElementTree.parse(FOLDER / "labels.xml").getroot().iter("Header")]
    assert [question(d) for d in DIMENSIONS] == said[1::2] and not any(LAST_WORDS in text for text in said)


def annotation(by, answers: dict[str, str], **more) -> dict:
    """As Label Studio exports it: one result for each control."""
    result = [
        {"from_name": name, "to_name": "clip", "type": "choices", "value": {"choices": [word]}, "id": name * 3}
        for name, word in answers.items()
    ]
    return {"id": 7, "completed_by": by, "was_cancelled": False, "result": result, "lead_time": 3.5} | more


def all_three(*words: str) -> dict[str, str]:
    return dict(zip(DIMENSIONS, words, strict=True))


def export(folder: Path, name: str, tasks: list) -> Path:
    (folder / name).write_text(json.dumps(tasks))
    return folder / name


def test_an_export_is_read(tmp_path):
    """People by number, or by a record; what they skipped is counted; answers of an annotation share its number."""
    task = {"id": 1, "data": {"video": "v", "url": "/x", "sha256": "f"}, "predictions": []}
    person = {"id": 2, "email": "b@example.org", "first_name": "", "last_name": ""}
    task["annotations"] = [
        annotation(1, {"mn": "Yes", "ls": "No"}),
        annotation(person, {"mn": "No"}),
        annotation(3, {}, was_cancelled=True),
    ]
    found = read_export(export(tmp_path, "e.json", [task]))
    assert [(a.by, a.name, a.value, a.annotation) for a in found.answers] == [
        ("1", "mn", "Yes", 1),
        ("1", "ls", "No", 1),
        ("b@example.org", "mn", "No", 2),
    ]
    assert found.skipped == 1 and {(a.video, a.sha256) for a in found.answers} == {("v", "f")}


WRONG_EXPORTS = {
    "a dict": {},
    "no 'annotations'": [{"data": {"video": "v"}, "mn": "Yes"}],
    "no 'video'": [{"data": {}, "annotations": [annotation(1, {"mn": "Yes"})]}],
    "completed_by is None": [{"data": {"video": "v"}, "annotations": [annotation(None, {"mn": "Yes"})]}],
    "no 'dimension'": [{"data": {"video": "v"}, "annotations": [annotation(1, {"answer": "Yes"})]}],
    "unpack": [{"data": {"video": "v"}, "annotations": [annotation(1, {}) | {"result": [
        {"from_name": "mn", "type": "choices", "value": {"choices": ["Yes", "No"]}}]}]}],
    "answered a question twice": [{"data": {"video": "v"}, "annotations": [annotation(1, {}) | {"result": [
        {"from_name": "mn", "type": "choices", "value": {"choices": ["Yes"]}}] * 2}]}],
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_EXPORTS)
def test_files_that_are_no_export(tmp_path, case):
    with pytest.raises(UserError, match=case):
        read_export(export(tmp_path, "e.json", WRONG_EXPORTS[case]))


# ---- the commands ----

NAMES = ["clips/a b.mp4", "clips/ü.mp4", "clips/c.mp4"]


@pytest.fixture
def videos(tmp_path) -> Path:
    """Three videos of two inputs, one listed with its hash and two without."""
    rows = []
    for number, name in enumerate(NAMES):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video %d" % number)
        rows.append({"video": f"v{number}", "input": "i" if number < 2 else "j", "path": name, "source": "multitalk"})
    rows[0]["variant"] = 4
    (tmp_path / "data" / "videos.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path / "data" / "videos.jsonl"


def command(verb: str, videos: Path, *more: str) -> list[str]:
    return [verb, "--videos", str(videos), "--out", str(videos.parent.parent / "out"), *more]


def test_tasks_name_files_and_nothing_that_would_sway(videos, capsys):
    assert annotate.main(command("tasks", videos, "--root", str(videos.parent.parent))) == 0
    out = videos.parent.parent / "out"
    tasks = json.loads((out / "labels_tasks.json").read_text())
    assert sorted(one["data"]["video"] for one in tasks) == ["v0", "v1", "v2"]
    assert {frozenset(one["data"]) for one in tasks} == {frozenset({"video", "url", "sha256"})}
    for one in tasks:
        before, path = one["data"]["url"].split("?d=")
        assert before == "/data/local-files/" and " " not in path and path.isascii()
        assert unquote(path) == "data/" + NAMES[int(one["data"]["video"][1])]
    assert (out / "labels.xml").read_bytes() == (FOLDER / "labels.xml").read_bytes()
    assert annotate.main(command("tasks", videos, "--prefix", "https://example.org/", "--dry-run")) == 0
    assert "https://example.org/clips/" in capsys.readouterr().out


def test_tasks_that_cannot_be_made(videos, capsys):
    assert annotate.main(command("tasks", videos, "--root", str(videos.parent / "clips" / "elsewhere"))) == 2
    assert "--root" in capsys.readouterr().err
    assert annotate.main(command("tasks", videos, "--project", "study")) == 2
    assert "i multitalk" in capsys.readouterr().err
    (videos.parent / NAMES[2]).unlink()
    assert annotate.main(command("tasks", videos)) == 2
    assert not (videos.parent.parent / "out").exists()
    with pytest.raises(SystemExit) as stop:
        annotate.main(["label"])
    assert stop.value.code == 2


def tasks_of(videos: Path, project: str = "labels") -> dict[str, dict]:
    """The tasks that were written, by video (and dimension)."""
    found = json.loads((videos.parent.parent / "out" / f"{project}_tasks.json").read_text())
    return {" ".join(filter(None, (t["data"]["video"], t["data"].get("dimension")))): t for t in found}


def written(videos: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (videos.parent.parent / "out" / name).read_text().splitlines()]


def test_from_tasks_to_labels_and_back_to_the_arbiter(videos, tmp_path, capsys):
    """v0 is unanimous but for ls, v1 has two votes, v2 none; the fourth person then decides v0's ls against two."""
    assert annotate.main(command("tasks", videos)) == 0
    tasks = tasks_of(videos)
    tasks["v0"]["annotations"] = [
        annotation(by, all_three("Yes", "No" if by == 1 else "Yes", "No")) for by in (1, 2, 3)
    ]
    tasks["v1"]["annotations"] = [annotation(by, all_three("Yes", "Yes", "Yes")) for by in (1, 2)]
    tasks["v2"]["annotations"] = [annotation(1, {}, was_cancelled=True)]
    labels = export(tmp_path, "labels.json", list(tasks.values()))
    given = command("adjudicate", videos, "--labels", str(labels))
    assert annotate.main([*given, "--dry-run"]) == 0 and not (tmp_path / "out" / "todo.jsonl").exists()
    assert annotate.main(given) == 0
    assert "1 need the arbiter, 6 lack votes; 1 annotations were skipped" in capsys.readouterr().out
    rows = {one["dimension"]: one for one in written(videos, "annotations.jsonl")}
    assert [rows[d]["label"] for d in DIMENSIONS] == [1, None, 0] and rows["ls"]["how"] == "needs_arbiter"
    assert rows["mn"]["variant"] == 4 and rows["mn"]["input"] == "i" and len(rows["mn"]["sha256"]) == 64
    todo = written(videos, "todo.jsonl")
    assert {"video": "v0", "dimension": "ls", "needs": "arbiter", "votes": 3} in todo
    assert {"video": "v1", "dimension": "mn", "needs": "votes", "votes": 2} in todo and len(todo) == 7
    waiting = tasks_of(videos, "arbiter")
    assert list(waiting) == ["v0 ls"] and waiting["v0 ls"]["data"]["question"] == question("ls")

    waiting["v0 ls"]["annotations"] = [annotation(9, {"answer": "No"})]
    fourth = export(tmp_path, "fourth.json", list(waiting.values()))
    assert annotate.main([*given, "--arbiter", str(fourth)]) == 0
    decided = {one.dimension: one for one in read_annotations(tmp_path / "out" / "annotations.jsonl")}["ls"]
    assert (decided.label, decided.how, decided.arbiter) == (0, "arbiter", Vote("9", 0))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["agreement"]["ls"]["reversal_rate"] == 1.0 and report["todo"] == {"votes": 6}
    assert set(report["made_from"]) == {"videos", "labels", "arbiter"} and tasks_of(videos, "arbiter") == {}


def test_clips_of_one_file_stay_in_one_split():
    """train.clips gave its clips splits by footage file: they stay, for a source with a test clip. A source whose rows
    all say train was not split, and falls by its inputs' names; but a rival of a test clip is a test, too."""
    listed = [Listed(f"r{k}", f"clip{k}", "", "real", split="test" if k == 3 else "train") for k in range(40)]
    listed += [Listed("rival", "clip3", "", "humo", split="train")]
    listed += [Listed(f"m{k}", f"i{k}", "", "humo", split="train") for k in range(200)]
    found = annotate.splits(listed, 0.25, seed=1)
    assert [name for name in found if name.startswith("clip") and found[name] == "test"] == ["clip3"]
    assert {found[f"i{k}"] == split_of(f"i{k}", 0.25, 1) for k in range(200)} == {True}
    assert sum(found[f"i{k}"] == "test" for k in range(200)) in range(30, 71)  # 50 -+ 3 sd


def test_a_table_is_the_same(videos, tmp_path, capsys):
    """The CSV twin, with the older name of a column, a byte-order mark, an empty line and blanks."""
    table = "﻿video,dim,a1,a2,a3,arbiter\nv0,mn,1, 1,1,\n\nv0,ls,0,1,1,0\nv1,vq,1,0,1,\nv2,vq,1,,1,\n"
    (tmp_path / "labels.csv").write_text(table)
    assert annotate.main(command("adjudicate", videos, "--labels", str(tmp_path / "labels.csv"))) == 0
    rows = {(one["video"], one["dimension"]): one for one in written(videos, "annotations.jsonl")}
    assert {key: one["label"] for key, one in rows.items()} == {("v0", "mn"): 1, ("v0", "ls"): 0, ("v1", "vq"): None}
    assert [vote["by"] for vote in rows["v0", "ls"]["votes"]] == ["a1", "a2", "a3"]
    assert {"video": "v2", "dimension": "vq", "needs": "votes", "votes": 2} in written(videos, "todo.jsonl")


WRONG_TABLES = {
    "line 2: a2 is 'yes'": "v0,mn,1,yes,1,\n",
    "line 2: a1 is '2'": "v0,mn,2,0,1,\n",
    "line 2: dimension 'sync'": "v0,sync,1,1,1,\n",
    "line 3: v0 mn a second time": "v0,mn,1,1,1,\nv0,mn,1,1,1,\n",
    "line 2: 5 cells": "v0,mn,1,1,1\n",
    "although the three agree": "v0,mn,1,1,1,1\n",
    "2 votes and an arbiter": "v0,mn,1,,0,1\n",
    "not in the list: v9": "v9,mn,1,1,1,\n",
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_tables_that_cannot_be_used(videos, tmp_path, capsys, case):
    (tmp_path / "labels.csv").write_text("video,dimension,a1,a2,a3,arbiter\n" + WRONG_TABLES[case])
    assert annotate.main(command("adjudicate", videos, "--labels", str(tmp_path / "labels.csv"))) == 2
    error = capsys.readouterr().err
    assert case in error and "do:" in error and not (tmp_path / "out").exists()


def spoiled(tasks: dict[str, dict], case: str) -> None:
    people = [annotation(by, all_three("Yes", "Yes", "Yes")) for by in (1, 2, 3)]
    tasks["v0"]["annotations"] = people
    if case == "v0 mn: 2 voted twice":
        people[0]["completed_by"] = 2
    elif case == "v0 mn: 4 votes":
        people.append(annotation(4, all_three("Yes", "Yes", "Yes")))
    elif case == "v0 mn: 'Perhaps'":
        people[1]["result"][0]["value"]["choices"] = ["Perhaps"]
    elif case == "v0 sharpness: 'Yes'":
        people[1]["result"][0]["from_name"] = "sharpness"
    elif case == "another file than labelled: v0":
        tasks["v0"]["data"]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    "case",
    [
        "v0 mn: 2 voted twice",
        "v0 mn: 4 votes",
        "v0 mn: 'Perhaps'",
        "v0 sharpness: 'Yes'",
        "another file than labelled: v0",
    ],
)
def test_exports_that_make_no_labels(videos, tmp_path, capsys, case):
    assert annotate.main(command("tasks", videos)) == 0
    tasks = {name: one | {"annotations": []} for name, one in tasks_of(videos).items()}
    spoiled(tasks, case)
    labels = export(tmp_path, "labels.json", list(tasks.values()))
    assert annotate.main(command("adjudicate", videos, "--labels", str(labels))) == 2
    assert case in capsys.readouterr().err and not (tmp_path / "out" / "annotations.jsonl").exists()


def test_two_arbiters_are_one_too_many(videos, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("video,dimension,a1,a2,a3,arbiter\nv0,mn,1,0,1,1\n")
    fourth = [{"data": {"video": "v0", "dimension": "mn"}, "annotations": [annotation(9, {"answer": "No"})]}]
    more = ("--labels", str(tmp_path / "labels.csv"), "--arbiter", str(export(tmp_path, "f.json", fourth)))
    assert annotate.main(command("adjudicate", videos, *more)) == 2
    assert "v0 mn: 2 arbiters" in capsys.readouterr().err


def test_splits_do_not_move_when_videos_are_added(videos, tmp_path):
    """All videos of an input are in one split, whatever else is in the list."""

    def splits() -> dict[str, str]:
        names = [json.loads(line)["video"] for line in videos.read_text().splitlines()]
        table = "".join(f"{name},mn,1,1,1,\n" for name in names)
        (tmp_path / "labels.csv").write_text("video,dimension,a1,a2,a3,arbiter\n" + table)
        more = ("--labels", str(tmp_path / "labels.csv"), "--test-share", "0.5")
        assert annotate.main(command("adjudicate", videos, *more)) == 0
        return {one["video"]: one["split"] for one in written(videos, "annotations.jsonl")}

    before, path = splits(), json.loads(videos.read_text().splitlines()[0])["path"]
    with videos.open("a") as file:
        for number in range(3, 30):
            file.write(json.dumps({"video": f"v{number}", "input": f"i{number // 3}", "path": path}) + "\n")
    after = splits()
    assert {name: after[name] for name in before} == before and set(after.values()) == {"train", "test"}
    assert all(after[f"v{n}"] == after[f"v{n + 1}"] == after[f"v{n + 2}"] for n in range(3, 30, 3))


@pytest.mark.parametrize(("share", "told"), [("0", "1 train"), ("1", "1 test")])
def test_a_share_without_an_input_for_tests_is_told(videos, tmp_path, capsys, share, told):
    (tmp_path / "labels.csv").write_text("video,dimension,a1,a2,a3,arbiter\nv0,mn,1,1,1,\n")
    more = ("--labels", str(tmp_path / "labels.csv"), "--test-share", share)
    assert annotate.main(command("adjudicate", videos, *more)) == 0
    out = capsys.readouterr().out
    assert f"inputs: {told}\n" in out and ("warning: no input is for tests" in out) == (share == "0")
