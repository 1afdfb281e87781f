"""What an evaluation keeps from one command to the next, and what it must not keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain_metrics import MACHINE, PLAIN, write_grey, write_methods

from fantasy_core.manifest import sha256
from fantasy_core.media import VideoWriter
from train.evaluate import main
from train.evaluate_cache import Cache, Found, Seen, state_of, told
from train.evaluate_measure import see, see_all
from train.journal import Journal
from train.workers import WorkerKilled


@pytest.fixture
def methods(tmp_path) -> list[str]:
    return write_methods(tmp_path, {"a": (0.3, 0.5)})


def evaluate(tmp_path: Path, methods: list[str], *more: str, metrics=(PLAIN,), code: int = 0) -> dict:
    told = ["--out", str(tmp_path / "out"), "--workers", "0", "--method", *methods, "--metrics", *metrics]
    assert main([*told, *map(str, more)]) == code
    return json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))


# ---- failures ----


@pytest.mark.parametrize("error", ["RuntimeError", "UserError"])
def test_a_failure_of_the_machine_is_gone_when_it_is_mended(tmp_path, methods, error):
    broken = tmp_path / "broken"
    broken.write_text(error)
    flags = ("--options", f"{MACHINE}.broken={broken}")
    told = evaluate(tmp_path, methods, *flags, metrics=(MACHINE,))
    assert told["cells"]["a"]["brightness"]["n"] == 0 and len(told["errors"]) == 2
    broken.unlink()
    told = evaluate(tmp_path, methods, *flags, metrics=(MACHINE,))
    assert told["cells"]["a"]["brightness"]["n"] == 2 and not told["errors"]


def test_a_failure_that_an_older_cache_kept_is_tried_again(tmp_path):
    """Rows of failures had no `lasting` then. One of today, of a video that is unfit, stays."""
    failure = {"what": "w", "got": "g", "expected": "e", "do": "d"}
    old = {"key": "v:m:s", "values": {}, "reasons": {}, "features": None, "failed": failure, "versions": {}}
    with Journal(tmp_path / "part-00000.jsonl") as journal:
        journal.append(old)
    with Cache(tmp_path) as cache:
        assert cache.get("v", "m", "s") is None
        cache.put("v", "m", "t", Found(None, failure, {}))
        cache.put("v", "m", "u", Found(None, failure, {}, lasting=False))
    with Cache(tmp_path) as cache:
        assert cache.get("v", "m", "t").failure == failure and cache.get("v", "m", "u") is None


def test_an_unfit_video_is_not_measured_again(tmp_path, methods):
    write_grey(tmp_path / "a" / "00.mp4", 0.0)
    first = evaluate(tmp_path, methods)
    rows = (tmp_path / "out" / "cache" / "part-00000.jsonl").read_bytes()
    assert first["cells"]["a"]["brightness"]["n"] == 1 and evaluate(tmp_path, methods) == first
    assert (tmp_path / "out" / "cache" / "part-00000.jsonl").read_bytes() == rows


# ---- what is read beside a video ----


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """Noise [height, width, 3] of blocks of four pixels."""
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)


def write_half(path: Path, left: bool) -> None:
    """A mask of 64 x 64 px, white on one half."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, slice(0, 32) if left else slice(32, 64)] = 255
    Image.fromarray(mask).save(path)


def test_a_mask_that_was_mended_is_used(tmp_path):
    """Two clips of equal content, whose left half goes 2 px a frame of 64 and whose right half rests: 16 px of 512 in
    an eighth of a second at the most. What has no mask has no number; with one put there as the error says, and with
    another one, it has its own: SD and BD change places."""
    noise = texture(0, 64, 64)
    frames = np.stack([np.concatenate([np.roll(noise[:, :32], 2 * k, 0), noise[:, 32:]], 1) for k in range(6)])
    for name in ("00.mp4", "01.mp4"):
        (tmp_path / "a").mkdir(exist_ok=True)
        with VideoWriter(tmp_path / "a" / name, 8, crf=8) as writer:
            writer.write(torch.from_numpy(frames).movedim(-1, 1) / 255)
    flags = ("--options", "dynamics.mask=given")

    def measured() -> list[dict]:
        told = evaluate(tmp_path, [f"a={tmp_path / 'a'}"], *flags, metrics=("dynamics",))
        return [told["videos"]["a"][stem] for stem in ("00", "01")]

    write_half(tmp_path / "a" / "00.mask.png", left=True)
    with_mask, without = measured()
    assert with_mask["values"]["sd"] > 8 > 2 > with_mask["values"]["bd"] and "sd" not in without["values"]
    write_half(tmp_path / "a" / "01.mask.png", left=False)
    first, second = measured()
    assert first == with_mask and second["values"]["bd"] == pytest.approx(first["values"]["sd"], rel=0.2)
    assert second["beside"]["dynamics"]["mask_sha256"] == sha256(tmp_path / "a" / "01.mask.png")
    write_half(tmp_path / "a" / "00.mask.png", left=False)
    assert measured()[0]["values"] == second["values"]


# ---- files ----


def test_a_file_whose_reader_died_is_read_again(tmp_path, methods):
    """As when memory was short: the next run, with memory, sees the file, also where an older cache has a row of it."""
    path = tmp_path / "a" / "00.mp4"
    killed = WorkerKilled("killed", got="died", expected="memory", do="add some")
    name, size, changed = state_of(path)
    row = {"path": name, "size": size, "mtime_ns": changed, "sha256": "", "facts": None, "failed": told(killed)}
    with Journal(tmp_path / "cache" / "files.jsonl") as journal:
        journal.append(row)
    with Cache(tmp_path / "cache") as cache:
        cache.see(path, Seen("", None, told(killed)), state_of(path))
    with Cache(tmp_path / "cache") as cache:
        assert see_all(cache, [path], 0)[path].facts is not None


def test_a_file_that_grew_while_it_was_read_is_read_again(tmp_path, methods):
    """Its first half was hashed, then the rest was written: what is known is of no file that there is."""
    path = tmp_path / "a" / "00.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    before, half = state_of(path), see(path)
    path.write_bytes(whole)
    with Cache(tmp_path / "cache") as cache:
        cache.see(path, half, before)
    with Cache(tmp_path / "cache") as cache:
        assert see_all(cache, [path], 0)[path].facts is not None
    with Cache(tmp_path / "cache") as cache:
        assert cache.seen(path).facts is not None
