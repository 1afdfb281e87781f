"""The nodes around Talking-Critic inside ComfyUI, against the core's critic on the same frames and sound.

One ComfyUI process runs all cases (`inside_comfyui/critic_cases.py`); each test compares some of them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from comfyui import inside_comfyui, need_comfyui
from tiny_thinker import thinker

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.shown import face_box, show
from fantasy_core.critic.thinker import add_adapter, fingerprint, load_thinker
from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_thinker import save_thinker

pytestmark = pytest.mark.comfy
BASE, ADAPTER = "Qwen2.5-Omni-7B", "run/adapter"
PEFT = importlib.util.find_spec("peft")
LIMIT = 1e-5


@pytest.fixture(scope="module")
def given() -> dict:
    """Four takes of 1 s at 25 fps, 60 x 90 pixels in blocks of 10, brighter and louder from one to the next; a face in
    the upper left."""
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (4, 25, 3, 6, 9), generator=generator)
    brighter = blocks * torch.tensor([0.1, 0.4, 0.7, 1.0]).view(4, 1, 1, 1, 1)
    return {
        "frames": brighter.to(torch.uint8).repeat_interleave(10, 3).repeat_interleave(10, 4),
        "sounds": torch.tensor([0.01, 0.1, 0.3, 0.9])[:, None] * torch.randn(4, 16000, generator=generator),
        "landmarks": 10 + 20 * torch.rand(468, 2, generator=generator),
        "mask": torch.zeros(1, 60, 90).index_fill(2, torch.arange(45), 1.0),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A models folder with a tiny base and an adapter that does something, of the shared view."""
    need_comfyui()
    folder = tmp_path_factory.mktemp("models")
    base = save_thinker(folder / "LLM" / BASE, seed=1)  # one that does not find the same take best in everything
    (folder / "LLM" / "Florence-2").mkdir()
    adapter = folder / "fantasytalking2" / "critics" / ADAPTER
    adapter.mkdir(parents=True)
    told = {"questions": {"hash": read_questions().hash}, "base": fingerprint(load_thinker(base, dtype=torch.float32))}
    shared = read_views("shared")
    (adapter / "critic.json").write_text(json.dumps({**told, "views": {"preset": "shared", "hash": shared.hash}}))
    if PEFT is not None:
        adapted = add_adapter(thinker(), rank=4, alpha=8)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(adapter)
    else:
        (adapter / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def found(given, models) -> dict:
    torch.save(given, models / "given.pt")
    peft = Path(PEFT.origin).parents[1] if PEFT is not None and PEFT.origin else Path("none")
    return inside_comfyui("critic_cases", models, models, models / "given.pt", peft)


@pytest.fixture(scope="module")
def told(found) -> dict:
    return found["told"]


def expected(given, models, take: int = 0, views: str = "separate", face=None, adapter: Path | None = None):
    """The core's z of a take, from its bytes."""
    critic = Critic.load(models / "LLM" / BASE, adapter, views=views, dtype=torch.float32)
    frames = [(n / 25, frame) for n, frame in enumerate(given["frames"][take])]
    return critic.score(show(frames, 1.0, given["sounds"][take].numpy(), critic.views, face)).z


def sigmoids(z) -> torch.Tensor:
    return torch.tensor([z[d] for d in DIMENSIONS], dtype=torch.float64).sigmoid()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max().item() < LIMIT


def test_bases_and_adapters_are_listed_by_their_folders(told):
    assert told["bases"] == [BASE] and told["adapters"] == ["none", ADAPTER]


def test_scores_are_the_cores_by_every_way_in(found, given, models):
    """A VIDEO and an IMAGE batch with AUDIO; with both the video is judged, and the report says so."""
    z = expected(given, models)
    for case in ("video", "images", "both"):
        assert same(found[case], sigmoids(z)), case
    assert "images were not looked at" in found["told"]["both"]
    assert f"(z {z['mn']:+.3f}, least window {z['mn']:+.3f})" in found["told"]["video"]


def test_shared_views_are_the_cores(found, given, models):
    assert same(found["shared"], sigmoids(expected(given, models, views="shared")))


def test_what_is_not_asked_is_nan(found):
    assert found["only the picture"].isnan().tolist() == [True, True, False]
    assert same(found["only the picture"][2], found["video"][2])
    assert found["nothing"].isnan().all()


def test_a_silent_clip_has_no_lip_sync(found, told):
    """Motion and picture are judged; lip sync is NaN and the report says why."""
    assert found["silent"].isnan().tolist() == [False, True, False]
    assert "lip sync (ls): cannot be judged" in told["silent"] and "warning: no sound" in told["silent"]


def test_lip_sync_is_judged_on_the_face(found, told, given, models):
    """Landmarks and masks crop the view of lip sync alone; without a face it is the whole frame, with a warning."""
    box = face_box(given["landmarks"][None].numpy(), 60, 90)
    assert same(found["landmarks"], sigmoids(expected(given, models, face=box)))
    box = face_box(torch.tensor([[[0.0, 0.0], [45.0, 60.0]]]).numpy(), 60, 90)
    assert same(found["mask"], sigmoids(expected(given, models, face=box)))
    assert not same(found["landmarks"][1], found["video"][1]) and same(found["landmarks"][0], found["video"][0])
    assert "whole frame" not in told["landmarks"] and "whole frame: face_landmarks have no face" in told["no face"]
    cropped, whole = (f"views {views.hash}" for views in (read_views("separate"), read_views("separate").whole()))
    assert cropped in told["landmarks"] and whole in told["video"] and whole in told["no face"]
    assert "whole frame: no face_landmarks or face_mask" in told["video"] and same(found["no face"], found["video"])


def test_the_memory_manager_frees_and_reloads_it(found):
    """Loaded for a score, gone after Unload, whole again for the next; never half, and asked to free a part it frees
    none, so that the whole is taken."""
    for case in ("loaded", "unloaded", "reloaded, loaded", "whole"):
        assert found[case].all(), case
    assert torch.equal(found["reloaded"], found["video"])


def test_a_clip_is_scored_once(found):
    assert torch.equal(found["remembered"], found["video"])
    assert found["remembered, not loaded"].all() and found["ranked from memory"].all()


def test_memory_is_asked_for_by_tokens(found):
    """The tiny model in fp32: two layers of width 64, two key heads of 16, inner width 128; its eyes 32 and 64.
    Four bytes for each number of a block, and of four patches with 1176 numbers of pixels each."""
    kept = 2 * 2 * 16 * 2  # layers, keys and values, width and number of key heads
    block, patch = 4 * 128 + 12 * 64 + 2 * kept, 4 * 64 + 12 * 32
    assert found["memory"].item() == 4300 * (4 * (block + 4 * patch) + 4 * 4 * 1176)


def test_an_interruption_is_heard_between_windows(found, told):
    """Three views are three windows: stopped after the first, nothing remembered; the next run counts to the end."""
    assert told["interrupted"] == "1 of it, 0 remembered"
    assert torch.equal(found["after it"], found["video"])
    assert found["progress"][0].item() == pytest.approx(1 / 3, abs=1e-3) and found["progress"][-1] == 1


def test_the_best_take_is_picked(told, given, models):
    """By the core's z of each take: the mean of all, lip sync alone, 0.5 motion and 3 picture, fronts, thresholds."""
    z = [expected(given, models, take) for take in range(4)]
    assert len({round(value, 4) for one in z for value in one.values()}) == 12  # no two alike

    def by(key) -> list[int]:
        return sorted(range(4), key=lambda n: key(z[n]), reverse=True)

    def order(case: str) -> list[int]:
        return [row["take"] for row in told["ranks"][case]["takes"]]

    assert order("sum") == by(lambda one: sum(one.values()))
    assert order("lips") == by(lambda one: one["ls"])
    assert order("picture") == by(lambda one: 0.5 * one["mn"] + 3 * one["vq"])
    beaten = [any(all(other[d] > one[d] for d in DIMENSIONS) for other in z) for one in z]
    assert not beaten[order("pareto")[0]] and [row["front"] > 0 for row in told["ranks"]["pareto"]["takes"]] == [
        beaten[n] for n in order("pareto")
    ]
    assert order("pass") == by(lambda one: (one["ls"] >= 0, sum(one.values())))
    assert [order(case)[0] for case in ("sum", "lips", "picture", "pass")] == [3, 0, 2, 3]  # not the same for all
    for row in told["ranks"]["sum"]["takes"]:
        assert row["z"] == pytest.approx(z[row["take"]], abs=1e-4)


def test_a_silent_take_comes_last(told):
    """Sockets 0 (silent) and 3: index 3."""
    assert told["a silent take"]["best"] == 3
    assert told["a silent take"]["warnings"] == ["take 0 cannot be judged in ls and comes last"]


def test_an_adapter_is_loaded_with_its_own_views(found, told, given, models):
    if PEFT is None:
        pytest.skip("no peft")
    z = expected(given, models, views="shared", adapter=models / "fantasytalking2" / "critics" / ADAPTER)
    assert same(found["adapter"], sigmoids(z)) and not same(found["adapter"], found["shared"])
    assert "preset shared" in told["adapter"]


def test_a_changed_adapter_is_loaded_anew(found):
    assert found["fingerprint"].all()


REFUSED = {
    "no peft": ["needs peft", "pip install peft", "train.critic merge"],
    "other views": ["trained with other views"],
    "nothing to judge": ["nothing to judge", "images with their fps"],
    "nothing to rank": ["take0, take1"],
    "no weights": ["cannot be ranked", "one of them above 0"],
    "a base that went": ["gone", "LLM", "press R"],
    "an adapter that went": ["gone", "critics", "critic.json"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(told, case):
    if case not in told:
        pytest.skip("ComfyUI's Python has peft" if case == "no peft" else "no peft")
    for word in [*REFUSED[case], "got:", "expected:", "do:"]:
        assert word in told[case], told[case]
