"""IQA and AES: logits to scores by hand, frames evenly spaced, score files that never pass for another scale."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.metrics.chosen import qalign
from fantasy_core.metrics.contract import Metric, Video
from fantasy_core.metrics.quality import QAlign, RemoteScorer, level_score, score5
from fantasy_core.metrics.score_file import ScoreFile


def video(frames: int = 16, path: str = "folder/a.mp4") -> Video:
    """Frame k has the value k everywhere."""
    pictures = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 2, 2, 3))
    return Video(Path(path), pictures, np.arange(frames) / 25)


def test_levels_by_hand():
    """All alike: 3. Excellent alone: 5, bad alone: 1. Shares 1/2, 1/4, 1/4, 0, 0: 2.5 + 1 + 0.75 = 4.25."""
    none = -1e9
    logits = [[0] * 5, [0, none, none, none, none], [none, none, none, none, 800], [math.log(2), 0, 0, none, none]]
    assert level_score(np.array(logits)).tolist() == pytest.approx([3, 5, 1, 4.25])


@given(st.lists(st.floats(-30, 30), min_size=5, max_size=5), st.floats(-50, 50))
def test_both_scales_are_one_score(logits, shift):
    """The package's points (1, 0.75, 0.5, 0.25, 0) give score01, score5 = 1 + 4 score01; a shift changes nothing."""
    shares = np.exp(np.array(logits) - max(logits))
    score01 = float(shares @ [1, 0.75, 0.5, 0.25, 0] / shares.sum())
    assert float(level_score(np.array(logits))) == pytest.approx(score5(score01))
    assert float(level_score(np.array(logits) + shift)) == pytest.approx(score5(score01))


def by_brightness(frames: np.ndarray, task: str) -> list[float]:
    """A scorer anybody can follow: 1 + a tenth of the frame's number; aesthetics one more."""
    return [1 + frame[0, 0, 0] / 10 + (task == "aesthetics") for frame in frames]


def test_eight_frames_evenly_spaced():
    """Of 16 frames 1, 3 ... 15, mean 8: 1.8 and 2.8. Of 4 frames all, mean 1.5: 1.15."""
    metric = QAlign(by_brightness, model="brightness")
    assert isinstance(metric, Metric) and not metric.verified and metric.settings["frames"] == 8
    assert metric.measure(video()).values == pytest.approx({"iqa": 1.8, "aes": 2.8})
    assert metric.measure(video(4)).values["iqa"] == pytest.approx(1.15)


def test_a_scorer_of_another_scale_or_count_is_refused():
    for scorer in (lambda frames, task: [0.7] * len(frames), lambda frames, task: [3.0], lambda f, t: [math.nan] * 8):
        with pytest.raises(UserError, match="1 to 5"):
            QAlign(scorer, model="x").measure(video())
    with pytest.raises(UserError, match="no frames"):
        QAlign(by_brightness, model="x").measure(video(0))


def test_code_from_a_folder_needs_trust(tmp_path):
    with pytest.raises(UserError, match="its own program"):
        RemoteScorer(tmp_path)
    with pytest.raises(UserError, match="not found"):
        RemoteScorer(tmp_path / "absent", trust=True)


def test_a_model_is_told_by_what_is_in_its_folder(tmp_path):
    """Two shards and code: the list that sha256sum makes of them, hashed. Other code in a folder of the same name is
    another model; files of a hidden folder are none of it. No model is loaded for that."""
    for name, content in (("model-1.safetensors", b"one"), ("model-2.safetensors", b"two"), ("code.py", b"pass")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "state.json").write_text("{}")
    metric = qalign(tmp_path, trust=True, device="meta")
    parts = (("code.py", b"pass"), ("model-1.safetensors", b"one"), ("model-2.safetensors", b"two"))
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in parts)
    assert isinstance(metric, Metric) and metric.settings["device"] == "meta"
    assert metric.settings["weights_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "code.py").write_text("fail")
    assert qalign(tmp_path, trust=True, device="meta").settings != metric.settings
    assert "device" not in qalign(tmp_path, trust=True, device="cpu").settings


ROWS = [
    {"video": "folder/a.mp4", "metric": "IQA", "value": 4.5},
    {"video": "b.mp4", "metric": "iqa", "value": 2},
    {"video": "b.mp4", "metric": "aes", "value": 3.25},
    {"video": "b.mp4", "metric": "other", "value": 99},
]


def written(folder: Path, suffix: str, rows) -> Path:
    path = folder / f"scores{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("video,metric,value\n" + "".join(f"{r['video']},{r['metric']},{r['value']}\n" for r in rows))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_scores_from_files(tmp_path, suffix):
    metric = ScoreFile(written(tmp_path, suffix, ROWS))
    assert isinstance(metric, Metric) and len(str(metric.settings["file_sha256"])) == 64
    found = metric.measure(video(path="folder/a.mp4"))
    assert found.values == {"iqa": 4.5, "aes": None} and "no row" in found.reasons["aes"]
    assert metric.measure(video(path="elsewhere/b.mp4")).values == {"iqa": 2, "aes": 3.25}  # by its name
    with pytest.raises(UserError, match="every video"):
        metric.measure(video(path="c.mp4"))


def test_names_that_fit_several_videos_are_refused(tmp_path):
    rows = [{"video": f"{method}/a.mp4", "metric": "iqa", "value": 3} for method in ("ours", "theirs")]
    metric = ScoreFile(written(tmp_path, ".json", rows))
    assert metric.measure(video(path="ours/a.mp4")).values["iqa"] == 3
    with pytest.raises(UserError, match="a row for every video"):
        metric.measure(video(path="others/a.mp4"))  # a row with a folder is of no other
    with pytest.raises(UserError, match="one row of a metric"):
        ScoreFile(written(tmp_path, ".json", [rows[0], rows[1] | {"video": "ours/a"}])).measure(
            video(path="ours/a.mp4")
        )


def test_a_row_of_several_videos_is_of_none(tmp_path):
    """Methods answer one input by files of one name: a bare name could be either's. Folders tell, or `method`."""
    both = [tmp_path / "ours" / "a.mp4", tmp_path / "theirs" / "a.mp4"]
    bare = {"video": "a.mp4", "metric": "iqa", "value": 3}
    metric = ScoreFile(written(tmp_path, ".json", [bare]))
    metric.among(both[:1])
    assert metric.measure(video(path=both[0])).values["iqa"] == 3
    metric.among(both)
    for path in both:
        with pytest.raises(UserError, match="rows that name one video"):
            metric.measure(video(path=path))
    named = [bare | {"video": "a", "method": "ours"}, bare | {"video": "a", "method": "theirs", "value": 4}]
    metric = ScoreFile(written(tmp_path, ".json", named))
    metric.among(both)
    assert [metric.measure(video(path=path)).values["iqa"] for path in both] == [3, 4]


def test_links_are_known_by_their_own_names(tmp_path):
    """A folder of a method may be links to files of other names, even to one and the same."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0001.mp4").touch()
    links = [tmp_path / method / "a.mp4" for method in ("ours", "theirs")]
    for link in links:
        link.parent.mkdir()
        link.symlink_to(tmp_path / "files" / "0001.mp4")
    rows = [{"video": "ours/a.mp4", "metric": "iqa", "value": 3}, {"video": "theirs/a", "metric": "iqa", "value": 4}]
    metric = ScoreFile(written(tmp_path, ".json", rows))
    metric.among(links)
    assert [metric.measure(video(path=link)).values["iqa"] for link in links] == [3, 4]


def test_scales_never_mix(tmp_path):
    """0.875 is 4.5 of 1..5; read as 1..5 it is out of range, as 4.5 is of 0..1."""
    path = written(tmp_path, ".json", [{"video": "a", "metric": "iqa", "value": 0.875}])
    assert ScoreFile(path, scale="0..1").measure(video()).values["iqa"] == 4.5
    with pytest.raises(UserError, match=r"values in 1\.\.5"):
        ScoreFile(path)
    with pytest.raises(UserError, match=r"values in 0\.\.1"):
        ScoreFile(written(tmp_path, ".jsonl", ROWS), scale="0..1")
    with pytest.raises(UserError, match="unknown scale"):
        ScoreFile(path, scale="0..100")


@pytest.mark.parametrize(
    "row", [{"video": "a", "metric": "iqa"}, {"video": "a", "metric": "iqa", "value": "x"}, 3,
            {"video": "", "metric": "iqa", "value": 3}, {"video": "a", "metric": "iqa", "value": float("nan")}]
)  # fmt: skip
def test_rows_that_are_no_scores_are_named(tmp_path, row):
    with pytest.raises(UserError, match="row 5"):
        ScoreFile(written(tmp_path, ".json", [*ROWS, row]))


def test_files_that_are_no_scores(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("[")
    for name in ("a.json", "b.json", "absent.json"):
        with pytest.raises(UserError):
            ScoreFile(tmp_path / name)
    with pytest.raises(UserError, match="twice"):
        ScoreFile(written(tmp_path, ".json", [*ROWS, ROWS[1]]))
    with pytest.raises(UserError, match="no row"):
        ScoreFile(written(tmp_path, ".json", ROWS[3:]))
