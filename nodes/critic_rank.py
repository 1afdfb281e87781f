"""Talking-Critic Rank: the best of several takes."""

from __future__ import annotations

from comfy_api.latest import io

from ..fantasy_core.critic.in_memory import show_clip
from ..fantasy_core.critic.ranking import RULES, Rule, rank
from ..fantasy_core.critic.report import table
from ..fantasy_core.errors import UserError
from ..fantasy_core.pair_rules import DIMENSIONS
from .audio_nodes import CATEGORY
from .critic_model import ManagedCritic
from .critic_nodes import TalkingCritic, face_in, face_inputs, progress
from .video_clip import clip_of

MOST_TAKES = 32
NAMED = ("motion_naturalness", "lip_sync", "visual_quality")  # as DIMENSIONS


def dimension_inputs(suffix: str, tooltip: str, **told) -> list[io.Input]:
    return [io.Float.Input(f"{name}_{suffix}", min=0.0, step=0.01, tooltip=tooltip, **told) for name in NAMED]


class TalkingCriticRank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        takes = io.Autogrow.TemplatePrefix(io.Video.Input("take"), prefix="take", min=2, max=MOST_TAKES)
        return io.Schema(
            node_id="FT2TalkingCriticRank",
            display_name="Talking-Critic Rank",
            category=CATEGORY,
            description="Picks the best of several takes by the critic's scores. A take that cannot be judged in what "
            "counts comes last.",
            search_aliases=["best of n", "pick best video", "select video", "rejection sampling"],
            inputs=[
                TalkingCritic.Input("critic"),
                io.Autogrow.Input("takes", template=takes, tooltip="videos; a new socket appears with each"),
                *dimension_inputs("weight", "0: not asked", default=1.0, max=100.0),
                io.Combo.Input(
                    "rule", options=list(RULES),
                    tooltip="Pareto first: takes that none beats in everything; must pass: thresholds before the sum",
                ),
                *dimension_inputs("least", "must pass: the least score", default=0.5, max=1.0, advanced=True),
                *face_inputs(),
            ],
            outputs=[
                io.Video.Output(display_name="best"),
                io.Int.Output(display_name="index"),
                io.String.Output(display_name="ranking"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, critic: ManagedCritic, takes: io.Autogrow.Type, rule: str, face_landmarks=None, face_mask=None, **told
    ) -> io.NodeOutput:
        chosen = Rule(rule, by_dimension(told, "weight"), by_dimension(told, "least"))
        videos = numbered(takes)
        scores, views = {}, critic.critic.views
        for (number, video), done in zip(videos.items(), progress(len(videos)), strict=True):
            clip = clip_of(video, None, None, 0.0)
            views, face, warnings = face_in(clip.images, views, chosen.counted, face_landmarks, face_mask)
            windows = show_clip(clip, views, chosen.counted, face)
            del clip  # all frames of a take at a time, and of no other
            scores[number] = (critic.score(windows, chosen.counted, done), warnings)
        ranked = rank([score.z for score, _ in scores.values()], chosen)
        best = list(videos)[ranked[0].take]
        return io.NodeOutput(videos[best], best, table(scores, ranked, chosen, critic.made_by(views)))


def by_dimension(told: dict[str, float], suffix: str) -> dict[str, float]:
    return {dimension: told[f"{name}_{suffix}"] for dimension, name in zip(DIMENSIONS, NAMED, strict=True)}


def numbered(takes: dict) -> dict[int, object]:
    """The connected takes by the number of their socket, in its order."""
    found = {int(name.removeprefix("take")): video for name, video in takes.items() if video is not None}
    if not found:
        raise UserError(
            "there is nothing to rank", got="no take", expected="two or more", do="connect videos to take0, take1, ..."
        )
    return dict(sorted(found.items()))


NODES = [TalkingCriticRank]
