"""FVD: windows of 16 frames at 25 a second in the logits of I3D, one set of videos against another.

How many frames a window has and where windows begin changes the value; both are fixed here and written. The weights
come as tensors (`i3d_pretrained_400.pt`) or as TorchScript (`i3d_torchscript.pt`, the usual one). TorchScript is a
program: it is opened only where `trust_script` says so.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..manifest import sha256
from ..media import check_file
from .contract import Measured, Unfit, Video
from .frechet import compared, set_better, set_columns
from .i3d_model import CLASSES, I3d
from .networks import open_network
from .resampled import Resampled
from .sampling import at_rate

Array = np.ndarray
Network = Callable[[Tensor], Tensor]  # [N, 3, 16, 224, 224] in -1..1 -> [N, 400]
FPS, WINDOW, SIDE = 25.0, 16, 224


class Fvd:
    """Frechet video distance over windows that do not overlap, and the unbiased kernel distance (KVD) beside it.

    Raises UserError for weights of another model, and for TorchScript without `trust_script`.
    """

    name = "fvd"
    columns = set_columns("fvd", "kvd")
    better = set_better("fvd", "kvd")
    verified = False
    settings: Mapping[str, object]

    def __init__(self, weights: str | Path, *, trust_script: bool = False, device: str = "cpu", batch: int = 4):
        script = is_script(check_file(weights, "weights of I3D"))
        self._network, digest = _open(Path(weights), script, trust_script, device)
        self._device, self._batch = device, max(batch, 1)
        self.settings = {
            "network": f"I3D Kinetics-400 logits{', TorchScript' if script else ''}",
            "weights": Path(weights).name,
            "weights_sha256": digest,
            "fps": FPS,
            "window": WINDOW,
            "stride": WINDOW,
            "fit": f"short side {SIDE}, bilinear, middle square",
        }

    def measure(self, video: Video) -> Measured:
        """features [n, 400] of the n whole windows. Raises Unfit for a video shorter than one."""
        taken = at_rate(video, FPS)
        windows = len(taken) // WINDOW
        if not windows:
            raise Unfit(
                f"{video.path} is too short for FVD",
                got=f"{len(taken)} frames at {FPS:g} a second",
                expected=f"{WINDOW} or more",
                do="leave it out, or measure longer videos",
            )
        starts = range(0, windows * WINDOW, WINDOW)
        clips = [taken[start : start + WINDOW] for start in starts]
        with torch.inference_mode():
            rows = [self._logits(video, clips[k : k + self._batch]) for k in range(0, windows, self._batch)]
        return Measured(features=np.concatenate(rows))

    def _logits(self, video: Video, clips: list[Array]) -> Array:
        batch = torch.stack([prepared(video.frames[clip]) for clip in clips]).to(self._device)
        return self._network(batch).float().cpu().numpy()

    def compare(self, features: Array, reference: Array) -> Measured:
        """Columns from all windows of a method and of the reference. Raises UserError for sets that are too small."""
        return compared("fvd", "kvd", features, reference)

    def resampled(self, videos: Sequence[Array], reference: Array) -> Resampled:
        """Both distances of many draws of these videos, by their features."""
        return Resampled(videos, reference)


def prepared(frames: Array) -> Tensor:
    """Frames uint8 [T, H, W, 3] -> [3, T, 224, 224] in -1..1: short side to 224, the middle square of the other."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1).float() / 255
    height, width = pictures.shape[-2:]
    scale = SIDE / min(height, width)
    size = [SIDE if side == min(height, width) else math.ceil(side * scale) for side in (height, width)]
    pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return 2 * pictures[..., top : top + SIDE, left : left + SIDE].movedim(0, 1) - 1


def is_script(path: Path) -> bool:
    """Whether a file is TorchScript: a zip with a program in it. It is not run to find out."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _open(path: Path, script: bool, trust: bool, device: str) -> tuple[Network, str]:
    if not script:
        return open_network(I3d, path, "I3D", device)
    if not trust:
        raise UserError(
            f"{path.name} is a program",
            got="TorchScript, which runs what its maker wrote into it; it was not opened",
            expected="tensors alone (i3d_pretrained_400.pt), or leave to run it",
            do="use the tensors, or say trust_script if you trust the file",
        )
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        got, do = str(error).splitlines()[0], "fetch the file again"
        raise UserError(f"{path} cannot be read", got=got, expected="TorchScript", do=do) from error

    def logits(batch: Tensor) -> Tensor:
        try:
            found = network(batch, rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            raise _foreign(path, str(error).strip().splitlines()[-1]) from error
        if tuple(found.shape) != (len(batch), CLASSES):
            raise _foreign(path, f"values {list(found.shape)}")
        return found

    return logits, sha256(path)


def _foreign(path: Path, got: str) -> UserError:
    expected = f"rescale, resize and return_features taken, {CLASSES} logits given"
    return UserError(f"{path.name} is no I3D of FVD", got=got, expected=expected, do="use i3d_torchscript.pt")
