"""Distances of sets between methods of which some fail, lack inputs or share none, on videos of known colours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_metrics import COLOURS, PLAIN, Brightness, Colours, write_grey, write_methods

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Measured, Video
from train.evaluate import main

REAL = (0.5, 0.6, 0.7)
DYING = "test_evaluate_sets:Dying"
SINGLE = "test_evaluate_sets:Single"
FAULTY, POOLING = "test_evaluate_sets:Faulty", "test_evaluate_sets:Pooling"
PICKY = "test_evaluate_sets:Picky"
A, B = (0.2, 0.3, 0.4), (0.45, 0.55, 0.65)  # of no content that the reference has: equal files are measured once


class Dying(Colours):
    """Fails like a process that was killed on the reference's first video while a file `dying` lies beside it."""

    name = "dying"

    def measure(self, video: Video) -> Measured:
        if video.path.parent.name == "real" and video.path.stem == "00" and (video.path.parents[1] / "dying").exists():
            raise UserError("no memory", got="2 GB", expected="4 GB", do="close other programs")
        return super().measure(video)


class Picky(Colours):
    """Refuses every video of method b."""

    name = "picky"

    def measure(self, video: Video) -> Measured:
        if video.path.parent.name == "b":
            raise UserError("too short", got="6 frames", expected="16", do="bring longer ones")
        return super().measure(video)


class Single(Colours):
    """One sample of every video of method b."""

    name = "single"

    def measure(self, video: Video) -> Measured:
        features = super().measure(video).features
        return Measured(features=features[:1] if video.path.parent.name == "b" else features)


class Faulty(Colours):
    """A fault of the program where sets are compared."""

    name = "faulty"

    def compare(self, features: np.ndarray, reference: np.ndarray) -> Measured:
        raise RuntimeError("no such operation")


class Pooling(Brightness):
    """The same where the clips of method b, lighter than 0.4, are judged together; those of a have their number."""

    name = "pooling"

    def measure(self, video: Video) -> Measured:
        return replace(super().measure(video), features=video.frames.mean((1, 2)))

    def pool(self, features: np.ndarray) -> Measured:
        if features.mean() > 0.42 * 255:
            raise RuntimeError("no such operation")
        return Measured(dict.fromkeys(self.columns, 1.0))


def evaluate(tmp_path: Path, methods: list[str], *more: object, metrics: str = COLOURS, out: str = "out") -> dict:
    told = [
        "--out",
        str(tmp_path / out),
        "--workers",
        "0",
        "--reference",
        str(tmp_path / "real"),
        "--metrics",
        *metrics.split(),
    ]
    assert main([*told, "--method", *methods, *map(str, more)]) == 0
    return json.loads((tmp_path / out / "evaluation.json").read_text("utf-8"))


@pytest.fixture
def real(tmp_path) -> Path:
    write_methods(tmp_path, {"real": REAL})
    return tmp_path / "real"


def test_a_reference_video_that_comes_later_makes_another_distance(tmp_path, real):
    """Three videos of six frames are 18 samples, two are 12; the cache that knows the distance to 12 gives that to 18
    as a fresh one does. The failure's row is taken out of the cache, as of a process that was killed."""
    methods = write_methods(tmp_path, {"a": A})
    (tmp_path / "dying").touch()
    first = evaluate(tmp_path, methods, metrics=DYING)["cells"]["a"]
    assert first["colours_reference"]["mean"] == 12
    (tmp_path / "dying").unlink()
    part = tmp_path / "out" / "cache" / "part-00000.jsonl"
    part.write_text("".join(line for line in part.read_text().splitlines(True) if "no memory" not in line))
    again = evaluate(tmp_path, methods, metrics=DYING)["cells"]["a"]
    fresh = evaluate(tmp_path, methods, metrics=DYING, out="fresh")["cells"]["a"]
    assert again == fresh and again["colours_reference"]["mean"] == 18 and again["colours"] != first["colours"]


def counts(told: dict, column: str = "colours") -> dict[str, tuple[int, int]]:
    return {method: (row[column]["n"], row[column]["of"]) for method, row in told["cells"].items()}


def test_a_method_that_fails_costs_its_own_cells_alone(tmp_path, real):
    """The distance of a is that of an evaluation without b, and b says of three videos why it has none."""
    alone = evaluate(tmp_path, write_methods(tmp_path, {"a": A}), metrics=PICKY, out="alone")
    told = evaluate(tmp_path, write_methods(tmp_path, {"a": A, "b": B}), metrics=PICKY)
    assert told["cells"]["a"] == alone["cells"]["a"] and told["cells"]["a"]["colours"]["mean"] is not None
    assert told["cells"]["b"]["colours"]["reason"] == "too short: 6 frames"
    assert counts(told) == {"a": (3, 3), "b": (0, 3)} and told["best"] == {}


def test_too_few_samples_of_a_method_cost_its_own_cells_alone(tmp_path, real):
    """Of the one input that both have b gives a single sample, which has no covariance; a has its distance."""
    told = evaluate(tmp_path, write_methods(tmp_path, {"a": A[:1], "b": B[:1]}), metrics=SINGLE)
    assert "too few samples" in told["cells"]["b"]["colours"]["reason"]
    assert counts(told) == {"a": (1, 1), "b": (0, 1)} and told["cells"]["a"]["colours"]["mean"] > 0


def test_the_cut_to_shared_inputs_is_shown(tmp_path, real):
    """Of a's three videos one is compared: it says 1 of 3, and the warning why."""
    told = evaluate(tmp_path, write_methods(tmp_path, {"a": A, "few": B[:1]}))
    assert counts(told) == {"a": (1, 3), "few": (1, 1)} and told["best"]["colours"] == ["few"]
    assert "colours: of the 1 inputs that all methods have; measured were: a 3, few 1" in told["warnings"]


def test_methods_that_share_no_input_have_a_distance_each(tmp_path, real):
    """Those of evaluations of their own, untested; three videos and two are none better than the other."""
    a, b = write_methods(tmp_path, {"a": A, "b": B[:2]})
    for number in (0, 1):
        (tmp_path / "b" / f"{number:02d}.mp4").rename(tmp_path / "b" / f"x{number}.mp4")
    told = evaluate(tmp_path, [a, b])
    for method in (a, b):
        name = method[0]
        assert told["cells"][name] == evaluate(tmp_path, [method], out=f"alone_{name}")["cells"][name]
    assert counts(told) == {"a": (3, 3), "b": (2, 2)} and told["tests"] == [] and told["best"] == {}
    (warning,) = (warning for warning in told["warnings"] if "shared by all" in warning)
    assert "(a 3, b 2)" in warning and "none is called best" in warning
    write_grey(tmp_path / "b" / "x2.mp4", B[2])
    assert evaluate(tmp_path, [a, b])["best"]["colours"] == ["b"]


def test_no_test_is_spent_on_the_reference(tmp_path, real):
    """Three inputs of a, b and the reference: one test of brightness (there is no sound), so that p = 2 / 8 stays what
    it is after Holm's correction; with the reference it would be one of three, 6 / 8."""
    methods = [f"real={real}", *write_methods(tmp_path, {"a": A, "b": B})]
    told = evaluate(tmp_path, methods, metrics=f"{PLAIN} {COLOURS}")
    assert {test["column"] for test in told["tests"]} == {"brightness", "colours", "kernel"}
    assert {(test["first"], test["second"]) for test in told["tests"]} == {("a", "b")}
    assert [(test["p"], test["p_holm"]) for test in told["tests"] if test["p"]] == [(2 / 8, 2 / 8)]


def test_the_reference_as_a_method_takes_no_input_from_the_others(tmp_path, real):
    """It shares none with them: it is at distance 0 of itself, and they are taken together and tested."""
    for number in range(3):
        (real / f"{number:02d}.mp4").rename(real / f"r{number}.mp4")
    told = evaluate(tmp_path, [f"real={real}", *write_methods(tmp_path, {"a": A, "b": B})])
    assert told["cells"]["real"]["colours"]["mean"] == pytest.approx(0, abs=1e-6)
    assert counts(told) == {"real": (3, 3), "a": (3, 3), "b": (3, 3)} and told["best"]["colours"] == ["b"]
    assert {test["column"] for test in told["tests"]} == {"colours", "kernel"}
    assert not any("share no input" in warning for warning in told["warnings"])


def test_a_fault_where_videos_are_taken_together_costs_its_own_cells(tmp_path, real):
    """After all has been measured: its columns say what went wrong, the others are whole."""
    methods = write_methods(tmp_path, {"a": A, "b": B})
    told = evaluate(tmp_path, methods, metrics=f"{PLAIN} {FAULTY}")
    assert told["cells"]["a"]["colours"]["reason"] == "faulty failed: RuntimeError: no such operation"
    assert told["cells"]["a"]["brightness"]["n"] == 3 and counts(told) == {"a": (0, 3), "b": (0, 3)}
    told = evaluate(tmp_path, methods, metrics=POOLING)
    assert told["cells"]["b"]["brightness_pooled"]["reason"] == "pooling failed: RuntimeError: no such operation"
    assert told["cells"]["a"]["brightness_pooled"]["mean"] == 1
