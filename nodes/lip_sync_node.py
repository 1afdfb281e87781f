"""Lip Sync Check: whether lips and voice of a clip move together, and how far apart, without any weights."""

from __future__ import annotations

import math

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..fantasy_core.audio import SAMPLE_RATE
from ..fantasy_core.errors import UserError
from ..fantasy_core.metrics.lip_check import (
    LANDMARKS,
    MASKS,
    check_lips,
    openings_of_landmarks,
    openings_of_masks,
    report,
)
from ..fantasy_core.metrics.lip_plot import draw_lips
from .audio_nodes import CATEGORY
from .critic_nodes import FaceLandmarks
from .video_clip import clip_of


class LipSyncCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2LipSyncCheck",
            display_name="Lip Sync Check",
            category=CATEGORY,
            description="By how many frames lips and voice are apart, without a model. NaN: no verdict, as the report "
            "says.",
            search_aliases=["lip sync offset", "audio delay", "av sync", "sync score", "mouth opening"],
            inputs=[
                io.Float.Input("fps", default=23.0, min=1.0, max=120.0, step=0.01, tooltip="of images"),
                io.Video.Input("video", optional=True, tooltip="with sound; 5 s or more for a verdict"),
                io.Image.Input("images", optional=True, tooltip="frames instead of a video, which wins"),
                io.Audio.Input("audio", optional=True, tooltip="the sound of images"),
                FaceLandmarks.Input("face_landmarks", optional=True, tooltip="of every frame"),
                io.Mask.Input("lip_mask", optional=True, tooltip="the lips in every frame, in place of landmarks"),
            ],
            outputs=[
                io.Float.Output(display_name="offset"),
                io.Float.Output(display_name="correlation"),
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="plot"),
            ],
        )

    @classmethod
    def execute(
        cls, fps: float, video=None, images=None, audio=None, face_landmarks=None, lip_mask=None
    ) -> io.NodeOutput:
        clip = clip_of(video, images, audio, fps)
        openings, how = lips_of(face_landmarks, lip_mask)
        bar = comfy.utils.ProgressBar(len(clip.images))
        found = check_lips(
            clip.images,
            clip.fps,
            clip.voice,
            SAMPLE_RATE,
            openings,
            how,
            lambda done, of: bar.update_absolute(done, of),
            clip.times,
        )
        warnings = (
            ["images were not looked at: a video is connected"] if video is not None and images is not None else []
        )
        if face_landmarks is not None and lip_mask is not None:
            warnings.append("lip_mask was not looked at: face_landmarks are connected")
        picture = draw_lips(found)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return io.NodeOutput(
            number(found.sync.offset),
            number(found.sync.correlation),
            report(found, warnings),
            pixels.view(1, picture.height, picture.width, 3).float() / 255,
        )


def lips_of(landmarks: dict | None, mask: Tensor | None):
    """The mouth's opening in every frame, and how it was measured."""
    if landmarks is not None:
        faces = ([face["landmarks_xy"] for face in frame] for frame in landmarks["frames"])
        return openings_of_landmarks(faces), LANDMARKS
    if mask is not None:
        return openings_of_masks(mask if mask.ndim == 3 else mask[None]), MASKS
    raise UserError(
        "where the lips are is not known",
        got="no face_landmarks and no lip_mask",
        expected="one of them, for every frame",
        do="connect Detect Face Landmarks (MediaPipe), run on the same frames",
    )


def number(value: float | None) -> float:
    return math.nan if value is None else float(value)


NODES = [LipSyncCheck]
