"""Networks of metrics: opened once, where something is to be measured; what cannot be opened costs its own column."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from plain_metrics import MACHINE, OPENING, PLAIN, SETS, write_methods
from planted_weights import planted_file

from fantasy_core.metrics.inception_model import Inception
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


def test_what_cannot_be_built_costs_its_own_column(tmp_path, methods):
    """A fault of a constructor, what is no metric, devices that there are not: each says why, the rest is measured."""
    weights = planted_file(Inception, tmp_path / "inception.pth")
    flags = ("--weights", f"fid={weights}", "--options")
    metrics = (PLAIN, "plain_metrics:Faulty", "plain_metrics:NoMetric", "fid")
    told = evaluate(tmp_path, methods, *flags, "fid.device=cuda:99", metrics=metrics)
    why = {name: cell["reason"] for name, cell in told["cells"]["a"].items() if cell["mean"] is None}
    assert why["plain_metrics:Faulty"].endswith("cannot be built: RuntimeError: no room on the device")
    assert "no better, columns, measure, verified" in why["plain_metrics:NoMetric"]
    assert "the device cannot be used: cuda:99" in why["fid"] and told["cells"]["a"]["brightness"]["n"] == 2
    told = evaluate(tmp_path, methods, *flags, "fid.device=foo", metrics=(PLAIN, "fid"))
    assert "the device cannot be used: foo" in told["cells"]["a"]["fid"]["reason"]


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


def test_nothing_is_opened_where_nothing_is_measured(tmp_path, methods, network):
    """In a worker, not in the command as well; and when all is known, nowhere."""
    flags = ("--options", f"{OPENING}.weights={network}")
    first = evaluate(tmp_path, methods, *flags, metrics=(OPENING,), workers=1)
    (process,) = openings(network)
    assert process != os.getpid() and first["cells"]["a"]["brightness"]["n"] == 2
    again = evaluate(tmp_path, methods, *flags, metrics=(OPENING,), workers=1)
    assert again["cells"] == first["cells"] and openings(network) == [process]


def test_one_process_opens_once_for_methods_and_reference(tmp_path, methods, network):
    """Measured here, the metrics are those that were built for their settings."""
    write_methods(tmp_path, {"real": (0.2,)})
    flags = ("--options", f"{SETS}.weights={network}", "--reference", tmp_path / "real")
    evaluate(tmp_path, methods, *flags, metrics=(SETS,))
    assert openings(network) == [os.getpid()]
