"""Files of scored videos and of pairs: both forms, part files of several processes, what is broken, what is mixed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.pair_rules import Pair
from train import pairs as stage
from train.run import write_rows
from train.tables import FORMATS, cut_off, part_files, read_columns, rows_of, write_columns

KINDS = {"video": str, "z": float}


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def file(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- columns ----


def test_only_the_named_columns_are_read_and_absent_ones_are_null(tmp_path):
    path = file(tmp_path, '{"video": "ä", "z": 1, "more": [1, {"x": 2}]}\n\n{"z": null, "video": "b"}\n')
    told = read_columns(path, {"z": float, "video": str, "split": str}, needed=("video",))
    assert told.to_pydict() == {"z": [1.0, None], "video": ["ä", "b"], "split": [None, None]}
    assert read_columns(file(tmp_path, ""), KINDS).num_rows == read_columns(file(tmp_path, "\n"), KINDS).num_rows == 0


BROKEN = {  # the second line, of which the error must tell, and what it says of it
    "no JSON": (b'{"video": "b", "z":', "line 2", "Expecting value"),
    "no object": (b"[1]", "line 2", "a list"),
    "no video": (b'{"z": 2}', "line 2", "missing: video"),
    "video null": (b'{"video": null}', "line 2", "missing: video"),
    "video a number": (b'{"video": 3}', "line 2", "video 3"),
    "z a text": (b'{"video": "b", "z": "much"}', "line 2", "z 'much'"),
    "z no number": (b'{"video": "b", "z": NaN}', "line 2", "z nan"),
    "z without end": (b'{"video": "b", "z": 1e999}', "line 2", "z inf"),
    "z true": (b'{"video": "b", "z": true}', "line 2", "z True"),
    "no UTF-8": (b'{"video": "\xff"}', "line 2", "utf-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named(tmp_path, case):
    line, where, word = BROKEN[case]
    path = file(tmp_path, b'{"video": "a", "z": 1}\n' + line + b"\n" + b'{"video": "c", "z": 1}\n')
    with pytest.raises(UserError) as error:
        read_columns(path, KINDS, needed=("video",), growing=True)
    assert error.value.what.startswith(f"{where} of {path}") and word in error.value.got


def test_a_line_that_a_kill_cut_off_is_left_out_only_where_files_grow(tmp_path):
    """Wherever the last line ends: before it is whole it is cut off, and whole without its newline it counts."""
    first, second = lines({"video": "a", "z": 1}), lines({"video": "ä", "z": 2}).encode()
    for length in range(len(second) + 1):
        path = file(tmp_path, first.encode() + second[:length])
        whole = length >= len(second) - 1
        assert cut_off(path) == (0 if whole else length)
        assert read_columns(path, KINDS, growing=True).num_rows == 1 + whole
    path = file(tmp_path, first.encode() + second[:9])
    with pytest.raises(UserError, match="line 2 of"):
        read_columns(path, KINDS)
    assert read_columns(file(tmp_path, second[:9]), KINDS, growing=True).num_rows == 0


def test_a_parquet_file_must_hold_the_same_kinds(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"video": pa.array(["a"]).dictionary_encode(), "z": pa.array([2])}), path)
    assert read_columns(path, KINDS | {"split": str}).to_pylist() == [{"video": "a", "z": 2.0, "split": None}]
    wrong = {
        "column z": {"video": ["a"], "z": ["1"]},
        "column video": {"video": [1]},
        "row 1": {"z": [1.0]},
        "row 2": {"video": ["a", "b"], "z": [1.0, float("nan")]},
    }
    for word, columns in wrong.items():
        pq.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=word):
            read_columns(path, KINDS, needed=("video",))
    path.write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match="cannot be read"):
        read_columns(path, KINDS)


def test_files_that_are_not_there_are_answered(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, word in ((tmp_path / "no.jsonl", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=word):
            read_columns(path, KINDS)
    with pytest.raises(UserError, match="holds no rows"):
        part_files([tmp_path / "empty"])


@pytest.mark.parametrize("form", FORMATS)
def test_rows_come_back_from_both_forms(tmp_path, form):
    """As pairs are read by training; null and an absent column are the default, and a column without one is missed."""

    @dataclass(frozen=True)
    class Told:
        video: str
        prompt: str = "none"
        rate: float = 1.0

    pairs = [Pair("ä", "b", "i", "mn", 0.1 + 0.2, "train"), Pair("b", "c", "i", "mn", 1.0, "test")]
    names = ("chosen", "rejected", "input", "dimension", "margin", "split")
    path = tmp_path / f"pairs.{form}"
    write_columns(path, {name: pa.array([getattr(p, name) for p in pairs]) for name in names}, {})
    assert list(rows_of(path, Pair)) == pairs
    other = tmp_path / f"videos.{form}"
    write_columns(other, {"video": pa.array(["a"]), "unknown": pa.array([1])}, {})
    assert list(rows_of(other, Told)) == [Told("a")]
    with pytest.raises(UserError, match="1 of .* is not a row"):
        list(rows_of(other, Pair))


def test_json_lines_of_columns_are_those_of_rows(tmp_path):
    pairs = [Pair('a"\\', "ü", "i", "vq", 1e-9, "train")]
    write_rows(tmp_path / "rows.jsonl", pairs)
    write_columns(tmp_path / "columns.jsonl", {n: pa.array([v]) for n, v in vars(pairs[0]).items()}, {})
    assert (tmp_path / "columns.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


# ---- the command on them ----

VIDEOS = [{"video": f"v{i}", "input": "i" if i < 3 else "j", "source": "x" if i % 2 else "y"} for i in range(5)]
SCORES = [{"video": f"v{i}", "z_mn": i - 1.0, "z_ls": 1.0 - i, "z_vq": 0.0} for i in range(5)]


def run(folder: Path, scores: list[Path], *more: str) -> int:
    file(folder, lines(*VIDEOS), "videos.jsonl")
    out = ["--out", str(folder / "pairs"), "--videos", str(folder / "videos.jsonl")]
    return stage.main([*out, "--scores", *map(str, scores), *more])


def told(folder: Path) -> dict:
    return json.loads((folder / "pairs" / "pairs.json").read_text())


def written(folder: Path, form: str = "jsonl") -> dict[str, list[Pair]]:
    return {path.stem: list(rows_of(path, Pair)) for path in sorted((folder / "pairs").glob(f"pairs_*.{form}"))}


def test_part_files_and_both_forms_give_the_same_pairs(tmp_path, capsys):
    """One file; a folder of parts of which the last was cut off in a line that was written again; parquet in and out.
    v1 and v2 over v0 in mn (margins 1, 2); v0 over v2 in ls (2), v1 over v2 (1); v3, v4 stand on one side."""
    one = file(tmp_path, lines(*SCORES), "scores.jsonl")
    assert run(tmp_path, [one]) == 0
    expected = written(tmp_path)
    assert [(p.chosen, p.rejected, p.margin) for p in expected["pairs_mn"]] == [("v2", "v0", 2.0), ("v1", "v0", 1.0)]
    assert [(p.chosen, p.rejected, p.margin) for p in expected["pairs_ls"]] == [("v0", "v2", 2.0), ("v1", "v2", 1.0)]
    assert set(told(tmp_path)["made_from"]) == {"videos", "scores"}

    file(tmp_path, lines(*SCORES[:2], SCORES[0]), "parts/part-0.jsonl")
    file(tmp_path, lines(*SCORES[2:]) + lines(SCORES[1])[:15], "parts/part-1.jsonl")
    assert run(tmp_path, [tmp_path / "parts"]) == 0 and written(tmp_path) == expected
    read = told(tmp_path)["rules"]["read"]
    assert (read["score_rows"], read["scored_again"], read["cut_off_lines"], read["videos"]) == (6, 1, 1, 5)
    assert len(told(tmp_path)["made_from"]) == 3

    pq.write_table(pa.Table.from_pylist(SCORES), tmp_path / "scores.parquet")
    assert run(tmp_path, [tmp_path / "scores.parquet"], "--format", "parquet") == 0
    assert written(tmp_path, "parquet") == expected
    about = pq.read_schema(tmp_path / "pairs" / "pairs_mn.parquet").metadata
    assert json.loads(about[b"made_from"]) == told(tmp_path)["made_from"]


def test_failed_videos_and_videos_without_sound_are_counted(tmp_path, capsys):
    """v0 failed: nothing is left to reject in mn. v4 has no ls: input j has one video there. Of the four scores v4's
    has a mass below a half, the others tell none."""
    few = {"z_ls": None, "failed": "", "mass": 0.25}
    rows = [{"video": "v0", "failed": "cannot be decoded", "mass": 0.0}, *SCORES[1:4], SCORES[4] | few]
    assert run(tmp_path, [file(tmp_path, lines(*rows), "scores.jsonl")]) == 0
    content = told(tmp_path)
    assert (content["rules"]["read"]["failed_scores"], content["rules"]["read"]["failed_share"]) == (1, 0.2)
    assert content["rules"]["read"]["videos_without_row"] == 1 and content["yield"]["mn"]["pairs"] == 0
    assert (content["rules"]["read"]["low_mass"], content["rules"]["read"]["low_mass_share"]) == (1, 0.25)
    assert content["rules"]["read"]["without"] == {"mn": 0, "ls": 1, "vq": 0}
    assert not any("no answers" in warning for warning in content["warnings"])
    few = [row | {"mass": 0.25} if number < 3 else row for number, row in enumerate(SCORES)]
    assert run(tmp_path, [file(tmp_path, lines(*few), "scores.jsonl")]) == 0
    assert "60 % of the scores are no answers" in "".join(told(tmp_path)["warnings"])
    ls = content["yield"]["ls"]
    assert (ls["pairs"], ls["groups"], ls["groups_without"], ls["groups_of_one"]) == (1, 2, 1, 1)
    assert (ls["videos_without_score"], ls["splits"]) == (1, {"train": 1})


def test_a_video_that_failed_and_was_scored_later_counts(tmp_path, capsys):
    rows = [{"video": "v0", "failed": "killed"}, *SCORES]
    assert run(tmp_path, [file(tmp_path, lines(*rows), "scores.jsonl")]) == 0
    assert told(tmp_path)["rules"]["read"]["failed_scores"] == 1 and len(written(tmp_path)["pairs_mn"]) == 2


def test_scores_of_two_critics_are_not_mixed(tmp_path, capsys):
    """The error says how many are of each; a beginning of the hash chooses, and so do the views."""
    first = [row | {"critic": "aa11", "views": "v1"} for row in SCORES]
    other = [row | {"critic": "bb22", "views": "v1", "z_mn": -row["z_mn"]} for row in SCORES[:3]]
    path = file(tmp_path, lines(*first, *other), "scores.jsonl")
    assert run(tmp_path, [path]) == 2
    error = capsys.readouterr().err
    assert "3 of critic bb22, views v1, 5 of critic aa11, views v1" in error and "--critic" in error
    assert run(tmp_path, [path], "--critic", "aa") == 0 and written(tmp_path)["pairs_mn"][0].chosen == "v2"
    assert run(tmp_path, [path], "--critic", "bb22") == 0 and written(tmp_path)["pairs_mn"][0].chosen == "v0"
    assert run(tmp_path, [path], "--critic", "cc") == 2 and "no score is of the critic" in capsys.readouterr().err
    path = file(tmp_path, lines(*first, first[0] | {"views": "v2", "z_mn": 9.0}), "scores.jsonl")
    assert run(tmp_path, [path], "--critic", "aa") == 2
    assert run(tmp_path, [path], "--critic", "aa", "--views", "v1") == 0


REFUSED = {
    "different results": (SCORES, [SCORES[0] | {"z_vq": 0.5}], VIDEOS, "scored twice with different results"),
    "a stranger": (SCORES, [{"video": "who"}], VIDEOS, "unknown videos: who"),
    "nothing scored": ([], [{"video": "v0", "failed": "x"}], VIDEOS, "no scores"),
    "a video twice": (SCORES, [], [*VIDEOS, VIDEOS[1]], "videos twice: v1"),
    "two splits": (SCORES, [], [*VIDEOS[:4], VIDEOS[4] | {"split": "test"}], "two splits: j"),
    "a video without input": (SCORES, [], [*VIDEOS, {"video": "v9"}], "line 6"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together_is_refused(tmp_path, capsys, case):
    scores, more, videos, word = REFUSED[case]
    files = file(tmp_path, lines(*videos), "v.jsonl"), file(tmp_path, lines(*scores, *more), "s.jsonl")
    command = ["--videos", str(files[0]), "--scores", str(files[1]), "--out", str(tmp_path / "pairs")]
    assert stage.main(command) == 2
    error = capsys.readouterr().err
    assert word in error and "do:" in error and not (tmp_path / "pairs").exists()


def test_one_source_that_wins_everything_is_warned_of(tmp_path, capsys):
    """In ls v0 (y) and v1 (x) win, half each; in vq nobody; in mn of three sources z wins alone. No clip is real."""
    videos = [row | {"source": {"v1": "z", "v2": "z"}.get(row["video"], row["source"])} for row in VIDEOS]
    file(tmp_path, lines(*videos), "v.jsonl")
    scores = file(tmp_path, lines(*SCORES), "s.jsonl")
    command = ["--videos", str(tmp_path / "v.jsonl"), "--scores", str(scores), "--out", str(tmp_path / "pairs")]
    assert stage.main(command) == 0
    assert "warning: mn: 100% of the chosen videos are of z" in capsys.readouterr().out
    assert [warning.split(" ")[:2] for warning in told(tmp_path)["warnings"]] == [
        ["vq:", "no"],
        ["full:", "no"],
        ["mn:", "100%"],
    ]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_no_pair_at_all_is_an_error(tmp_path, capsys, more):
    """Of i three videos, of j two: the margins are 1 and 2, less than 2.5."""
    scores = file(tmp_path, lines(*SCORES), "scores.jsonl")
    assert run(tmp_path, [scores], "--margin", "2.5", *more) == 2
    error = capsys.readouterr().err
    assert "5 scored videos of 2 inputs, 2 with several" in error and "--margin" in error
    assert not (tmp_path / "pairs").exists()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), parts=st.integers(1, 4))
def test_the_order_and_the_parts_of_the_rows_do_not_matter(tmp_path_factory, seed, parts):
    """Ties everywhere: the same files, byte for byte."""
    folder, rng = tmp_path_factory.mktemp("rows"), random.Random(seed)
    videos = [{"video": f"v{rng.random()}", "input": f"i{i % 3}"} for i in range(18)]
    scores = [
        {"video": v["video"], "z_mn": rng.randint(-2, 2), "z_ls": 1.0, "z_vq": rng.randint(-2, 2)} for v in videos
    ]
    results = []
    for number in (1, parts):
        rng.shuffle(videos)
        rng.shuffle(scores)
        file(folder, lines(*videos), "videos.jsonl")
        for part in range(number):
            file(folder, lines(*scores[part::number]), f"scores-{number}/part-{part}.jsonl")
        command = ["--videos", str(folder / "videos.jsonl"), "--scores", str(folder / f"scores-{number}")]
        assert stage.main([*command, "--out", str(folder / f"pairs-{number}"), "--cap", "2"]) == 0
        results.append([p.read_bytes() for p in sorted((folder / f"pairs-{number}").glob("*.jsonl"))])
    assert results[0] == results[1]
