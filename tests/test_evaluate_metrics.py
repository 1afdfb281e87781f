"""The metrics of real videos by their names on the command line, on a real face whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from talking import FPS, RATE, openings, portrait, speaking, voice, write_footage

from fantasy_core.errors import UserError
from fantasy_core.lips import landmarker
from fantasy_core.manifest import sha256
from train.evaluate import main
from train.evaluate_registry import METRICS, columns_of, wanted

TASK = Path.home() / ".cache" / "fantasytalking2" / "face_landmarker.task"
LATE = 3  # frames


def test_every_name_is_a_metric():
    """Each can be imported; without its weights it names its main columns."""
    told = wanted(list(METRICS), [], [])
    assert {name: absent.columns for name, absent in told.absent.items()} == {
        "lips": ("lip_corr",),
        "hands": ("hkc", "hkv"),
        "sync": ("sync_c", "sync_d"),
        "fid": ("fid", "kid"),
        "fvd": ("fvd", "kvd"),
        "qalign": ("iqa", "aes"),
        "scores": ("scores",),
    }
    assert [(spec.name, columns_of(spec)) for spec in told.specs][0] == ("dynamics", ("sd",))


def test_settings_of_a_backend_are_checked():
    with pytest.raises(UserError, match="dynamics has no such setting"):
        wanted(["dynamics"], [], ["dynamics.flows=dis"])
    (spec,) = wanted(["dynamics"], [], ["dynamics.mask=none"]).specs
    assert spec.keywords == {"mask": "none"}
    (spec,) = wanted(["scores"], ["scores=q.csv"], ["scores.columns=iqa, mos"]).specs
    assert spec.keywords["columns"] == ("iqa", "mos")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two clips of 3 s of one face, which speaks other parts of a voice, three frames late."""
    try:
        with landmarker(TASK):
            pass
    except UserError as error:
        pytest.skip(error.got)
    folder = tmp_path_factory.mktemp("faces")
    said, frames = voice(6.4), round(3 * FPS)
    for part in range(2):
        sound = said[part * round(3.2 * RATE) :][: round(3 * RATE)]
        drawn = np.roll(openings(sound, frames), LATE)
        write_footage(folder / f"clip{part}.mp4", speaking(portrait(), drawn), sound)
    return folder


def test_short_clips_are_judged_together(folder, tmp_path):
    """3 s are too short for a verdict alone, 6 s are not. Her mouth moves and nothing else; she fills the frame."""
    command = ["--method", f"ours={folder}", "--metrics", "lips", "dynamics", "hands", "--workers", "0"]
    weights = ["--weights", f"lips={TASK}", f"dynamics={TASK}"]
    assert main([*command, *weights, "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    row = told["cells"]["ours"]
    assert row["lip_offset"]["mean"] is None and "5 s or pooled" in row["lip_offset"]["reason"]
    assert row["lip_offset_pooled"]["mean"] == LATE and row["lip_offset_pooled"]["n"] == 2
    assert row["lip_corr_pooled"]["mean"] > 0.5
    assert row["sd"]["mean"] > 0.05 and row["sd"]["n"] == 2 and "fills the frame" in row["bd"]["reason"]
    assert row["hands"]["mean"] is None and "no weights" in row["hands"]["reason"]
    assert told["metrics"]["dynamics"]["settings"]["mask"] == "face-box"
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "video,method,metric,value,sha256" and sum(",sd," in line for line in lines) == 2
    hashes = {sha256(path) for path in folder.glob("*.mp4")}
    assert {line.rpartition(",")[2] for line in lines[1:]} == hashes and len(hashes) == 2
