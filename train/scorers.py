"""What scores videos: Talking-Critic, or the miniature's exact judge. Both read files in other processes, and say who
they are by two hashes, `critic` and `views`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fantasy_core.critic.asked import Views
from fantasy_core.critic.critic import Answer, Critic, Score, combine
from fantasy_core.critic.files import face_finder, show_file
from fantasy_core.critic.shown import RATE, Shown
from fantasy_core.errors import NoFace, UserError
from fantasy_core.pair_rules import DIMENSIONS
from train.tables import videos_once

MOVES = 1e-5  # of z: what is fed to the model moves it by more
LATE = RATE // 2  # samples of the canary's shifted sound
DO = {  # where a change of the canary's leaves z as it is
    "silence": "fetch the base's files anew, its audio tower is deaf; --engine transformers, if it was vllm",
    "late": "train the critic on late sound too (train.degrade --kinds shift), it does not hear when things are said",
    "adapter off": "give the adapter of a finished run as --critic: this one changes nothing",
}


@dataclass(frozen=True)
class Video:
    """A line of videos.jsonl, as far as scoring goes."""

    video: str
    path: str
    input: str = ""
    sha256: str = ""


def read_videos(path: Path) -> list[Video]:
    """The lines of videos.jsonl, or of a parquet file of the same columns. Raises UserError for a video that is there
    twice, and for a file without any."""
    return videos_once(path, Video)


def no_number(told: Mapping[str, float | None]) -> UserError | None:
    """What is wrong with values of which some are NaN or infinite; None where all are numbers (or not said)."""
    odd = [f"{name} {value}" for name, value in told.items() if value is not None and not math.isfinite(value)]
    if not odd:
        return None
    return UserError(
        "the critic gave no number",
        got=", ".join(odd),
        expected="finite logits of Yes and No",
        do="give --dtype bf16 or fp32 (fp16 overflows); if it stays so, fetch the base or train the adapter anew",
    )


class Scorer(Protocol):
    """critic, views: hashes. `read(file, video)` runs in other processes, prepared by `prepare(*given)` once."""

    critic: str
    views: str
    read: Callable[[tuple[Path, Video]], Any]
    prepare: Callable[..., None] | None
    given: tuple

    def scores(self, clips: Sequence[Any]) -> Iterator[tuple[int, Score]]:
        """(which of the clips, its score), in any order."""
        ...

    def canary(self, clip: Any) -> dict[str, float] | None:
        """What the scores of one clip do when they should move; None when it is no canary. Raises UserError when they
        do not, or are no numbers."""
        ...


# ---- Talking-Critic ----

_reader: dict[str, Any] = {}  # of a reading process: what `prepare_reader` made


def prepare_reader(views: Views, task: Path | None) -> None:
    """Once in each reading process: the face detectors stay open."""
    finder = _reader.setdefault("stack", ExitStack()).enter_context(face_finder(task)) if task else None
    _reader.update(views=views, finder=finder)


def check_task(task: Path | None, views: Views) -> None:
    """Raise UserError here and now for what would fail in every reading process."""
    if task is None and views.crops_face:
        raise UserError(
            "the view of the face needs faces to be found",
            got="no --task",
            expected="mediapipe's face_landmarker.task",
            do="give --task, or --face whole for portraits that fill the frame, or --views shared",
        )
    if task is not None:
        with face_finder(task):
            pass


def read_shown(job: tuple[Path, Video]) -> dict[str, list[Shown]]:
    return show_file(job[0], _reader["views"], _reader["finder"])


def read_window(job: tuple[Path, str]) -> Shown:
    """What a label is learnt from: the first window, in the view of its dimension alone; labels are given to clips of a
    few seconds."""
    path, dimension = job
    (windows,) = show_file(path, _reader["views"].only([dimension]), _reader["finder"]).values()
    return windows[0]


def unseen(job: tuple[Path, Sequence[str]]) -> dict[str, str]:
    """Why these dimensions of a video cannot be judged, for those that cannot. The whole file is decoded."""
    path, dimensions = job
    views = _reader["views"].only(dimensions)
    try:
        shown = show_file(path, views, _reader["finder"])
    except NoFace:
        shown = {}
    return {dimension: "no face" for dimension, view in views.of.items() if not shown.get(view.name)}


class CriticScorer:
    """batch: tokens of a batch, padding counted. task: face_landmarker.task, for views of the face."""

    read, prepare = staticmethod(read_shown), staticmethod(prepare_reader)

    def __init__(self, critic: Critic, batch: int, task: Path | None = None):
        self.model, self.batch = critic, batch
        self.critic, self.views = critic.hash, critic.views.hash
        self.given = (critic.views, task)

    def scores(self, clips: Sequence[dict[str, list[Shown]]]) -> Iterator[tuple[int, Score]]:
        """Windows of all clips, view by view, in batches of about equal length; a clip is done with its last one."""
        answers: list[list[Answer]] = [[] for _ in clips]
        by_view = self.model.by_view(DIMENSIONS)
        left = [sum(len(clip[view]) for view in by_view) for clip in clips]
        yield from ((number, self._score(clips[number], [])) for number, windows in enumerate(left) if not windows)
        for view, asked in by_view.items():
            windows = [(number, window) for number, clip in enumerate(clips) for window in clip[view]]
            for group in by_tokens(windows, self.batch):
                found = self._ask([window for _, window in group], asked)
                for (number, _), answer in zip(group, found, strict=True):
                    answers[number].append(answer)
                    left[number] -= 1
                    if not left[number]:
                        yield number, self._score(clips[number], answers[number])

    def _ask(self, windows: Sequence[Shown], asked: Sequence[str]) -> list[Answer]:
        """The answers of a batch, in halves where it does not fit into memory; later batches are no larger. Raises
        UserError for one window that does not fit."""
        tokens, half = max(window.tokens for window in windows) * len(windows), len(windows) // 2
        if not half or tokens <= self.batch:
            try:
                return self.model.ask(windows, asked)
            except torch.OutOfMemoryError as error:
                why = str(error).partition("\n")[0]
            torch.cuda.empty_cache()  # out here the error is gone, and with it what its frames held
            if not half:
                raise UserError(
                    "the memory of the device is too small for one window of a video",
                    got=why,
                    expected="the model's weights and a few GiB",
                    do="give --views shared or --dtype bf16, or a device with more memory",
                )
            self.batch = tokens // 2
            print(f"out of memory with {tokens} tokens ({why}): --batch {self.batch} from here on", file=sys.stderr)
        return self._ask(windows[:half], asked) + self._ask(windows[half:], asked)

    def _score(self, clip: dict[str, list[Shown]], answers: Sequence[Answer]) -> Score:
        """The score of a clip; a dimension whose view has no window, for want of a face, has none."""
        score = combine(answers, taught=self.model.taught)
        faceless = [d for d, view in self.model.views.of.items() if d in self.model.taught and not clip[view.name]]
        told = [f"no face: {dimension} cannot be judged" for dimension in faceless]
        return replace(score, warnings=score.warnings + told)

    def canary(self, clip: dict[str, list[Shown]]) -> dict[str, float] | None:
        """z of lip sync with the clip's own sound, with silence, half a second late, and without the adapter."""
        windows = clip[self.model.views.of["ls"].name]
        if not windows or windows[0].silent or len(windows[0].sound) <= LATE:
            return None
        window = windows[0]
        late, mute = window.sound.copy(), window.sound * 0
        late[LATE:], late[:LATE] = window.sound[:-LATE], 0
        told = {"own": window, "silence": Shown(window.frames, window.fps, mute)}
        told["late"] = Shown(window.frames, window.fps, late)
        z = {name: self._ask([one], ["ls"])[0].z["ls"] for name, one in told.items()}
        adapted = hasattr(self.model.model, "disable_adapter")
        with self.model.without_adapter:
            z |= {"adapter off": self._ask([window], ["ls"])[0].z["ls"]} if adapted else {}
        if error := no_number(z):
            raise error
        still = [name for name in z if name != "own" and abs(z[name] - z["own"]) < MOVES]
        if still:
            raise not_moved(still, z)
        return z


def not_moved(still: Sequence[str], z: Mapping[str, float]) -> UserError:
    """What to do about changes of the canary that left z as it was. Who hears nothing hears no delay either."""
    causes = [name for name in still if name != "late" or "silence" not in still]
    return UserError(
        "the critic does not react: " + ", ".join(still),
        got=", ".join(f"z {value:.6f} ({name})" for name, value in z.items()),
        expected="another score for silence, for late sound and without the adapter",
        do="; ".join(["give --dtype fp32, if rounding may hide it", *(DO[name] for name in causes)]),
    )


def by_tokens(windows: Sequence[tuple[int, Shown]], most: int) -> Iterator[list[tuple[int, Shown]]]:
    """Windows of like length together, at most `most` tokens a batch with its padding; a longer one by itself."""
    group: list[tuple[int, Shown]] = []
    for number, window in sorted(windows, key=lambda pair: (pair[1].tokens, pair[0])):
        if group and window.tokens * (len(group) + 1) > most:
            yield group
            group = []
        group.append((number, window))
    if group:
        yield group
