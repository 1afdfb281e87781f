"""The miniature as a model family: what `animate` runs when no real weights are given.

The same WanDiT, audio windows, flow, guidance and pipeline; what it replaces: Wan's VAE by a small codec, wav2vec2 by
log-mel features, and text and CLIP by nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..components import Defaults
from ..offload import blocks
from ..wan import PRESETS, WanDiT
from ..weights import load_dit, load_fantasytalking, load_projection, open_tensors, save_tensors, tensors_hash
from .codec import Codec
from .render import SIZE
from .speech import features

WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("base", "fantasytalking", "codec")
# What shapes do not tell ComfyUI's loader, which reads it from a file's metadata
METADATA = {"config": json.dumps({"transformer": {"num_heads": 4, "text_dim": 16, "freq_dim": 64}})}
FAMILIAR = 31.0  # dB: pictures of this world come through the codec at 36 and more, photographs at 26 and less


class MiniatureComponents:
    """The shipped miniature, or one of your own making in `folder`, in three files like the real model's:

    base.safetensors (the DiT, with the names and metadata by which ComfyUI's native Wan class reads it; a test runs it
    there), fantasytalking.safetensors (audio projection and linears, in FantasyTalking's naming), codec.safetensors.
    """

    name = "miniature"
    defaults = Defaults(size=(SIZE, SIZE), steps=20, shift=12.0, text_scale=3.0, audio_scale=3.0)

    def __init__(
        self,
        folder: Path = WEIGHTS,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        offload: str = "none",
    ):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype or torch.float32
        self.offload, self.config = offload, PRESETS["miniature"]

    @cached_property
    def codec(self) -> Codec:
        codec = Codec()
        entries = open_tensors(self.folder / "codec.safetensors").entries
        codec.load_state_dict({name: lazy.read().float() for name, lazy in entries.items()})
        return codec.to(self.device).eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        files = (open_tensors(self.folder / f"{part}.safetensors") for part in PARTS)
        return tensors_hash({name: lazy.read() for file in files for name, lazy in file.entries.items()})[:16]

    def check(self, portrait: Tensor) -> str | None:
        """portrait [1, 3, H, W] in -1..1 -> a warning when it is not a picture of this world."""
        image = portrait.unsqueeze(2).to(self.device)
        error = (self.codec.decode(self.codec.encode(image)) - image).square().mean() / 4
        if -10 * torch.log10(error + 1e-9) > FAMILIAR:
            return None
        return (
            "the miniature only knows the cartoon portraits of its own small world and will not draw this picture "
            "well; for photographs give --model wan2.1-i2v-14b with its weights"
        )

    def text(self, prompts: list[str]) -> Tensor:
        """Zeros [n, 1, text_dim]: the miniature reads no text."""
        return torch.zeros(len(prompts), 1, self.config.text_dim, device=self.device)

    def clip(self, image: Tensor) -> Tensor | None:
        return None

    def voice(self, waveform: Tensor) -> Tensor:
        projection = load_projection(self.folder / "fantasytalking.safetensors", device=self.device)
        return projection(features(waveform.cpu()).to(self.device))

    def encode(self, video: Tensor) -> Tensor:
        return self.codec.encode(video.to(self.device, torch.float32))

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        for pixels in self.codec.stream(latents.float()):  # [1, 3, t, S, S]
            yield pixels[0].movedim(0, 1)

    @contextmanager
    def dit(self) -> Iterator[WanDiT]:
        dit = load_dit(
            self.folder / "base.safetensors", device="cpu" if self.offload == "blocks" else self.device,
            dtype=self.dtype, num_heads=self.config.num_heads, text_len=self.config.text_len,
        )  # fmt: skip
        load_fantasytalking(self.folder / "fantasytalking.safetensors", dit)
        with blocks(dit, self.device) if self.offload == "blocks" else nullcontext():
            yield dit


def save_miniature(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the DiT's tensors and the projection's (`proj_model.*`) to the two files, in fp16."""
    parts: dict[str, dict[str, Tensor]] = {"base": {}, "fantasytalking": {}}
    for name, tensor in tensors.items():
        heard = name.startswith("proj_model.") or ".processor." in name
        parts["fantasytalking" if heard else "base"][name] = tensor.half()
    for part, held in parts.items():
        save_tensors(folder / f"{part}.safetensors", held, METADATA if part == "base" else None)


def load_components(*, folder: Path = WEIGHTS, **placing) -> MiniatureComponents:
    """The shipped miniature, or the one in `folder`; device, dtype, offload as in MiniatureComponents."""
    return MiniatureComponents(folder, **placing)
