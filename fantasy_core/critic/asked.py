"""What the critic is asked and what it is shown: questions, answer words and views, as versioned data.

A score means nothing without them, so both are hashed into every score and every adapter. The paper prints neither;
questions and views are ours (`questions.json`, `views.json`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import UserError
from ..pair_rules import DIMENSIONS

FACES = ("found", "whole")  # what views of the face show: the face, or all of the frame
HERE = Path(__file__).parent
LEAST_MASS = 0.5  # of all probability on Yes and No; a critic below it does not answer the question
BEFORE = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|vision_bos|>"
AFTER = "{question}<|im_end|>\n<|im_start|>assistant\n"


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Questions:
    """The question of each dimension, in Qwen's chat layout: what comes `before` the media and the mark of
    their end, what `after` it."""

    version: str
    system: str
    yes: str
    no: str
    questions: Mapping[str, str]

    @cached_property
    def hash(self) -> str:
        return _hash({**asdict(self), "layout": [BEFORE, AFTER]})

    @property
    def before(self) -> str:
        return BEFORE.format(system=self.system)

    def after(self, dimension: str) -> str:
        return AFTER.format(question=self.questions[dimension])


@dataclass(frozen=True)
class View:
    """How a clip is shown: the whole frame or the face, at `fps`, with at most `pixels` a frame."""

    name: str
    crop: str
    fps: float
    pixels: int


@dataclass(frozen=True)
class Views:
    """A view for each dimension. Clips longer than `seconds` are shown in windows of that length."""

    preset: str
    seconds: float
    of: Mapping[str, View]  # by dimension

    @cached_property
    def hash(self) -> str:
        return _hash(asdict(self))

    @property
    def distinct(self) -> list[View]:
        """Each view once, in the order of the dimensions."""
        return list({view.name: view for view in self.of.values()}.values())

    def only(self, dimensions: Sequence[str]) -> Views:
        """What is shown for these dimensions."""
        return replace(self, of={dimension: self.of[dimension] for dimension in dimensions})

    @property
    def of_face(self) -> list[str]:
        """The dimensions whose view is of the face alone."""
        return [dimension for dimension, view in self.of.items() if view.crop == "face"]

    @property
    def crops_face(self) -> bool:
        return bool(self.of_face)

    @property
    def face(self) -> str:
        """`found`: a view shows the face alone; `whole`: none does."""
        return "found" if self.crops_face else "whole"

    def whole(self) -> Views:
        """These with all of the frame where the face would be: other views, with another hash."""
        return replace(self, of={dimension: replace(view, crop="frame") for dimension, view in self.of.items()})


def read_questions(path: Path = HERE / "questions.json") -> Questions:
    """The shipped questions, or those of another file of that form."""
    return Questions(**json.loads(path.read_text("utf-8")))


def read_views(preset: str = "separate", path: Path = HERE / "views.json") -> Views:
    """`separate`: a view for each dimension, 3 to 4 thousand tokens for 5 s; `shared`: one of 1.4 thousand for all
    three, so that the clip is read once. Raises UserError for an unknown preset."""
    told = json.loads(path.read_text("utf-8"))
    if preset not in told["presets"]:
        raise UserError(
            "unknown views", got=repr(preset), expected=" or ".join(told["presets"]), do="give one of these as --views"
        )
    named = {name: View(name, **view) for name, view in told["views"].items()}
    chosen = told["presets"][preset]
    return Views(preset, told["seconds"], {dimension: named[chosen[dimension]] for dimension in DIMENSIONS})
