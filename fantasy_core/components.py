"""What `animate` asks of a model family, and Wan2.1 + FantasyTalking assembled to it. The miniature is the other one.

Each part is loaded when it is called, used and freed before the next: the largest, not the sum, decides the memory.
Only the DiT stays for as long as its context is open.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .encoders import VideoVAE, encode_clip, encode_text, load_clip, load_vae
from .errors import UserError
from .media import check_file
from .offload import blocks
from .wan import WanConfig, WanDiT
from .wav2vec import Wav2Vec
from .weights import (
    TensorSet,
    dit_config,
    find_wan,
    load_dit,
    load_fantasytalking,
    load_projection,
    open_fantasytalking,
    tensors_hash,
)
from .weights.wan import open_dit

# Wan2.1's default behind FantasyTalking's "person stands still, static"
NEGATIVE_PROMPT = (
    "人物静止不动，静止，色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class Defaults:
    """What a flag of `animate` means when it is not given; `size` as `media.parse_size` returns it, frames 4k + 1."""

    size: int | tuple[int, int]
    fps: float = 23.0
    window: int = 81
    overlap: int = 13
    steps: int = 30
    shift: float = 5.0
    text_scale: float = 5.0
    audio_scale: float = 5.0
    negative_prompt: str = ""


class Components(Protocol):
    """The parts of one model family. Pixels are in [-1, 1]; results of the encoders lie on `device`.

    `name` and `fingerprint` go into the settings of every video: two models with equal fingerprints make equal videos.
    """

    name: str
    fingerprint: str
    config: WanConfig
    defaults: Defaults
    device: torch.device
    dtype: torch.dtype

    def check(self, portrait: Tensor) -> str | None:
        """A warning about `portrait` [1, 3, H, W], or None; called before anything is computed."""

    def text(self, prompts: list[str]) -> Tensor:
        """Prompts -> [n, L <= text_len, text_dim]; equal prompts give equal rows."""

    def clip(self, image: Tensor) -> Tensor | None:
        """Image [1, 3, H, W] -> [1, 257, clip_dim], or None for a model without an image branch."""

    def voice(self, waveform: Tensor) -> Tensor:
        """Waveform [n] at 16 kHz -> audio tokens [1, L, audio_token_dim], 50 a second, not yet windowed; not called
        where audio_token_dim is 0."""

    def encode(self, video: Tensor) -> Tensor:
        """Video [1, 3, T, H, W], T = 4k + 1 -> latents [1, 16, F, H/8, W/8]; frame 0 alone, then groups of four."""

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents [1, 16, F, h, w] -> frames [t, 3, H, W] in order, a few at a time."""

    def dit(self) -> AbstractContextManager[WanDiT]:
        """The transformer, ready on `device`, until the context closes."""


def check_device(name: str) -> torch.device:
    """Raises UserError for a device that torch does not know or this machine does not have."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "meta":
            raise RuntimeError("a device without memory")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            "the device cannot be used",
            got=f"{name}: {str(error).splitlines()[0][:160]}",
            expected="cpu, or a GPU like cuda:0",
            do="pass --device cpu, or install torch for this GPU",
        ) from error
    return device


class WanBase:
    """What all models of Wan2.1 share: text, VAE, and the DiT from the files at `wan` (`weights.find_wan`), which need
    the parts `needed`; the other arguments are those of `WanComponents`."""

    name: str
    defaults: Defaults
    config: WanConfig
    fingerprint: str

    def __init__(
        self,
        wan: str | Path,
        *needed: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        offload: str = "none",
        keep: bool = False,
        fp8: str = "dequantised",
    ):
        self.keep, self.fp8 = keep, fp8
        self.device, self.dtype, self.offload = torch.device(device), dtype or torch.bfloat16, offload
        self.files = find_wan(wan)
        self.files.need("dit", "text", "vae", *needed)

    def check(self, portrait: Tensor) -> str | None:
        return None

    def text(self, prompts: list[str]) -> Tensor:
        return encode_text(self.files, prompts, device=self.device, dtype=self.dtype)

    def encode(self, video: Tensor) -> Tensor:
        return self._vae.encode_video(video)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        return self._vae.decode_frames(latents)

    @contextmanager
    def dit(self) -> Iterator[WanDiT]:
        home = "cpu" if self.offload == "blocks" else self.device
        dit = load_dit(self.files, device=home, dtype=self.dtype, fp8=self.fp8)
        self.complete(dit)
        if self.offload == "blocks":
            with blocks(dit, self.device):
                yield dit
        else:
            yield dit

    def complete(self, dit: WanDiT) -> None:
        """Put into the DiT what its own files do not hold."""

    @cached_property
    def _vae(self) -> VideoVAE:
        """Small (0.5 GB), and windows alternate between it and the DiT: it stays once it is loaded."""
        return load_vae(self.files, device=self.device)


class WanComponents(WanBase):
    """Wan2.1 I2V with FantasyTalking, from the files on this machine. Unverified with real weights.

    wan: official, diffusers or ComfyUI layout (`weights.find_wan`); fantasytalking: its checkpoint in any dialect;
    wav2vec: the folder of wav2vec2-base-960h. `offload` "blocks" keeps the DiT in host memory and two of its blocks on
    `device`. `keep`: the encoders of voices and images stay loaded, for many videos in a row (2 GB). `fp8`: a DiT that
    is stored so is "dequantised" or "kept" (`load_dit`). Only headers are read here: raises UserError for absent or
    foreign files.
    """

    name = "wan2.1-i2v-14b"
    defaults = Defaults(size=512, negative_prompt=NEGATIVE_PROMPT)

    def __init__(self, wan: str | Path, fantasytalking: str | Path, wav2vec: str | Path, **how: Any):
        super().__init__(wan, "clip", **how)
        self.fantasytalking, self.wav2vec = check_file(fantasytalking, "FantasyTalking checkpoint"), Path(wav2vec)
        check_file(self.wav2vec / "config.json", "wav2vec2 configuration")
        tensors, (own, _) = open_dit(self.files.dit), open_fantasytalking(self.fantasytalking)
        projection = load_projection(own).proj
        audio_dims = {"audio_dim": projection.in_features, "audio_token_dim": projection.out_features}
        self.config = replace(dit_config(tensors), **audio_dims)
        self.fingerprint = _fingerprint(tensors, own)
        if self.config.condition_dim != 20 or not self.config.clip_dim:
            raise UserError(
                f"{self.files.dit} is not an image-to-video model of Wan2.1",
                got=f"{self.config.in_dim} input channels, CLIP width {self.config.clip_dim}",
                expected="36 input channels and a CLIP branch",
                do="give the folder of Wan2.1-I2V-14B",
            )

    def clip(self, image: Tensor) -> Tensor | None:
        model = self._clip if self.keep else None
        return encode_clip(self.files, image, device=self.device, dtype=self.dtype, model=model)

    def voice(self, waveform: Tensor) -> Tensor:
        projection, encoder = self._voice if self.keep else self._load_voice()
        return projection(encoder(waveform))

    def _load_voice(self):
        projection = load_projection(self.fantasytalking, device=self.device)
        return projection, Wav2Vec(self.wav2vec, audio_dim=self.config.audio_dim, device=self.device)

    @cached_property
    def _voice(self):
        return self._load_voice()

    @cached_property
    def _clip(self):
        return load_clip(self.files, device=self.device, dtype=self.dtype)

    def complete(self, dit: WanDiT) -> None:
        _, told = load_fantasytalking(self.fantasytalking, dit)
        print(told, file=sys.stderr)


class WanFromText(WanBase):
    """Wan2.1 T2V (1.3B), which has neither portrait nor voice: the cheap base for training experts of motion and of
    quality, and their gate. It makes no talking video. Arguments and errors as of `WanComponents`."""

    name = "wan2.1-t2v-1.3b"
    defaults = Defaults((832, 480), fps=16, steps=50, shift=8.0, text_scale=6.0, negative_prompt=NEGATIVE_PROMPT)

    def __init__(self, wan: str | Path, **how: Any):
        super().__init__(wan, **how)
        tensors = open_dit(self.files.dit)
        self.config, self.fingerprint = dit_config(tensors), _fingerprint(tensors)
        if self.config.condition_dim or self.config.clip_dim:
            raise UserError(
                f"{self.files.dit} is not a text-to-video model of Wan2.1",
                got=f"{self.config.in_dim} input channels, CLIP width {self.config.clip_dim}",
                expected="16 input channels and no CLIP branch",
                do="give the folder of Wan2.1-T2V-1.3B, or another --model",
            )

    def clip(self, image: Tensor) -> None:
        return None

    def voice(self, waveform: Tensor) -> Tensor:
        raise ValueError(f"{self.name} hears nothing")


def _fingerprint(dit: TensorSet, fantasytalking: TensorSet | None = None) -> str:
    """Tells models apart without reading 33 GB: all names and shapes, and the values of a few tensors."""
    few = ("head.head.weight", "time_embedding.0.weight", "blocks.0.self_attn.q.weight", "blocks.0.ffn.2.bias")
    values = {name: dit.entries[name].read() for name in few if name in dit.entries}
    few = ("proj_model.proj.weight", "blocks.0.cross_attn.processor.k_proj.weight")
    audio = fantasytalking.entries if fantasytalking else {}
    values |= {f"audio {name}": audio[name].read() for name in few if name in audio}
    shapes = "".join(f"{name} {list(lazy.shape)} {lazy.dtype};" for name, lazy in sorted(dit.entries.items()))
    return hashlib.sha256((shapes + tensors_hash(values)).encode()).hexdigest()[:16]
