"""The reference's errors, computed or kept, and the ways to one gradient."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small_experts import random_bank
from test_train_preferences import data, expert_arguments, gate_arguments, log_of  # noqa: F401

from fantasy_core.errors import UserError
from fantasy_core.fusion import attach
from fantasy_core.gate import Beside
from fantasy_core.miniature import load_components
from fantasy_core.preference import Objective
from train import expert as expert_stage
from train import gate as gate_stage
from train.distributed import World
from train.errors import Draws
from train.gradient import gradient
from train.reference import KeptReference, LiveReference
from train.shards import Cache, ShardWriter
from train.trainer import PairData, Plan, Switch

FACTS = {"weights": "a", "shift": 1.0}


@pytest.fixture(scope="module")
def dit():
    with load_components().dit() as dit:
        yield dit.requires_grad_(False)


@pytest.fixture
def passes(dit):
    """Counts the videos that go through the model."""
    seen = []
    hook = dit.register_forward_hook(lambda module, given, velocity: seen.append(len(velocity)))
    yield seen
    hook.remove()


def cache_in(data: Path, folder: Path) -> Cache:  # noqa: F811
    """The cache of `data`, with a place of its own for what is kept."""
    for file in (data / "cache").glob("*.*"):
        (folder / file.name).symlink_to(file)
    return Cache(folder)


def units_of(data: Path, cache: Cache, dit, *, masked: bool):  # noqa: F811
    """Both inputs under a fixed draw of their own."""
    pairs, draws = PairData(data / "pairs_ls.jsonl", cache, masked=masked), Draws(0, "logit-normal", 1.0, fixed=4)
    return [pairs.errors(dit, unit, draws(index, unit.input)) for index, unit in enumerate(pairs.units)]


@pytest.mark.parametrize("masked", [False, True])
def test_kept_errors_are_the_computed_ones(data, dit, passes, tmp_path, masked):  # noqa: F811
    """Bit for bit, with the lips' mask and without it, from the same maps; the second time no video is run."""
    cache = cache_in(data, tmp_path)
    units = units_of(data, cache, dit, masked=masked)
    live = LiveReference(nullcontext)(units, together=False)
    passes.clear()
    for expected in ([1, 1, 1, 1], []):
        kept = KeptReference(nullcontext, cache, FACTS)(units, together=False)
        assert passes == expected
        assert all(torch.equal(a, b) for a, b in zip(live, kept, strict=True))
        passes.clear()
    other = units_of(data, cache, dit, masked=not masked)  # masks may change later
    KeptReference(nullcontext, cache, FACTS)(other, together=True)
    assert passes == []


def test_what_was_kept_for_another_base_or_video_is_never_used(data, dit, passes, tmp_path):  # noqa: F811
    cache = cache_in(data, tmp_path)
    units = units_of(data, cache, dit, masked=False)
    KeptReference(nullcontext, cache, FACTS)(units, together=True)
    passes.clear()
    KeptReference(nullcontext, cache, FACTS | {"weights": "b"})(units, together=True)
    assert passes == [4]
    cache.videos["v0"]["hash"] = "f" * 64  # encoded anew
    KeptReference(nullcontext, cache, FACTS)(units, together=True)
    assert passes == [4, 1]


def test_kept_draws_return_for_every_seed_and_differ_by_input():
    """Runs of other seeds meet the same few draws of an input; all of them come up; sigma is drawn as without them."""
    one, two = (Draws(seed, "logit-normal", 5.0, fixed=4) for seed in (1, 2))
    seen = [{draws(index, "a").keys for index in range(100)} for draws in (one, two)]
    assert seen[0] == seen[1] and len(seen[0]) == 4
    assert not seen[0] & {one(index, "b").keys for index in range(100)}
    sigmas = torch.tensor([one.of_input(str(n), 0).sigma for n in range(2000)], dtype=torch.float64)
    # logit-normal shifted by s has a median of s / (1 + s); 2000 draws know the share below it to 0.011 (one sigma)
    assert abs((sigmas < 5 / 6).double().mean() - 0.5) < 0.05


def test_one_graph_over_many_pairs_is_the_same_gradient(data, dit, tmp_path):  # noqa: F811
    """Two units, each at its own sigma, and an expert that does something: one pass over four videos against four
    passes of one. Losses to fp32's rounding of errors near 1, gradients to 1e-5 of their largest number
    (measured: 3.5e-6)."""
    units, bank = units_of(data, cache_in(data, tmp_path), dit, masked=True), random_bank(dit, (2,), ("ls",))
    switch, parameters = Switch(Beside(None, {"ls": 1.0}, 4), bank.names, 4), list(bank.requires_grad_().parameters())
    found = {}
    for form in ("buffers", "joint"):
        with attach(dit, bank, switch, "stacked"):
            known = LiveReference(switch.off)
            lines = gradient(form, units, 2, parameters, Objective(beta=2.0), known, World(torch.device("cpu")))
        found[form] = [line["loss"] for line in lines], [parameter.grad.clone() for parameter in parameters]
        bank.zero_grad(set_to_none=True)
    (losses, gradients), (joint_losses, joint_gradients) = found.values()
    assert losses == pytest.approx(joint_losses, abs=1e-6) and len({*losses}) == 2
    largest = max(float(one.abs().max()) for one in gradients)
    for one, other in zip(gradients, joint_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-5 * largest


def test_a_run_with_kept_errors_repeats_itself(data, tmp_path):  # noqa: F811
    """The first run fills what the second finds; loss begins at ln 2, for the policy begins as what was kept."""
    flags = {"iterations": 3, "reference-errors": "cached", "reference-draws": 2}
    for out in ("one", "two"):
        assert expert_stage.main(expert_arguments(data, tmp_path / out, **flags)) == 0
    assert log_of(tmp_path / "one") == log_of(tmp_path / "two")
    assert log_of(tmp_path / "one")[0]["margin"] == 0


def test_a_gates_own_start_cannot_be_kept(data, tmp_path, capsys):  # noqa: F811
    flags = {"reference": "initial-gate", "reference-errors": "cached"}
    assert gate_stage.main([*gate_arguments(data, tmp_path / "gate", tmp_path / "x.safetensors", **flags)]) == 2
    assert "only the backbone's errors can be kept" in capsys.readouterr().err


def test_sizes_that_cannot_share_a_pass_are_found_before_it(data, dit, tmp_path):  # noqa: F811
    """A cache whose second input has fewer frames: video by video it trains, in one pass it is refused."""
    writer = ShardWriter(tmp_path / "cache", {"weights": "any"})
    for number, frames in enumerate((3, 3, 2, 2)):
        held = {"latents": torch.zeros(16, frames, 8, 8), "image": torch.zeros(16, frames, 8, 8)}
        held |= {"audio": torch.zeros(frames, 5, 64), "text": torch.zeros(1, 16)}
        writer.add(f"v{number}", held, {"sha256": "0"})
    writer.finish()
    pairs = PairData(data / "pairs_mn.jsonl", Cache(tmp_path / "cache"))
    with pytest.raises(UserError, match="2 x 8 x 8, 3 x 8 x 8"):
        pairs.check_one_size()
    PairData(data / "pairs_mn.jsonl", Cache(data / "cache")).check_one_size()


def test_learning_rates_rise_and_fall_in_straight_lines():
    """Four of ten iterations up: 1/4, 2/4, 3/4, 1; down to 0.2 at the end of ten: after n of them 1 - 0.08 n."""
    plan = Plan(10, 1, 0, "buffers", 1.0, 4, 0.2, 1, 0)
    expected = [min(1, (n + 1) / 4) * (1 - 0.08 * n) for n in range(10)]
    assert [plan.rate(n) for n in range(10)] == pytest.approx(expected)
    assert Plan(10, 1, 0, "buffers", 1.0, 0, 1.0, 1, 0).rate(7) == 1


def test_sft_descends_the_chosen_videos_own_error(data, tmp_path):  # noqa: F811
    """Its loss is the chosen error itself: what DPO's log calls the gain, with the other sign."""
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", loss="sft", iterations=2)) == 0
    for row in log_of(tmp_path / "run"):
        assert row["loss"] == pytest.approx(-row["gain_chosen"])
