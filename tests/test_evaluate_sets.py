"""Distances of sets between methods of which some fail, lack inputs or share none, on videos of known colours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plain_metrics import COLOURS, Colours, write_methods

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Measured, Video
from train.evaluate import main

REAL = (0.5, 0.6, 0.7)
DYING = "test_evaluate_sets:Dying"


class Dying(Colours):
    """Fails like a process that was killed on the reference's first video while a file `dying` lies beside it."""

    name = "dying"

    def measure(self, video: Video) -> Measured:
        if video.path.parent.name == "real" and video.path.stem == "00" and (video.path.parents[1] / "dying").exists():
            raise UserError("no memory", got="2 GB", expected="4 GB", do="close other programs")
        return super().measure(video)


def evaluate(tmp_path: Path, methods: list[str], *more: object, metrics: str = COLOURS, out: str = "out") -> dict:
    told = ["--out", str(tmp_path / out), "--workers", "0", "--reference", str(tmp_path / "real"), "--metrics", metrics]
    assert main([*told, "--method", *methods, *map(str, more)]) == 0
    return json.loads((tmp_path / out / "evaluation.json").read_text("utf-8"))


@pytest.fixture
def real(tmp_path) -> Path:
    write_methods(tmp_path, {"real": REAL})
    return tmp_path / "real"


def test_a_reference_video_that_comes_later_makes_another_distance(tmp_path, real):
    """Three videos of six frames are 18 samples, two are 12; the cache that knows the distance to 12 gives that to 18
    as a fresh one does. The failure's row is taken out of the cache, as of a process that was killed."""
    methods = write_methods(tmp_path, {"a": (0.2, 0.3, 0.4)})
    (tmp_path / "dying").touch()
    first = evaluate(tmp_path, methods, metrics=DYING)["cells"]["a"]
    assert first["colours_reference"]["mean"] == 12
    (tmp_path / "dying").unlink()
    part = tmp_path / "out" / "cache" / "part-00000.jsonl"
    part.write_text("".join(line for line in part.read_text().splitlines(True) if "no memory" not in line))
    again = evaluate(tmp_path, methods, metrics=DYING)["cells"]["a"]
    fresh = evaluate(tmp_path, methods, metrics=DYING, out="fresh")["cells"]["a"]
    assert again == fresh and again["colours_reference"]["mean"] == 18 and again["colours"] != first["colours"]
