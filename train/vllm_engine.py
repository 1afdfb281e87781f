"""Talking-Critic on vLLM's offline engine, behind the interface of `Critic`. Unverified: nobody has run it here.

Scoring reads much and writes one word, so vLLM's gain is in its batching alone. Its online server is not used: it is
known to drop the sound in silence. train.score's canary stops a run in which that happens here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fantasy_core.critic.about import check_trained, merged_about, merged_into, taught, views_for
from fantasy_core.critic.asked import Questions, Views, read_questions
from fantasy_core.critic.critic import NEEDS_SOUND, Answer, Critic
from fantasy_core.critic.shown import RATE, Shown
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS

LISTED = 20  # words of which vLLM tells the probability


class VllmCritic:
    """A merged critic (`train.critic merge`), asked through vLLM."""

    without_adapter, model = nullcontext(), None
    by_view = Critic.by_view

    def __init__(self, engine: Any, views: Views, questions: Questions, base: str, taught: Sequence[str] = DIMENSIONS):
        self.engine, self.views, self.questions, self.taught = engine, views, questions, tuple(taught)
        told = ["vllm", base, questions.hash]
        self.hash = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, base: Path, views: str | None, face: str | None) -> VllmCritic:
        """views, face: as of `Critic.load`. Raises UserError where vLLM is not installed, and for what does not go
        together."""
        questions, about = read_questions(), merged_about(base)
        shown = views_for(about, views, face)
        if about:
            check_trained(base, about, questions=questions.hash, views=shown.hash)
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                "vLLM cannot be loaded",
                got=str(error),
                expected="vllm, installed by you",
                do="pip install vllm, or leave --engine transformers",
            ) from error
        engine = LLM(model=str(base), limit_mm_per_prompt={"video": 1, "audio": 1}, max_logprobs=LISTED)
        return cls(engine, shown, questions, f"{base.resolve()} {merged_into(base)}", taught(about))

    def ask(self, shown: Sequence[Shown], dimensions: Sequence[str]) -> list[Answer]:
        """As `Critic.ask`; vLLM's prefix cache is what reads the media once."""
        from vllm import SamplingParams

        told = SamplingParams(temperature=0.0, max_tokens=1, logprobs=LISTED)
        prompts = [self._prompt(one, dimension) for one in shown for dimension in dimensions]
        outputs = self.engine.generate(prompts, told, use_tqdm=False)
        words = [self._words(output.outputs[0].logprobs[0]) for output in outputs]
        rows = [words[i : i + len(dimensions)] for i in range(0, len(words), len(dimensions))]
        return [self._answer(one, dimensions, row) for one, row in zip(shown, rows, strict=True)]

    def _prompt(self, shown: Shown, dimension: str) -> dict[str, Any]:
        text = f"{self.questions.before}<|VIDEO|><|vision_eos|>{self.questions.after(dimension)}"
        pixels = shown.frames.shape[2] * shown.frames.shape[3]
        kwargs = {"use_audio_in_video": True, "fps": shown.fps, "do_sample_frames": False}
        kwargs["size"] = {"shortest_edge": pixels, "longest_edge": pixels}  # they have their size already
        media = {"video": shown.frames.movedim(1, -1).numpy(), "audio": (shown.sound, RATE)}
        return {"prompt": text, "multi_modal_data": media, "mm_processor_kwargs": kwargs}

    def _words(self, listed: Mapping[int, Any]) -> dict[str, float]:
        """The log probability of Yes and of No; a word that is not listed has at most that of the last one."""
        least = min(entry.logprob for entry in listed.values())
        found = {entry.decoded_token: entry.logprob for entry in listed.values()}
        return {word: found.get(word, least) for word in (self.questions.yes, self.questions.no)}

    def _answer(self, shown: Shown, dimensions: Sequence[str], words: Sequence[dict[str, float]]) -> Answer:
        yes, no = self.questions.yes, self.questions.no
        z = {d: told[yes] - told[no] for d, told in zip(dimensions, words, strict=True)}
        mass = min(math.exp(told[yes]) + math.exp(told[no]) for told in words)
        return Answer({d: None if shown.silent and d in NEEDS_SOUND else value for d, value in z.items()}, mass)
