"""Lists of videos of several folders become one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train import join
from train.scorers import Video
from train.tables import rows_of


@pytest.fixture
def lists(tmp_path) -> list[str]:
    """Two folders with two videos each, of which the second file of both is the same one."""
    told = []
    for folder in ("real", "made"):
        (tmp_path / folder / "clips").mkdir(parents=True)
        rows = []
        for name in (f"{folder}0", "both"):
            (tmp_path / folder / "clips" / f"{name}.mp4").write_bytes(name.encode())
            rows.append(
                {"video": name, "input": f"i-{name}", "path": f"clips/{name}.mp4", "sha256": name, "source": folder}
            )
        rows[0]["prompt"] = "line\u2028separator"
        (tmp_path / folder / "videos.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        told.append(str(tmp_path / folder / "videos.jsonl"))
    return told


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_paths_lead_from_the_new_file(lists, tmp_path, capsys, suffix):
    """Three videos of three inputs: `both` counts once. Their files are found from the new list's folder, and a joined
    list can be joined again."""
    out = tmp_path / "all" / f"videos{suffix}"
    assert join.main(["--videos", *lists, "--out", str(out), "--dry-run"]) == 0 and not out.exists()
    assert join.main(["--videos", *lists, "--out", str(out)]) == 0
    assert "3 videos of 3 inputs from 2 lists" in capsys.readouterr().out
    rows = list(rows_of(out, Video))
    assert [row.video for row in rows] == ["real0", "both", "made0"]
    assert [(out.parent / row.path).read_bytes().decode() for row in rows] == ["real0", "both", "made0"]
    assert join.main(["--videos", str(out), lists[0], "--out", str(tmp_path / "again.jsonl")]) == 0
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [row["path"] for row in again] == ["real/clips/real0.mp4", "real/clips/both.mp4", "made/clips/made0.mp4"]
    assert again[0]["prompt"] == "line\u2028separator" and again[0]["source"] == "real"


def test_what_cannot_be_joined(lists, tmp_path, capsys):
    def refused(*given: str) -> str:
        assert join.main(list(given)) == 2
        return capsys.readouterr().err

    assert "--out cannot be this file" in refused("--videos", *lists, "--out", lists[0])
    assert "a new .jsonl or .parquet file" in refused("--videos", *lists, "--out", str(tmp_path / "all.csv"))
    made = Path(lists[1])
    made.write_text(made.read_text("utf-8").replace('"sha256": "both"', '"sha256": "other"'), "utf-8")
    assert "two videos have one name" in refused("--videos", *lists, "--out", str(tmp_path / "all.jsonl"))
    (tmp_path / "real" / "clips" / "real0.mp4").unlink()
    assert "videos are not there" in refused("--videos", lists[0], "--out", str(tmp_path / "all.jsonl"))
    made.write_text('{"video": "x"}\n')
    assert "line 1 of" in refused("--videos", *lists, "--out", str(tmp_path / "all.jsonl"))
    assert not (tmp_path / "all.jsonl").exists()
