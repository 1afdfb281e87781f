"""Wan2.1's video diffusion transformer with FantasyTalking's audio cross-attention, at any size.

The state dict has the official Wan2.1 names and, for audio, FantasyTalking's (`cross_attn.processor.k_proj`).
Shape letters: B batch, F latent frames, h w latent size, L tokens, S video tokens, D width, N heads, d head width.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError, some
from .recompute import run_block

if TYPE_CHECKING:
    from .audio import AudioTokens

HAS_FLASH = importlib.util.find_spec("flash_attn") is not None  # found, not imported: importing it is slow


@dataclass(frozen=True)
class WanConfig:
    """The sizes of a WanDiT. Width 0 leaves a branch out.

    in_dim counts noise and condition channels: 36 = 16 noise + 4 mask + 16 image (Wan2.1 I2V), 16 for text to video.
    clip_dim 0: no CLIP branch (text to video, and Wan2.2's image to video, whose image comes by condition alone).
    audio_dim is the width of the audio features, audio_token_dim that of the projected tokens; 0: no audio branch.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    text_dim: int
    freq_dim: int
    text_len: int
    patch_size: tuple[int, int, int]
    clip_dim: int
    audio_dim: int
    audio_token_dim: int
    eps: float

    def __post_init__(self):
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2 or self.dim // self.num_heads < 6:
            raise UserError(
                "the attention heads of this model do not work out",
                got=f"width {self.dim} with {self.num_heads} heads",
                expected="heads that divide the width into even parts of 6 or more",
                do="give the right number of heads (num_heads); it cannot be read from the weights",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def condition_dim(self) -> int:
        """Channels of `condition`: 20 for image to video, 0 for text to video."""
        return self.in_dim - self.out_dim

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], **override) -> WanConfig:
        """Read the sizes from the shapes of a state dict with official names.

        What shapes do not tell is that of the released models unless overridden: heads 128 wide, text_len 512,
        eps 1e-6, audio features 768 wide. Raises UserError when the tensors that tell the sizes are absent.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        try:
            return replace(PRESETS["wan2.1-i2v-14b"], **{**_sizes(shapes), **override})
        except KeyError as missing:
            raise UserError(
                "this file does not hold a Wan transformer",
                got=f"no tensor {missing}; the first of its {len(shapes)}: {some(shapes, 3) or 'none'}",
                expected="tensors with the official Wan2.1 names",
                do="give the DiT file of a Wan2.1 model, or convert its names first",
            ) from None


def _sizes(shapes: dict[str, tuple[int, ...]]) -> dict:
    dim, in_dim, *patch_size = shapes["patch_embedding.weight"]
    audio = shapes.get("blocks.0.cross_attn.processor.k_proj.weight", (dim, 0))[1]
    return {
        "dim": dim,
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_heads": max(1, dim // 128),
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "in_dim": in_dim,
        "out_dim": shapes["head.head.weight"][0] // math.prod(patch_size),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "patch_size": tuple(patch_size),
        "clip_dim": shapes.get("img_emb.proj.0.weight", (0,))[0],
        "audio_dim": 768 if audio else 0,
        "audio_token_dim": audio,
    }


PRESETS: dict[str, WanConfig] = {  # dim, ffn; heads, blocks; channels; text, freq, text_len; patch; clip, audio, eps
    "wan2.1-i2v-14b": WanConfig(5120, 13824, 40, 40, 36, 16, 4096, 256, 512, (1, 2, 2), 1280, 768, 2048, 1e-6),
    "wan2.1-t2v-1.3b": WanConfig(1536, 8960, 12, 30, 16, 16, 4096, 256, 512, (1, 2, 2), 0, 0, 0, 1e-6),
    "miniature": WanConfig(256, 512, 4, 4, 36, 16, 16, 64, 1, (1, 2, 2), 0, 78, 64, 1e-6),
    "tiny": WanConfig(96, 160, 3, 2, 36, 16, 16, 64, 6, (1, 2, 2), 40, 24, 48, 1e-6),
}


class Context(NamedTuple):
    """What every block attends to besides the video: embedded text and image, audio tokens with mask and scale."""

    text: Tensor  # [B, text_len, D]
    image: Tensor | None  # [B, 257, D]
    audio: Tensor | None  # [B, F, n, audio_token_dim]
    audio_mask: Tensor | None  # [B*F, 1, 1, n], True for real rows
    audio_scale: float | Tensor  # float or [B, 1, 1]


class Float32Parameters(nn.Module):
    """A module whose own parameters stay fp32 when the model is cast: Wan computes time, norms and modulation so."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        if recurse:
            for child in self.children():
                child._apply(fn)

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device, torch.float32)

        return super()._apply(move, recurse=False)


class Float32Linear(Float32Parameters, nn.Linear):
    """A linear computed in fp32 whatever the model's dtype, and outside autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


class LayerNorm(Float32Parameters, nn.LayerNorm):
    """Layer norm computed in fp32, returned in the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(Float32Parameters, nn.RMSNorm):
    """Root mean square norm over the whole width, before the heads are split, in fp32 (Wan2.1)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """Wan2.1's embedding of a timestep [B] (0..1000, unrounded): cosines first, in fp64, returned fp32 [B, width]."""
    half = width // 2
    frequency = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angle = timestep.double()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


def rope_angles(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the 3D rotary embedding, each fp32 [S, 1, head_dim/2], from fp64 angles (Wan2.1).

    A head's pairs are split over t, h, w as head_dim - 4*(head_dim//6), 2*(head_dim//6), 2*(head_dim//6) channels.
    """
    side = 2 * (head_dim // 6)
    parts = []
    for axis, width in enumerate((head_dim - 2 * side, side, side)):
        frequency = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        angle = torch.arange(grid[axis], dtype=torch.float64, device=device)[:, None] * frequency
        shape = [1, 1, 1, width // 2]
        shape[axis] = grid[axis]
        parts.append(angle.view(shape).expand(*grid, width // 2))
    angle = torch.cat(parts, dim=3).flatten(0, 2)[:, None]  # [S, 1, head_dim/2]
    return angle.cos().float(), angle.sin().float()


@lru_cache(maxsize=8)
def _cached_rope_angles(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a table first made by inference must serve training later
        return rope_angles(grid, head_dim, device)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the interleaved pairs of x [B, S, N, head_dim] by the angles of `rope`, in fp32."""
    cos, sin = rope
    real, imaginary = x.float().unflatten(3, (-1, 2)).unbind(4)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=4)
    return turned.flatten(3).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of q [B, S, N, d] to k, v [B, L, N, d] -> [B, S, N*d]; mask [B, 1, 1, L] is True where seen."""
    if HAS_FLASH and mask is None and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """The linears and norms that self- and cross-attention have in common."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(config.dim, config.eps), RMSNorm(config.dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1))  # [B, L, N, d]


class SelfAttention(Attention):
    """Attention among the video's tokens, with rotary positions."""

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(x)))
        return self.o(attention(rotate(q, rope), rotate(k, rope), self.heads(self.v(x))))


class AudioProcessor(nn.Module):
    """FantasyTalking's keys and values for audio: no bias, no norm, zero at the start of training."""

    def __init__(self, token_dim: int, dim: int, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.k_proj, self.v_proj = linear(token_dim, dim, bias=False), linear(token_dim, dim, bias=False)

    def forward(self, q: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, S, N, d], tokens [B, F, n, D] -> [B, S, N*d]. The queries of a latent frame see its own tokens only."""
        k, v = self.k_proj(tokens.flatten(1, 2)), self.v_proj(tokens.flatten(1, 2))
        return attend_frames(q, k, v, tokens.shape[1], mask)


def attend_frames(q: Tensor, k: Tensor, v: Tensor, frames: int, mask: Tensor | None) -> Tensor:
    """q [B, S, N, d], k and v [B, F*n, N*d]: latent frame f of F attends to its own n rows -> [B, S, N*d]."""
    slices = (len(q) * frames, -1, *q.shape[2:])  # [B*F, rows, N, d]
    return attention(q.reshape(slices), k.reshape(slices), v.reshape(slices), mask).reshape(*q.shape[:2], -1)


class CrossAttention(Attention):
    """Attention to text, image and audio with one query; their sum goes through `o` once."""

    def __init__(self, config: WanConfig):
        super().__init__(config)
        if config.clip_dim:
            self.k_img, self.v_img = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps)
        if config.audio_token_dim:
            self.processor = AudioProcessor(config.audio_token_dim, config.dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q = self.heads(self.norm_q(self.q(x)))
        k, v = self.norm_k(self.k(context.text)), self.v(context.text)
        out = attention(q, self.heads(k), self.heads(v))
        if context.image is not None:
            k, v = self.norm_k_img(self.k_img(context.image)), self.v_img(context.image)
            out = out + attention(q, self.heads(k), self.heads(v))
        if context.audio is not None:
            out = out + context.audio_scale * self.processor(q, context.audio, context.audio_mask)
        return self.o(out)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """norm(x) * (1 + scale) + shift in fp32, returned in the dtype of x; shift, scale [B, 1, D]."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate in fp32, returned in the dtype of x; gate [B, 1, D]."""
    return torch.addcmul(x.float(), y.float(), gate).to(x.dtype)


class Block(Float32Parameters):
    """One transformer block; modulation [B, 6, D] comes from the timestep. norm1 and norm2 have no parameters."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.eps = config.eps
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        gelu = nn.GELU(approximate="tanh")
        self.ffn = nn.Sequential(nn.Linear(config.dim, config.ffn_dim), gelu, nn.Linear(config.ffn_dim, config.dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor], context: Context) -> Tensor:
        e = (self.modulation.float() + modulation).chunk(6, dim=1)
        x = add_gated(x, self.self_attn(modulate(x, e[0], e[1], self.eps), rope), e[2])
        x = x + self.cross_attn(self.norm3(x), context)
        return add_gated(x, self.ffn(modulate(x, e[3], e[4], self.eps)), e[5])


class Head(Float32Parameters):
    """Modulated norm and projection to patches, in fp32."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.eps = config.eps
        self.head = Float32Linear(config.dim, config.out_dim * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + t_emb[:, None]).chunk(2, dim=1)
        return self.head(modulate(x.float(), shift, scale, self.eps))


class WanDiT(nn.Module):
    """Predicts the velocity (noise - x0) of noisy video latents.

    `checkpointing`: "blocks" or "attention" computes blocks again in the backward pass instead of keeping activations.
    Residuals have the dtype of the linears; time embedding, norms, modulation and head stay fp32 after `.to(dtype)`.
    """

    def __init__(self, config: WanConfig):
        super().__init__()
        dim = config.dim
        self.config = config
        self.checkpointing = "none"
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, stride=config.patch_size)
        gelu = nn.GELU(approximate="tanh")
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), gelu, nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(Float32Linear(config.freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, 6 * dim))
        if config.clip_dim:
            width, gelu = config.clip_dim, nn.GELU()
            layers = LayerNorm(width), nn.Linear(width, width), gelu, nn.Linear(width, dim), LayerNorm(dim)
            self.img_emb = nn.ModuleDict({"proj": nn.Sequential(*layers)})  # Wan2.1's name of it
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.init_weights()

    def init_weights(self) -> None:
        """Wan2.1's initialisation; audio keys and values start at zero (FantasyTalking)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                zero = ".processor." in name or name == "head.head"
                (nn.init.zeros_ if zero else nn.init.xavier_uniform_)(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for linear in (*self.text_embedding[::2], *self.time_embedding[::2]):
            nn.init.normal_(linear.weight, std=0.02)

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep [B] in 0..1000 -> t_emb [B, D] (the gate's input, before SiLU) and modulation [B, 6, D], fp32."""
        t_emb = self.time_embedding(sinusoid(timestep, self.config.freq_dim))
        return t_emb, self.time_projection(t_emb).unflatten(1, (6, -1))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        *,
        condition: Tensor | None = None,
        clip: Tensor | None = None,
        audio: AudioTokens | None = None,
        audio_scale: float | Tensor = 1.0,
    ) -> Tensor:
        """The velocity [B, out_dim, F, h, w], in the dtype of latents.

        latents [B, out_dim, F, h, w]; timestep [B] = 1000*sigma, unrounded; text [B, L <= text_len, text_dim], padded
        with zeros here; condition [B, in_dim - out_dim, F, h, w] (4 mask channels, then 16 of the image); clip
        [B, 257, clip_dim] or None for no image tokens; audio tokens [B, F, n, audio_token_dim], `lengths` [B, F] >= 1
        masks the padding; audio_scale a number or [B]. audio None and the number 0 skip the audio branch.
        Raises UserError for inputs that do not fit this model or one another.
        """
        if isinstance(audio_scale, (int, float)) and audio_scale == 0:
            audio = None
        self.check(latents, timestep, text, condition, clip, audio)
        dtype = self.patch_embedding.weight.dtype
        grid = tuple(size // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True))
        x = latents.to(dtype) if condition is None else torch.cat([latents.to(dtype), condition.to(dtype)], dim=1)
        x = self.patch_embedding(x).flatten(2).transpose(1, 2).to(dtype).contiguous()  # [B, S, D]
        t_emb, modulation = self.embed_time(timestep)
        angles = rope_angles if torch.compiler.is_compiling() else _cached_rope_angles
        rope = angles(grid, self.config.head_dim, x.device)
        context = self.embed_context(text.to(dtype), clip, audio, audio_scale)
        for block in self.blocks:
            x = run_block(block, x, modulation, rope, context, checkpointing=self.checkpointing)
        return self.unpatch(self.head(x, t_emb), grid).to(latents.dtype)

    def embed_context(
        self, text: Tensor, clip: Tensor | None, audio: AudioTokens | None, audio_scale: float | Tensor
    ) -> Context:
        """Embed text and image, make the mask of the audio rows; everything in the dtype of `text`."""
        image = None if clip is None else self.img_emb["proj"](clip.to(text))
        embedded = self.text_embedding(F.pad(text, (0, 0, 0, self.config.text_len - text.shape[1])))
        if audio is None:
            return Context(embedded, image, None, None, 0.0)
        scale = audio_scale.to(text).view(-1, 1, 1) if isinstance(audio_scale, Tensor) else audio_scale
        audio = audio.to(text)
        return Context(embedded, image, audio.tokens, audio.mask(), scale)

    def unpatch(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, S, patch*out_dim] -> [B, out_dim, F, h, w]."""
        x = x.unflatten(2, (*self.config.patch_size, -1)).unflatten(1, grid)  # [B, F, h', w', pt, ph, pw, C]
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def check(self, latents, timestep, text, condition, clip, audio) -> None:
        """Raise UserError where a caller's input cannot fit. Shapes only: no device is asked to wait."""
        config = self.config
        batch, _, *size = latents.shape if latents.ndim == 5 else (1, 0, 0, 0, 0)
        _check("latents", latents, (batch, config.out_dim, *size))
        if any(length % patch for length, patch in zip(size, config.patch_size, strict=True)):
            raise UserError(
                "the latents cannot be cut into patches",
                got=f"{size[0]} frames of {size[1]} x {size[2]} latents",
                expected=f"multiples of {config.patch_size}",
                do="choose a height and width that are multiples of 16 pixels",
            )
        _check("timestep", timestep, (batch,))
        _check("text", text, (batch, min(text.shape[1], config.text_len), config.text_dim))
        _check("condition", condition, (batch, config.condition_dim, *size), config.condition_dim)
        if clip is not None:
            _check("clip", clip, (batch, clip.shape[1], config.clip_dim), config.clip_dim)
        if audio is not None:
            expected = (batch, size[0], audio.tokens.shape[2], config.audio_token_dim)
            _check("audio", audio.tokens, expected, config.audio_token_dim)
            _check("audio lengths", audio.lengths, expected[:2], audio.lengths is not None)


def _check(name: str, tensor: Tensor | None, expected: tuple[int, ...], wanted: int = 1) -> None:
    """Compare a tensor's shape with the expected one; `wanted` 0 says that the model has no such input."""
    got = None if tensor is None else tuple(tensor.shape)
    if got != (expected if wanted else None):
        raise UserError(
            f"{name} {'does not fit this model or the latents' if wanted else 'cannot be used: this model takes none'}",
            got="nothing" if got is None else f"shape {list(got)}",
            expected=f"shape {list(expected)}" if wanted else "nothing",
            do=f"give {name} of that shape" if wanted else f"leave {name} out, or load a model that takes it",
        )
