"""Which share of a thing falls where, by its name alone: more data moves nothing."""

from __future__ import annotations

import hashlib


def place(*names: object) -> float:
    """A number in [0, 1), evenly spread over names, always the same for one."""
    told = " ".join(map(str, names))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") / 2**64


def split_of(name: str, test_share: float, seed: int = 0) -> str:
    """train or test, for an input (portrait and voice, and so all videos of it) or a footage file."""
    return "test" if place("test", seed, name) < test_share else "train"


def held_out(name: str, share: float) -> bool:
    """Whether a training input is for validation."""
    return place("validation", name) < share
