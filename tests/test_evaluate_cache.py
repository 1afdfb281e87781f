"""What an evaluation keeps from one command to the next, and what it must not keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plain_metrics import MACHINE, PLAIN, write_grey, write_methods

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
