"""Figure 2 in one command, at its smallest: every stage's files are there and fit together."""

from __future__ import annotations

import json

from train.journal import read_parts
from train.miniature_critic import Size, make_critic

SMALL = Size(inputs=4, made=1, frames=9, steps=2, epochs=1.0, test_share=0.5)


def test_the_chain_from_candidates_to_pairs(tmp_path):
    """4 inputs: the real clip, one made of it and that overexposed are 12 videos and 36 labels; the judge calls every
    overexposed one bad, and what is there is not made again."""
    report = make_critic(tmp_path, SMALL)
    videos = [json.loads(line) for line in (tmp_path / "videos.jsonl").read_text().splitlines()]
    assert len(videos) == 12 and {row["source"] for row in videos} == {"real", "miniature"}
    judged = {row["video"]: row for row in read_parts(tmp_path / "judged")}
    assert all(row["z_vq"] < 0 for name, row in judged.items() if name.endswith("miniature_1"))
    labels = [json.loads(line) for line in (tmp_path / "annotations/annotations.jsonl").read_text().splitlines()]
    decided = [row for row in labels if row["how"] == "arbiter"]
    assert len(labels) == 36 and decided
    assert all(row["label"] == int(judged[row["video"]][f"z_{row['dimension']}"] > 0) for row in decided)
    scores = {row["video"]: row for row in read_parts(tmp_path / "scores")}
    base = {row["video"]: row for row in read_parts(tmp_path / "base_scores")}
    assert scores.keys() == base.keys() == judged.keys() and scores["00000_real_0"] != base["00000_real_0"]
    assert report["made_from"] and (tmp_path / "pairs/pairs.json").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/*.mp4")}
    adapter = (tmp_path / "critic/adapter/adapter_model.safetensors").read_bytes()
    assert make_critic(tmp_path, SMALL) == report
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("videos/*.mp4")}
    assert adapter == (tmp_path / "critic/adapter/adapter_model.safetensors").read_bytes()
