"""Candidates of several sources that end up of one length and rate: rivals those of their clip, others those asked."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from candidate_files import arguments, failures_of, files, rows_of, write_video  # noqa: F401
from comfy_peer import GRAPH, TOML, Peer
from sounds import encode, whole

from fantasy_core.errors import UserError
from fantasy_core.media import VideoWriter, read_video
from train import candidates as stage
from train.cache import read_clip
from train.candidate_lengths import Kept, asked, cut, of_voice, shared
from train.source_workflows import load_source

SLOW = TOML.replace("fps = 10", "fps = 16").replace("frames = 9", "frames = 41\nleast_frames = 33")


@pytest.fixture
def sources(files) -> Path:  # noqa: F811
    """Beside `toy` (5 to 9 frames at 10 a second) `slow`, 33 to 41 frames at 16, and `brief`, 5 frames at 10."""
    texts = {"slow": SLOW, "brief": TOML.replace("frames = 9", "frames = 5")}
    for name, text in texts.items():
        (files / f"{name}.json").write_text(json.dumps(GRAPH))
        (files / f"{name}.toml").write_text(text)
    return files


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> bytes:
    """33 frames at 16 a second (2.06 s), with sound."""
    place = tmp_path_factory.mktemp("long")
    encode(place / "a.wav", np.sin(np.arange(3 * 16000) / 9)[None] * 0.3, 16000)
    return write_video(place / "v.mp4", frames=33, fps=16, sound=place / "a.wav").read_bytes()


def clips(folder: Path, **frames: int) -> list[str]:
    """Flags of real clips of so many frames at 10 a second."""
    lines = []
    for name, count in frames.items():
        write_video(folder / f"{name}.mp4", frames=count, size=(48, 64), sound=folder / "a0.wav")
        lines.append(
            json.dumps({"video": f"{name}_real", "input": name, "path": f"{name}.mp4", "source": "real"}) + "\n"
        )
    (folder / "clips.jsonl").write_text("".join(lines))
    return ["--out", str(folder / "out"), "--real-clips", str(folder / "clips.jsonl")]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (81, {"fantasytalking": 81, "humo": 89, "hunyuan_avatar": 129, "infinitetalk": 89, "wan2_2_s2v": 73}),
        (49, {"fantasytalking": 49, "humo": 53, "hunyuan_avatar": 129, "infinitetalk": 53, "wan2_2_s2v": 73}),
    ],
)
def test_every_shipped_source_can_follow_a_clip_of_train_clips(frames, expected):
    """The longest and the shortest clip, at 23 frames a second. Its last frame is at 80 / 23 = 3.478 s or 48 / 23 =
    2.087 s: at 25 a second frame 86 or 52, so 87 or 53 frames, and 89 and 53 of the form 4k + 1; at 16 a second 57
    and 37, fewer than the 73 that Wan2.2-S2V makes at least; HunyuanVideo-Avatar always makes 129."""
    kept = Kept(frames, 23.0)
    for name, count in expected.items():
        source = load_source(name)
        assert asked(kept, source) == count <= source.frames, name


def test_a_shared_length_is_one_that_all_can_make():
    """A voice of 10 s at 23 a second holds 229 frames; FantasyTalking makes 81. HuMo's 97 at 25 show 96 / 25 = 3.84 s,
    where frame 88 is shown (89 is at 3.87): 89 frames. Of a voice of 2 s, 46 frames, 45 are kept."""
    fantasytalking, humo, hunyuan = (load_source(name) for name in ("fantasytalking", "humo", "hunyuan_avatar"))
    assert shared(10.0, 23.0, [fantasytalking, humo]) == Kept(81, 23.0)
    assert shared(10.0, 23.0, [humo]) == Kept(89, 23.0) and shared(2.0, 23.0, [humo, hunyuan]) == Kept(45, 23.0)
    assert of_voice(10.0, humo) == (97, None) and of_voice(2.0, hunyuan) == (129, Kept(49, 25.0))


def test_frames_are_cut_by_their_times(tmp_path):
    """Frames of 25 a second, brighter by 1/50 each, at 23: frame k shows what is nearest to k / 23 s, k * 25 / 23
    rounded. The sound ends with the picture (AAC frames are 1024 samples). One frame more than there is is refused."""
    encode(tmp_path / "a.wav", np.sin(np.arange(48000) / 9)[None] * 0.3, 16000)
    with VideoWriter(tmp_path / "v.mp4", Fraction(25), sound=tmp_path / "a.wav") as writer:
        writer.write((torch.arange(40) / 50)[:, None, None, None].expand(40, 3, 32, 32).contiguous())
    cut(tmp_path / "v.mp4", tmp_path / "c.mp4", Kept(33, 23.0))
    times, frames = zip(*read_video(tmp_path / "c.mp4"), strict=True)
    assert len(frames) == 33 and times[-1] == pytest.approx(32 / 23, abs=1e-4)
    assert [round(float(frame.mean()) * 50) for frame in frames] == [round(k * 25 / 23) for k in range(33)]
    sound, rate = whole(tmp_path / "c.mp4")
    assert abs(sound.shape[1] - 33 / 23 * rate) <= 1024 and np.abs(sound).max() > 0.2
    cut(tmp_path / "v.mp4", tmp_path / "c.mp4", Kept(37, 23.0))  # the last is at 1.57 s; the video lasts 1.6 s
    with pytest.raises(UserError, match="too short"):
        cut(tmp_path / "v.mp4", tmp_path / "short.mp4", Kept(38, 23.0))
    assert not (tmp_path / "short.mp4").exists()


def test_rivals_are_as_long_as_their_clips(sources, long_video):
    """`slow` makes 33 frames at least, 2.06 s of a clip of 0.9 s: it gets the clip's voice with silence up to there,
    and of what it makes 9 frames at 10 a second are kept. The same command again makes nothing."""
    with Peer(long_video) as peer:
        flags = [*clips(sources, one=9), "--source", str(sources / "slow.json"), "--server", peer.url]
        assert stage.main(flags) == 0 and stage.main(flags) == 0
    real, rival = rows_of(sources)
    assert len(peer.jobs) == 1 and peer.prompts()[0]["3"]["inputs"]["length"] == 33
    assert [(row["frames"], row["fps"]) for row in (real, rival)] == [(9, 10.0)] * 2
    (sources / "sent.wav").write_bytes(next(file for name, file in peer.uploads.items() if name.endswith(".wav")))
    sound, rate = whole(sources / "sent.wav")
    assert sound.shape[1] == round(33 / 16 * rate) and not sound[:, round(0.9 * rate) :].any() and sound.any()
    assert not np.allclose(whole(sources / "out" / rival["path"])[0], 0)


def test_clips_are_drawn_among_the_sources_that_can_make_them(sources, long_video, capsys):
    """Six clips of 9 frames at 10 a second and one of 33: `toy` can make six, `slow` the six and, as 3.2 s are 53
    frames at 16, not the last; `brief` none. All six have a rival; the last is a failure that names all three."""
    flags = clips(sources, **{f"c{n}": 9 for n in range(6)}, long=33)
    with Peer(long_video) as peer:
        named = (str(sources / f"{name}.json") for name in ("toy", "slow", "brief"))
        flags += ["--source", *named, "--server", peer.url]
        assert stage.main([*flags, "--dry-run"]) == 2
        told = capsys.readouterr().out
        assert [f"{n} can make {k} of 7 clips" in told for n, k in (("toy", 6), ("slow", 6), ("brief", 0))] == [
            True
        ] * 3
        assert stage.main(flags) == 2
    assert {row["source"] for row in rows_of(sources)} == {"real", "toy", "slow"} and len(peer.jobs) == 6
    (fault,) = failures_of(sources)
    assert fault["of"] == "input long" and all(f"{name} cannot" in fault["why"] for name in ("toy", "slow", "brief"))
    assert "slow cannot make a video of this length (3.31 s, 53 frames at 16 a second)" in fault["why"]


def test_a_dry_run_without_servers_tells_what_else_is_wrong(sources, capsys):
    flags = [*clips(sources, long=33), "--source", str(sources / "toy.json"), "--server", "http://127.0.0.1:1"]
    assert stage.main([*flags, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "input long: toy cannot make" in told and "servers: no server answers" in told


def test_several_sources_and_folders_at_one_rate(sources, long_video, capsys):
    """Voices of a second at 10 frames a second: 9 frames of each, also of an imported video of 1.6 s at 25, and
    train.cache reads them all; one of 0.4 s is too short. Another time nothing is made and nothing is copied."""
    (sources / "own").mkdir()
    for name, count in (("i0_0", 40), ("i1_0", 10)):
        write_video(sources / "own" / f"{name}.mp4", frames=count, fps=25, sound=sources / "a0.wav")
    with Peer(long_video) as peer:
        flags = arguments(sources, peer, source=("toy", "slow"), fps=10, variants=1)
        flags += ["--from-folder", f"imported={sources / 'own'}"]
        assert stage.main(flags) == 2
        copied = (sources / "out" / "candidates" / "i0_imported_0.mp4").stat().st_mtime_ns
        assert stage.main(flags) == 2 and len(peer.jobs) == 4
    rows = rows_of(sources)
    assert [row["source"] for row in rows] == ["imported", "slow", "toy", "slow", "toy"]
    assert {(row["frames"], row["fps"]) for row in rows} == {(9, 10.0)}
    assert {len(read_clip(sources / "out" / row["path"], 10.0)[0]) for row in rows} == {9}
    assert rows[0]["path"] == "candidates/i0_imported_0.mp4"
    assert (sources / "out" / rows[0]["path"]).stat().st_mtime_ns == copied
    (fault,) = failures_of(sources)
    assert fault["of"].endswith("i1_0.mp4") and "too short (0.40 s of 0.90 s)" in fault["why"]


def test_a_plan_of_several_rates_says_what_train_cache_needs(sources, long_video, capsys):
    with Peer(long_video) as peer:
        flags = [*arguments(sources, peer, source=("toy", "slow")), "--dry-run"]
        assert stage.main(flags) == 0
        assert "10, 16 frames a second: train.cache takes one rate, --fps 10 brings" in capsys.readouterr().out
        assert stage.main([*flags, "--fps", "10"]) == 0
    assert "train.cache" not in capsys.readouterr().out
