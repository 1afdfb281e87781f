"""What the subject of a video is, for `dynamics`: a box around face and body, SAM 2, or masks that are given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from ..lips import Detect, landmarker, track
from ..manifest import sha256
from ..media import read_image, read_video
from .contract import Unfit, Video
from .face_tracks import Box, box_of
from .sampling import TOUCH

Array = np.ndarray
WIDE, HIGH, ABOVE = 3.0, 4.0, 0.5  # faces that the body's box is wide and high, and reaches above the face
CONFIDENCE = 0.5, 0.9  # of a face in the whole frame, in windows of it
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Masks(Protocol):
    """settings: how the subject is found. verified: whether it has met its real weights."""

    settings: Mapping[str, object]
    verified: bool

    def of(self, video: Video, indices: Array) -> Iterable[Array | None]:
        """For each frame of these numbers, rising, the subject bool [H, W], or None where there is none."""
        ...


class FaceBox:
    """A box of three face widths and four face heights, from half a face above the face on, clipped to the frame.

    task: mediapipe's face_landmarker.task; detect: landmarks by other means, written as `detector`.
    """

    verified = False
    settings: Mapping[str, object]

    def __init__(self, task: str | Path | None = None, *, detect: Detect | None = None, detector: str = "given"):
        self._task, self._detect = task, detect
        found: dict[str, object] = {"face": detector if detect else "mediapipe face landmarks, IMAGE mode"}
        if task is not None:
            found["face_weights_sha256"] = sha256(Path(task))
        self.settings = {"mask": "face-box", "box": [WIDE, HIGH, ABOVE], **found}

    def of(self, video: Video, indices: Array) -> Iterator[Array | None]:
        height, width = video.frames.shape[1:3]
        for box in self.boxes(video, indices):
            yield None if box is None else filled(box, height, width)

    def boxes(self, video: Video, indices: Array) -> list[Box | None]:
        """The body's box in each of the frames, in pixels."""
        height, width = video.frames.shape[1:3]
        with ExitStack() as stack:
            if self._detect is not None:
                found = track(video.frames[indices], self._detect)
            else:
                detect, strict = (stack.enter_context(landmarker(self._task, confidence=c)) for c in CONFIDENCE)
                found = track(video.frames[indices], detect, strict)
        faces = zip(found.landmarks, found.filled, strict=True)
        return [body(box_of(face), height, width) if there else None for face, there in faces]


class Sam2:
    """SAM 2 from transformers, by a folder of its own; in each frame the mask that it gives for the body's box.

    folder: config.json and model.safetensors of facebook/sam2.1-hiera-*, as transformers has them. Unverified with real
    weights. Raises UserError where the folder holds no such model.
    """

    verified = False
    settings: Mapping[str, object]

    def __init__(self, folder: str | Path, boxes: FaceBox, *, device: str = "cpu"):
        self._model, self._boxes, self._device = _sam2(Path(folder)).to(device), boxes, device
        self.settings = {**boxes.settings, "mask": "sam2", "sam2": Path(folder).name, "sam2_sha256": weights_of(folder)}

    def of(self, video: Video, indices: Array) -> Iterator[Array | None]:
        for index, box in zip(indices, self._boxes.boxes(video, indices), strict=True):
            yield None if box is None else self.mask(video.frames[index], box)

    def mask(self, frame: Array, box: Box) -> Array:
        """The subject bool [H, W] of a frame uint8 [H, W, 3] in a box of it."""
        height, width = frame.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).movedim(-1, 0)[None].float() / 255
        side = self._model.config.prompt_encoder_config.image_size
        square = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        prompt = torch.tensor(box) * torch.tensor([side / width, side / height] * 2)
        with torch.inference_mode():
            found = self._model(
                pixel_values=((square - mean) / deviation).to(self._device),
                input_boxes=prompt[None, None].to(self._device),
                multimask_output=False,
            )
        logits = found.pred_masks[0, :1, :1].float().cpu()
        return (F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0, 0] > 0).numpy()


class GivenMasks:
    """Masks beside the videos, or in a folder: NAME.mask.png for all frames, or a video NAME.mask.mp4 shown at the same
    times. White is the subject."""

    verified = True
    settings: Mapping[str, object] = {"mask": "given"}

    def __init__(self, folder: str | Path | None = None):
        self._folder = None if folder is None else Path(folder)

    def file(self, video: Path) -> Path | None:
        """The mask of a video, if there is one."""
        places = [self._place(video) / f"{video.stem}.mask{ending}" for ending in (".png", *VIDEOS)]
        return next((place for place in places if place.is_file()), None)

    def _place(self, video: Path) -> Path:
        return self._folder or video.parent

    def beside(self, path: Path) -> Mapping[str, object]:
        """The mask's name and hash; None where there is none."""
        file = self.file(path)
        return {"mask_file": file and file.name, "mask_sha256": file and sha256(file)}

    def of(self, video: Video, indices: Array) -> Iterable[Array | None]:
        """Raises Unfit where there is no mask, or one of another shape: `beside` tells when that changes."""
        file = self.file(video.path)
        if file is None:
            do, expected = "put one there, or use another kind of mask", f"{video.path.stem}.mask.png"
            got = f"none in {self._place(video.path)}"
            raise Unfit(f"{video.path.name} has no mask", got=got, expected=expected, do=do)
        if file.suffix == ".png":
            return [white(read_image(file).numpy(), video, file)] * len(indices)
        times = np.asarray(video.times)[indices] - video.times[0]
        return [white(frame, video, file) for frame in at_times(file, times)]


def body(face: Box, height: int, width: int) -> Box:
    """The box of a body, in a frame of this height and width, from the box of its face."""
    left, top, right, bottom = face
    middle, wide, high = (left + right) / 2, right - left, bottom - top
    upper = top - ABOVE * high
    return (
        max(middle - WIDE * wide / 2, 0.0),
        max(upper, 0.0),
        min(middle + WIDE * wide / 2, float(width)),
        min(upper + HIGH * high, float(height)),
    )


def filled(box: Box, height: int, width: int) -> Array:
    """A box as a mask bool [H, W]: pixels whose middle it covers."""
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    return (columns >= box[0]) & (columns < box[2]) & (rows >= box[1]) & (rows < box[3])


def white(picture: Array, video: Video, file: Path) -> Array:
    """What is white in a picture [3, h, w] in 0..1, bool [h, w]. Raises Unfit where the video has another shape."""
    (height, width), (h, w) = video.frames.shape[1:3], picture.shape[1:]
    if abs(h * width - w * height) > max(height, width):  # another ratio, by more than a pixel
        do = "make masks of the video's own frames"
        raise Unfit(f"{file.name} has another shape", got=f"{w} x {h}", expected=f"{width} x {height}", do=do)
    return picture.mean(0) >= 0.5


def at_times(file: Path, times: Array) -> Iterator[Array]:
    """The pictures [3, h, w] of a video that are shown at `times` [n], rising, seconds from its beginning."""
    frames = read_video(file)
    shown, following = next(frames), next(frames, None)
    for time in times:
        while following is not None and following[0] <= time + TOUCH:
            shown, following = following, next(frames, None)
        yield shown[1].numpy()


def weights_of(folder: str | Path) -> str | None:
    """The sha256 of a folder's one file of weights; None where there are several."""
    files = list(Path(folder).glob("*.safetensors"))
    return sha256(files[0]) if len(files) == 1 else None


def _sam2(folder: Path):
    if not (folder / "config.json").is_file():
        do = "fetch facebook/sam2.1-hiera-tiny and give its folder, or use face-box"
        raise UserError("SAM 2 not found", got=str(folder), expected="a folder with config.json and weights", do=do)
    try:
        from transformers import Sam2Model

        model = Sam2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # transformers' own, of many kinds
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        do = "use facebook/sam2.1-hiera-tiny as transformers publishes it, or face-box"
        raise UserError(f"{folder} is no SAM 2", got=got, expected="Sam2Model of transformers", do=do) from error
    return model.eval()
