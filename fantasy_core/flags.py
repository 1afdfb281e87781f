"""The flags of `animate`, and the settings that they and a model's defaults make."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from . import audio, flow, media, mixture
from .components import Defaults
from .errors import UserError
from .windows import plan_windows

MODELS = ("miniature", "wan2.1-i2v-14b")
TRAINED = (*MODELS, "wan2.1-t2v-1.3b")  # bases of experts and gates; the last makes no talking video
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fantasy_core.animate", description=__doc__.split("\n")[0])
    add = parser.add_argument_group("what").add_argument
    add("--portrait", type=Path, help="image of a face (any size; scaled)")
    add("--audio", type=Path, help="recorded voice: wav, mp3, flac, m4a or a video with sound")
    add("--out", type=Path, help="the mp4 to write")
    add("--prompt", default="", help="text prompt (default: empty)")
    add("--negative-prompt", help="text to steer away from (default: the model's)")
    add("--manifest", type=Path, help="JSON lines of portrait, audio, out, prompt, seed: many videos, resumable")
    add("--seed", type=int, default=1111, help="of the noise (default: 1111)")
    add = parser.add_argument_group("model").add_argument
    add("--model", choices=MODELS, default=MODELS[0])
    add("--wan", type=Path, help="folder or file of Wan2.1-I2V-14B")
    add("--fantasytalking", type=Path, help="FantasyTalking's checkpoint")
    add("--wav2vec", type=Path, help="folder of wav2vec2-base-960h")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=tuple(DTYPES), help="of the DiT (default: the model's)")
    add("--offload", choices=("blocks", "none"), default="none", help="blocks: two blocks of the DiT on the device")
    add = parser.add_argument_group("sampling").add_argument
    add("--text-scale", type=float, help="guidance of the prompt against the negative prompt")
    add("--audio-scale", type=float, help="guidance of the voice; equal scales save a pass")
    add("--steps", type=int)
    add("--shift", type=float, help="of the noise levels, above 1: more of the steps at high noise")
    add("--solver", choices=flow.SOLVERS, default="euler")
    add("--guidance-passes", choices=flow.PASSES, default="sequential", dest="passes")
    add = parser.add_argument_group("video").add_argument
    add("--size", help="N for the longest edge, or WxH; multiples of 16")
    add("--fps", type=float)
    add("--window", type=int, help="frames made at once, 4k + 1")
    add("--overlap", type=int, help="frames that two windows share, 4k + 1")
    add("--max-frames", type=int, help="stop there, 4k + 1 (default: the whole voice)")
    rules = "within: never outruns the voice; official: FantasyTalking's, one window, up to 5 frames longer"
    add("--frames-rule", choices=("within", "official"), default="within", help=rules)
    mixture.add_flags(parser)
    add = parser.add_argument_group("running").add_argument
    add("--dry-run", action="store_true", help="check everything, print memory and FLOPs, write nothing")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


@dataclass(frozen=True)
class Settings:
    """How all videos of one call are made. `passes` alone cannot change a picture."""

    size: int | tuple[int, int]
    fps: float
    window: int
    overlap: int
    frames_rule: str
    max_frames: int | None
    steps: int
    shift: float
    solver: str
    text_scale: float
    audio_scale: float
    negative_prompt: str
    passes: str

    @classmethod
    def from_flags(cls, flags: argparse.Namespace, defaults: Defaults) -> Settings:
        """Flags over the model's own defaults. Raises UserError for values that no video can have."""
        values = {field.name: getattr(flags, field.name) for field in fields(cls)}
        values["size"] = None if flags.size is None else media.parse_size(flags.size)
        for field in fields(Defaults):
            if values[field.name] is None:
                values[field.name] = getattr(defaults, field.name)
        settings = cls(**values)
        media.rational(settings.fps)
        flow.schedule(settings.steps, settings.shift)
        plan_windows(settings.window, settings.window, settings.overlap)
        if settings.max_frames is not None:
            audio.check_frames(settings.max_frames)
        for scale in (settings.text_scale, settings.audio_scale):
            if not math.isfinite(scale):
                raise UserError("a guidance scale is no number", got=str(scale), expected="a number", do="pass 5")
        return settings

    def frames(self, seconds: float) -> int:
        """How many frames a voice gets; FantasyTalking's own rule knows no more than one window."""
        most = self.max_frames
        if self.frames_rule == "official":
            most = self.window if most is None else min(most, self.window)
        return audio.frames_for(seconds, self.fps, rule=self.frames_rule, max_frames=most)
