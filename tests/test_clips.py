"""Raw footage to clips with a real face and a real voice: what is kept is what was planted, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from talking import FPS, RATE, openings, portrait, speaking, voice, write_footage

from fantasy_core.audio import load_voice
from fantasy_core.manifest import settings_of, sha256
from fantasy_core.media import read_video
from fantasy_core.metrics.lip_sync import LipSync
from train import clips as stage
from train.cache import read_clip
from train.clip_file import ClipRules, Measured, Outcome, in_sync, sync_fault
from train.clip_rules import Faces
from train.scenes import Span
from train.splits import split_of

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "fantasytalking2"
TASK = Path(os.environ.get("FACE_LANDMARKER_TASK") or CACHE / "face_landmarker.task")
TALK = (
    133  # frames of the speaking scene, 5.32 s: 122 at 23 a second, two clips of 61, together long enough for a verdict
)
RULES = ClipRules(23.0, 61, 21, None, 0.1, 0.5, 80.0, 0.5, 2, "keep", "scene")


@pytest.fixture(scope="module")
def task() -> Iterator[Path]:
    if not TASK.is_file():
        pytest.skip(f"no face_landmarker.task at {TASK}; set FACE_LANDMARKER_TASK")
    pytest.importorskip("mediapipe", exc_type=ImportError)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TASK
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """talk.mp4: a speaking portrait, then a scene without a face, voice over both; late.mp4: the portrait alone, its
    sound 8 frames (at 23 a second) early; mute, silent and damaged files; a copy."""
    folder = tmp_path_factory.mktemp("footage")
    sound = voice(7.0)
    talk = speaking(portrait(), openings(sound, TALK))
    scenery = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)).expand(30, -1, -1, -1)
    write_footage(folder / "a" / "talk.mp4", torch.cat([talk, scenery]), sound)
    write_footage(folder / "late.mp4", talk, sound[round(8 / 23 * RATE) :])
    write_footage(folder / "mute.mp4", talk[:15], None)
    write_footage(folder / "silent.mp4", talk[:25], np.full(RATE, 1e-5))
    shutil.copy(folder / "late.mp4", folder / "twin.mp4")
    whole = (folder / "mute.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--frames", "61", "--min-frames", "21", "--min-face", "80", "--test-share", "0.5"]
    return ["--footage", str(folder), "--out", str(out), "--task", str(TASK), *sizes, *more]


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "videos.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(task, material, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clips")
    assert stage.main(command(material, out)) == 0
    return out


def test_what_is_kept_is_what_was_planted(made):
    """Of talk.mp4 the two clips of the portrait, in sync within a frame; nothing of the others."""
    rows = rows_of(made)
    found = [(row["origin"], row["start"], row["frames"]) for row in rows]
    assert found == [("a/talk.mp4", 0.0, 61), ("a/talk.mp4", round(61 / 23, 3), 61)]
    assert all(abs(row["offset"]) <= 1 and 85 <= row["face"] <= 100 for row in rows)
    assert {row["split"] for row in rows} == {split_of(sha256_of(made, "a/talk.mp4"), 0.5)}
    assert len({row["input"] for row in rows}) == 2 and {row["source"] for row in rows} == {"real"}
    needed = {"video", "input", "path", "sha256", "source", "variant", "fps", "frames", "width", "height", "split"}
    assert needed <= rows[0].keys()


def sha256_of(out: Path, origin: str) -> str:
    lines = [json.loads(line) for line in (out / "done.jsonl").read_text().splitlines()]
    return next(line["sha256"] for line in lines if line["origin"] == origin)


def test_the_report_says_why_the_rest_is_gone(made):
    """talk.mp4 has 122 and 27 frames at 23 a second, so 2 are left over behind its scenery, a clip of 25
    without a face; of silent.mp4's 23 also 2. late.mp4's picture is 8 frames late. The copy is not read."""
    report = json.loads((made / "report.json").read_text())
    assert report["files"] == {"read": 4, "failed": 1, "absent": 0} and report["kept"]["clips"] == 2
    assert report["kept"]["seconds"] == pytest.approx(122 / 23, abs=1e-3)
    dropped = report["dropped"]
    assert {rule: told["spans"] for rule, told in dropped.items()} == {
        "sound": 1, "short": 2, "voice": 1, "face": 1, "sync": 2}  # fmt: skip
    assert "8 frames late" in dropped["sync"]["examples"][0]["why"]
    assert dropped["sync"]["seconds"] == pytest.approx(122 / 23, abs=1e-2)
    assert report["failed"][0]["origin"] == "broken.mp4" and "cannot read the video" in report["failed"][0]["why"]


def test_clips_have_their_length_their_sound_and_their_frames(made, material):
    """Frame k of the second clip is the footage's frame nearest to (61 + k) / 23 s; its sound begins there; and the
    stage that comes next reads it."""
    row = rows_of(made)[1]
    path = made / row["path"]
    assert sha256(path) == row["sha256"] and settings_of(path)["origin"] == "a/talk.mp4"
    frames, sound = read_clip(path, 23.0)
    assert frames.shape == (61, 3, row["height"], row["width"]) == (61, 3, 224, 224)
    old = torch.stack([frame for _, frame in read_video(material / "a" / "talk.mp4")])
    wanted = torch.tensor([round((61 + k) / 23 * FPS) for k in range(61)])
    mouths = [part[:, :, 108:130, 98:128].mean((1, 2, 3)) for part in (frames, old)]  # brightness of the gap
    errors = [(mouths[0] - mouths[1][wanted + step]).square().mean().sqrt().item() for step in (-1, 0, 1)]
    assert errors[1] < 0.25 * min(errors[0], errors[2])
    before = load_voice(material / "a" / "talk.mp4")[round(61 / 23 * RATE) :][: len(sound)]
    assert abs(len(sound) - 61 / 23 * RATE) <= 1
    assert np.corrcoef(sound[2000:-2000], before[2000:-2000])[0, 1] > 0.98


def test_finished_files_are_not_done_again(made, material, capsys):
    """A second run writes no clip; one that is gone is made again, equal to the byte in its row; other rules leave the
    first clips alone."""
    rows, clips = rows_of(made), sorted((made / "clips").iterdir())
    times = [clip.stat().st_mtime_ns for clip in clips]
    assert stage.main(command(material, made)) == 0
    assert rows_of(made) == rows and [clip.stat().st_mtime_ns for clip in clips] == times
    assert len((made / "done.jsonl").read_text().splitlines()) == 5


def test_a_dry_run_lists_and_writes_nothing(task, material, tmp_path, capsys):
    assert stage.main([*command(material, tmp_path / "out"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "a/talk.mp4: 6.5 s\n" in told and "mute.mp4: 0.6 s, no sound" in told and "6 files" in told
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on(task, tmp_path):
    """Three short files, two workers, killed with SIGKILL after the first is finished: what it finished stays as it is,
    no half file is left, and the end is that of a run that was never killed. Cut around the face to 128 x 96."""
    sound = voice(5.0)
    for number in range(3):
        part = sound[number * 1600 :]
        write_footage(tmp_path / "raw" / f"{number}.mp4", speaking(portrait(), openings(part, 26)), part)
    flags = ("--height", "96", "--width", "128", "--voiced", "0.2")
    killed = command(tmp_path / "raw", tmp_path / "killed", *flags)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "train.clips", *killed, "--workers", "2"]
    process = subprocess.Popen(run, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal, begun = tmp_path / "killed" / "done.jsonl", time.monotonic()
    while not (journal.exists() and journal.read_text().count("\n")) and process.poll() is None:
        assert time.monotonic() - begun < 300
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads(journal.read_text().splitlines()[0])["clips"][0]
    kept = (tmp_path / "killed" / done["path"]).stat().st_mtime_ns
    (tmp_path / "killed" / "clips" / ".gone.mp4.999999999.part").write_bytes(b"half")
    assert stage.main(killed) == 0
    assert stage.main(command(tmp_path / "raw", tmp_path / "whole", *flags)) == 0
    rows = rows_of(tmp_path / "killed")
    assert rows == rows_of(tmp_path / "whole") and len(rows) == 3
    assert {(row["frames"], row["width"], row["height"]) for row in rows} == {(21, 128, 96)}
    assert {row["face"] for row in rows} <= set(range(50, 56)), "92 pixels; 168 x 224 of the footage become 96 x 128"
    assert (tmp_path / "killed" / done["path"]).stat().st_mtime_ns == kept
    names = {path.name for path in (tmp_path / "killed" / "clips").iterdir()}
    assert names == {Path(row["path"]).name for row in rows}


def test_no_clip_at_all_is_an_error_that_tells_why(material, task, tmp_path, capsys):
    """mute.mp4 has no sound, and the broken half of it cannot be read. What was dropped stands in the report."""
    (tmp_path / "raw").mkdir()
    for name in ("mute.mp4", "broken.mp4"):
        shutil.copy(material / name, tmp_path / "raw")
    assert stage.main(command(tmp_path / "raw", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "no clip was kept" in error and "1 by sound" in error and "report.json" in error
    assert not rows_of(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"]["sound"]["spans"] == 1 and report["files"]["failed"] == 1


WRONG = {
    "no footage": (["--footage", "none"], "no footage"),
    "both kinds": (["--table", "t.csv"], "no footage"),
    "frames that no VAE takes": (["--frames", "80"], "80 frames"),
    "one side": (["--height", "128"], "both sides or none"),
    "a side that fits nothing": (["--height", "100", "--width", "128"], "multiple of 16"),
    "an empty folder": (["--footage", "."], "no videos"),
    "no such task": (["--task", "nowhere.task"], "nowhere.task"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_answered(tmp_path, monkeypatch, capsys, case):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"x")
    flags, word = WRONG[case]
    if flags == ["--footage", "."]:
        (tmp_path / "raw" / "a.mp4").unlink()
    assert stage.main([*command(Path("raw"), Path("out")), *flags]) == 2
    error = capsys.readouterr().err
    assert word in error and "do:" in error and not (tmp_path / "out").exists()


def told(offset: int | None) -> LipSync:
    return LipSync(offset, 0.9, None, 6.0, 23.0, None if offset is not None else "short")


@pytest.mark.parametrize("offset,unsure,rule", [(2, "keep", None), (-3, "keep", "sync"), (3, "keep", "sync"),
                                                (None, "keep", None), (None, "drop", "unsure")])  # fmt: skip
def test_the_rule_of_sync(offset, unsure, rule):
    fault = sync_fault(told(offset), ClipRules(**{**vars(RULES), "unsure": unsure}))
    assert fault is None if rule is None else fault[0] == rule


@pytest.mark.parametrize("pool,kept", [("scene", 2), ("file", 0)])
def test_who_is_judged_together(pool, kept):
    """Two scenes of 3 s, 7 frames late: neither can be judged alone, both are kept; together they are 6 s and go."""
    curve = np.zeros(31)
    curve[15 + 7] = 0.9
    part = LipSync(None, None, curve, 3.0, 23.0, "3.0 s")
    seen = [Measured(Span(3.0 * n, 69, n), Faces(None, []), part) for n in range(2)]
    outcome = Outcome("key", "a.mp4", "0")
    assert len(in_sync(seen, ClipRules(**{**vars(RULES), "pool": pool}), outcome)) == kept
    assert [gone["rule"] for gone in outcome.dropped] == ["sync"] * (2 - kept)
