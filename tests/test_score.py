"""Scoring many videos: rows, resume, what fails, kills."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_workers import runs
from tiny_thinker import save_omni

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.files import show_file
from fantasy_core.critic.shown import Shown
from fantasy_core.critic.thinker import load_thinker, load_tokenizer
from fantasy_core.media import VideoWriter
from train import score as stage
from train.journal import read_parts
from train.scorers import Video, by_tokens, read_videos
from train.tables import write_rows_of
from train.vllm_engine import VllmCritic

ROOT = Path(__file__).parents[1]
COUNT = 6


def write_wav(path: Path, seconds: float, seed: int) -> Path:
    import soundfile

    rng = np.random.default_rng(seed)
    soundfile.write(path, rng.normal(0, 0.1, round(16000 * seconds)).astype(np.float32), 16000)
    return path


def write_video(path: Path, seed: int, *, frames: int = 9, sound: bool = True) -> None:
    torch.manual_seed(seed)
    heard = write_wav(path.with_suffix(".wav"), frames / 8 + 0.5, seed) if sound else None
    with VideoWriter(path, 8, sound=heard) as writer:
        writer.write(torch.rand(frames, 3, 56, 84))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Six videos: the second has no sound, the third is no video; and a base."""
    folder = tmp_path_factory.mktemp("score")
    rows = []
    for number in range(COUNT):
        path = folder / f"v{number}.mp4"
        if number == 2:
            path.write_bytes(b"not a video" * 100)
        else:
            write_video(path, number, frames=9 + 4 * (number % 2), sound=number != 1)
        rows.append({"video": f"v{number}", "path": path.name, "input": "a"})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_omni(folder / "base")
    return folder


def arguments(world: Path, out: Path, **more: object) -> list[str]:
    told = {"videos": world / "videos.jsonl", "base": world / "base", "out": out, "views": "shared", "dtype": "fp32"}
    told |= {"workers": 0, "pool": 2, **more}
    return [part for name, value in told.items() for part in (f"--{name}", str(value))]


def rows(out: Path) -> dict[str, dict]:
    found = list(read_parts(out))
    assert len({row["video"] for row in found}) == len(found)  # none twice
    return {row["video"]: row for row in found}


def same(found: dict[str, dict], told: dict[str, dict]) -> None:
    """The same videos and, up to how they were batched, the same z."""
    assert found.keys() == told.keys()
    for name, row in told.items():
        for column in ("z_mn", "z_ls", "z_vq"):
            expected = None if row[column] is None else pytest.approx(row[column], abs=1e-5)
            assert found[name][column] == expected


@pytest.fixture(scope="module")
def told(world, tmp_path_factory) -> dict[str, dict]:
    """The rows of an undisturbed run."""
    out = tmp_path_factory.mktemp("told")
    assert stage.main(arguments(world, out)) == 0
    return rows(out)


def test_every_video_has_a_row(world, told):
    """z equals the critic's own of that file; the clip without sound has no lip sync; the broken file a reason."""
    assert told.keys() == {f"v{n}" for n in range(COUNT)}
    base = world / "base"
    critic = Critic(
        load_thinker(base, dtype=torch.float32), load_tokenizer(base), read_views("shared"), read_questions()
    )
    for name in ("v0", "v3"):
        alone = critic.score(show_file(world / f"{name}.mp4", critic.views))
        assert all(told[name][f"z_{d}"] == pytest.approx(z, abs=1e-5) for d, z in alone.z.items())
    assert told["v1"]["z_ls"] is None and told["v1"]["z_mn"] is not None and "no sound" in told["v1"]["warnings"][0]
    assert told["v2"]["z_mn"] is None and "cannot read the video" in told["v2"]["failed"]
    assert {(row["critic"], row["views"]) for row in told.values()} == {(critic.hash, critic.views.hash)}


def test_nothing_is_scored_twice(world, told, tmp_path):
    """Again: no row. A part of two rows and a line cut short: the other four. Another critic: rows of its own. The one
    that failed is tried again if asked."""
    assert stage.main(arguments(world, tmp_path)) == 0
    whole = (tmp_path / "part-00000.jsonl").read_bytes()
    assert stage.main(arguments(world, tmp_path)) == 0
    assert (tmp_path / "part-00000.jsonl").read_bytes() == whole
    (tmp_path / "part-00000.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"video": "v5", "z_')
    assert stage.main(arguments(world, tmp_path)) == 0
    assert rows(tmp_path) == told
    assert stage.main(arguments(world, tmp_path, again="true")) == 0
    assert sum("failed" in row for row in read_parts(tmp_path)) == 2
    assert stage.main(arguments(world, tmp_path, views="miniature")) == 0
    assert len({(row["video"], row["views"]) for row in read_parts(tmp_path)}) == 2 * COUNT


def test_processes_share_the_videos(world, told, tmp_path, monkeypatch):
    for rank in (0, 1):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        assert stage.main(arguments(world, tmp_path)) == 0
    files = sorted(tmp_path.glob("part-*"))
    parts = [{row["video"] for row in map(json.loads, file.read_text().splitlines())} for file in files]
    assert parts == [{"v0", "v2", "v4"}, {"v1", "v3", "v5"}]
    same(rows(tmp_path), told)


def test_whatever_is_killed_the_rows_are_the_same(world, told, tmp_path):
    """SIGKILL at random moments to a reader, then to the scoring process, five times over; each run begins where the
    one before it ended, and the last one ends with the rows of an undisturbed run. Readers end with their process."""
    command = [sys.executable, "-m", "train.score", *arguments(world, tmp_path, workers=2, pool=1)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    draw, killed, orphans = random.Random(0), {"reader": 0, "process": 0}, []
    for _ in range(5):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, **quiet)
        while process.poll() is None and not readers_of(process.pid):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2))
        orphans += readers_of(process.pid)
        for reader in readers_of(process.pid)[:1]:
            os.kill(reader, signal.SIGKILL)
            killed["reader"] += 1
        seen = len(list(read_parts(tmp_path)))
        while process.poll() is None and len(list(read_parts(tmp_path))) == seen:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        orphans += readers_of(process.pid)
        if process.poll() is None:
            process.kill()
            killed["process"] += 1
        process.wait()
    assert stage.main(arguments(world, tmp_path)) == 0
    same(rows(tmp_path), told)
    assert killed["reader"] >= 2 and killed["process"] >= 2, killed
    end = time.monotonic() + 60
    while any(map(runs, orphans)):
        assert time.monotonic() < end, "a reader has outlived its process"
        time.sleep(0.02)


def readers_of(pid: int) -> list[int]:
    """The spawned children of a process."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in place.joinpath("cmdline").read_bytes():
                found.append(int(place.name))
    return found


def test_batches_hold_no_more_tokens_than_asked(world):
    views = read_views("shared")
    clips = [show_file(world / f"v{n}.mp4", views)["shared"][0] for n in (0, 3, 4, 5)]
    windows = list(enumerate(clips))
    for most in (1, 150, 10**6):
        groups = list(by_tokens(windows, most))
        assert sorted(n for group in groups for n, _ in group) == [0, 1, 2, 3]
        assert all(len(g) == 1 or max(w.tokens for _, w in g) * len(g) <= most for g in groups)


def test_vllms_answers_are_read_as_the_models_own():
    """exp of the log probabilities: Yes 0.5, No 0.25, so z = ln 2 and the mass 0.75. A word that is not listed has no
    more than the last one listed, 0.125 here. vLLM itself is not run."""
    engine = VllmCritic(None, read_views("separate"), read_questions(), "base")
    both = listed(Yes=0.5, No=0.25, Maybe=0.125)
    clip = Shown(torch.zeros(8, 3, 56, 84, dtype=torch.uint8), 8.0, np.zeros(16000, np.float32), silent=True)
    told = engine._answer(clip, ["mn", "ls"], [engine._words(both), engine._words(listed(Yes=0.5, Maybe=0.125))])
    assert told.z == {"mn": pytest.approx(math.log(2)), "ls": None}  # there is no sound
    assert told.mass == pytest.approx(0.625)
    heard = dataclasses.replace(clip, silent=False)
    assert engine._answer(heard, ["ls"], [engine._words(listed(Yes=0.5, Maybe=0.125))]).z["ls"] == pytest.approx(
        math.log(4)
    )
    prompt = engine._prompt(clip, "mn")
    assert prompt["prompt"].count("<|VIDEO|>") == 1 and read_questions().questions["mn"] in prompt["prompt"]
    assert prompt["multi_modal_data"]["video"].shape == (8, 56, 84, 3)
    assert prompt["mm_processor_kwargs"]["size"] == {"shortest_edge": 4704, "longest_edge": 4704}


def listed(**shares: float) -> dict[int, SimpleNamespace]:
    """Words with their probabilities, as vLLM lists them."""
    rows = enumerate(shares.items())
    return {n: SimpleNamespace(decoded_token=word, logprob=math.log(share)) for n, (word, share) in rows}


# ---- what is refused ----


@pytest.mark.parametrize(
    ("more", "told", "at_once"),
    [
        ({"views": "separate"}, "the view of the face needs faces", True),
        ({"base": "nowhere"}, "cannot read the model's configuration", True),
        ({"critic": "nowhere"}, "cannot read the critic's adapter", True),
        ({"device": "gpu"}, "the device cannot be used", True),
        ({"views": "best"}, "unknown views", True),
        ({"engine": "vllm"}, "vLLM cannot be loaded", False),
    ],
)
def test_what_cannot_score_is_told(world, tmp_path, capsys, more, told, at_once):
    """By the dry run too, if it can be known without loading a model."""
    if at_once:
        assert stage.main([*arguments(world, tmp_path, **more), "--dry-run"]) == 2
        assert told in capsys.readouterr().err
    assert stage.main(arguments(world, tmp_path, **more)) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_whole_frames_are_other_views_than_faces(world, tmp_path):
    """Rows of views of the face that showed all of the frame are not those of `separate`, where it is cropped."""
    assert stage.main(arguments(world, tmp_path, views="separate", face="whole")) == 0
    views = read_views("separate")
    assert {row["views"] for row in rows(tmp_path).values()} == {views.whole().hash} != {views.hash}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_face_model_that_is_none_stops_before_the_first_video(world, tmp_path, capsys, dry):
    pytest.importorskip("mediapipe")
    task, out = tmp_path / "bad.task", tmp_path / "out"
    task.write_bytes(b"no model")
    assert stage.main([*arguments(world, out, views="separate", task=task), *dry]) == 2
    assert "bad.task cannot be opened" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("names", "told"), [(["v0", "v3", "v0"], "more than once: v0"), ([], "no line")], ids=["twice", "empty"]
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_list_of_videos_has_each_once(world, tmp_path, capsys, names, told, dry):
    """Of two lines of one name the scores would be of different files, which train.pairs refuses."""
    listed = tmp_path / "videos.jsonl"
    lines = ({"video": name, "path": str(world / f"v{number}.mp4")} for number, name in enumerate(names))
    listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert stage.main([*arguments(world, tmp_path / "out", videos=listed), *dry]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_videos_may_be_parquet(world, tmp_path):
    write_rows_of(tmp_path / "videos.parquet", [Video("v0", "v0.mp4", "a"), Video("v3", "v3.mp4", "b")])
    write_rows_of(tmp_path / "videos.jsonl", [Video("v0", "v0.mp4", "a"), Video("v3", "v3.mp4", "b")])
    assert read_videos(tmp_path / "videos.parquet") == read_videos(tmp_path / "videos.jsonl")


def test_a_dry_run_counts_and_writes_nothing(world, tmp_path, capsys):
    assert stage.main([*arguments(world, tmp_path), "--dry-run"]) == 0
    assert "6 videos; 0 have a row" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_dry_run_names_files_that_are_not_there(world, tmp_path, capsys):
    write_rows_of(tmp_path / "videos.jsonl", [Video("v0", str(world / "v0.mp4")), Video("gone", "gone.mp4")])
    assert stage.main([*arguments(world, tmp_path / "out", videos=tmp_path / "videos.jsonl"), "--dry-run"]) == 0
    assert "not there: gone" in capsys.readouterr().out
