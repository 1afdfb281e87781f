"""What a video costs, by arithmetic alone: FLOPs of every pass, memory of every stage. Nothing is loaded or run.

FLOPs are those of matrix products (2 per multiply-add) and equal what torch counts. Memory is what the tensors of the
largest moment take, without the allocator's slack: expect a real run about a tenth above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from .wan import WanConfig, WanDiT

CLIP_TOKENS = 257
AUDIO_ROWS = 17  # of a window at 81 frames and 23 fps (FantasyTalking)
# Encoders, told by the width of what they make: field of WanConfig, width, name, parameters.
ENCODERS = (
    ("text_dim", 4096, "UMT5-XXL", 5_680_910_336),
    ("clip_dim", 1280, "CLIP ViT-H/14", 632_076_800),
    ("audio_dim", 768, "wav2vec2-base", 94_371_712),
)
VAE_PARAMETERS = 126_892_531
VAE_BYTES_PER_PIXEL = 20_000  # decoding in fp32, four frames at a time: live tensors of AutoencoderKLWan, counted
PLANNING_RATES = {"RTX 4090": 150e12, "A100": 250e12, "H200": 650e12}  # FLOP/s in bf16: assumptions, not measured


@dataclass(frozen=True)
class PassFlops:
    """FLOPs of one pass of the DiT: products with weights, and attention (queries with keys, weights with values)."""

    linears: int
    attention: int

    @property
    def total(self) -> int:
        return self.linears + self.attention


def token_grid(config: WanConfig, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, and tokens down and across, of a video of 1 + 4k frames and height x width pixels."""
    time, down, across = config.patch_size
    return (1 + (frames - 1) // 4) // time, height // (8 * down), width // (8 * across)


def block_linears(
    config: WanConfig, grid: tuple[int, int, int], *, audio_rows: int = AUDIO_ROWS, clip_tokens: int = CLIP_TOKENS
) -> dict[str, tuple[int, int, int]]:
    """(tokens of one sample, in, out) of every linear of a block, by its name within the block."""
    d, video, hidden = config.dim, math.prod(grid), config.ffn_dim
    linears = {f"self_attn.{name}": (video, d, d) for name in "qkvo"}
    linears |= {f"cross_attn.{name}": (video, d, d) for name in "qo"}
    linears |= {f"cross_attn.{name}": (config.text_len, d, d) for name in "kv"}
    if config.clip_dim and clip_tokens:
        linears |= {f"cross_attn.{name}_img": (clip_tokens, d, d) for name in "kv"}
    if config.audio_token_dim and audio_rows:
        heard = (grid[0] * audio_rows, config.audio_token_dim, d)
        linears |= {f"cross_attn.processor.{name}_proj": heard for name in "kv"}
    return linears | {"ffn.0": (video, d, hidden), "ffn.2": (video, hidden, d)}


def pass_flops(
    config: WanConfig, grid: tuple[int, int, int], *, audio_rows: int = AUDIO_ROWS, clip_tokens: int = CLIP_TOKENS
) -> PassFlops:
    """One sample through the DiT; audio_rows 0: without audio, clip_tokens 0: without CLIP tokens."""
    d, video, patch = config.dim, math.prod(grid), math.prod(config.patch_size)
    image = clip_tokens if config.clip_dim else 0
    rows = audio_rows if config.audio_token_dim else 0
    once = video * d * patch * (config.in_dim + config.out_dim)
    once += config.text_len * (config.text_dim * d + d * d) + image * (config.clip_dim**2 + config.clip_dim * d)
    once += config.freq_dim * d + d * d + 6 * d * d
    linears = block_linears(config, grid, audio_rows=audio_rows, clip_tokens=clip_tokens).values()
    block = sum(tokens * size_in * size_out for tokens, size_in, size_out in linears)
    seen = video + config.text_len + image + rows  # keys of one query
    return PassFlops(2 * (once + config.num_layers * block), 2 * config.num_layers * 2 * video * seen * d)


@lru_cache(maxsize=8)  # naming 40 blocks takes seconds
def weight_bytes(config: WanConfig, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of a DiT cast to dtype: all of it, its blocks, its largest block. Norms, time and head stay fp32."""
    with torch.device("meta"):
        dit = WanDiT(config).to(dtype)
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in dit.blocks]
    return sum(parameter.nbytes for parameter in dit.parameters()), sum(blocks), max(blocks)


def activation_bytes(config: WanConfig, tokens: int, dtype: torch.dtype) -> int:
    """Live tensors [tokens, ...] at the largest moment of a pass without gradients, which is one of three.

    Turning the keys: x, its norm, q, k, turned q, and 8 bytes a channel of fp32 products (12 with the fp32 copy of a
    half precision k). Attention: x, its norm, q, k, both turned, v and the result. GELU: the block's input, x, its norm
    and the hidden layer before and after.
    """
    size, d = dtype.itemsize, config.dim
    turning = d * (5 * size + (12 if size < 4 else 8))
    return tokens * max(turning, 8 * d * size, size * (3 * d + 2 * config.ffn_dim))


@dataclass(frozen=True)
class Estimate:
    """The plan of one video; bytes are on the device unless said otherwise. `str()` is a table for people."""

    config: WanConfig
    frames: int
    height: int
    width: int
    steps: int
    passes: int
    dtype: torch.dtype
    offload: bool
    windows: int
    grid: tuple[int, int, int]
    with_audio: PassFlops
    without_audio: PassFlops
    weights: int
    host_weights: int  # blocks that wait in host memory
    activations: int
    latents: int
    encoders: dict[str, int]
    vae: int  # weights and decoding, fp32

    @property
    def flops(self) -> int:
        """Of all steps and windows; one pass of a step hears the audio, the others do not."""
        step = self.with_audio.total + (self.passes - 1) * self.without_audio.total
        return self.windows * self.steps * step

    @property
    def sampling(self) -> int:
        return self.weights + self.activations + self.latents

    @property
    def peak(self) -> int:
        """Bytes of the largest stage: encoders, sampling and decoding come one after another."""
        return max(self.sampling, self.vae + self.latents, *self.encoders.values(), 0)

    def __str__(self) -> str:
        one, share = self.with_audio, self.with_audio.attention / self.with_audio.total
        name = str(self.dtype).removeprefix("torch.")
        rows = [
            ("video", f"{self.frames} frames of {self.width} x {self.height} a window, {self.windows} window(s)"),
            ("tokens", f"{math.prod(self.grid):,} = {' x '.join(map(str, self.grid))}"),
            ("one pass", f"{told_flops(one.total)}, {share:.0%} of it attention"),
            ("all passes", f"{told_flops(self.flops)} = {self.windows} x {self.steps} steps x {self.passes} pass(es)"),
            ("time, assumed rates", _times(self.flops) if self.dtype.itemsize == 2 else ""),
            *((f"memory, {encoder}", told_bytes(size)) for encoder, size in self.encoders.items()),
            (f"memory, weights {name}", told_bytes(self.weights) + (", two blocks of them" if self.offload else "")),
            ("memory, activations", told_bytes(self.activations)),
            ("memory, latents", told_bytes(self.latents)),
            ("memory, VAE fp32", told_bytes(self.vae)),
            ("memory, largest stage", f"{told_bytes(self.peak)}, and about a tenth for the allocator"),
            ("host memory, blocks", told_bytes(self.host_weights)),
        ]
        return "\n".join(f"{label:<28}{text}" for label, text in rows if text not in ("", told_bytes(0)))


def estimate(
    config: WanConfig,
    frames: int,
    height: int,
    width: int,
    steps: int,
    passes: int,
    dtype: torch.dtype = torch.bfloat16,
    offload: bool = False,
    *,
    windows: int = 1,
    batch: int = 1,
) -> Estimate:
    """The cost of a video of `windows` windows of `frames` frames. `batch` passes at a time go through the DiT."""
    grid = token_grid(config, frames, height, width)
    everything, blocks, block = weight_bytes(config, dtype)
    latent = grid[0] * height * width // 64 * config.patch_size[0]
    real = config.text_dim == 4096  # the miniature has a codec of its own, of a few kB
    return Estimate(
        config, frames, height, width, steps, passes, dtype, offload, windows, grid,
        with_audio=pass_flops(config, grid),
        without_audio=pass_flops(config, grid, audio_rows=0),
        weights=everything - blocks + 2 * block if offload else everything,
        host_weights=blocks if offload else 0,
        activations=activation_bytes(config, batch * math.prod(grid), dtype),
        latents=4 * latent * (2 * config.out_dim + config.in_dim + passes * config.out_dim),
        encoders={name: count * dtype.itemsize for field, d, name, count in ENCODERS if getattr(config, field) == d},
        vae=4 * VAE_PARAMETERS + VAE_BYTES_PER_PIXEL * height * width if real else 0,
    )  # fmt: skip


def told_flops(count: float) -> str:
    """FLOPs for people: 1.69 PFLOP, 20 GFLOP."""
    for power, unit in ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP"


def told_bytes(count: int) -> str:
    """Bytes for people: 1.5 GiB, 20.0 MiB, 3 KiB."""
    for power, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def _times(flops: float) -> str:
    return ", ".join(f"{name} {told_seconds(flops / rate)}" for name, rate in PLANNING_RATES.items())


def told_seconds(seconds: float) -> str:
    """Seconds for people: 1.5 s, 20.0 min, 3.0 h, 12 days."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:,.0f} days"
