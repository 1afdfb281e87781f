"""FID: frames in the features of Inception v3, the frames of one set against those of another.

`legacy` scales to 299 x 299 as pytorch-fid does, bilinear without antialiasing; `clean` as clean-fid does, Pillow's
bicubic. The two are different numbers. Frames of one clip resemble each other: a thousand of them are not a thousand
samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .contract import Measured, Unfit, Video
from .frechet import compared, set_better, set_columns
from .inception_model import SIDE, Inception
from .networks import open_network
from .resampled import Resampled

Array = np.ndarray
RESIZES = ("legacy", "clean")
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


class Fid:
    """Frechet Inception distance of every `every`-th frame, and the unbiased kernel distance (KID) beside it.

    weights: the file of pytorch-fid's release `fid_weights`. Raises UserError for other weights and settings.
    """

    name = "fid"
    columns = set_columns("fid", "kid")
    better = set_better("fid", "kid")
    verified = False
    settings: Mapping[str, object]

    def __init__(
        self, weights: str | Path, *, resize: str = "legacy", every: int = 1, device: str = "cpu", batch: int = 16
    ):
        if resize not in RESIZES or every < 1 or batch < 1:
            raise UserError(
                "unknown way to take FID",
                got=f"resize {resize!r}, every {every}, batch {batch}",
                expected=f"resize {' or '.join(RESIZES)}; every and batch 1 or more",
                do="legacy compares with pytorch-fid, clean with clean-fid",
            )
        self._network, digest = open_network(Inception, weights, "FID Inception", device)
        self._resize, self._every, self._batch, self._device = resize, every, batch, device
        self.settings = {
            "network": "Inception v3, pool3, 2048",
            "weights": Path(weights).name,
            "weights_sha256": digest,
            "resize": f"{resize} {SIDE}",
            "every": every,
        }

    def measure(self, video: Video) -> Measured:
        """features [n, 2048] of frames 0, every, 2 every ... Raises Unfit for a video without frames."""
        frames = video.frames[:: self._every]
        if not len(frames):
            do = "check the file"
            raise Unfit(f"{video.path} has no frames", got="0 frames", expected="one or more", do=do)
        batches = [frames[k : k + self._batch] for k in range(0, len(frames), self._batch)]
        with torch.inference_mode():
            rows = [self._network(prepared(batch, self._resize).to(self._device)).cpu().numpy() for batch in batches]
        return Measured(features=np.concatenate(rows))

    def compare(self, features: Array, reference: Array) -> Measured:
        """Columns from all features of a method and of the reference. Raises UserError for sets that are too small."""
        return compared("fid", "kid", features, reference)

    def resampled(self, videos: Sequence[Array], reference: Array) -> Resampled:
        """Both distances of many draws of these videos, by their features."""
        return Resampled(videos, reference)


def prepared(frames: Array, resize: str) -> Tensor:
    """Frames uint8 [n, H, W, 3] -> [n, 3, 299, 299] as the network was fed in pytorch-fid or in clean-fid."""
    if resize == "legacy":
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1).float() / 255
        return 2 * F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
    return (torch.from_numpy(np.stack([_bicubic(frame) for frame in frames])) - 128) / 128


def _bicubic(frame: Array) -> Array:
    """A frame uint8 [H, W, 3] -> float32 [3, 299, 299], 0..255 and a little beyond, each channel unrounded."""
    from PIL import Image

    channels = [Image.fromarray(np.ascontiguousarray(frame[..., k], np.float32)) for k in range(3)]
    return np.stack([np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels])
