"""IQA and AES: how good and how pleasing frames look, by Q-Align (Wu et al. 2024), from 1 (bad) to 5 (excellent).

The model (q-future/one-align, 8 billion weights, 16 GB) is too large to run beside everything else and needs code from
its own folder. So scores are mostly brought in a file (`ScoreFile`); running the model here is `QAlign` with a scorer.
The paper's tables run from 1 to 5, the q_align package from 0 to 1: score5 = 1 + 4 score01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .contract import Measured, Unfit, Video
from .sampling import evenly

Array = np.ndarray
Scorer = Callable[[Array, str], Sequence[float]]  # frames uint8 [k, H, W, 3], task -> a score of each, 1..5
LEVELS = ("excellent", "good", "fair", "poor", "bad")
POINTS = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
TASKS = {"iqa": "quality", "aes": "aesthetics"}
FRAMES = 8


def level_score(logits: Array) -> Array:
    """Logits [..., 5] of the words in the order of LEVELS -> scores [...] in 1..5: softmax, then the mean of points."""
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares @ POINTS / shares.sum(-1)


def score5(score01: float) -> float:
    """A score in 0..1, as the q_align package gives it, in 1..5."""
    return 1 + 4 * score01


class QAlign:
    """IQA and AES as the mean over 8 evenly spaced frames, each judged alone by `scorer` (see `remote_scorer`)."""

    name = "qalign"
    columns = tuple(TASKS)
    better: Mapping[str, int] = dict.fromkeys(TASKS, 1)
    verified = False
    settings: Mapping[str, object]

    def __init__(self, scorer: Scorer, *, model: str, model_sha256: str | None = None):
        self._scorer = scorer
        self.settings = {
            "model": model,
            "weights_sha256": model_sha256,
            "frames": FRAMES,
            "mode": "image",
            "scale": "1..5",
        }

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


def remote_scorer(folder: str | Path, *, trust: bool = False, device: str = "cuda") -> Scorer:
    """q-future/one-align from a folder of the user's, by transformers with the Python code in that folder. It was never
    run here: the code was written for an older transformers. Raises UserError without `trust`, and where it cannot be
    loaded."""
    folder = Path(folder)
    if not trust:
        raise UserError(
            f"{folder.name} brings its own program",
            got="a model whose Python code would run with your rights; it was not opened",
            expected="leave to run it, or scores in a file",
            do="say trust if you have read that code, or score elsewhere and bring video, metric, value in a file",
        )
    if not folder.is_dir():
        do = "fetch q-future/one-align (16 GB) and give its folder"
        raise UserError("Q-Align not found", got=str(folder), expected="a folder with its model and code", do=do)
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, local_files_only=True, dtype=torch.float16
        )
    except Exception as error:  # whatever that code may raise
        raise UserError(
            f"{folder} could not be loaded",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="the code of one-align to fit the installed transformers",
            do="score in an environment of its own (transformers 4.36) and bring the scores in a file",
        ) from error
    model = model.to(device).eval()

    def scores(frames: Array, task: str) -> list[float]:
        from PIL import Image

        with torch.inference_mode():
            return [
                float(model.score([Image.fromarray(frame)], task_=task, input_="image").reshape(-1)[0])
                for frame in frames
            ]

    return scores
