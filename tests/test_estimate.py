"""The arithmetic of estimate.py against what torch counts while tiny models run, and against known sizes."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fantasy_core.audio import AudioTokens
from fantasy_core.estimate import activation_bytes, estimate, pass_flops, token_grid, weight_bytes
from fantasy_core.wan import PRESETS, WanDiT

TINY, I2V = PRESETS["tiny"], PRESETS["wan2.1-i2v-14b"]


def inputs(config, grid: tuple[int, int, int], rows: int) -> dict:
    size = (grid[0], grid[1] * 2, grid[2] * 2)
    given = {"latents": torch.randn(1, 16, *size), "timestep": torch.ones(1)}
    given["text"] = torch.randn(1, 1, config.text_dim)
    if config.condition_dim:
        given["condition"] = torch.randn(1, config.condition_dim, *size)
    if config.clip_dim:
        given["clip"] = torch.randn(1, 257, config.clip_dim)
    if rows:
        given["audio"] = AudioTokens(torch.randn(1, grid[0], rows, config.audio_token_dim), None)
    return given


@pytest.mark.parametrize(
    ("config", "grid", "rows"),
    [
        (TINY, (3, 2, 4), 5),
        (TINY, (1, 3, 2), 0),
        (replace(TINY, clip_dim=0, in_dim=16, audio_token_dim=0), (2, 2, 2), 0),
        (PRESETS["miniature"], (5, 4, 4), 9),
    ],
)
@torch.no_grad()
def test_flops_of_a_pass_are_those_torch_counts(config, grid, rows):
    """Exact, linears and attention apart: with the math backend, attention is the only batched product (bmm)."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        WanDiT(config)(**inputs(config, grid, rows))
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    flops = pass_flops(config, grid, audio_rows=rows)
    assert flops.attention == counted.pop("aten.bmm")
    assert flops.linears == sum(counted.values())
    assert flops.total == counter.get_total_flops()


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made under it that were alive at once; those of `known` tensors do not count."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata)
        return out

    def gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def test_live_bytes_counts_what_is_alive():
    """Two tensors of 4 kB, one freed before a third of 8 kB: at most 12 kB; views, also of what was there, are free."""
    before = torch.zeros(5000)
    with LiveBytes(before) as live:
        kept, gone = torch.zeros(1000), torch.zeros(1000)
        before = before.view(50, 100)
        del gone
        third = torch.zeros(2000).view(2, 1000)
    assert live.peak == 12_000 and kept.numel() + third.numel() == 3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ffn_dim", [160, 1024])
@torch.no_grad()
def test_activations_are_those_of_a_real_pass(dtype, ffn_dim):
    """Many tokens, little else: the counted peak is within 3 % of the arithmetic, whichever moment is the largest."""
    config = replace(TINY, ffn_dim=ffn_dim, clip_dim=0, audio_token_dim=0, num_layers=2, dim=192, num_heads=3)
    dit, grid = WanDiT(config).to(dtype), (2, 16, 16)
    given = inputs(config, grid, 0)
    dit(**given)  # the table of rotary angles is made once
    with LiveBytes(*dit.parameters(), *given.values()) as live:
        dit(**given)
    assert activation_bytes(config, math.prod(grid), dtype) == pytest.approx(live.peak, rel=0.03)


def test_weights_of_the_released_model():
    """bf16 Wan2.1 I2V with audio: 2 bytes for each of 17,233,739,584 parameters, 2 more for those kept in fp32.

    These are, per block, modulation 6d, norm3 2d, four norms of queries and keys and one of image keys 5d; outside,
    time embedding 256d + d + d*d + d, its projection 6d*d + 6d, head 64d + 64 + 2d, norms of img_emb 2*1280 + 2d.
    """
    d = 5120
    kept = 40 * 13 * d + (256 * d + 2 * d + d * d) + (6 * d * d + 6 * d) + (64 * d + 64 + 2 * d) + 2 * 1280 + 2 * d
    everything, blocks, block = weight_bytes(I2V, torch.bfloat16)
    assert everything == 2 * (16_394_878_784 + 838_860_800) + 2 * kept
    assert blocks == 40 * block


def test_known_sizes_of_the_real_model():
    """81 frames at 480x832: 21 x 30 x 52 tokens, 1.687 PFLOP a pass with 53 % attention, 0.05 % saved without audio."""
    plan = estimate(I2V, 81, 480, 832, 30, 2, torch.bfloat16, True)
    assert plan.grid == (21, 30, 52) and token_grid(I2V, 81, 480, 832) == plan.grid
    assert plan.with_audio.total == pytest.approx(1.687e15, rel=1e-3)
    assert plan.with_audio.attention / plan.with_audio.total == pytest.approx(0.533, abs=0.003)
    assert plan.flops == 30 * (plan.with_audio.total + plan.without_audio.total)
    assert "101 PFLOP" in str(plan) and "two blocks" in str(plan) and "UMT5-XXL" in str(plan)


def test_estimate_scales_as_it_should():
    """Windows and steps multiply FLOPs, passes in a batch multiply activations, offload trades device for host."""
    one = estimate(I2V, 81, 480, 832, 30, 3)
    assert estimate(I2V, 81, 480, 832, 60, 3, windows=2).flops == 4 * one.flops
    assert estimate(I2V, 81, 480, 832, 30, 3, batch=3).activations == 3 * one.activations
    streamed = estimate(I2V, 81, 480, 832, 30, 3, offload=True)
    assert one.weights - streamed.weights == streamed.host_weights * 38 // 40
    assert one.host_weights == 0 and streamed.peak < one.peak == one.sampling


def test_the_miniature_needs_no_encoders():
    plan = estimate(PRESETS["miniature"], 17, 64, 64, 12, 2, torch.float32)
    assert plan.encoders == {} and plan.vae == 0 and plan.grid == (5, 4, 4)
    assert "MiB" in str(plan) and "VAE" not in str(plan)
