"""Nodes around Talking-Critic: Talking-Critic Loader and Talking-Critic Score."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..fantasy_core.critic.asked import Views
from ..fantasy_core.critic.critic import Critic
from ..fantasy_core.critic.folders import adapter_folders, omni_folders, stamp
from ..fantasy_core.critic.in_memory import face_of_landmarks, face_of_mask, show_clip
from ..fantasy_core.critic.report import report
from ..fantasy_core.critic.shown import Box
from ..fantasy_core.errors import UserError
from ..fantasy_core.pair_rules import DIMENSIONS
from . import CRITICS, LLM
from .audio_nodes import CATEGORY
from .critic_model import ManagedCritic
from .video_clip import clip_of

TalkingCritic, FaceLandmarks = io.Custom("TALKING_CRITIC"), io.Custom("FACE_LANDMARKS")
NO_ADAPTER, OWN_VIEWS = "none", "the adapter's own"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STEPS = 1000  # of a clip on the progress bar


def roots(*folders: str) -> list[Path]:
    return [Path(path) for folder in folders for path in folder_paths.get_folder_paths(folder)]


def bases() -> dict[str, Path]:
    """Folders of Qwen2.5-Omni, also those that train.critic merged an adapter into."""
    return omni_folders(roots(LLM, CRITICS))


def adapters() -> dict[str, Path]:
    return adapter_folders(roots(CRITICS))


class TalkingCriticLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2TalkingCriticLoader",
            display_name="Talking-Critic Loader",
            category=CATEGORY,
            description="Loads a judge of talking portraits: Qwen2.5-Omni from models/LLM, with or without an adapter.",
            search_aliases=["qwen omni", "reward model", "video judge", "talking critic"],
            inputs=[
                io.Combo.Input("base", options=list(bases()), tooltip="a folder of Qwen2.5-Omni, 7B or 3B"),
                io.Combo.Input(
                    "adapter", options=[NO_ADAPTER, *adapters()], tooltip="a folder of train.critic; none: the base"
                ),
                io.Combo.Input(
                    "views", options=[OWN_VIEWS, "separate", "shared"],
                    tooltip="separate: each question with its own frame rate, size and crop. shared: one look for all, "
                    "a third of the tokens",
                ),
                io.Combo.Input("dtype", options=list(DTYPES), advanced=True, tooltip="7B in 16 bits: 17 GiB"),
            ],
            outputs=[TalkingCritic.Output(display_name="critic")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, base: str, adapter: str, views: str, dtype: str) -> str:
        """Changes when a file of the base or of the adapter does, so that it is loaded anew."""
        folders = [bases().get(base), adapters().get(adapter)]
        return repr([views, dtype, *(folder and stamp(folder) for folder in folders)])

    @classmethod
    def execute(cls, base: str, adapter: str, views: str, dtype: str) -> io.NodeOutput:
        folder = _found(bases(), base, "config.json of Qwen2.5-Omni", LLM)
        critic = None if adapter == NO_ADAPTER else _found(adapters(), adapter, "critic.json", CRITICS)
        if critic is not None:
            _need_peft()
        with torch.inference_mode(False):
            preset = None if views == OWN_VIEWS else views
            found = Critic.load(folder, critic, views=preset, dtype=DTYPES[dtype])
            return io.NodeOutput(ManagedCritic(found))


def _found(folders: dict[str, Path], name: str, holds: str, kind: str) -> Path:
    if name not in folders:
        raise UserError(
            f"{name} is not there",
            got="no folder of that name with a " + holds,
            expected="below " + " or ".join(map(str, roots(kind))),
            do="put it there, press R to refresh the lists and choose it again",
        )
    return folders[name]


def _need_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            "an adapter of the critic needs peft",
            got="no package of that name in ComfyUI's Python",
            expected="peft 0.17 or newer",
            do="run `pip install peft` with ComfyUI's Python, or merge the adapter into its base with `train.critic "
            "merge` and choose that",
        )


class TalkingCriticScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2TalkingCriticScore",
            display_name="Talking-Critic Score",
            category=CATEGORY,
            description="Judges a talking portrait from 0 to 1: motion, lips, picture. NaN: not asked, or no sound.",
            search_aliases=["video score", "lip sync score", "reward", "quality assessment"],
            inputs=[
                TalkingCritic.Input("critic"),
                io.Boolean.Input("motion_naturalness", default=True, tooltip="ask for it"),
                io.Boolean.Input("lip_sync", default=True, tooltip="ask for it; needs sound"),
                io.Boolean.Input("visual_quality", default=True, tooltip="ask for it"),
                io.Float.Input("fps", default=23.0, min=1.0, max=120.0, step=0.01, tooltip="of images"),
                io.Video.Input("video", optional=True),
                io.Image.Input("images", optional=True, tooltip="frames instead of a video, which wins"),
                io.Audio.Input("audio", optional=True, tooltip="the sound of images"),
                *face_inputs(),
            ],
            outputs=[
                io.Float.Output(display_name="motion naturalness"),
                io.Float.Output(display_name="lip sync"),
                io.Float.Output(display_name="visual quality"),
                io.String.Output(display_name="report"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, critic: ManagedCritic, motion_naturalness: bool, lip_sync: bool, visual_quality: bool, fps: float,
        video=None, images=None, audio=None, face_landmarks=None, face_mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        wanted = (motion_naturalness, lip_sync, visual_quality)
        asked = [dimension for dimension, ask in zip(DIMENSIONS, wanted, strict=True) if ask]
        clip = clip_of(video, images, audio, fps)
        if not asked:
            return io.NodeOutput(*[math.nan] * len(DIMENSIONS), "nothing was asked")
        views, face, warnings = face_in(clip.images, critic.critic.views, asked, face_landmarks, face_mask)
        if video is not None and images is not None:
            warnings.append("images were not looked at: a video is connected")
        windows = show_clip(clip, views, asked, face)
        score = critic.score(windows, asked, progress()[0])
        values = [score.score.get(dimension) for dimension in DIMENSIONS]
        told = report(score, asked, critic.made_by(views), warnings)
        return io.NodeOutput(*(math.nan if value is None else value for value in values), told)


def progress(clips: int = 1) -> list[Callable[[int, int], None]]:
    """For each clip a function that tells ComfyUI's progress bar how many of how many windows were read."""
    bar = comfy.utils.ProgressBar(STEPS * clips)
    return [lambda done, of, k=clip: bar.update_absolute(STEPS * k + STEPS * done // of) for clip in range(clips)]


def face_inputs() -> list[io.Input]:
    """Where the face is, for views that show it alone."""
    return [
        FaceLandmarks.Input("face_landmarks", optional=True, tooltip="of the frames, or of the portrait alone"),
        io.Mask.Input("face_mask", optional=True, tooltip="the face, in place of landmarks"),
    ]


def face_in(
    images: Tensor, views: Views, asked: Sequence[str], landmarks: dict | None, mask: Tensor | None
) -> tuple[Views, Box | None, list[str]]:
    """The views in which the clip can be shown, the box that those of the face show, and a warning where there is
    none: they are whole frames then."""
    if not views.only(asked).crops_face:
        return views, None, []
    size, why = (images.shape[1], images.shape[2]), "no face_landmarks or face_mask is connected"
    face = None
    if landmarks is not None:
        faces = [[face["landmarks_xy"] for face in frame] for frame in landmarks["frames"]]
        face, why = face_of_landmarks(faces, landmarks["image_size"], size), "face_landmarks have no face"
    elif mask is not None:
        face, why = face_of_mask(mask, size), "face_mask is empty"
    if face is None:
        return views.whole(), None, [f"lip sync was judged on the whole frame: {why}"]
    return views, face, []


NODES = [TalkingCriticLoader, TalkingCriticScore]
