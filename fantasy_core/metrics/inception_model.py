"""Inception v3 as FID uses it, in the layout of `pt_inception-2015-12-05-6726825d.pth` (mseitzer/pytorch-fid).

Names follow torchvision's Inception3. The weights come from TensorFlow, and with them three habits that torchvision's
network has not: average pools leave the padding out of the mean, the last block pools by the maximum, and there are
1008 classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]
Step = tuple[str, int, Size] | tuple[str, int, Size, int]  # name, channels, kernel, stride
FEATURES, CLASSES, SIDE = 2048, 1008, 299


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, pad: Size = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H', W']."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions and a pool side by side, their channels joined in this order.

    Steps of stride 1 keep the size, those of stride 2 have no padding. `forks`: per chain, the names of two steps that
    both follow its last one. pool: `mean` or `max` of 3 x 3 before a convolution to `pooled` channels, or, without
    `pooled`, the maximum at stride 2.
    """

    def __init__(self, inputs: int, chains: Sequence[Sequence[Step]], pooled: int = 0, pool: str = "mean", forks=()):
        super().__init__()
        self.chains = [[step[0] for step in chain] for chain in chains]
        self.forks = dict(forks)
        for chain in chains:
            channels = inputs
            for name, outputs, kernel, *stride in chain:
                pad = 0 if stride else tuple(k // 2 for k in _pair(kernel))
                self.add_module(name, Convolution(channels, outputs, kernel, *(stride or [1]), pad))
                channels = outputs
            for name, kernel in zip(self.forks.get(chain[-1][0], ()), ((1, 3), (3, 1)), strict=False):
                self.add_module(name, Convolution(channels, channels, kernel, 1, tuple(k // 2 for k in kernel)))
        self.pool = pool
        if pooled:
            self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return torch.cat([*(self._chain(x, names) for names in self.chains), self._pooled(x)], 1)

    def _chain(self, x: Tensor, names: list[str]) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        fork = self.forks.get(names[-1])
        return torch.cat([self.get_submodule(name)(x) for name in fork], 1) if fork else x

    def _pooled(self, x: Tensor) -> Tensor:
        if not hasattr(self, "branch_pool"):
            return F.max_pool2d(x, 3, 2)
        mean = self.pool == "mean"
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if mean else F.max_pool2d(x, 3, 1, 1)
        return self.branch_pool(pooled)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _mixed_35(inputs: int, pooled: int) -> Mixed:
    small = ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)
    double = ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)
    return Mixed(inputs, [[("branch1x1", 64, 1)], small, double], pooled)


def _to_17() -> Mixed:
    double = ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)
    return Mixed(288, [[("branch3x3", 384, 3, 2)], double])


def _mixed_17(inner: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    one = ("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)
    sizes = ((inner, 1), (inner, column), (inner, row), (inner, column), (192, row))
    double = [(f"branch7x7dbl_{k}", *size) for k, size in enumerate(sizes, 1)]
    return Mixed(768, [[("branch1x1", 192, 1)], one, double], 192)


def _to_8() -> Mixed:
    small = ("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)
    sizes = ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))
    return Mixed(768, [small, [(f"branch7x7x3_{k}", *size) for k, size in enumerate(sizes, 1)]])


def _mixed_8(inputs: int, pool: str) -> Mixed:
    small, double = [("branch3x3_1", 384, 1)], [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    forks = {
        "branch3x3_1": ("branch3x3_2a", "branch3x3_2b"),
        "branch3x3dbl_2": ("branch3x3dbl_3a", "branch3x3dbl_3b"),
    }
    return Mixed(inputs, [[("branch1x1", 320, 1)], small, double], 192, pool, forks)


class Inception(nn.Module):
    """Pictures [N, 3, 299, 299] in -1..1, RGB -> features of the last pool [N, 2048]."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, pad=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _mixed_35(192, 32), _mixed_35(256, 64), _mixed_35(288, 64)
        self.Mixed_6a = _to_17()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_mixed_17, (128, 160, 160, 192))
        self.Mixed_7a = _to_8()
        self.Mixed_7b, self.Mixed_7c = _mixed_8(1280, "mean"), _mixed_8(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)  # in the file, unused

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 2048]."""
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))
