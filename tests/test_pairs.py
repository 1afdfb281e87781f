"""train.pairs as a command: what it writes, two folders of one's own, wrong settings and rows; settings from TOML and
flags."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fantasy_core.errors import UserError
from fantasy_core.pair_rules import Pair
from train import pairs as stage
from train import tables
from train.run import read_settings, setting

# of one input; in mn v2 > v1 > v0 by 2 each, in ls the other way round
Z = {
    "v0": (-2.0, 2.0, 0.0),
    "v1": (0.0, 0.0, 0.5),
    "v2": (2.0, -2.0, 1.0),
    "real": (3.0, 3.0, 3.0),
    "bad": (-3.0, -3.0, -3.0),
}


@pytest.fixture
def files(tmp_path) -> Path:
    videos = [{"video": v, "input": "a", "source": "real" if v == "real" else "omniavatar", "fps": 23} for v in Z]
    scores = [{"video": v, "z_mn": mn, "z_ls": ls, "z_vq": vq, "critic": "0"} for v, (mn, ls, vq) in Z.items()]
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


@pytest.mark.parametrize(
    ("cap", "pairs"),
    [(1, ["real bad"]), (2, ["real bad", "v1 bad", "real v1"]), (0, ["real bad", "real v1", "v1 bad"])],
)
def test_a_cap_is_of_real_and_mined_pairs_together(files, cap, pairs):
    """real over bad by 6, v1 over bad by 3, real over v1 by 2.5: with one pair a video the first leaves no other."""
    assert stage.main(arguments(files, "--full", "both", "--margin", "2", "--cap", str(cap))) == 0
    assert [f"{row['chosen']} {row['rejected']}" for row in rows_of(files / "pairs", "full")] == pairs
    rules = json.loads((files / "pairs" / "pairs.json").read_text())["rules"]
    assert (rules["mined"], rules["real_kept"]) == (pairs.count("v1 bad"), len(pairs) - pairs.count("v1 bad"))


@pytest.mark.parametrize("seed", range(12))
def test_a_cap_is_one_choice(tmp_path, seed):
    """All pairs of both kinds, the largest margin first, then by ids; from the top, what finds both of its videos used
    less than the cap: by hand, on seven videos at random."""
    rng, cap = np.random.default_rng(seed), 1 + seed % 3
    z = {f"v{k}": rng.integers(-8, 9, 3).astype(float) for k in range(6)} | {"real": np.full(3, 7.0)}
    videos = [{"video": name, "input": "i", "source": "real" if name == "real" else "humo"} for name in z]
    scores = [{"video": n, **dict(zip(("z_mn", "z_ls", "z_vq"), row.tolist(), strict=True))} for n, row in z.items()]
    for name, rows in (("videos", videos), ("scores", scores)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = [((z[b] - z[w]).min(), b, w) for b, w in permutations(z, 2) if (z[b] - z[w]).min() >= 1]
    expected, uses = [], dict.fromkeys(z, 0)
    for margin, better, worse in sorted(every, key=lambda p: (-p[0], p[1], p[2])):
        if max(uses[better], uses[worse]) < cap:
            expected.append((better, worse, margin))
            uses[better], uses[worse] = uses[better] + 1, uses[worse] + 1
    assert stage.main(arguments(tmp_path, "--full", "both", "--signs", "false", "--cap", str(cap))) == 0
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in rows_of(tmp_path / "pairs", "full")] == expected


def test_the_command_writes_pairs_and_their_origin(files, capsys):
    """real is better by 2 in all three than bad (6) and v1 (2.5), not than v0 and v2 (1); v1 than bad (3), though it
    is no No."""
    flags = arguments(files, "--full", "both", "--margin", "2")
    assert stage.main(flags) == 0
    out = files / "pairs"
    assert ("real", "bad") in [(row["chosen"], row["rejected"]) for row in rows_of(out, "mn")]
    full = [(row["chosen"], row["rejected"], row["margin"]) for row in rows_of(out, "full")]
    assert full == [("real", "bad", 6.0), ("real", "v1", 2.5), ("v1", "bad", 3.0)]
    assert set(rows_of(out, "ls")[0]) == {"chosen", "rejected", "input", "dimension", "margin", "split"}
    told = json.loads((out / "pairs.json").read_text())
    assert set(told["made_from"]) == {"videos", "scores"} and len(told["made_from"]["scores"]) == 64
    rules = told["rules"]
    assert (rules["real_compared"], rules["real_kept"], rules["real_refused"], rules["real_refused_share"]) == (
        4,
        2,
        2,
        0.5,
    )
    assert rules["real_refused_by"] == {"no_score": 0, "not_better": 0, "small_margin": 2}
    assert 'real: {"compared": 4, "kept": 2, "refused": 2' in capsys.readouterr().out
    assert told["yield"]["mn"]["pairs"] == len(rows_of(out, "mn"))
    before = (out / "pairs_mn.jsonl").read_bytes()
    assert stage.main(flags) == 0
    assert (out / "pairs_mn.jsonl").read_bytes() == before, "the same scores make the same file"


def test_counts_and_dry_run(files, capsys):
    assert stage.main(arguments(files, "--count-mn", "2", "--dry-run")) == 0
    assert '"pairs": 2' in capsys.readouterr().out.splitlines()[0] and not (files / "pairs").exists()


def test_two_folders_are_pairs(tmp_path):
    for side, names in (("chosen", ("a.mp4", "b.mp4")), ("rejected", ("a.mp4", "b.mp4"))):
        (tmp_path / "own" / side).mkdir(parents=True)
        for name in names:
            (tmp_path / "own" / side / name).write_text(f"{side} {name}")
        (tmp_path / "own" / side / "a.wav").write_text("no video")
    command = ["--folders", str(tmp_path / "own"), "--out", str(tmp_path / "pairs")]
    assert stage.main(command) == 0
    assert [row["chosen"] for row in rows_of(tmp_path / "pairs", "full")] == ["chosen/a.mp4", "chosen/b.mp4"]
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "videos.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows[:2]] == ["chosen/a.mp4", "rejected/a.mp4"]
    assert all((tmp_path / "pairs" / row["path"]).is_file() for row in rows) and rows[2]["input"] == "b"
    hashes = [hashlib.sha256(f"{side} a.mp4".encode()).hexdigest() for side in ("chosen", "rejected")]
    assert [row["sha256"] for row in rows[:2]] == hashes
    pair = rows_of(tmp_path / "pairs", "full")[0]
    assert [pair["chosen_sha256"], pair["rejected_sha256"]] == hashes
    assert stage.main([*command, "--format", "parquet"]) == 0
    for name, kind in (("pairs_full", Pair), ("videos", stage.FolderVideo)):
        lines, columns = (list(tables.rows_of(tmp_path / "pairs" / f"{name}.{form}", kind)) for form in tables.FORMATS)
        assert lines == columns
    (tmp_path / "own" / "chosen" / "c.mp4").write_text("c")
    assert stage.main(command) == 2


def test_some_of_ones_own_pairs_are_held_out(tmp_path):
    """By name: a twentieth or so of 200 (6 to 16 within two deviations of 10), the same whatever is added; of 19
    pairs none, and none where that is asked for."""

    def splits(count: int, *more: str) -> dict[str, str]:
        for side in ("chosen", "rejected"):
            (tmp_path / "own" / side).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (tmp_path / "own" / side / f"{number}.mp4").write_text(f"{side} {number}")
        assert stage.main(["--folders", f"{tmp_path}/own", "--out", f"{tmp_path}/pairs", *more]) == 0
        return {row["input"]: row["split"] for row in rows_of(tmp_path / "pairs", "full")}

    assert set(splits(19).values()) == {"train"}
    some, many = splits(100), splits(200)
    assert many.items() >= some.items() and 4 <= list(many.values()).count("validation") <= 18
    assert set(splits(200, "--validation", "0").values()) == {"train"}


WRONG = {
    "no such key": ("marggin = 2\n", [], "marggin"),
    "a text for a number": ('margin = "much"\n', [], "margin"),
    "a half count": ("count_mn = 1.5\n", [], "count_mn"),
    "no TOML": ("margin =\n", [], "cannot be read"),
    "a flag that is no number": ("", ["--margin", "x"], "margin"),
    "a margin below zero": ("", ["--margin", "-5"], "0 or more"),
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


def test_one_file_of_scores_in_toml_needs_no_list(files, capsys):
    (files / "run.toml").write_text(f'scores = "{files}/scores.jsonl"\nvideos = "{files}/videos.jsonl"\n')
    assert stage.main(["--config", f"{files}/run.toml", "--out", f"{files}/pairs"]) == 0
    assert [row["chosen"] for row in rows_of(files / "pairs", "mn")][0] == "real"
    assert stage.main(["--config", f"{files}/run.toml", "--out", f"{files}/pairs", "--scores", ""]) == 2
    assert "nothing to pair" in capsys.readouterr().err


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
