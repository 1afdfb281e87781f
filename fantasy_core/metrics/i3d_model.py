"""I3D (Carreira and Zisserman 2017) with the 400 classes of Kinetics, in the layout of `i3d_pretrained_400.pt`.

Names are those of piergiaj/pytorch-i3d, the epsilon of its norms that of the copy which VideoGPT and TATS compute FVD
with. Every window is padded as in TensorFlow: to the rounded-up size, the odd one behind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]
CLASSES = 400
MIXED = {  # inputs, then channels of the branches b0, b1a, b1b, b2a, b2b, b3b
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def same_padded(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """x [N, C, T, H, W] with zeros around it, so that a window of `kernel` gives ceil(size / stride)."""
    pads = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        whole = max(k - (size % s or s), 0)
        pads += [whole // 2, whole - whole // 2]
    return F.pad(x, pads)


def max_pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Maximum over padded windows; the values are not below zero, so the padding never wins."""
    return F.max_pool3d(same_padded(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Padded convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, self.kernel, self.stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, T, H, W] -> [N, outputs, T', H', W']."""
        return F.relu(self.bn(self.conv3d(same_padded(x, self.kernel, self.stride))))


class Mixed(nn.Module):
    """Four branches side by side, their channels joined."""

    def __init__(self, inputs: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        super().__init__()
        self.b0 = Unit(inputs, b0)
        self.b1a, self.b1b = Unit(inputs, b1a), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(inputs, b2a), Unit(b2a, b2b, 3)
        self.b3b = Unit(inputs, b3b)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, H, W] -> [N, C', T, H, W]."""
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class Logits(nn.Module):
    """A convolution of one pixel to the classes, by the name it has in the file."""

    def __init__(self):
        super().__init__()
        self.conv3d = nn.Conv3d(1024, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1024, T, H, W] -> [N, 400, T, H, W]."""
        return self.conv3d(x)


class I3d(nn.Module):
    """Videos [N, 3, 16, 224, 224] in -1..1, RGB -> logits [N, 400]; other lengths from 9 frames on, sizes from 193."""

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, channels in MIXED.items():
            self.add_module(name, Mixed(*channels))
        self.logits = Logits()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, T, H, W] -> [N, 400]."""
        x = max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = max_pool(self._stage(x, "3"), (3, 3, 3), (2, 2, 2))
        x = self._stage(max_pool(self._stage(x, "4"), (2, 2, 2), (2, 2, 2)), "5")
        return self.logits(F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))

    def _stage(self, x: Tensor, number: str) -> Tensor:
        for name in MIXED:
            x = self.get_submodule(name)(x) if name[6] == number else x
        return x
