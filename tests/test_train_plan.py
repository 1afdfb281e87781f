"""What a training costs: the arithmetic against what torch counts and keeps while tiny models are trained, against the
files of real runs, and against the known figures of the real model."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
import torch
from small_dits import inputs
from test_estimate import LiveBytes
from test_train_preferences import data, expert_arguments, gate_arguments  # noqa: F401 (a fixture)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fantasy_core.estimate import told_bytes, told_flops
from fantasy_core.preference import video_error
from fantasy_core.wan import PRESETS
from fantasy_core.weights import open_tensors
from train import cache as cache_stage
from train import expert as expert_stage
from train import gate as gate_stage
from train import plan as plan_stage
from train.budget import Budget
from train.cost import (
    LOG_LINE,
    Rates,
    Training,
    activation_bytes,
    cached_bytes,
    checkpoint_bytes,
    forward,
    kept_bytes,
    memory,
    reference_work,
    uniform_ranks,
    unit_work,
)
from train.plan import PAPER
from train.shards import Cache
from train.speed import TrueIteration, calibrate

TINY, I2V, MINIATURE = (PRESETS[name] for name in ("tiny", "wan2.1-i2v-14b", "miniature"))
PLAIN = replace(TINY, clip_dim=0)
CPU, GRID, GRID_256 = torch.device("cpu"), (3, 2, 4), (2, 8, 16)
FULL = (21, 30, 52)  # 81 frames of 832 x 480
EXPERT = Training(I2V, uniform_ranks(I2V, 128), checkpointing=True)
GATE = Training(I2V, uniform_ranks(I2V, 384), gate=40 * 3 * 5121, checkpointing=True)


def tiny(config=TINY, rank: int = 4, gate: bool = False, audio: bool = True, **how) -> Training:
    numbers = config.num_layers * (config.dim + 1) if gate else 0
    told = {"dtype": torch.float32, **how}
    return Training(config, uniform_ranks(config, rank, audio=audio), gate=numbers, **told)


# ---- work ----


@pytest.mark.parametrize(
    "training",
    [
        tiny(),
        tiny(rank=7, form="prepass", checkpointing=True),
        tiny(PLAIN, rank=5, reference="none", checkpointing=True),
        tiny(gate=True, checkpointing=True),
        tiny(gate=True, rank=3, form="prepass", reference="none"),
        tiny(gate=True, reference="experts"),
    ],
    ids=lambda one: f"{'gate' if one.gate else 'expert'}-{one.form}-{one.checkpointing}-{one.reference}",
)
def test_flops_of_a_unit_are_those_torch_counts(training):
    """Exact, linears and attention apart, for a unit of one pair as the trainer runs it.

    The math backend forms four products in a backward pass of attention where fused kernels form five: 2 forward passes
    instead of 2.5. A gate's own product, 2 FLOPs x blocks x width in each pass of each of two videos and as much again
    for its gradient, is a batched one too, and is taken off.
    """
    iteration = TrueIteration(training, GRID, 2, CPU)
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}  # the counter knows addmm alone
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        iteration()
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    work = unit_work(training, GRID, 2)
    asked = 1 + (training.form == "prepass") + (training.reference != "none")  # forward passes with a gate's product
    passes = asked + training.checkpointing
    own = 2 * bool(training.gate) * (asked + 1) * 2 * training.config.num_layers * training.config.dim
    assert work.attention * (passes + 2) / (passes + 2.5) == counted.pop("aten.bmm") - own
    assert work.linears == sum(counted.values())


def test_twelve_linears_leave_the_voice_alone():
    """Without experts on audio keys and values their products have no backward pass: what 12 linears save against 14
    is, of every such product, rank x (in + out) forward, as much for A and B, and rank x out towards A."""
    most, fewer = tiny(rank=6), tiny(rank=6, audio=False, reference="none")
    most = replace(most, reference="none")
    one, other = (unit_work(training, GRID, 1).linears for training in (most, fewer))
    tokens, size_in, size_out = 3 * 17, TINY.audio_token_dim, TINY.dim
    saved = 2 * tokens * 6 * (2 * (size_in + size_out) + size_out) * 2 * TINY.num_layers
    assert one - other == saved
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        TrueIteration(fewer, GRID, 2, CPU)()
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    assert 2 * other == sum(count for op, count in counted.items() if op != "aten.bmm")


def test_a_pair_of_the_real_model():
    """Forward 1.69 PFLOP; LoRA of rank 128 adds 2 %; a checkpointed pair 16.5 (2 x 6.54 and the reference's 2 x 1.69),
    of which the reference is 20 %; with the gate over three experts 16.8."""
    one = forward(EXPERT, FULL, experts=False)
    assert one.flops == pytest.approx(1.69e15, rel=2e-3) and EXPERT.trained == pytest.approx(792e6, rel=1e-3)
    assert forward(EXPERT, FULL).flops / one.flops == pytest.approx(1.02, abs=2e-3)
    pair = unit_work(EXPERT, FULL, 2).flops
    assert pair == pytest.approx(16.5e15, rel=5e-3)
    assert 2 * reference_work(EXPERT, FULL).flops / pair == pytest.approx(0.205, abs=3e-3)
    assert unit_work(GATE, FULL, 2).flops == pytest.approx(16.8e15, rel=5e-3)


def test_the_paper_s_run_takes_months(capsys):
    """On A100s that reach 45 % of 312 TFLOP/s: 58.6, 65, 42 and 2.9 thousand hours, on 16 of them 153, 170, 110 and 8
    days; MN alone is 1.8 million visits of pairs."""
    rate = Rates(0.45 * 312e12, 0.45 * 312e12)
    hours = {"mn": 58.6e3, "ls": 65e3, "vq": 42e3, "gate": 2.9e3}
    for name, (pairs, epochs) in PAPER.items():
        training = GATE if name == "gate" else EXPERT
        one = Budget(training, {(FULL, 2): pairs}, pairs, batch=4, iterations=pairs * epochs // 4)
        assert one.seconds(rate) / 3600 == pytest.approx(hours[name], rel=0.04)
    assert plan_stage.main(["--rate", "1.404e14"]) == 0
    told = capsys.readouterr().out
    assert all(f"{days} days" in told for days in (153, 170, 110, 8)) and "takes months" in told


def test_shared_passes_and_more_gpus():
    """Four videos of an input are six pairs for two pairs' work; eight GPUs take an eighth of the time of one."""
    assert unit_work(EXPERT, FULL, 4) == unit_work(EXPERT, FULL, 2) * 2
    one = Budget(EXPERT, {(FULL, 2): 100}, 100, batch=4, iterations=50)
    assert one.work == unit_work(EXPERT, FULL, 2) * 200
    assert replace(one, gpus=8).seconds(Rates(1e15, 1e15)) == one.work.flops / 8e15


# ---- memory ----


def kept_by_autograd(model: TrueIteration) -> int:
    """Bytes of all storages that autograd keeps for one video's backward pass, but for parameters."""
    known = {p.untyped_storage()._cdata for p in (*model.dit.parameters(), *model.bank.parameters())}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with model.attached(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        error = model.errors()(0) if model.training.config.audio_token_dim else bare_error(model, GRID_256)
    assert error.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


def bare_error(model: TrueIteration, grid: tuple[int, int, int]) -> Tensor:
    """Of a text-to-video model, which the trainer has no use for."""
    told = inputs(model.training.config, 1, (grid[0], 2 * grid[1], 2 * grid[2]))
    return video_error(model.dit(**told), torch.zeros_like(told["latents"]))[0]


def kept_by_head(training: Training, grid: tuple[int, int, int]) -> int:
    """fp32: the head's input, the rotations, the difference of velocity and target."""
    return 4 * math.prod(grid) * (training.config.dim + training.config.head_dim + 64)


@pytest.mark.parametrize("gate", [False, True], ids=["expert", "gate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [TINY, PLAIN, replace(PLAIN, in_dim=16, audio_dim=0, audio_token_dim=0)])
def test_kept_activations_are_those_of_autograd(config, dtype, gate):
    """Two blocks and the head. Not in the arithmetic are modulations (8 vectors a block) and text, image and voice as
    they come, once for all blocks: together under 3 % of what 256 tokens keep."""
    training = tiny(config, gate=gate, dtype=dtype)
    kept = kept_by_autograd(TrueIteration(training, GRID_256, 2, CPU))
    expected = sum(kept_bytes(training, GRID_256)) + kept_by_head(training, GRID_256)
    assert 0.97 * kept < expected <= kept


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("gate", [False, True], ids=["expert", "gate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_moment_is_that_of_a_real_pass(dtype, gate, checkpointing):
    """All live tensors of one video's forward and backward pass, within 3 %."""
    config, grid = replace(PLAIN, num_layers=3), GRID_256
    training = tiny(config, gate=gate, dtype=dtype, checkpointing=checkpointing)
    model = TrueIteration(training, grid, 2, CPU)
    model()  # the table of rotary angles is made once
    known = (*model.dit.parameters(), *model.bank.parameters(), *model.parameters)
    with LiveBytes(*known, *model.data.cache["0"].values()) as live, model.attached():
        torch.autograd.grad(model.errors()(0), model.parameters)
    assert activation_bytes(training, grid) == pytest.approx(live.peak, rel=0.03)


def test_memory_of_the_real_model():
    """bf16 base 34.8 GB; 792M trained numbers in fp32 with moments and gradient 16 bytes each, two videos' gradients 8
    more (`prepass`: one, 4). Recomputed blocks keep 40 inputs of 335 MB; all kept, 40 blocks of 10 GB would not fit."""
    held = memory(EXPERT, FULL, 2)
    assert held.base == pytest.approx(34.8e9, rel=3e-3) and held.experts == 0
    assert held.state == 16 * EXPERT.trained and held.buffers == 8 * EXPERT.trained
    assert memory(replace(EXPERT, form="prepass"), FULL, 2).buffers == 4 * EXPERT.trained
    assert 40 * 335e6 + 10e9 < held.activations < 40 * 335e6 + 14e9
    assert memory(replace(EXPERT, checkpointing=False), FULL, 2).activations > 390e9
    gate = memory(GATE, FULL, 2)
    assert gate.experts == 3 * 4 * EXPERT.trained and gate.peak < held.peak


# ---- the stages' files and dry runs ----


def test_the_plan_is_what_the_cache_and_a_run_leave(data, tmp_path, capsys):  # noqa: F811
    """Every cached tensor of four real videos, told beforehand by `train.cache --dry-run`; three numbers in fp32 for
    each trained one and a counter for each tensor in the checkpoint; a log as long as planned, within a half."""
    held = Cache(data / "cache")
    stored = {name: sum(tensor.nbytes for tensor in held[name].values()) for name in held.videos}
    assert set(stored.values()) == {cached_bytes(MINIATURE, 17, 64, 64, torch.float32, lips=True)}
    command = ["--videos", f"{data}/videos.jsonl", "--out", str(tmp_path / "none"), "--masks", f"{data}/masks"]
    assert cache_stage.main([*command, "--dry-run"]) == 0
    assert f"disk: {told_bytes(sum(stored.values()))}; 4 of 17 frames 64 x 64" in capsys.readouterr().out
    out = tmp_path / "run"
    assert expert_stage.main(expert_arguments(data, out, iterations=2)) == 0
    training = Training(MINIATURE, uniform_ranks(MINIATURE, 2), dtype=torch.float32)
    state = open_tensors(out / "checkpoint" / "state.safetensors").entries.values()
    counters = 4 * sum(
        name.endswith(".step") for name in open_tensors(out / "checkpoint" / "state.safetensors").entries
    )
    assert sum(lazy.read().nbytes for lazy in state) - counters == checkpoint_bytes(training)
    assert (out / "log.jsonl").stat().st_size / 2 == pytest.approx(LOG_LINE, rel=0.5)


def test_dry_runs_tell_what_a_run_costs(data, tmp_path, capsys):  # noqa: F811
    """Two pairs of 17 frames of 64 x 64: units of 5 x 4 x 4 tokens, in batches of three; nothing is written."""
    arguments = [*expert_arguments(data, tmp_path / "run", batch=3, iterations=7), "--dry-run"]
    assert expert_stage.main(arguments) == 0
    told = capsys.readouterr().out
    training = Training(MINIATURE, uniform_ranks(MINIATURE, 2), dtype=torch.float32)
    unit = unit_work(training, (5, 4, 4), 2).flops
    for line in ("80 = 5 x 4 x 4", f"{told_flops(3 * unit)} = 3 units", f"{told_flops(21 * unit)} = 7, 10.50 epochs"):
        assert line in told
    assert f"{training.trained:,} numbers of an expert" in told and "2 pairs in 2 units" in told
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_the_gate_counts_its_experts(data, tmp_path, capsys):  # noqa: F811
    """Experts of rank 2 and 3: their numbers frozen, a gate of 4 blocks x 2 experts x (256 + 1); of one, and of 4 x 14
    places in the ablations."""
    for name, rank in (("ls", 2), ("other", 3)):
        out = tmp_path / name
        assert expert_stage.main(expert_arguments(data, out, "ls", iterations=1, rank=rank)) == 0
        (out / "ls.safetensors").rename(tmp_path / f"{name}.safetensors")
        (out / "ls.audio.safetensors").rename(tmp_path / f"{name}.audio.safetensors")
    frozen = Training(MINIATURE, uniform_ranks(MINIATURE, 5)).trained * 4
    for granularity, numbers in (("block", 4 * 2 * 257), ("expert", 2 * 257), ("module", 14 * 4 * 2 * 257)):
        arguments = gate_arguments(data, tmp_path / "gate", tmp_path / "ls.safetensors", granularity=granularity)
        assert gate_stage.main([*arguments, "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert f"{numbers:,} numbers of the gate" in told and told_bytes(frozen) in told


# ---- the command ----


def test_rates_are_measured_on_a_true_iteration(capsys):
    """Time shared out among linears, attention, the rest and the passes themselves: nothing takes no time."""
    rates, told = calibrate(tiny(), (1, 2, 2), 2, CPU)
    assert all(0 < rate < math.inf for rate in astuple(rates))
    assert told == "2 blocks, 1 x 2 x 2 tokens, 2 videos"
    size = ["--frames", "1", "--height", "32", "--width", "32", "--rank", "2"]
    command = ["--pairs", "8", "--model", "tiny", "--dtype", "fp32", "--calibrate", "true", *size]
    assert plan_stage.main(command) == 0
    assert "measured on cpu" in (told := capsys.readouterr().out) and "this cpu" in told
    assert plan_stage.main([*command, "--dry-run"]) == 0
    assert "measured" not in capsys.readouterr().out


def test_units_epochs_and_iterations(capsys):
    """120 pairs of inputs with 4 videos are 20 units; three epochs in batches of 4 are 15 iterations, if not given."""
    command = ["--pairs", "120", "--unit", "input", "--videos", "4", "--epochs", "3", "--model", "miniature"]
    assert plan_stage.main(command) == 0
    assert "120 pairs in 20 units of 4 videos" in (told := capsys.readouterr().out) and " = 15, 3.00 epochs" in told
    assert plan_stage.main([*command, "--iterations", "10"]) == 0
    assert " = 10, 2.00 epochs" in capsys.readouterr().out


def test_sizes_that_no_video_has(capsys):
    for flag, value in (("--frames", "80"), ("--height", "500"), ("--rate", "0"), ("--stage", "critic")):
        assert plan_stage.main([flag, value]) == 2
        assert value in capsys.readouterr().err
