"""The benchmark of training at the true size on a CPU: every way runs, and its FLOPs are those that torch counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.bench_train_14b import STAGES, WAYS, Trainee, main
from benchmarks.random_dit import AUDIO_ROWS, random_dit, random_inputs
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fantasy_core.wan import PRESETS

ATEN = torch.ops.aten
ATTENTION = {  # the backward pass needs four products; torch counts the fifth, scores computed again, as kernels do
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda *s, **_: 2 * sdpa_flop_count(*s[1:4]),
}


def test_every_way_runs(capsys):
    flags = ["--preset", "tiny", "--shapes", "5x32x32", "--device", "cpu", "--rank", "2", "--repeat", "1"]
    assert main([*flags, "--offload", "blocks", "--fp8"]) == 0
    rows = [
        line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| expert", "| gate"))
    ]
    assert [(row[0].strip("| "), row[2]) for row in rows] == [(stage, way) for stage in STAGES for way in WAYS]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["joint", "cached"])
def test_flops_are_those_that_torch_counts(stage, way):
    """Two videos, everything kept. The gate's own products [E, d] t_emb of every block are left out: one in a pass, and
    one for the gradient."""
    config = replace(PRESETS["tiny"], num_layers=3)
    dit = random_dit(config, torch.float32)
    given = random_inputs(config, 9, 32, 64, AUDIO_ROWS, "cpu")
    videos = [given | {"latents": torch.randn_like(given["latents"])} for _ in range(2)]
    trainee = Trainee(dit, stage, 2, "adamw", torch.device("cpu"))
    with trainee.attached(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        trainee.iteration(way, videos, torch.ones(2))
    passes = 2 if way == "cached" else 4
    own = 2 * 3 * 3 * config.dim * (passes + 2) if stage == "gate" else 0
    assert counter.get_total_flops() == trainee.flops(way, 9, 32, 64) + own
