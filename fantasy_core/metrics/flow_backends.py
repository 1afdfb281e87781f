"""Optical flow for `dynamics`: OpenCV's DIS, which needs no weights, and RAFT from torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from .networks import Network, on_device

Array = np.ndarray
EIGHTH = 8  # RAFT works on an eighth of the size


class DisFlow:
    """Dense inverse search (Kroeger et al. 2016), preset medium, of grey pictures. Raises UserError without OpenCV."""

    verified = True
    settings: Mapping[str, object]

    def __init__(self):
        cv2 = _opencv()
        self.settings = {"flow": "dis", "preset": "medium", "opencv": cv2.__version__}

    def between(self, first: Array, second: Array) -> Array:
        """[H, W, 2] float32."""
        cv2 = _opencv()
        network = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return network.calc(*grey, None)


class RaftFlow:
    """RAFT large (Teed and Deng 2020) as torchvision has it, 12 updates; unverified with real weights, and about 50 s a
    pair on two cores. weights: raft_large_C_T_SKHT_V2-ff5fadd5.pth or another of its layout.

    Raises UserError without a torchvision that fits torch, and for weights of another model.
    """

    verified = False
    settings: Mapping[str, object]

    def __init__(self, weights: str | Path, *, device: str = "cpu"):
        raft_large, version = _raft()
        self._network = Network(lambda: raft_large(weights=None), weights, "RAFT large", device)
        self._device = device
        self.settings = {
            "flow": "raft_large",
            "weights": Path(weights).name,
            "weights_sha256": self._network.sha256,
            **on_device(device),
            "torchvision": version,
            "updates": 12,
        }

    def open(self) -> None:
        """Reads the network."""
        self._network.open()

    def between(self, first: Array, second: Array) -> Array:
        """[H, W, 2] float32. Sides are continued to multiples of eight."""
        height, width = first.shape[:2]
        edges = (0, -width % EIGHTH, 0, -height % EIGHTH)
        pixels = [torch.from_numpy(np.ascontiguousarray(one)).movedim(-1, 0)[None] for one in (first, second)]
        given = [F.pad(one.to(self._device).float() / 127.5 - 1, edges, mode="replicate") for one in pixels]
        with torch.inference_mode():
            flow = self._network.open()(*given, num_flow_updates=12)[-1]
        return flow[0, :, :height, :width].movedim(0, -1).float().cpu().numpy()


def _opencv():
    try:
        import cv2
    except (ImportError, OSError) as error:
        raise UserError(
            "this optical flow needs OpenCV",
            got=str(error).splitlines()[0],
            expected="cv2, which comes with mediapipe",
            do='pip install "fantasytalking2[lips]"; a second OpenCV beside that one would break both',
        ) from error
    return cv2


def _raft():
    """(constructor, version)."""
    try:
        import torchvision
        from torchvision.models.optical_flow import raft_large
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: a build for another torch
        raise UserError(
            "RAFT needs torchvision",
            got=str(error).splitlines()[0],
            expected=f"a torchvision built for torch {torch.__version__}",
            do="install it from the index that torch came from, or use dis",
        ) from error
    return raft_large, torchvision.__version__
