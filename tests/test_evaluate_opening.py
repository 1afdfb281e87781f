"""Networks of metrics: opened once, where something is to be measured; what cannot be opened costs its own column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plain_metrics import MACHINE, OPENING, PLAIN, write_methods

from train.evaluate import main


@pytest.fixture
def methods(tmp_path) -> list[str]:
    return write_methods(tmp_path, {"a": (0.3, 0.5), "b": (0.4, 0.6)})


@pytest.fixture
def network(tmp_path) -> Path:
    path = tmp_path / "weights"
    path.write_text("network", "utf-8")
    return path


def evaluate(tmp_path: Path, methods: list[str], *more: str, metrics, code: int = 0, workers: int = 0) -> dict:
    told = ["--out", str(tmp_path / "out"), "--workers", str(workers), "--method", *methods, "--metrics", *metrics]
    assert main([*told, *map(str, more)]) == code
    return json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))


def openings(network: Path) -> list[int]:
    """The processes that opened the network, one for each time."""
    return [int(line) for line in Path(f"{network}.log").read_text("utf-8").split()]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_that_cannot_be_opened_is_a_column_without_numbers(tmp_path, methods, network, workers, capsys):
    """Said once for its column, and no error of any of the four videos; tried once."""
    network.write_text("something else", "utf-8")
    flags = ("--options", f"{OPENING}.weights={network}", "--strict")
    told = evaluate(tmp_path, methods, *flags, metrics=(OPENING,), code=2, workers=workers)
    assert told["cells"]["a"][OPENING]["reason"] == "cannot be measured: weights is no network: text"
    assert told["columns"][OPENING]["covers"] == ["brightness", "loudness"] and not told["errors"]
    assert "weights is no network" in capsys.readouterr().err
    assert len(openings(network)) == 1


def test_strict_wants_a_number_of_every_metric(tmp_path, methods, capsys):
    """One metric of two fails on all four videos: its column is empty. A column that is empty beside others of its
    metric (there is no sound) is no fault. What all videos fail by stands once in the table."""
    broken = tmp_path / "broken"
    broken.write_text("RuntimeError")
    flags = ("--options", f"{MACHINE}.broken={broken}")
    evaluate(tmp_path, methods, *flags, "--strict", metrics=(MACHINE,), code=2)
    assert f"{MACHINE}: brightness failed: RuntimeError: out of memory" in capsys.readouterr().err
    table = (tmp_path / "out" / "table.md").read_text("utf-8").split("## What failed")[1]
    assert table.count("out of memory") == 1 and "a/00, a/01, b/00 (3 of 4), plain" in table
    evaluate(tmp_path, methods, "--strict", metrics=(PLAIN,))
