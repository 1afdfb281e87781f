"""Pairs and their cached videos as training reads them: order, sizes, lip masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fantasy_core.errors import UserError
from fantasy_core.pair_rules import Pair
from train.distributed import World
from train.run import write_rows
from train.samples import inputs_of
from train.shards import Cache, ShardWriter
from train.tables import FORMATS, write_rows_of
from train.trainer import PairData
from train.watch import held_out

SQUARE = ((3, 8, 8), None)


def small_cache(folder: Path, entries: dict[str, tuple[tuple[int, ...], str | None]]) -> Cache:
    """Videos by name: size of the latents, and why there is no lip mask."""
    writer = ShardWriter(folder, {})
    for name, (size, reason) in entries.items():
        names = ("latents", "image", "audio", "text") + (() if reason else ("lips",))
        tensors = {one: torch.zeros(*(() if one == "lips" else (16,)), *size) for one in names}
        writer.add(name, tensors, {"sha256": name, "frames": 4 * size[0] - 3, "lips": reason})
    writer.finish()
    return Cache(folder)


def test_pairs_in_parquet_are_the_same_units(tmp_path):
    """Read by training, by the eye that looks at held-out pairs, and for samples."""
    cache = small_cache(tmp_path / "cache", dict.fromkeys("abcd", SQUARE))
    pairs = [Pair("a", "b", "i", "vq", 1.0, "train"), Pair("c", "d", "j", "vq", 0.5, "validation")]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows_of(tmp_path / "pairs.parquet", pairs)
    lines, columns = (PairData(tmp_path / f"pairs.{form}", cache).units for form in FORMATS)
    assert columns == lines and [unit.videos for unit in columns] == [("a", "b")]
    looked_at = held_out(
        tmp_path / "pairs.parquet", cache, [0.5], masked=False, most=4, world=World(torch.device("cpu"))
    )
    assert looked_at is not None and [unit.videos for unit in looked_at.units] == [("c", "d")]
    assert inputs_of(tmp_path / "pairs.parquet", 3) == ["c"]


@pytest.mark.parametrize("size", [(3, 8, 10), (2, 8, 8)], ids=["wider", "shorter"])
def test_pairs_of_different_sizes_are_refused(tmp_path, size):
    cache = small_cache(tmp_path / "cache", {"a": SQUARE, "b": (size, None)})
    write_rows(tmp_path / "pairs.jsonl", [Pair("a", "b", "i", "vq", 1.0, "train")])
    with pytest.raises(UserError, match="different sizes"):
        PairData(tmp_path / "pairs.jsonl", cache)


def test_pairs_without_lips_are_left_out_and_counted(tmp_path, capsys):
    """One of three videos lost its lips: of two pairs one is left, for the lip expert alone; with none left it is an
    error."""
    lost = ((3, 8, 8), "a face in 40% of the frames, 80% are needed")
    cache = small_cache(tmp_path / "cache", {"a": SQUARE, "b": SQUARE, "c": lost})
    pairs = [Pair("a", "b", "i", "ls", 1.0, "train"), Pair("a", "c", "i", "ls", 1.0, "train")]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    assert [unit.videos for unit in PairData(tmp_path / "pairs.jsonl", cache, masked=True).units] == [("a", "b")]
    assert "1 of 2 pairs are left out" in capsys.readouterr().out
    assert len(PairData(tmp_path / "pairs.jsonl", cache)) == 2
    write_rows(tmp_path / "pairs.jsonl", pairs[1:])
    with pytest.raises(UserError, match="no pair has lip masks"):
        PairData(tmp_path / "pairs.jsonl", cache, masked=True)


def test_a_cached_video_is_read_by_its_own_name(tmp_path):
    """`a` does not read what belongs to `a/b`."""
    cache = small_cache(tmp_path / "cache", {"a": SQUARE, "a/b": ((2, 8, 8), None)})
    assert set(cache["a"]) == {"latents", "image", "audio", "text", "lips"} and cache.size("a/b") == (2, 8, 8)


def test_every_epoch_has_all_pairs_in_an_order_of_its_own(tmp_path):
    cache = small_cache(tmp_path / "cache", dict.fromkeys("abcd", SQUARE))
    write_rows(tmp_path / "pairs.jsonl", [Pair(*names, "i", "mn", 1.0, "train") for names in ("ab", "cd")])
    found = PairData(tmp_path / "pairs.jsonl", cache)
    epochs = [tuple(found.at(2 * epoch + i, seed=3).videos for i in range(2)) for epoch in range(12)]
    assert {frozenset(epoch) for epoch in epochs} == {frozenset({("a", "b"), ("c", "d")})}
    assert len(set(epochs)) == 2
