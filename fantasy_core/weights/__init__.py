"""Weights in and out: strict, memory-mapped, pickles never run, files written atomically.

Every layout is tested with small files written in exactly that layout; unverified with the real files.
"""

from .fantasytalking import Report, load_audio, load_fantasytalking, load_projection, open_fantasytalking
from .files import TensorSet, open_tensors, tensors_hash
from .lora import Lora, open_lora, read_pairs
from .saving import save_tensors
from .wan import WanFiles, dit_config, find_wan, load_dit

__all__ = [
    "Lora",
    "Report",
    "TensorSet",
    "WanFiles",
    "dit_config",
    "find_wan",
    "load_dit",
    "load_audio",
    "load_fantasytalking",
    "load_projection",
    "open_fantasytalking",
    "open_lora",
    "open_tensors",
    "read_pairs",
    "save_tensors",
    "tensors_hash",
]
