"""What an iteration of training takes, measured: time, speed, memory."""

from __future__ import annotations

import math
import sys
import time

import torch
from torch import Tensor

from fantasy_core.wan import WanDiT


class Meter:
    """`seconds` of an iteration, without looks at held-out pairs and samples; `tokens_per_second`: latent tokens of a
    video (F h/2 w/2 with Wan's patches) times its passes through policy and reference, where a backward pass and what
    is recomputed for it belong to their forward pass; `memory`, the peak since the process began in bytes: on CUDA what
    torch had allocated, elsewhere the process's resident set (Windows does not tell it: no `memory` there)."""

    def __init__(self, dit: WanDiT):
        self.device, self.began, self.tokens = next(dit.parameters()).device, 0.0, 0
        dit.register_forward_hook(self._count)

    def _count(self, dit: WanDiT, given: tuple, velocity: Tensor) -> None:
        videos, _, *size = velocity.shape
        self.tokens += videos * math.prod(size) // math.prod(dit.config.patch_size)

    def begin(self) -> None:
        self.began, self.tokens = time.monotonic(), 0

    def read(self) -> dict[str, float]:
        """The figures since `begin`."""
        seconds = time.monotonic() - self.began
        told = {"seconds": round(seconds, 4), "tokens_per_second": round(self.tokens / seconds, 1)}
        peak = self._peak()
        return told if peak is None else told | {"memory": peak}

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
