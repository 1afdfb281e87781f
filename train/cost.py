"""What training costs before it runs, by arithmetic alone: work, memory, disk. Nothing is loaded or run.

FLOPs are those of matrix products (2 per multiply-add) and equal what torch counts. Weights of the base are frozen, so
a backward pass forms gradients of activations only, and of the experts' A and B (stage 1) or the gate's weights (stage
2, whose own products are too small to count). No gradient leaves by the first block's input, nor by text, image and
voice. The reference's pass is counted without experts; GPUs run them at weight zero, up to 1 % of an iteration more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

import torch

from fantasy_core.audio import window_ranges
from fantasy_core.estimate import AUDIO_ROWS, CLIP_TOKENS, block_linears, pass_flops, token_grid, weight_bytes
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS, split_address
from fantasy_core.wan import WanConfig

Grid = tuple[int, int, int]  # latent frames, tokens down and across
CONTEXT = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img", *AUDIO_LINEARS)
ATTENTION_BACKWARD = 2.5  # to one forward: fused kernels form five products for two, one of them again
OPTIMIZER = 3 * 4  # bytes a trained number: itself and AdamW's two moments, fp32
LOG_LINE = 500  # bytes, about


@dataclass(frozen=True)
class Work:
    """FLOPs of products with weights and of attention; bytes of activations that the rest writes (norms, rotations,
    GELU ...), which take their time too; and passes of one block, which take some however few the tokens."""

    linears: float
    attention: float
    traffic: float
    passes: float

    def __add__(self, other: Work) -> Work:
        return Work(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(one * times for one in astuple(self)))

    @property
    def flops(self) -> float:
        return self.linears + self.attention


@dataclass(frozen=True)
class Rates:
    """FLOP/s of linears and of attention, bytes and passes a second of the rest (inf: they take no time)."""

    linears: float
    attention: float
    traffic: float = math.inf
    passes: float = math.inf

    def seconds(self, work: Work) -> float:
        return sum(one / rate for one, rate in zip(astuple(work), astuple(self), strict=True))


@dataclass(frozen=True)
class Training:
    """What is trained and how. ranks: of all experts of a linear together, by its address (`uniform_ranks`).

    gate: how many numbers the gate has, 0 where the experts themselves are trained. reference: none, backbone or
    experts (a gate that is compared with its own start); kept: the share of its passes that need not be run, for their
    errors are kept. form and checkpointing as `train.expert` has them; checkpointing that keeps attention is counted
    as if all of a block were computed again. offload: two blocks of the base are on the device. shards: processes that
    hold a part of every block each, and two blocks whole (the one that is passed and the one that is fetched ahead).
    """

    config: WanConfig
    ranks: Mapping[str, int]
    gate: int = 0
    reference: str = "backbone"
    form: str = "buffers"
    checkpointing: bool = False
    dtype: torch.dtype = torch.bfloat16
    kept: float = 0.0
    offload: bool = False
    shards: int = 1

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return self.gate or self.expert_numbers

    @property
    def expert_numbers(self) -> int:
        return sum(rank * (size_in + size_out) for *_, size_in, size_out, rank, _ in _linears(self, (1, 1, 1)))


def uniform_ranks(config: WanConfig, rank: int, *, audio: bool = True) -> dict[str, int]:
    """One rank on all linears that the model has: 12 a block, and with `audio` the two of the audio attention."""
    names = [name for name in block_linears(config, (1, 1, 1)) if name in LINEARS + (AUDIO_LINEARS if audio else ())]
    return {f"blocks.{block}.{name}": rank for block in range(config.num_layers) for name in names}


class _Linear(NamedTuple):
    block: int
    tokens: int
    size_in: int
    size_out: int
    rank: int
    passes: bool  # whether a gradient leaves by its input


def _first(training: Training) -> int:
    """The first block with experts, where the backward pass ends."""
    return min(split_address(address)[0] for address, rank in training.ranks.items() if rank)


def _linears(training: Training, grid: Grid) -> Iterator[_Linear]:
    """Every linear of every block."""
    first, names = _first(training), block_linears(training.config, grid).items()
    entries = ("self_attn.q", "self_attn.k", "self_attn.v")  # all that the first block's input reaches
    for block in range(training.config.num_layers):
        for name, sizes in names:
            passes = name not in CONTEXT and (block > first or (block == first and name not in entries))
            yield _Linear(block, *sizes, training.ranks.get(f"blocks.{block}.{name}", 0), passes)


# ---- work ----


def forward(training: Training, grid: Grid, *, experts: bool = True) -> Work:
    """One video through the DiT."""
    flops = pass_flops(training.config, grid)
    beside = sum(2 * one.tokens * one.rank * (one.size_in + one.size_out) for one in _linears(training, grid))
    traffic = sum(kept_bytes(training, grid))
    return Work(flops.linears + experts * beside, flops.attention, traffic, training.config.num_layers)


def backward(training: Training, grid: Grid) -> Work:
    """From the error of one video back to what is trained."""
    config, first = training.config, _first(training)
    products = math.prod(grid) * config.dim * math.prod(config.patch_size) * config.out_dim  # the head
    for one in _linears(training, grid):
        towards_x = one.size_in * one.size_out * one.passes  # dX = dY W
        towards_x += one.rank * (one.size_out + one.size_in * one.passes)  # du = dY B, dX = du A
        towards_weights = 0 if training.gate else one.rank * (one.size_in + one.size_out)  # dA = du^T x, dB = dY^T u
        products += one.tokens * (towards_x + towards_weights) * (one.block >= first)
    share = (config.num_layers - first) / config.num_layers
    attention = ATTENTION_BACKWARD * share * pass_flops(config, grid).attention
    return Work(2 * products, attention, 2 * sum(kept_bytes(training, grid)), 2 * (config.num_layers - first))


def unit_work(training: Training, grid: Grid, videos: int) -> Work:
    """One unit of `videos` videos: policy forward and backward, recomputed blocks, pre-pass, reference."""
    ahead = forward(training, grid)
    work = ahead + backward(training, grid)
    if training.checkpointing:
        once = pass_flops(replace(training.config, num_layers=0), grid).total
        work += replace(ahead, linears=ahead.linears - once)
    if training.form == "prepass":
        work += ahead
    return (work + reference_work(training, grid) * (1 - training.kept)) * videos


def reference_work(training: Training, grid: Grid) -> Work:
    """The reference's pass of one video."""
    if training.reference == "none":
        return Work(0, 0, 0, 0)
    return forward(training, grid, experts=training.reference == "experts")


# ---- memory ----


def kept_bytes(training: Training, grid: Grid) -> list[int]:
    """Bytes that autograd keeps of every block for its backward pass, with fused attention.

    fp32: inputs of six norms. In the model's dtype: q, k, v and the result of self-attention; q and a result for each
    of text, image and voice; the hidden layer before GELU; and, where A is trained, what goes into the linears, one
    tensor for q, k and v. Half precision adds copies of A and B.
    """
    config, size, video = training.config, training.dtype.itemsize, math.prod(grid)
    d, others = config.dim, 1 + bool(config.clip_dim) + bool(config.audio_token_dim)
    token = d * (6 * 4 + (5 + others) * size) + config.ffn_dim * size
    token += 0 if training.gate else size * ((3 + (others > 1)) * d + config.ffn_dim)
    token += 4 * config.num_heads * (1 + others) + 3 * 8 + 3 * 4  # what softmax and norms divided by
    context = (config.text_len + bool(config.clip_dim) * CLIP_TOKENS) * (d * (4 + 2 * size) + 4)  # norm of k; k, v
    context += bool(config.audio_token_dim) * grid[0] * AUDIO_ROWS * 2 * d * size
    first = _first(training)
    kept = [video * token + context if block >= first else 0 for block in range(config.num_layers)]
    kept[first] -= 4 * d * video  # its input needs no gradient
    for one in _linears(training, grid):
        kept[one.block] += one.rank * one.tokens * size
        if size < 4:
            kept[one.block] += one.rank * (one.size_out + one.passes * one.size_in) * size
    return kept


def activation_bytes(training: Training, grid: Grid) -> int:
    """Bytes of one video's activations at the largest moment of its backward pass, which is one of two.

    In the head, in fp32: its input, the difference of velocity and target, gradients on their way through the norm; and
    what is kept of all blocks or, with checkpointing, their inputs. In the last block then: what is kept of it too; and
    the gradients of residual and hidden layer, where they do not take the place of what was kept, or a half precision
    block's last addition, in fp32.
    """
    config, size, video = training.config, training.dtype.itemsize, math.prod(grid)
    d, kept = config.dim, kept_bytes(training, grid)
    head = 4 * video * (5 * d + math.prod(config.patch_size) * config.out_dim)
    hidden = size * (2 * d + (2 if training.gate else 1) * config.ffn_dim)
    block = video * max(hidden, 16 * d if size < 4 else 0)
    rotations = 4 * video * config.head_dim
    if not training.checkpointing:
        return sum(kept) + max(head, block) + rotations
    again = max(kept) - (4 * d * video if size == 4 else 0)  # an fp32 block keeps its input as it is
    return config.num_layers * video * d * size + max(head, again + block) + rotations


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    base: int
    experts: int  # frozen ones, under a gate
    state: int  # trained numbers, AdamW's moments, the gradient
    buffers: int  # gradients of single videos
    activations: int

    @property
    def peak(self) -> int:
        return self.base + self.experts + self.state + self.buffers + self.activations


def _resident(training: Training, blocks: int, block: int) -> int:
    """Bytes of the base's blocks on the device."""
    if training.offload:
        return 2 * block
    return blocks if training.shards == 1 else -(-blocks // training.shards) + 2 * block


def memory(training: Training, grid: Grid, videos: int) -> Memory:
    """What a unit of `videos` videos takes, without the allocator's slack: expect a tenth more."""
    base, blocks, block = weight_bytes(training.config, training.dtype)
    return Memory(
        base=base - blocks + _resident(training, blocks, block),
        experts=4 * training.expert_numbers if training.gate else 0,
        state=(OPTIMIZER + 4) * training.trained,
        buffers=4 * training.trained * (videos if training.form == "buffers" else 1),
        activations=activation_bytes(training, grid) * (videos if training.form == "joint" else 1),
    )


# ---- disk ----


def cached_bytes(
    config: WanConfig,
    frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    *,
    fps: float = 23.0,
    lips: bool = False,
) -> int:
    """What train.cache stores of a video of 1 + 4k frames; texts are counted at their full length."""
    time, down, across = token_grid(config, frames, height, width)
    ranges = window_ranges(1, frames, fps=fps)
    heard = max(last - first for first, last in ranges) + 1 + 2 * 4 if config.audio_token_dim else 0
    cell = time * config.patch_size[0] * (height // 8) * (width // 8)
    pictures = config.out_dim + max(config.condition_dim - 4, 0)  # the video, and its image condition
    numbers = cell * (pictures + lips) + time * heard * config.audio_token_dim
    numbers += config.text_len * config.text_dim + bool(config.clip_dim) * CLIP_TOKENS * config.clip_dim
    return numbers * dtype.itemsize + 8 * time * bool(heard)  # and the windows' lengths, int64


def checkpoint_bytes(training: Training) -> int:
    """Of the run's state on disk; while it is replaced, there are two."""
    return OPTIMIZER * training.trained
