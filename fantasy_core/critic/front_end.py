"""What the critic is shown, as Qwen2.5-Omni's Thinker reads it: token ids, patches, mel bands, and their grids.

The same numbers as transformers' processor makes, which needs torchvision. Video and audio take turns in chunks of two
seconds (TMRoPE), positions are counted at 25 a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .asked import Questions
from .shown import RATE, Shown

PATCH, PAIR, MERGE = 14, 2, 2  # pixels of a patch, frames of a patch, patches of a token's side
CHUNK, PER_SECOND = 2.0, 25  # seconds before video and audio take turns; positions a second
HOP, WINDOW = 160, 400  # samples between mel frames, and of their window
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)  # OpenAI CLIP's
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
MEDIA = {name: f"<|{name}|>" for name in ("VIDEO", "AUDIO", "audio_bos", "audio_eos", "vision_eos")}

Batch = dict[str, Tensor]


def patchify(frames: Tensor) -> Tensor:
    """uint8 [T, 3, H, W], H and W multiples of 28 -> normalised patches [t * h * w, 3 * 2 * 14 * 14], in the order of
    tokens: the four patches that are merged stand together. An odd last frame is repeated."""
    x = (frames.float() / 255 - MEAN) / STD
    if len(x) % PAIR:
        x = torch.cat([x, x[-1:]])
    t, (height, width) = len(x) // PAIR, x.shape[2:]
    h, w = height // PATCH // MERGE, width // PATCH // MERGE
    x = x.view(t, PAIR, 3, h, MERGE, PATCH, w, MERGE, PATCH)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w * MERGE**2, -1)


def audio_tokens(mel_frames: int) -> int:
    """How many tokens the audio encoder makes of 100 mel frames a second: 25."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


def interleave(grid: tuple[int, int, int], fps: float, heard: int, ids: Mapping[str, int]) -> list[int]:
    """The media's token ids: two seconds of video, two of audio, and so on, between the marks of audio."""
    t, h, w = grid
    a_frame, limit = (h // MERGE) * (w // MERGE), PER_SECOND * CHUNK
    video = np.floor(np.arange(t) * (PAIR / fps) * PER_SECOND / limit).astype(int)  # chunk of every pair of frames
    audio = (np.arange(heard) // limit).astype(int)
    found = [ids["audio_bos"]]
    for chunk in range(1 + int(max(video.max(initial=0), audio.max(initial=0)))):
        found += [ids["VIDEO"]] * (int((video == chunk).sum()) * a_frame)
        found += [ids["AUDIO"]] * int((audio == chunk).sum())
    return [*found, ids["audio_eos"]]


@cache
def _mel():
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=128, sampling_rate=RATE, hop_length=HOP, n_fft=WINDOW, chunk_length=300)


def mel_bands(sounds: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Waveforms [n] at 16 kHz -> log mel bands [B, 128, M] and their mask [B, M].

    Padded to the longest and one more window, not to the 300 s of the hub's settings: the same bits inside the mask
    for a hundredth of the work. (Without that window the last frames would see a mirrored signal.)
    """
    longest = math.ceil((max(map(len, sounds)) + WINDOW) / HOP) * HOP
    told = {"padding": "max_length", "max_length": longest, "truncation": True, "return_attention_mask": True}
    found = _mel()(list(sounds), sampling_rate=RATE, return_tensors="pt", **told)
    return found["input_features"], found["attention_mask"]


class FrontEnd:
    """Batches for the Thinker. `tokenizer`: Qwen2.5-Omni's. Raises UserError for one whose answer words, or marks of
    media, are not single tokens."""

    def __init__(self, tokenizer, questions: Questions):
        self.tokenizer, self.questions = tokenizer, questions
        self.words = self.yes, self.no = self._one(questions.yes), self._one(questions.no)
        self.ids = {name: self._one(mark) for name, mark in MEDIA.items()}
        self.pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def _one(self, text: str) -> int:
        found = self._encode(text)
        if len(found) != 1:
            raise UserError(
                "this is a foreign tokenizer",
                got=f"{text!r} in {len(found)} tokens",
                expected="one, as Qwen2.5-Omni's has it",
                do="fetch the tokenizer's files of the same model again",
            )
        return found[0]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def question(self, dimension: str) -> list[int]:
        """The ids of all that comes after the media."""
        return self._encode(self.questions.after(dimension))

    def media(self, shown: Sequence[Shown]) -> Batch:
        """What comes before the questions, left padded: `input_ids`, `attention_mask` [B, L] and the media of
        each clip (patches of all clips in one row of them)."""
        features, mask = mel_bands([one.sound for one in shown])
        heard, before = [audio_tokens(int(n)) for n in mask.sum(1)], self._encode(self.questions.before)
        rows = [
            [*before, *interleave(one.grid, one.fps, count, self.ids), self.ids["vision_eos"]]
            for one, count in zip(shown, heard, strict=True)
        ]
        return {
            **self._padded(rows),
            "pixel_values_videos": torch.cat([patchify(one.frames) for one in shown]),
            "video_grid_thw": torch.tensor([one.grid for one in shown]),
            "video_second_per_grid": torch.tensor([PAIR / one.fps for one in shown]),
            "input_features": features,
            "feature_attention_mask": mask,
        }

    def batch(self, shown: Sequence[Shown], dimensions: Sequence[str]) -> Batch:
        """Clips with a question each: the last column is where the answer will stand."""
        media, tails = self.media(shown), [self.question(dimension) for dimension in dimensions]
        rows = [
            ids[mask.bool()].tolist() + tail
            for ids, mask, tail in zip(media["input_ids"], media["attention_mask"], tails, strict=True)
        ]
        return {**media, **self._padded(rows)}

    def _padded(self, rows: Sequence[list[int]]) -> Batch:
        longest = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}
