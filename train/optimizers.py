"""AdamW for what is trained, its moments in fp32 or, by bitsandbytes, in 8 bits. The weights are fp32 either way."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch

from fantasy_core.errors import UserError

OPTIMIZERS = ("adamw", "adamw8bit")


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise UserError for one that cannot run here."""
    found = importlib.util.find_spec("bitsandbytes") is not None
    if name == "adamw8bit" and not (found and device.type == "cuda"):
        raise UserError(
            "8-bit Adam cannot run here",
            got=f"device {device}, bitsandbytes {'installed' if found else 'not installed'}",
            expected="a CUDA device and bitsandbytes",
            do="use --optimizer adamw, or --device cuda and `pip install bitsandbytes`",
        )


def make_optimizer(name: str, parameters: Iterable, **settings) -> torch.optim.Optimizer:
    """One of OPTIMIZERS over parameters or groups of them; settings are AdamW's: lr, weight_decay.

    8 bits save 6 bytes of the 16 that a trained number costs (value, gradient, moments); bitsandbytes leaves tensors
    of fewer than 4096 numbers in fp32. Unverified on a GPU.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **settings)
