"""From scores to pairs: rules against brute force and by hand, the command, settings from TOML and flags."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.pair_rules import (
    DIMENSIONS,
    Candidate,
    Rules,
    capped,
    groups,
    margin_for,
    pairs_by_dominance,
    pairs_by_score,
    pairs_with_real,
    yields,
)
from train import pairs as stage
from train.run import read_settings, setting


def candidate(video: str, *z: float, input: str = "a", source: str = "omniavatar", split: str = "train") -> Candidate:
    return Candidate(video, input, source, split, dict(zip(DIMENSIONS, z, strict=False)))


# one input: in mn v2 > v1 > v0 by 2 each, in ls the other way round
THREE = [candidate("v0", -2.0, 2.0, 0.0), candidate("v1", 0.0, 0.0, 0.5), candidate("v2", 2.0, -2.0, 1.0)]


def named(found) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in found]


def test_pairs_of_one_dimension_by_hand():
    """Signs: chosen at 0 or above, rejected below: v1 and v2 over v0, margins 2 and 4. Without: v2 over v1 as well,
    equal margins in the order of ids. What wins in mn loses in ls."""
    assert named(pairs_by_score(THREE, "mn", Rules(1.0))) == [("v2", "v0"), ("v1", "v0")]
    assert named(pairs_by_score(THREE, "mn", Rules(1.0, signs=False))) == [("v2", "v0"), ("v1", "v0"), ("v2", "v1")]
    assert named(pairs_by_score(THREE, "ls", Rules(1.0))) == [("v0", "v2"), ("v1", "v2")]
    assert named(pairs_by_score(THREE, "mn", Rules(2.5))) == [("v2", "v0")]
    (pair, _) = pairs_by_score(THREE, "mn", Rules(1.0))
    assert (pair.margin, pair.dimension, pair.input, pair.split) == (4.0, "mn", "a", "train")


def test_only_videos_of_one_input_are_compared():
    other = [candidate("w0", -5.0, input="b"), candidate("w1", 5.0, input="b")]
    found = pairs_by_score([*THREE, *other], "mn", Rules(1.0))
    assert named(found) == [("w1", "w0"), ("v2", "v0"), ("v1", "v0")]
    assert {pair.input for pair in found} == {"a", "b"}


def test_a_video_takes_part_as_often_as_the_cap_allows():
    """v0 loses twice; with a cap of one the larger margin stays, and v1 finds no other partner."""
    assert named(pairs_by_score(THREE, "mn", Rules(1.0, cap=1))) == [("v2", "v0")]
    assert named(pairs_by_score(THREE, "mn", Rules(1.0, signs=False, cap=2))) == [
        ("v2", "v0"),
        ("v1", "v0"),
        ("v2", "v1"),
    ]


def test_dominance_needs_all_three_dimensions():
    better, worse = candidate("b", 1.0, 1.0, 1.0), candidate("w", -1.0, -0.5, -3.0)
    mixed, blind = candidate("m", 2.0, 2.0, -1.0), candidate("x", 9.0, 9.0)
    found = pairs_by_dominance([better, worse, mixed, blind], Rules(1.0))
    assert named(found) == [("b", "w")] and found[0].margin == 1.5 and found[0].dimension == "full"


def test_real_clips_against_what_was_made_from_them():
    """As in the paper; the critic's agreement is a filter that counts what it leaves out."""
    real = candidate("r", 1.0, 1.0, 1.0, source="real")
    made, good = candidate("g", -1.0, -1.0, -1.0), candidate("h", 2.0, -1.0, -1.0)
    found, refused = pairs_with_real([real, made, good], Rules(1.0))
    assert named(found) == [("r", "g")] and refused == 1
    found, refused = pairs_with_real([real, made, good], None)
    assert sorted(named(found)) == [("r", "g"), ("r", "h")] and refused == 0


SCORED = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-4, 4), st.integers(-4, 4), st.integers(-4, 4)), max_size=10
)


@given(scored=SCORED, margin=st.sampled_from([0.5, 1.0, 3.0]), signs=st.booleans(), seed=st.integers(0, 99))
def test_pairs_are_those_of_brute_force_in_any_order_of_the_rows(scored, margin, signs, seed):
    found = [candidate(f"v{i}", *z, input=name) for i, (name, *z) in enumerate(scored)]
    rules, shuffled = Rules(margin, signs), random.Random(seed).sample(found, len(found))
    for d in DIMENSIONS:
        expected = {
            (x.video, y.video)
            for x in found
            for y in found
            if x.input == y.input and x.z[d] - y.z[d] >= margin and (not signs or (x.z[d] >= 0 and y.z[d] < 0))
        }
        pairs = pairs_by_score(shuffled, d, rules)
        assert set(named(pairs)) == expected and pairs == pairs_by_score(found, d, rules)
        assert [p.margin for p in pairs] == sorted((p.margin for p in pairs), reverse=True)
    assert set(named(pairs_by_dominance(found, rules))) == set.intersection(
        *(set(named(pairs_by_score(found, d, rules))) for d in DIMENSIONS)
    )


@given(scored=SCORED, cap=st.integers(1, 3))
def test_no_video_exceeds_its_cap_and_nothing_allowed_is_left(scored, cap):
    found = [candidate(f"v{i}", *z, input=name) for i, (name, *z) in enumerate(scored)]
    everything = pairs_by_score(found, "mn", Rules(1.0, signs=False))
    kept = capped(everything, cap)
    uses = [video for pair in kept for video in (pair.chosen, pair.rejected)]
    assert max((uses.count(video) for video in uses), default=0) <= cap
    for pair in everything:
        assert pair in kept or uses.count(pair.chosen) == cap or uses.count(pair.rejected) == cap


def test_the_margin_for_a_count():
    """Margins 4, 2 with signs: one pair needs 4, two need 2, ten are not to be had: 2."""
    assert [margin_for(THREE, "mn", count, Rules()) for count in (1, 2, 10)] == [4.0, 2.0, 2.0]
    with pytest.raises(UserError, match="no pairs"):
        margin_for(THREE[:1], "mn", 1, Rules())


def test_candidates_that_cannot_be_paired():
    with pytest.raises(UserError, match="videos twice: v0"):
        groups([THREE[0], THREE[0]])
    with pytest.raises(UserError, match="two splits: a"):
        groups([THREE[0], candidate("t", 0.0, split="test")])


def test_the_report_counts():
    """Two pairs of one input, one input without; real wins one of two, the trained model takes part in one."""
    found = [candidate("r", 2.0, source="real"), candidate("f", 1.0, source="fantasytalking"), candidate("o", -1.0)]
    found += [candidate("alone", 0.0, input="b")]
    told = yields(pairs_by_score(found, "mn", Rules(1.0)), found)
    assert (told["pairs"], told["groups"], told["groups_without"], told["own_share"]) == (2, 2, 1, 0.5)
    assert told["chosen_by_source"] == {"real": 0.5, "fantasytalking": 0.5} and told["margins"][1.0] == 3.0


# ---- the command ----


@pytest.fixture
def files(tmp_path) -> Path:
    rows = [*THREE, candidate("real", 3.0, 3.0, 3.0, source="real"), candidate("bad", -3.0, -3.0, -3.0)]
    videos = [{"video": c.video, "input": c.input, "source": c.source, "split": c.split, "fps": 23} for c in rows]
    scores = [{"video": c.video, **{f"z_{d}": z for d, z in c.z.items()}, "critic": "0"} for c in rows]
    for name, content in (("videos", videos), ("scores", scores)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--videos",
        f"{folder}/videos.jsonl",
        "--scores",
        f"{folder}/scores.jsonl",
        "--out",
        f"{folder}/pairs",
        *more,
    ]


def rows_of(folder: Path, dimension: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"pairs_{dimension}.jsonl").read_text().splitlines()]


def test_the_command_writes_pairs_and_their_origin(files, capsys):
    assert stage.main(arguments(files, "--full", "both")) == 0
    out = files / "pairs"
    assert ("real", "bad") in [(row["chosen"], row["rejected"]) for row in rows_of(out, "mn")]
    assert [(row["chosen"], row["rejected"]) for row in rows_of(out, "full")] == [("real", "bad"), ("v1", "bad")]
    assert set(rows_of(out, "ls")[0]) == {"chosen", "rejected", "input", "dimension", "margin", "split"}
    told = json.loads((out / "pairs.json").read_text())
    assert set(told["made_from"]) == {"videos", "scores"} and len(told["made_from"]["scores"]) == 64
    assert told["rules"]["real_refused"] == 3 and told["yield"]["mn"]["pairs"] == len(rows_of(out, "mn"))
    before = (out / "pairs_mn.jsonl").read_bytes()
    assert stage.main(arguments(files, "--full", "both")) == 0
    assert (out / "pairs_mn.jsonl").read_bytes() == before, "the same scores make the same file"


def test_counts_and_dry_run(files, capsys):
    assert stage.main(arguments(files, "--count-mn", "2", "--dry-run")) == 0
    assert '"pairs": 2' in capsys.readouterr().out.splitlines()[0] and not (files / "pairs").exists()


def test_two_folders_are_pairs(tmp_path):
    for side, names in (("chosen", ("a.mp4", "b.mp4")), ("rejected", ("a.mp4", "b.mp4"))):
        (tmp_path / "own" / side).mkdir(parents=True)
        for name in names:
            (tmp_path / "own" / side / name).touch()
    command = ["--folders", str(tmp_path / "own"), "--out", str(tmp_path / "pairs")]
    assert stage.main(command) == 0
    assert [row["chosen"] for row in rows_of(tmp_path / "pairs", "full")] == ["chosen/a.mp4", "chosen/b.mp4"]
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "videos.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows[:2]] == ["chosen/a.mp4", "rejected/a.mp4"]
    assert all((tmp_path / "pairs" / row["path"]).is_file() for row in rows) and rows[2]["input"] == "b"
    (tmp_path / "own" / "chosen" / "c.mp4").touch()
    assert stage.main(command) == 2


WRONG = {
    "no such key": ("marggin = 2\n", [], "marggin"),
    "a text for a number": ('margin = "much"\n', [], "margin"),
    "a half count": ("count_mn = 1.5\n", [], "count_mn"),
    "no TOML": ("margin =\n", [], "cannot be read"),
    "a flag that is no number": ("", ["--margin", "x"], "margin"),
    "no such choice": ("", ["--full", "none of it"], "real, mined, both"),
    "nothing to pair": ("", ["--videos", ""], "nothing to pair"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_answered(files, capsys, case):
    toml, flags, word = WRONG[case]
    (files / "run.toml").write_text(toml)
    assert stage.main([*arguments(files), "--config", f"{files}/run.toml", *flags]) == 2
    error = capsys.readouterr().err
    assert word in error and "do:" in error and not (files / "pairs").exists()


@pytest.mark.parametrize("line", ["{", "[]", '{"video": "stranger"}', '{"z_mn": 1}', ""])
def test_wrong_rows_are_answered(files, capsys, line):
    (files / "scores.jsonl").write_text(line + "\n")
    assert stage.main(arguments(files)) == 2
    assert "do:" in capsys.readouterr().err


def test_flags_win_over_toml(tmp_path):
    @dataclass(frozen=True)
    class Some:
        out: Path = setting()
        rate: float = setting(1e-5)
        steps: int = setting(10)
        on: bool = setting(True)
        note: str | None = setting(None)

    (tmp_path / "run.toml").write_text('out = "there"\nrate = 1\nsteps = 5\non = false\nnote = "from toml"\n')
    assert read_settings(Some, tmp_path / "run.toml", {}) == Some(Path("there"), 1.0, 5, False, "from toml")
    flags = {"steps": "7", "on": "true", "note": "none", "rate": "2e-6"}
    assert read_settings(Some, tmp_path / "run.toml", flags) == Some(Path("there"), 2e-6, 7, True, None)
    with pytest.raises(UserError, match="--out"):
        read_settings(Some, None, {})
