"""TLPO Sampler for the usual case, FantasyTalking Sigmas and Audio Guidance for graphs of one's own."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor

from ..fantasy_core.errors import UserError
from ..fantasy_core.flow import schedule
from .audio_nodes import CATEGORY
from .guidance import AudioGuider, guide_by_voice


def scale_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def schedule_inputs() -> list[io.Input]:
    """Steps and shift of FantasyTalking's schedule."""
    return [
        io.Int.Input("steps", default=30, min=1, max=1000),
        io.Float.Input("shift", default=5.0, min=0.01, max=100.0, step=0.01, tooltip="more steps at high noise"),
    ]


class TLPOSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2TLPOSampler",
            display_name="TLPO Sampler",
            category=CATEGORY,
            description="Samples with guidance by text and voice. Equal scales need two passes a step instead of "
            "three, scales of 1 (distilled LoRAs) one.",
            search_aliases=["fantasytalking sampler", "dual cfg", "audio cfg", "ksampler"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive", tooltip="with audio"),
                io.Conditioning.Input("positive_without", tooltip="the same prompt without audio"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                *schedule_inputs(),
                scale_input("text_scale", 5.0, "of the prompt over the negative prompt"),
                scale_input("audio_scale", 5.0, "of the voice over the prompt without it"),
                io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler"),
                io.Model.Input("low_noise_model", optional=True, tooltip="Wan2.2: samples below the boundary"),
                io.Float.Input(
                    "boundary", default=0.9, min=0.0, max=1.0, step=0.001, optional=True, advanced=True,
                    tooltip="the sigma at which the low noise model takes over (Wan2.2 I2V: 0.9)",
                ),
            ],
            outputs=[io.Latent.Output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, positive_without, negative, latent_image, seed: int, steps: int, shift: float,
        text_scale: float, audio_scale: float, sampler_name: str, low_noise_model=None, boundary: float = 0.9,
    ) -> io.NodeOutput:  # fmt: skip
        if low_noise_model is not None and "noise_mask" in latent_image:
            raise UserError(
                "a mask cannot be held over two models",
                got="a latent with a noise mask, and a low_noise_model",
                expected="one of them",
                do="take the mask off the latent, or sample with one model",
            )
        sigmas, sampler = schedule(steps, shift).float(), comfy.samplers.sampler_object(sampler_name)
        latents = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        noise = comfy.sample.prepare_noise(latents, seed, latent_image.get("batch_index"))
        for part_model, part in split_at(sigmas, boundary, model, low_noise_model):
            guider = AudioGuider(part_model)
            guider.set_conds(positive, positive_without, negative)
            guider.set_scales(text_scale, audio_scale)
            latents = guider.sample(
                noise, latents, sampler, part, denoise_mask=latent_image.get("noise_mask"), seed=seed,
                callback=latent_preview.prepare_callback(part_model, len(part) - 1),
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            ).to(comfy.model_management.intermediate_device())  # fmt: skip
            noise = torch.zeros_like(noise)  # the low noise model goes on where the other one stopped
        return io.NodeOutput({**latent_image, "samples": latents})


def split_at(sigmas: Tensor, boundary: float, model, low_noise_model) -> list[tuple[object, Tensor]]:
    """(model, its sigmas): one part, or two that share the sigma where the second model takes over."""
    if low_noise_model is None:
        return [(model, sigmas)]
    high = int((sigmas[:-1] >= boundary).sum())
    parts = [(model, sigmas[: high + 1]), (low_noise_model, sigmas[high:])]
    return [(part_model, part) for part_model, part in parts if len(part) > 1]


class FantasyTalkingSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2FantasyTalkingSigmas",
            display_name="FantasyTalking Sigmas",
            category=CATEGORY,
            description="linspace(1, 0) shifted: exactly the noise levels that FantasyTalking samples at.",
            search_aliases=["flow shift", "wan scheduler", "basic scheduler"],
            inputs=[*schedule_inputs(), io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01)],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, steps: int, shift: float, denoise: float) -> io.NodeOutput:
        return io.NodeOutput(schedule(round(steps / denoise), shift)[-(steps + 1) :].float())


class AudioGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2AudioGuidance",
            display_name="Audio Guidance",
            category=CATEGORY,
            description="Guidance by voice in a plain KSampler: connect the positive with audio there; its cfg is the "
            "text scale.",
            search_aliases=["audio cfg", "three way guidance", "dual cfg"],
            inputs=[
                io.Model.Input("model"),
                scale_input("audio_scale", 5.0, "equal to the KSampler's cfg: two passes"),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, audio_scale: float) -> io.NodeOutput:
        if "sampler_cfg_function" in model.model_options:
            raise UserError(
                "another node has already changed how this MODEL is guided",
                got="a sampler_cfg_function",
                expected="a MODEL without one",
                do="take the other guidance node out, or use Dual CFG Guider with both positives",
            )
        guided = model.clone()
        guided.set_model_sampler_cfg_function(guide_by_voice(audio_scale))
        return io.NodeOutput(guided)


NODES = [TLPOSampler, FantasyTalkingSigmas, AudioGuidance]
