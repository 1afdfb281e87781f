"""IQA and AES: how good and how pleasing frames look, by Q-Align (Wu et al. 2024), from 1 (bad) to 5 (excellent).

The model (q-future/one-align, 8 billion weights, 16 GB) is too large to run beside everything else and needs code from
its own folder. So scores are mostly brought in a file (`ScoreFile`); running the model here is `QAlign` with a scorer.
The paper's tables run from 1 to 5, the q_align package from 0 to 1: score5 = 1 + 4 score01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import UserError
from .contract import Measured, Opens, Unfit, Video
from .networks import folder_sha256, on_device
from .sampling import evenly

Array = np.ndarray
Scorer = Callable[[Array, str], Sequence[float]]  # frames uint8 [k, H, W, 3], task -> a score of each, 1..5
LEVELS = ("excellent", "good", "fair", "poor", "bad")
POINTS = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
TASKS = {"iqa": "quality", "aes": "aesthetics"}
FRAMES = 8
MODEL_FILES = (".safetensors", ".bin", ".pt", ".json", ".model", ".txt", ".py")


def level_score(logits: Array) -> Array:
    """Logits [..., 5] of the words in the order of LEVELS -> scores [...] in 1..5: softmax, then the mean of points."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares @ POINTS / shares.sum(-1)


def score5(score01: float) -> float:
    """A score in 0..1, as the q_align package gives it, in 1..5."""
    return 1 + 4 * score01


class QAlign:
    """IQA and AES as the mean over 8 evenly spaced frames, each judged alone by `scorer` (see `RemoteScorer`)."""

    name = "qalign"
    columns = tuple(TASKS)
    better: Mapping[str, int] = dict.fromkeys(TASKS, 1)
    verified = False

    def __init__(self, scorer: Scorer, *, model: str, about: Callable[[], Mapping[str, object]] = dict):
        """about: more for the settings, asked once and where they are read: hashes of 16 GB take their time."""
        self._scorer, self._model, self._about = scorer, model, about

    @cached_property
    def settings(self) -> Mapping[str, object]:
        return {"model": self._model, **self._about(), "frames": FRAMES, "mode": "image", "scale": "1..5"}

    def open(self) -> None:
        """Loads the model of a scorer that has one."""
        if isinstance(self._scorer, Opens):
            self._scorer.open()

    def measure(self, video: Video) -> Measured:
        """Raises Unfit for a video without frames, and UserError for scores outside 1..5."""
        if not len(video.frames):
            do = "check the file"
            raise Unfit(f"{video.path} has no frames", got="0 frames", expected="one or more", do=do)
        frames = video.frames[evenly(len(video.frames), FRAMES)]
        return Measured({column: self._mean(frames, task) for column, task in TASKS.items()})

    def _mean(self, frames: Array, task: str) -> float:
        scores = np.asarray(self._scorer(frames, task), np.float64).reshape(-1)
        if len(scores) != len(frames) or not ((scores >= 1 - 1e-3) & (scores <= 5 + 1e-3)).all():
            raise UserError(
                "the scorer gave no scores of 1 to 5",
                got=f"{len(scores)} for {len(frames)} frames: {np.round(scores[:8], 3).tolist()}",
                expected="one in 1..5 for each frame",
                do="scores in 0..1 become 1 + 4 times the score",
            )
        return float(scores.mean())


class RemoteScorer:
    """q-future/one-align from a folder of the user's, by transformers with the Python code in that folder; loaded at
    the first `open()`. It was never run here: the code was written for an older transformers. Raises UserError without
    `trust`, and where there is no such folder."""

    def __init__(self, folder: str | Path, *, trust: bool = False, device: str = "cuda"):
        self.folder, self._device = Path(folder), device
        if not trust:
            raise UserError(
                f"{self.folder.name} brings its own program",
                got="a model whose Python code would run with your rights; it was not opened",
                expected="leave to run it, or scores in a file",
                do="say trust if you have read that code, or score elsewhere and bring video, metric, value in a file",
            )
        if not self.folder.is_dir():
            do = "fetch q-future/one-align (16 GB) and give its folder"
            expected = "a folder with its model and code"
            raise UserError("Q-Align not found", got=str(self.folder), expected=expected, do=do)
        on_device(device)  # which is the GPU, if none is named

    def about(self) -> dict[str, object]:
        """What its scores depend on: the content of the folder, its code too, and the kind of device."""
        return {
            "weights_sha256": folder_sha256(self.folder, MODEL_FILES),
            "dtype": "float16",
            **on_device(self._device),
        }

    def open(self) -> None:
        """Loads the model (16 GB). Raises UserError where it cannot be loaded."""
        self._model.eval()

    @cached_property
    def _model(self):
        import torch
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, trust_remote_code=True, local_files_only=True, dtype=torch.float16
            )
        except Exception as error:  # whatever that code may raise
            raise UserError(
                f"{self.folder} could not be loaded",
                got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                expected="the code of one-align to fit the installed transformers",
                do="score in an environment of its own (transformers 4.36) and bring the scores in a file",
            ) from error
        return model.to(self._device)

    def __call__(self, frames: Array, task: str) -> list[float]:
        import torch
        from PIL import Image

        pictures = [Image.fromarray(frame) for frame in frames]
        with torch.inference_mode():
            scores = [self._model.score([picture], task_=task, input_="image") for picture in pictures]
        return [float(score.reshape(-1)[0]) for score in scores]
