"""Sync-C and Sync-D: how well lips and voice fit by SyncNet v2, after joonson/syncnet_python.

Sync-D is the least mean distance over 31 shifts, Sync-C how far the median lies above it. The offset is in frames at 25
a second, positive where the voice leads, like `lip_offset`. Sound beyond the ends counts as zeros, which costs short
clips confidence; `sync_c_valid` leaves such pairs out.

Other than the reference: a track needs more than 50 sightings, not 100 (an 81-frame clip of 3.5 s has 88 frames); the
longest track alone is scored; crops are not compressed on the way; the cuts that end tracks are those of `media.cuts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..manifest import sha256
from ..media import check_file
from .contract import Measured, Unfit, Video
from .face_tracks import Faces, FaceTrack, crops, mediapipe_faces, tracks
from .mfcc import RATE, mfcc
from .networks import Held, Network, on_device
from .s3fd import s3fd_faces
from .sampling import at_rate, scenes
from .syncnet_model import SHIFT, SyncNetModel, shifted_distances

Array = np.ndarray
FPS, WINDOW, CEPSTRA = 25, 5, 20  # frames and cepstra that are compared
MOMENT = 0.5  # of its 1/25 s, at which a frame is taken: at 0 pictures of 23 fps would lag by 20 ms on average
SAMPLES = RATE // FPS  # of a frame
MIN_TRACK, MIN_FACE = 50, 100
SILENCE = 1e-4  # peak, -80 dB


class SyncNet:
    """Sync-C, Sync-D and the offset of the longest face track.

    weights: `syncnet_v2.model`. faces: `s3fd` (face_model: `sfd_face.pth`), which the reference uses; `mediapipe`
    (face_model: its face_landmarker.task); or a callable that gives the boxes of a frame, whose name is written as
    `faces_name`. min_track: sightings at 25 fps that a track must exceed; min_face: pixels that its box must exceed.
    Raises UserError for weights of another model.
    """

    name = "sync"
    columns = ("sync_c", "sync_d", "sync_offset", "sync_c_valid")
    # A test of sync_c_valid would be a second one of what sync_c tests: it is shown, and decides nothing.
    better: Mapping[str, int] = {"sync_c": 1, "sync_d": -1, "sync_offset": 0, "sync_c_valid": 0}
    verified = False
    settings: Mapping[str, object]

    def __init__(
        self,
        weights: str | Path,
        *,
        faces: str | Faces = "mediapipe",
        faces_name: str | None = None,
        face_model: str | Path | None = None,
        min_track: int = MIN_TRACK,
        min_face: float = MIN_FACE,
        device: str = "cpu",
        batch: int = 16,
    ):
        if min_track < WINDOW:  # a window of lips and one more frame of sound
            do = f"use {MIN_TRACK}, or 100 as the reference does"
            raise UserError("min_track is too short", got=str(min_track), expected=f"{WINDOW} or more", do=do)
        self._faces = Held(_backend(faces, face_model, device))
        self._network = Network(SyncNetModel, weights, "SyncNet v2", device)
        self._min_track, self._min_face, self._device, self._batch = min_track, min_face, device, max(batch, 1)
        named = faces if isinstance(faces, str) else faces_name or getattr(faces, "__name__", type(faces).__name__)
        self.settings = {
            "network": "SyncNet v2",
            "weights": Path(weights).name,
            "weights_sha256": self._network.sha256,
            **on_device(device),
            "faces": named,
            **_hashed(face_model),
            "fps": FPS,
            "moment": MOMENT,
            "shift": SHIFT,
            "min_track": min_track,
            "min_face": min_face,
            "cuts": "end tracks",
        }

    def open(self) -> None:
        """Reads the networks. Raises UserError for faces' weights of another model."""
        self._network.open()
        self._faces.open()

    def measure(self, video: Video) -> Measured:
        """Raises Unfit for a video without sound, with silence, of one frame, or without a face that is large and
        long enough."""
        taken = at_rate(video, FPS, MOMENT)
        sound, frames = _heard(video), video.frames[taken]
        faces = self._faces.open()
        found = tracks([faces(frame) for frame in frames], scenes(video, taken))
        track = self._longest(video, found)
        start, stop = track.first * SAMPLES, (track.first + len(track.boxes)) * SAMPLES
        sound = sound[start:stop]
        windows = min(len(track.boxes), len(sound) // SAMPLES) - WINDOW
        if windows < 1:
            raise Unfit(
                f"{video.path} has too little sound beside its face",
                got=f"{len(sound) / RATE:.2f} s",
                expected=f"more than {WINDOW / FPS:g} s while the face is seen",
                do="check that the sound track is as long as the picture",
            )
        with torch.inference_mode():
            lips, heard = self._embedded(crops(frames, track), sound, windows)
        return verdict(*shifted_distances(lips, heard))

    def _longest(self, video: Video, found: list[FaceTrack]) -> FaceTrack:
        """The longest track; of those as long, the largest face."""
        fit = [track for track in found if track.seen > self._min_track and track.size > self._min_face]
        if fit:
            return max(fit, key=lambda track: (track.seen, track.size))
        best = max(found, key=lambda track: track.seen, default=None)
        raise Unfit(
            f"{video.path} shows no face that SyncNet can judge" if best else f"{video.path} shows no face",
            got=f"at best {best.seen} frames at {FPS} a second, {best.size:.0f} px" if best else "none in any frame",
            expected=f"one face in more than {self._min_track} frames, larger than {self._min_face:g} px",
            do="leave it out, or lower min_track or min_face for all videos alike",
        )

    def _embedded(self, faces: Tensor, sound: Array, windows: int) -> tuple[Tensor, Tensor]:
        cepstra = torch.from_numpy(mfcc(as_int16(sound)).T.copy()).float()
        network, lips, heard = self._network.open(), [], []
        for start in range(0, windows, self._batch):
            places = range(start, min(start + self._batch, windows))
            pictures = torch.stack([faces[k : k + WINDOW].movedim(0, 1) for k in places]).float()
            pieces = torch.stack([cepstra[None, :, 4 * k : 4 * k + CEPSTRA] for k in places])
            lips.append(network.lips(pictures.to(self._device)).cpu())
            heard.append(network.sound(pieces.to(self._device)).cpu())
        return torch.cat(lips), torch.cat(heard)


def verdict(distances: Tensor, there: Tensor) -> Measured:
    """Columns of distances [N, 31] and whether each pair exists [N, 31] (`shifted_distances`)."""
    mean = distances.mean(0)
    least, best = mean.min(0)
    numbers = {"sync_c": mean.median() - least, "sync_d": least, "sync_offset": SHIFT - best}
    values: dict[str, float | None] = {name: float(number) for name, number in numbers.items()}
    if not there.any(0).all():
        reason = f"{len(distances)} windows, {SHIFT + 1} are needed for every shift to have a pair"
        return Measured(values | {"sync_c_valid": None}, {"sync_c_valid": reason})
    valid = (distances * there).sum(0) / there.sum(0)
    return Measured(values | {"sync_c_valid": float(valid.median() - valid.min())})


def as_int16(sound: Array) -> Array:
    """Sound in -1..1 as the 16-bit integers of a wav file, still float."""
    return np.clip(np.round(np.asarray(sound, np.float64) * 32768), -32768, 32767)


def _heard(video: Video) -> Array:
    if video.sound is not None and len(video.sound) and np.abs(video.sound).max() >= SILENCE:
        return video.sound
    got = "no sound track" if video.sound is None else "silence"
    do = "leave it out: lips cannot be compared with silence"
    raise Unfit(f"{video.path} cannot be heard", got=got, expected="a voice", do=do)


def _backend(faces: str | Faces, model: str | Path | None, device: str) -> Callable[[], AbstractContextManager[Faces]]:
    """Opens what finds the faces."""
    if callable(faces):
        return partial(nullcontext, faces)
    if faces == "mediapipe":
        return partial(mediapipe_faces, model)
    if faces != "s3fd":
        do = "use one of these, or a callable of yours"
        raise UserError("unknown face detector", got=repr(faces), expected="mediapipe or s3fd", do=do)
    if model is None:
        do = "give it as face_model, or use mediapipe, whose numbers are not those of papers"
        raise UserError("S3FD needs its weights", got="none", expected="sfd_face.pth of syncnet_python", do=do)
    return partial(s3fd_faces, model, device)


def _hashed(model: str | Path | None) -> dict[str, object]:
    if model is None:
        return {}
    file = check_file(model, "model of faces")
    return {"face_weights": file.name, "face_weights_sha256": sha256(file)}
