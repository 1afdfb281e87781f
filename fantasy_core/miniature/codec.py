"""The miniature's video codec: 16 latent channels for every 8x8 pixels and 1 + 4k frames, in place of Wan's VAE.

Frame 0 is coded alone. Every later latent frame codes four frames *as a change to frame 0*, and is decoded with frame
0's latents beside it: causal like Wan's VAE, with a memory that is just the first frame. So who is in the picture is
said once, and decoding can be streamed. A linear map (started from principal components) does most of the work and
small convolutional networks add what it misses. Latents leave with zero mean and unit variance per channel. Not in the
paper.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS, PATCH, GROUP = 16, 8, 4  # latent channels, pixels a latent is wide, frames of a latent frame
FRAMES = (1, GROUP)  # frames of the first latent frame, and of a group
COARSE, FINE = 128, 64  # widths at 8x8 and at 16x16 (a quarter and half of the latents' pixels)


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution starting at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Encoder(nn.Module):
    """A latent frame's pixels -> [N, 16, h, w]; frame 0 from [N, 3, H, W], a group from its change and frame 0."""

    def __init__(self):
        super().__init__()
        self.linear = nn.ModuleList(nn.Conv2d(3 * n, CHANNELS, PATCH, stride=PATCH) for n in FRAMES)
        self.fine = nn.ModuleList(nn.Conv2d(48 * n, FINE, 3, padding=1) for n in (1, GROUP + 1))
        self.coarse = nn.Conv2d(4 * FINE, COARSE, 1)
        self.block = Residual(COARSE)
        self.out = nn.Conv2d(COARSE, CHANNELS, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, first: Tensor, group: Tensor | None = None) -> Tensor:
        """first [N, 3, H, W], group [N, 12, H, W] (channels, then frames) or None to code frame 0 itself."""
        coded = first if group is None else change(group, first)
        seen = first if group is None else torch.cat([coded, first], 1)
        index = int(group is not None)
        fine = F.silu(self.fine[index](F.pixel_unshuffle(seen, 4)))
        return self.linear[index](coded) + self.out(self.block(self.coarse(F.pixel_unshuffle(fine, 2))))


class Decoder(nn.Module):
    """A latent frame [N, 16, h, w] -> its pixels; a group needs frame 0's latents and pixels too."""

    def __init__(self):
        super().__init__()
        self.linear = nn.ModuleList(nn.ConvTranspose2d(CHANNELS, 3 * n, PATCH, stride=PATCH) for n in FRAMES)
        self.coarse = nn.ModuleList(nn.Conv2d(CHANNELS * n, COARSE, 3, padding=1) for n in (1, 2))
        self.blocks = nn.Sequential(Residual(COARSE), Residual(COARSE), Residual(COARSE))
        self.fine = nn.Conv2d(COARSE, 4 * FINE, 1)
        self.details = nn.Sequential(Residual(FINE), Residual(FINE))
        self.out = nn.ModuleList(nn.Conv2d(FINE, 48 * n, 3, padding=1) for n in FRAMES)
        for out in self.out:
            nn.init.zeros_(out.weight)

    def pixels(self, latent: Tensor, seen: Tensor, index: int) -> Tensor:
        fine = self.details(F.pixel_shuffle(self.fine(self.blocks(self.coarse[index](seen))), 2))
        return self.linear[index](latent) + F.pixel_shuffle(self.out[index](F.silu(fine)), 4)

    def first(self, latent: Tensor) -> Tensor:
        """Frame 0 [N, 3, H, W]."""
        return self.pixels(latent, latent, 0)

    def group(self, latent: Tensor, first_latent: Tensor, first: Tensor) -> Tensor:
        """Four frames [N, 12, H, W] (channels, then frames)."""
        return self.pixels(latent, torch.cat([latent, first_latent], 1), 1) + first.repeat_interleave(GROUP, 1)


def change(group: Tensor, first: Tensor) -> Tensor:
    """group [N, 12, H, W] less frame 0 [N, 3, H, W]."""
    return group - first.repeat_interleave(GROUP, 1)


class Codec(nn.Module):
    """video [B, 3, T, H, W] in -1..1, T = 1 + 4k <-> latents [B, 16, 1 + k, H/8, W/8], standardised."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.register_buffer("mean", torch.zeros(2, CHANNELS))  # of first frames, of groups
        self.register_buffer("std", torch.ones(2, CHANNELS))

    def scale(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [1, 16, 1, 1] of the latents of first frames (0) or of groups (1)."""
        return self.mean[index].view(1, -1, 1, 1), self.std[index].view(1, -1, 1, 1)

    def encode(self, video: Tensor) -> Tensor:
        """video [B, 3, 1+4k, H, W] in -1..1 -> latents [B, 16, 1+k, H/8, W/8]."""
        batch, _, frames, _, _ = video.shape
        groups, first = (frames - 1) // GROUP, video[:, :, 0]
        mean, std = self.scale(0)
        latents = [((self.encoder(first) - mean) / std).unsqueeze(2)]
        if groups:
            pixels = video[:, :, 1:].unflatten(2, (groups, GROUP)).movedim(2, 1)  # [B, k, 3, 4, H, W]
            mean, std = self.scale(1)
            coded = self.encoder(first.repeat_interleave(groups, 0), pixels.flatten(2, 3).flatten(0, 1))
            latents.append(((coded - mean) / std).unflatten(0, (batch, groups)).movedim(1, 2))
        return torch.cat(latents, 2)

    def stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode latents [B, 16, F, h, w] one latent frame at a time -> [B, 3, 1, H, W], then [B, 3, 4, H, W] ..."""
        mean, std = self.scale(0)
        first_latent = latents[:, :, 0] * std + mean
        first = self.decoder.first(first_latent)
        yield first.unsqueeze(2).clamp(-1, 1)
        mean, std = self.scale(1)
        for latent in latents[:, :, 1:].unbind(2):
            group = self.decoder.group(latent * std + mean, first_latent, first)
            yield group.unflatten(1, (3, GROUP)).clamp(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, 16, 1+k, h, w] -> video [B, 3, 1+4k, H, W] in -1..1."""
        return torch.cat(list(self.stream(latents)), 2)


def principal_start(encoder: nn.Conv2d, decoder: nn.ConvTranspose2d, pixels: Tensor) -> None:
    """Start a linear map and its inverse at the principal components of the 8x8 patches of pixels [N, 3*frames, H,
    W]."""
    patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)  # [N*h*w, 192*frames]
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    basis, scale = vectors[:, -CHANNELS:].flip(1), values[-CHANNELS:].flip(0).sqrt()
    weight = (basis / scale).T  # [16, 192*frames]
    with torch.no_grad():
        encoder.weight.copy_(weight.view_as(encoder.weight))
        encoder.bias.copy_(-weight @ mean)
        decoder.weight.copy_((basis * scale).T.reshape(decoder.weight.shape))
        decoder.bias.copy_(mean.view(-1, PATCH * PATCH).mean(1))
