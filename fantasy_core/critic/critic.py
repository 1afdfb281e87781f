"""Talking-Critic: z = logit(Yes) - logit(No) of each dimension's question, score = sigmoid(z) (paper, 3.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..manifest import sha256
from ..pair_rules import DIMENSIONS
from .about import ADAPTER, check_trained, merged_about, read_about, taught, views_for
from .asked import LEAST_MASS, Questions, Views, read_questions
from .front_end import FrontEnd
from .shown import Shown
from .thinker import answer_logits, answers_to_all, fingerprint, load_adapter, load_thinker, load_tokenizer

NEEDS_SOUND = ("ls",)


@dataclass(frozen=True)
class Answer:
    """z [dimension] of one window, None where it cannot be said, and the least probability that Yes and No had."""

    z: Mapping[str, float | None]
    mass: float


@dataclass(frozen=True)
class Score:
    """A clip's z [dimension], the mean over its windows, None where it cannot be said; the least z of them; `mass`: how
    much of the probability Yes and No had, at least."""

    z: Mapping[str, float | None]
    least: Mapping[str, float | None]
    mass: float
    windows: int
    warnings: list[str] = field(default_factory=list)

    @property
    def score(self) -> dict[str, float | None]:
        """sigmoid(z), 0 to 1."""
        return {d: None if z is None else torch.tensor(z).sigmoid().item() for d, z in self.z.items()}


class Critic:
    """A Thinker, with or without its adapter, and what it is asked and shown.

    hash: of adapter (or none), base, questions: scores of different hashes are not compared. A base that an adapter was
    merged into is another base: its weights are rounded, so its scores are not quite the adapter's. taught: the
    dimensions it has learnt; others get no score.
    """

    def __init__(
        self, model: nn.Module, tokenizer, views: Views, questions: Questions, adapter: str = "none",
        taught: Sequence[str] = DIMENSIONS,
    ):  # fmt: skip
        self.model, self.views, self.questions, self.taught = model, views, questions, tuple(taught)
        self.front = FrontEnd(tokenizer, questions)
        parts = [adapter, fingerprint(model), questions.hash]
        self.hash = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @classmethod
    def load(
        cls,
        base: Path,
        adapter: Path | None = None,
        *,
        views: str | None = None,
        face: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
    ) -> Critic:
        """From a folder of Qwen2.5-Omni and, if given, one of an adapter by train.critic; or from one that an adapter
        was merged into. views, face: a preset, and `found` or `whole` (the adapter's own, else `separate` and `found`).
        Raises UserError for what does not go together."""
        questions, about = read_questions(), merged_about(base) if adapter is None else read_about(adapter)
        shown = views_for(about, views, face)
        if about:
            check_trained(adapter or base, about, questions=questions.hash, views=shown.hash)
        model = load_thinker(base, dtype=dtype, device=device)
        if adapter is not None:
            check_trained(adapter, about, base=fingerprint(model))
            model = load_adapter(model, adapter)
        told = "none" if adapter is None else sha256(adapter / ADAPTER)
        return cls(model, load_tokenizer(base), shown, questions, told, taught(about))

    @property
    def without_adapter(self):
        """A context in which the adapter is off."""
        return self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()

    @torch.no_grad()
    def ask(self, shown: Sequence[Shown], dimensions: Sequence[str]) -> list[Answer]:
        """Each of the clips about all of the dimensions: one reading of the media. All are shown in one view."""
        if len(dimensions) == 1:
            logits = [self.logits(shown, list(dimensions) * len(shown))]
        else:
            tails = [self.front.question(dimension) for dimension in dimensions]
            most = self.most_pixels(dimensions)
            logits = answers_to_all(self.model, self.front.media(shown), tails, self.front.words, most)
        z, mass = (torch.stack(rows, 1).tolist() for rows in zip(*map(self.read, logits), strict=True))  # [B, dims]
        return [self._answer(one, dimensions, *row) for one, *row in zip(shown, z, mass, strict=True)]

    def logits(self, shown: Sequence[Shown], asked: Sequence[str]) -> Tensor:
        """[B, V] of each clip about one dimension of its own."""
        batch = self.front.batch(shown, asked)
        return answer_logits(self.model, batch, self.front.words, self.most_pixels(asked))

    def most_pixels(self, dimensions: Sequence[str]) -> int:
        """Of a frame, in the views of these dimensions."""
        return max(self.views.of[dimension].pixels for dimension in dimensions)

    def read(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, V] -> z [B] and the share of the probability that Yes and No have [B]."""
        yes, no = logits[:, self.front.yes], logits[:, self.front.no]
        return yes - no, (torch.logaddexp(yes, no) - logits.logsumexp(1)).exp()

    def _answer(self, shown: Shown, dimensions: Sequence[str], z: list[float], mass: list[float]) -> Answer:
        deaf = [shown.silent and dimension in NEEDS_SOUND for dimension in dimensions]
        told = {d: None if no_sound else value for d, value, no_sound in zip(dimensions, z, deaf, strict=True)}
        return Answer(told, min(mass))

    def score(self, windows: Mapping[str, Sequence[Shown]], dimensions: Sequence[str] = DIMENSIONS) -> Score:
        """One clip: `windows` by view, as `shown.show` makes them."""
        return combine(list(self.answers(windows, dimensions)), dimensions, self.taught)

    def answers(self, windows: Mapping[str, Sequence[Shown]], dimensions: Sequence[str]) -> Iterator[Answer]:
        """The answers of a clip one window at a time, for whoever wants to count them or to stop in between."""
        for view, asked in self.by_view(dimensions).items():
            for window in windows[view]:
                yield self.ask([window], asked)[0]

    def by_view(self, dimensions: Sequence[str]) -> dict[str, list[str]]:
        """Which of the dimensions are asked in which view: those that were taught."""
        found: dict[str, list[str]] = {}
        for dimension in (one for one in dimensions if one in self.taught):
            found.setdefault(self.views.of[dimension].name, []).append(dimension)
        return found


def combine(
    answers: Sequence[Answer], dimensions: Sequence[str] = DIMENSIONS, taught: Sequence[str] = DIMENSIONS
) -> Score:
    """The score of a clip from the answers of its windows, in whatever views."""
    z, least, warnings = {}, {}, []
    for dimension in dimensions:
        told = [answer.z[dimension] for answer in answers if dimension in answer.z]
        known = [value for value in told if value is not None]
        z[dimension] = sum(known) / len(known) if known else None
        least[dimension] = min(known, default=None)
        if told and not known:
            warnings.append(f"no sound: {dimension} cannot be judged")
        if dimension not in taught:
            warnings.append(f"this critic was not taught {dimension}")
    mass = min((answer.mass for answer in answers), default=0.0)
    if answers and not mass >= LEAST_MASS:  # NaN too
        warnings.append(f"Yes and No have {mass:.2f} of the probability: this model does not answer the question")
    counts = [sum(d in answer.z for answer in answers) for d in dimensions]
    return Score(z, least, mass, max(counts, default=0), warnings)
