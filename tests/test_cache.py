"""train.cache on the miniature: what is stored, once and whole; interruptions, changed videos, damage, other models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from fantasy_core import lips
from fantasy_core.audio import load_voice, trim, window_at
from fantasy_core.encoders import image_condition
from fantasy_core.media import VideoWriter, read_video
from fantasy_core.miniature import load_components
from fantasy_core.miniature.world import FPS, draw_clip
from fantasy_core.weights import save_tensors
from train import cache as stage
from train.cache_sources import Source
from train.shards import Cache, condition_of
from train.tables import rows_of, write_rows_of

FRAMES = 17


def write_clip(path: Path, seed: int) -> None:
    """A clip of the miniature's world as an mp4 with sound."""
    clip, sound = draw_clip(seed, 0, FRAMES), path.with_suffix(".wav")
    soundfile.write(sound, clip.waveform, 16000)
    with VideoWriter(path, FPS, sound=sound) as writer:
        writer.write(clip.video())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for seed in range(4):
        write_clip(folder / f"v{seed}.mp4", seed)
        rows.append({"video": f"v{seed}", "input": f"i{seed}", "path": f"v{seed}.mp4", "source": "real"})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(world: Path, out: Path, *more: str) -> list[str]:
    return ["--videos", f"{world}/videos.jsonl", "--out", str(out), *more]


def test_what_is_stored_is_what_the_model_is_asked_with(world, tmp_path):
    """Latents, image condition and windows of the voice as `animate` makes them of the same file."""
    assert stage.main(arguments(world, tmp_path / "cache")) == 0
    cache, components = Cache(tmp_path / "cache"), load_components()
    assert sorted(cache.videos) == ["v0", "v1", "v2", "v3"] and cache.facts["weights"] == components.fingerprint
    stored = cache["v2"]
    frames = torch.stack([frame for _, frame in read_video(world / "v2.mp4")])
    video = frames.movedim(1, 0)[None] * 2 - 1
    assert torch.equal(stored["latents"], components.encode(video)[0])
    condition = image_condition(components.encode, video[:, :, 0], FRAMES)[0]
    torch.testing.assert_close(condition_of(stored), condition, rtol=0, atol=0)
    heard = window_at(components.voice(trim(load_voice(world / "v2.mp4"), FRAMES, FPS)), FRAMES, fps=FPS)
    assert torch.equal(stored["audio"], heard.tokens[0]) and torch.equal(stored["lengths"], heard.lengths[0])
    assert "lips" not in stored and list(cache.damaged()) == []


def test_shards_are_filled_and_nothing_is_encoded_twice(world, tmp_path, capsys):
    assert stage.main(arguments(world, tmp_path / "c", "--shard-bytes", "150000")) == 0
    shards = sorted(path.name for path in (tmp_path / "c").glob("shard_*"))
    assert len(shards) > 1
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    capsys.readouterr()
    assert stage.main(arguments(world, tmp_path / "c", "--shard-bytes", "150000")) == 0
    assert "4 of them cached already" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


def test_videos_in_parquet_are_the_same_videos(world, tmp_path, capsys):
    """The second time they come from parquet, and all of them are there already."""
    write_rows_of(world / "videos.parquet", list(rows_of(world / "videos.jsonl", Source)))
    for name, already in (("videos.jsonl", 0), ("videos.parquet", 4)):
        assert stage.main(["--videos", f"{world}/{name}", "--out", str(tmp_path / "c")]) == 0
        assert f"4 videos, {already} of them cached already" in capsys.readouterr().out


def test_a_changed_video_is_encoded_anew(world, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("v0.mp4", "v1.mp4"):
        (own / name).write_bytes((world / name).read_bytes())
    rows = [{"video": name[:2], "input": name[:2], "path": name} for name in ("v0.mp4", "v1.mp4")]
    (own / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stage.main(arguments(own, tmp_path / "c")) == 0
    first = {video: Cache(tmp_path / "c")[video]["latents"].clone() for video in ("v0", "v1")}
    (own / "v1.mp4").write_bytes((world / "v3.mp4").read_bytes())
    assert stage.main(arguments(own, tmp_path / "c")) == 0
    again = Cache(tmp_path / "c")
    assert torch.equal(again["v0"]["latents"], first["v0"]) and not torch.equal(again["v1"]["latents"], first["v1"])


def test_given_lip_masks_are_projected(world, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for seed in range(4):
        mask = torch.zeros(FRAMES, 64, 64)
        mask[:, 32:40, 24 + seed : 40] = 1
        save_tensors(masks / f"v{seed}.safetensors", {"mask": mask})
    assert stage.main(arguments(world, tmp_path / "c", "--masks", str(masks))) == 0
    cache = Cache(tmp_path / "c")
    assert torch.equal(cache["v3"]["lips"], lips.project(mask))
    cache.need({"v0", "v1"}, "lips")


def test_an_empty_mask_is_no_mask_and_is_told(world, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    for seed in range(4):
        mask = torch.zeros(FRAMES, 64, 64)
        mask[:, 32:40, 24:40] = float(seed != 2)
        save_tensors(tmp_path / "masks" / f"v{seed}.safetensors", {"mask": mask})
    assert stage.main(arguments(world, tmp_path / "c", "--masks", f"{tmp_path}/masks")) == 0
    assert "no lip mask for v2: the given mask is empty" in capsys.readouterr().out
    assert ["lips" in Cache(tmp_path / "c")[f"v{seed}"] for seed in range(4)] == [True, True, False, True]


def test_a_killed_cache_goes_on(world, tmp_path):
    """SIGKILL after the first shard: what the index names is sound, and the next run makes the rest, equal to a run
    that was left alone."""
    command = [sys.executable, "-m", "train.cache", *arguments(world, tmp_path / "killed", "--shard-bytes", "1")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "index.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = Cache(tmp_path / "killed")
    assert len(left.videos) >= 1 and list(left.damaged()) == []
    assert stage.main(arguments(world, tmp_path / "killed", "--shard-bytes", "1")) == 0
    assert stage.main(arguments(world, tmp_path / "alone")) == 0
    one, other = Cache(tmp_path / "killed"), Cache(tmp_path / "alone")
    assert {v: e["hash"] for v, e in one.videos.items()} == {v: e["hash"] for v, e in other.videos.items()}


def test_damage_is_found(world, tmp_path, capsys):
    assert stage.main(arguments(world, tmp_path / "c")) == 0
    assert stage.main(["--out", str(tmp_path / "c"), "--verify", "true"]) == 0
    (shard,) = (tmp_path / "c").glob("shard_*")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    assert stage.main(["--out", str(tmp_path / "c"), "--verify", "true"]) == 2
    assert "1 of 4 videos" in capsys.readouterr().err


def test_what_cannot_be_cached_is_answered(world, tmp_path, capsys):
    """Other settings in the folder, a missing video, another frame rate, no files for Wan, no cache at all."""
    assert stage.main(arguments(world, tmp_path / "c")) == 0
    for wrong, word in (
        (arguments(world, tmp_path / "c", "--dtype", "bf16"), "encoded otherwise"),
        (arguments(world, tmp_path / "d", "--fps", "25"), "frames a second"),
        (arguments(world, tmp_path / "d", "--model", "wan2.1-i2v-14b"), "--fantasytalking"),
        (["--out", str(tmp_path / "d"), "--verify", "true"], "no cache"),
        (["--out", str(tmp_path / "d")], "nothing to encode"),
    ):
        assert stage.main(wrong) == 2
        assert word in capsys.readouterr().err
    (tmp_path / "videos.jsonl").write_text('{"video": "gone", "input": "a", "path": "gone.mp4"}\n')
    assert stage.main(arguments(tmp_path, tmp_path / "d", "--dry-run")) == 2
    assert "gone" in capsys.readouterr().err
    cache = Cache(tmp_path / "c")
    with pytest.raises(Exception, match="absent: other.*without lips: v0"):
        cache.need({"v0", "other"}, "lips")
