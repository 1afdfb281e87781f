"""SyncNet v2 (Chung and Zisserman 2016) in the layout of `syncnet_v2.model`, and the distances of its two sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 1024  # of an embedding
SHIFT = 15  # frames that sound is moved, either way


def _sound_layers() -> nn.Sequential:
    layers, inputs = [], 1
    kernels = {3: nn.MaxPool2d(1, 1), 7: nn.MaxPool2d(3, (1, 2)), 17: nn.MaxPool2d(3, (2, 2))}  # by place
    for outputs in (64, 192, 384, 256, 256):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [kernels[len(layers)]] if len(layers) in kernels else []
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(inputs, 512, (5, 4)), nn.BatchNorm2d(512), nn.ReLU())


def _lip_layers() -> nn.Sequential:
    def block(inputs: int, outputs: int, kernel, stride=1, pad: int = 0) -> list[nn.Module]:
        return [nn.Conv3d(inputs, outputs, kernel, stride, (0, pad, pad)), nn.BatchNorm3d(outputs), nn.ReLU()]

    half = (1, 2, 2)
    return nn.Sequential(
        *block(3, 96, (5, 7, 7), half),
        nn.MaxPool3d((1, 3, 3), half),
        *block(96, 256, (1, 5, 5), half, 1),
        nn.MaxPool3d((1, 3, 3), half, (0, 1, 1)),
        *block(256, 256, (1, 3, 3), pad=1),
        *block(256, 256, (1, 3, 3), pad=1),
        *block(256, 256, (1, 3, 3), pad=1),
        nn.MaxPool3d((1, 3, 3), half),
        *block(256, 512, (1, 6, 6)),
    )


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, WIDTH))


class SyncNetModel(nn.Module):
    """Embeddings [N, 1024] of 0.2 s of sound and of picture, near each other where they belong together."""

    def __init__(self):
        super().__init__()
        self.netcnnaud, self.netfcaud = _sound_layers(), _head()
        self.netcnnlip, self.netfclip = _lip_layers(), _head()

    def sound(self, cepstra: Tensor) -> Tensor:
        """Cepstra [N, 1, 13, 20] -> [N, 1024]."""
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))

    def lips(self, crops: Tensor) -> Tensor:
        """Faces [N, 3, 5, 224, 224], blue first, 0..255 -> [N, 1024]."""
        return self.netfclip(self.netcnnlip(crops).flatten(1))


def shifted_distances(lips: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [N, 31] of lips i from sound i + k - 15, both [N, d], and whether that sound is there [N, 31].

    As in the reference, sound that is not there is a row of zeros, and 1e-6 is added to every difference.
    """
    padded = F.pad(sound, (0, 0, SHIFT, SHIFT))
    index = torch.arange(len(lips))[:, None] + torch.arange(2 * SHIFT + 1)
    there = (index >= SHIFT) & (index < SHIFT + len(sound))
    columns = [(lips - padded[k : k + len(lips)] + 1e-6).norm(dim=1) for k in range(2 * SHIFT + 1)]
    return torch.stack(columns, 1), there
