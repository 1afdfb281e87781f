"""The whole chain on the miniature, through the commands: candidates, scores, pairs, experts, gate, evaluation.

A smoke test: what must hold whatever is learnt, not who wins.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fantasy_core.experts import load_expert
from fantasy_core.miniature.world import draw_clip
from train import expert, gate, miniature, pairs
from train.miniature_candidates import GUIDANCE, mouth_mask
from train.shards import Cache

INPUTS, FRAMES = 4, 9


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chain")
    told = ["--stage", "candidates", "--out", str(out), "--clips", str(INPUTS), "--frames", str(FRAMES)]
    assert miniature.main(told) == 0
    files = ["--videos", f"{out}/videos.jsonl", "--scores", f"{out}/scores.jsonl", "--out", f"{out}/pairs"]
    assert pairs.main([*files, "--margin", "0.2", "--check-real", "false", "--own", "miniature"]) == 0
    for dimension in ("mn", "ls", "vq"):
        files = ["--pairs", f"{out}/pairs/pairs_{dimension}.jsonl", "--cache", f"{out}/cache"]
        run = ["--dimension", dimension, "--iterations", "2", "--rank", "2", "--lr", "1e-3", "--beta", "500"]
        assert expert.main([*files, *run, "--out", f"{out}/{dimension}"]) == 0
    named = [f"{dimension}={out}/{dimension}/{dimension}.safetensors" for dimension in ("mn", "ls", "vq")]
    files = ["--pairs", f"{out}/pairs/pairs_full.jsonl", "--cache", f"{out}/cache", "--out", f"{out}/gate"]
    assert gate.main(["--expert", *named, *files, "--iterations", "2", "--lr", "1e-2", "--beta", "100"]) == 0
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_input_has_its_real_clip_and_its_variants(chain):
    videos, scores = rows(chain / "videos.jsonl"), rows(chain / "scores.jsonl")
    assert len(videos) == INPUTS * (1 + len(GUIDANCE)) and sum(row["source"] == "real" for row in videos) == INPUTS
    assert [row["video"] for row in videos] == [row["video"] for row in scores]
    made = [row["video"] for row in videos if row["source"] != "real"]
    for dimension in ("mn", "ls", "vq"):
        z = torch.tensor([row[f"z_{dimension}"] for row in scores if row["video"] in made])
        assert z.median().abs() < 1e-6 and z.std().item() == pytest.approx(1, rel=1e-5)
    cache = Cache(chain / "cache")
    assert sorted(cache.videos) == sorted(row["video"] for row in videos) and list(cache.damaged()) == []
    latents = [cache[row["video"]]["latents"] for row in videos[:2]]
    assert latents[0].shape == (16, 3, 8, 8) and not torch.equal(*latents)


def test_the_lip_mask_is_where_the_mouth_is():
    """Of a drawn person looking ahead: about a tenth of the picture (0.105), in its lower middle; it moves with the
    head."""
    clip = draw_clip(5, 0, 9)
    still = torch.tensor([[0.0, 0.0, 0.3, 0.5, 1.0]])
    mask, moved = (mouth_mask(clip.identity[None], still + torch.tensor([x, 0, 0, 0, 0])) for x in (0.0, 0.12))
    assert 0.05 < mask.mean() < 0.12
    places = [torch.nonzero(m[0]).float().mean(0) for m in (mask, moved)]
    assert 32 < places[0][0] < 60 and 20 < places[0][1] < 44 and (places[1] - places[0])[1].abs() > 1


def test_experts_begin_as_the_base_and_the_gate_knows_them(chain):
    for dimension in ("mn", "ls", "vq"):
        first, second = rows(chain / dimension / "log.jsonl")
        assert first["margin"] == 0 and second["margin"] != 0
        assert load_expert(chain / dimension / f"{dimension}.safetensors").metadata["tlpo.dimension"] == dimension
    assert rows(chain / "gate" / "log.jsonl")[0]["margin"] != 0  # the average of trained experts is not the backbone


def test_experts_and_gate_are_evaluated(chain, tmp_path, capsys):
    """Weights of zero are the base, to the last digit of the report; the trained gate is not."""
    named = [f"{d}={chain}/{d}/{d}.safetensors" for d in ("mn", "ls", "vq")]
    told = ["--stage", "evaluate", "--count", "1", "--frames", str(FRAMES), "--steps", "2"]
    found = {}
    for name, gates in (("base", []), ("off", ["constant:0,0,0"]), ("gate", [f"{chain}/gate/gate.safetensors"])):
        more = ["--expert", *named, "--gate", *gates] if gates else []
        assert miniature.main([*told, *more, "--report", str(tmp_path / name)]) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert found["off"] == found["base"] and found["gate"]["generated"] != found["base"]["generated"]
