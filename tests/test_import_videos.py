"""Videos that other programs made, real clips and their rivals, and the log of it all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from candidate_files import COLUMNS, failures_of, files, rows_of, video, write_video  # noqa: F401
from comfy_peer import Peer
from PIL import Image
from sounds import encode

from fantasy_core.errors import UserError
from fantasy_core.media import read_audio, read_video
from train import candidates as stage
from train.candidate_rows import Log, VideoRow, measure


def imported(files: Path, *more: str) -> int:  # noqa: F811
    return stage.main(["--out", str(files / "out"), "--from-folder", f"omniavatar={files / 'own'}", *more])


def test_a_folder_of_videos(files):  # noqa: F811
    """Named INPUT_VARIANT; what is no video, has no such name or input is a failure; nothing is copied."""
    (files / "own").mkdir()
    for name in ("i0_0", "i1_12", "stranger_0"):
        write_video(files / "own" / f"{name}.mp4", frames=5, size=(32, 48))
    (files / "own" / "i0_1.mp4").write_bytes(b"no video")
    (files / "own" / "i0.mp4").write_bytes(b"no variant")
    assert imported(files, "--inputs", str(files / "inputs.jsonl")) == 2
    first, second = rows_of(files)
    assert (first["video"], second["video"]) == ("i0_omniavatar_0", "i1_omniavatar_12")
    told = {"fps": 10.0, "frames": 5, "width": 48, "height": 32, "seed": None, "split": "test", "prompt": "person 1"}
    assert told.items() <= second.items() and second["path"] == "../own/i1_12.mp4"
    reasons = {Path(one["of"]).name: one["why"] for one in failures_of(files)}
    assert set(reasons) == {"i0.mp4", "i0_1.mp4", "stranger_0.mp4"} and "no input" in reasons["stranger_0.mp4"]
    log = files / "out" / "log.jsonl"
    lines = len(log.read_text().splitlines())
    assert imported(files, "--inputs", str(files / "inputs.jsonl")) == 2 and len(rows_of(files)) == 2
    assert len(log.read_text().splitlines()) == lines + 1, "only the broken one is looked at again"


def test_a_table_of_videos(files):  # noqa: F811
    (files / "own" / "deep").mkdir(parents=True)
    write_video(files / "own" / "deep" / "x.mp4")
    write_video(files / "outside.mp4")
    lines = [
        "file,input,variant,seed,text_scale",
        "deep/x.mp4,i7,3,42,2.5",
        "../outside.mp4,i7,4,,",
        "deep/x.mp4,i8,b,,",
    ]
    (files / "own" / "videos.csv").write_text("\n".join(lines))
    assert imported(files) == 2
    (row,) = rows_of(files)
    assert (row["input"], row["variant"], row["seed"], row["text_scale"]) == ("i7", 3, 42, 2.5)
    assert [one["of"].split(" of ")[0] for one in failures_of(files)] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no line"), ('{"video": "a", "input": "a", "path": "a.mp4", "source": "humo"}\n', "1 videos")],
)
def test_a_list_without_real_clips_is_refused(tmp_path, capsys, text, told):
    (tmp_path / "clips.jsonl").write_text(text)
    flags = ["--real-clips", str(tmp_path / "clips.jsonl"), "--source", "miniature", "--server", "http://127.0.0.1:1"]
    assert stage.main([*flags, "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "has no real clip" in error and told in error and "train.clips" in error


def test_real_clips_get_a_rival_each(files, video):  # noqa: F811
    """Three clips of 9 frames: the server gets the first frame and the sound of each, as long as the picture (0.9 s),
    the clip's size and length; the rows of the clips come along, so that train.pairs sets them over their rivals."""
    (files / "clips").mkdir()
    encode(files / "long.wav", np.sin(np.arange(2 * 22050) / 9)[None] * 0.3, 22050)
    lines = []
    for n in range(3):
        write_video(files / "clips" / f"c{n}.mp4", sound=files / "long.wav", shade=0.2 + 0.3 * n, size=(48, 64))
        row = {"video": f"real_{n}", "input": f"clip{n}", "path": f"c{n}.mp4", "source": "real", "split": "validation"}
        lines.append(json.dumps(row) + "\n")
    (files / "clips" / "videos.jsonl").write_text("".join(lines))
    flags = ["--out", str(files / "out"), "--real-clips", str(files / "clips" / "videos.jsonl")]
    with Peer(video) as peer:
        flags += ["--source", str(files / "toy.json"), str(files / "second.json"), "--server", peer.url]
        assert stage.main(flags) == 0
        assert stage.main(flags) == 0
    rows = rows_of(files)
    assert len(peer.jobs) == 3 and [(r["input"], r["source"] == "real") for r in rows] == [
        (f"clip{n}", real) for n in range(3) for real in (True, False)
    ]
    assert {row["split"] for row in rows} == {"validation"} and all(set(row) == COLUMNS for row in rows)
    assert (rows[0]["frames"], rows[0]["width"], rows[0]["path"]) == (9, 64, "../clips/c0.mp4")
    assert all({"width": 64, "height": 48, "length": 9}.items() <= p["3"]["inputs"].items() for p in peer.prompts())
    wav = next((files / "out" / "real").glob("clip1_*.wav"))
    sounds = list(read_audio(wav))
    assert sum(sound.shape[1] for _, sound in sounds) == round(0.9 * sounds[0][0])
    png = np.asarray(Image.open(next((files / "out" / "real").glob("clip1_*.png")))) / 255
    _, frame = next(read_video(files / "clips" / "c1.mp4"))
    assert np.abs(png - frame.permute(1, 2, 0).numpy()).max() < 1 / 250


def test_clips_that_no_source_can_follow_are_failures(files, video):  # noqa: F811
    """`toy` makes nine frames at most and sizes in steps of 16: 13 frames, or 40 pixels, would never match the clip."""
    (files / "clips").mkdir()
    lines = []
    for name, frames, size in (("long", 13, (48, 64)), ("odd", 9, (40, 64)), ("fits", 9, (48, 64))):
        write_video(files / "clips" / f"{name}.mp4", frames=frames, size=size, sound=files / "a0.wav")
        row = {"video": f"{name}_clip", "input": name, "path": f"{name}.mp4", "source": "real"}
        lines.append(json.dumps(row) + "\n")
    (files / "clips" / "videos.jsonl").write_text("".join(lines))
    flags = ["--out", str(files / "out"), "--real-clips", str(files / "clips" / "videos.jsonl")]
    with Peer(video) as peer:
        assert stage.main([*flags, "--source", str(files / "toy.json"), "--server", peer.url]) == 2
    assert {one["of"]: one["why"].split(" (")[1] for one in failures_of(files)} == {
        "input long": "1.30 s, 13 frames at 10 a second)",
        "input odd": "64 x 40)",
    }
    assert len(peer.jobs) == 1 and len(rows_of(files)) == 4


def test_two_videos_never_have_one_name(files):  # noqa: F811
    """Input `i0_toy` by a folder `second` and input `i0` by one of the name `toy_second`: both i0_toy_second_0."""
    for folder, name in (("a", "i0_toy_0"), ("b", "i0_0")):
        (files / folder).mkdir()
        write_video(files / folder / f"{name}.mp4")
    folders = [f"second={files / 'a'}", f"toy_second={files / 'b'}"]
    assert stage.main(["--out", str(files / "out"), "--from-folder", *folders]) == 2
    assert [one["why"] for one in failures_of(files)] == ["this variant is there twice"] and len(rows_of(files)) == 1


def test_the_log_forgets_what_is_gone_and_what_was_made_otherwise(tmp_path):
    (tmp_path / "candidates").mkdir()
    path = write_video(tmp_path / "candidates" / "v.mp4")
    told = measure(path)
    about = {"source": "toy", "variant": 0, "seed": 1, "text_scale": None, "audio_scale": None}
    row = VideoRow("v", "i", "candidates/v.mp4", **vars(told), **about, split="train", prompt="")
    with Log(tmp_path / "log.jsonl") as log:
        log.add("as so", row)
        with pytest.raises(UserError, match="being written"), Log(tmp_path / "log.jsonl"):
            pass  # two runs would make every video twice
    assert Log(tmp_path / "log.jsonl").find("v", "as so") == row
    assert Log(tmp_path / "log.jsonl").find("v", "otherwise") is None
    path.unlink()
    assert Log(tmp_path / "log.jsonl").find("v", "as so") is None
