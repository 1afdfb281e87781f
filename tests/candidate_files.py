"""Two inputs, workflows and flags for tests of the candidates' stage."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_peer import GRAPH, TOML, Peer
from PIL import Image
from sounds import encode

from fantasy_core.media import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "video", "input", "path", "sha256", "source", "variant", "seed", "text_scale", "audio_scale", "fps", "frames",
    "width", "height", "split", "prompt",
}  # fmt: skip


def write_video(path: Path, *, frames: int = 9, fps: int = 10, size=(64, 64), shade: float = 0.5, sound=None) -> Path:
    with VideoWriter(path, Fraction(fps), sound=sound) as writer:
        level = torch.linspace(0, shade, frames)[:, None, None, None]
        writer.write(level.expand(frames, 3, *size).contiguous())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4").read_bytes()


@pytest.fixture
def files(tmp_path) -> Path:
    """Two inputs of one second, a workflow `toy`, and its twin `second`."""
    for number, shade in enumerate((50, 200)):
        Image.new("RGB", (80, 64), (shade, 90, 90)).save(tmp_path / f"p{number}.png")
        encode(tmp_path / f"a{number}.wav", np.sin(np.arange(16000) / (8 + number))[None] * 0.3, 16000)
    rows = [{"input": f"i{n}", "portrait": f"p{n}.png", "audio": f"a{n}.wav", "prompt": f"person {n}"} for n in (0, 1)]
    rows[1]["split"] = "test"
    (tmp_path / "inputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("toy", "second"):
        (tmp_path / f"{name}.json").write_text(json.dumps(GRAPH))
        (tmp_path / f"{name}.toml").write_text(TOML)
    return tmp_path


def arguments(files: Path, *peers: Peer, source=("toy",), **more) -> list[str]:
    told = {"inputs": files / "inputs.jsonl", "out": files / "out", "variants": 2, "patience": 1, **more}
    flags = [str(word) for name, value in told.items() for word in (f"--{name.replace('_', '-')}", value)]
    return [*flags, "--source", *(str(files / f"{name}.json") for name in source), "--server", *(p.url for p in peers)]


def rows_of(files: Path) -> list[dict]:
    return [json.loads(line) for line in (files / "out" / "videos.jsonl").read_text().splitlines()]


def failures_of(files: Path) -> list[dict]:
    return json.loads((files / "out" / "candidates.json").read_text())["failures"]


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
