"""A model family whose videos are known: an exact linear codec and a velocity that points at a pattern the voice names.

At 25 fps a voice has two tokens a frame. The velocity reads, for every frame of its window, the token of that frame's
own time from the audio window of its latent frame, and shows `pattern(token)`. So the video is right only if audio
windows, held latents, sampling, cross-fade and the order of frames all are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from fantasy_core.components import Defaults
from fantasy_core.wan import PRESETS

FPS = 25.0
BEYOND = 16  # tokens after the end of the track, so that no window is clipped there


def encode(video: Tensor) -> Tensor:
    """Video [1, 3, T, H, W] of even 8x8 blocks -> latents [1, 16, F, h, w]: colours of one frame, then of four."""
    blocks = functional.avg_pool3d(video, (1, 8, 8))
    groups = blocks[:, :, 1:].unflatten(2, (-1, 4)).transpose(2, 3).flatten(1, 2)  # [1, 12, F - 1, h, w]
    first = functional.pad(blocks[:, :, :1], (0, 0, 0, 0, 0, 0, 0, 9))
    return functional.pad(torch.cat([first, groups], dim=2), (0, 0, 0, 0, 0, 0, 0, 4))


def decode(latents: Tensor) -> Iterator[Tensor]:
    """The inverse of `encode`, one latent frame at a time: [1, 3, H, W], then [4, 3, H, W]."""
    for index, latent in enumerate(latents[0].unbind(1)):
        blocks = latent[:12].unflatten(0, (3, 4)).transpose(0, 1) if index else latent[None, :3]
        yield blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


def waves(value: Tensor, h: int = 2, w: int = 2) -> Tensor:
    """Token values [T] -> a moving pattern [T, 3, 8h, 8w], different in every block and colour."""
    phase = torch.arange(3 * h * w, dtype=value.dtype).reshape(3, h, w)
    blocks = 0.8 * torch.sin(0.37 * value[:, None, None, None] + 1.7 * phase)
    return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


def frame_tokens(tokens: Tensor, lengths: Tensor) -> Tensor:
    """The token of each frame's own time [T] from windowed tokens [1, F, n, 1], for two tokens a frame.

    With s the window's first frame, the last row of latent frame i >= 1 is token 2 (s + 4 i) + 5, that of latent frame
    0 is token 2 s + 5, because a window reaches half + 4 = 8 tokens beyond its centre. Frame k is at token 2 k.
    """
    rows = [tokens[0, 0, lengths[0, 0] - 1 - 5]]
    for index in range(1, tokens.shape[1]):
        last = int(lengths[0, index]) - 1
        rows += [tokens[0, index, last - 11 + 2 * frame] for frame in range(4)]
    return torch.cat(rows)


class KnownMotion:
    """`Components` of that family; `voice_tokens(waveform) -> [L]` and `pattern(values [T]) -> [T, 3, H, W]`.

    Keeps what its velocity was given: `conditions` by call, `states` (latents, sigma) by call.
    """

    name, fingerprint, device, dtype = "known motion", "0", torch.device("cpu"), torch.float32
    config = replace(PRESETS["tiny"], clip_dim=0, audio_token_dim=1)
    defaults = Defaults(size=(16, 16), fps=FPS, window=21, overlap=5, steps=3, text_scale=1.0, audio_scale=1.0)

    def __init__(self, voice_tokens: Callable[[Tensor], Tensor], pattern: Callable[[Tensor], Tensor] = waves):
        self.voice_tokens, self.pattern = voice_tokens, pattern
        self.conditions, self.states = [], []

    def check(self, portrait: Tensor) -> str | None:
        return None

    def text(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, self.config.text_dim)

    def clip(self, image: Tensor) -> None:
        return None

    def voice(self, waveform: Tensor) -> Tensor:
        return functional.pad(self.voice_tokens(waveform), (0, BEYOND))[None, :, None]

    def encode(self, video: Tensor) -> Tensor:
        return encode(video)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        return decode(latents)

    @contextmanager
    def dit(self) -> Iterator[Callable[..., Tensor]]:
        yield self.velocity

    def velocity(self, latents, timestep, text, *, condition, clip=None, audio=None) -> Tensor:
        self.conditions.append(condition)
        self.states.append((latents, timestep.item() / 1000))
        frames = self.pattern(frame_tokens(audio.tokens, audio.lengths).to(latents))
        return (latents - encode(frames.transpose(0, 1)[None])) / (timestep.item() / 1000)
