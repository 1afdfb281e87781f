"""Guidance by text and by voice, u + s (n - u) + a (c - n), in ComfyUI's samplers (decision: no pass that counts zero).

u: negative prompt, n: prompt, c: prompt with voice; s and a: text and audio scale.
"""

from __future__ import annotations

import uuid

import comfy.conds
import comfy.samplers

from ..fantasy_core.flow import guidance_weights


class AudioGuider(comfy.samplers.CFGGuider):
    """Three-way guidance as a guider. Hooks on the guidance of a model (`sampler_cfg_function` and those after it) act
    on the step from negative to positive, as in the stock guiders."""

    def set_conds(self, positive, positive_without, negative) -> None:
        self.inner_set_conds({"positive": positive, "without": positive_without, "negative": negative})
        self.same_text = same_text(positive_without, negative)

    def set_scales(self, text: float, audio: float) -> None:
        self.text_scale, self.audio_scale = text, audio

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """One step's x0: the passes whose weight is not zero, and their sum."""
        options, s, a = model_options or {}, self.text_scale, self.audio_scale
        u, n, c = (self.conds[name] for name in ("negative", "without", "positive"))
        weights = guidance_weights(s, a, same_text=self.same_text)
        if options.get("disable_cfg1_optimization", False):  # somebody wants to see the negative pass
            weights = (weights[0] or 1.0, *weights[1:])
        used = [cond if weight else None for cond, weight in zip((u, n, c), weights, strict=True)]
        at_u, at_n, at_c = comfy.samplers.calc_cond_batch(self.inner_model, used, x, timestep, options)

        def step(low, high, scale, names):
            told = {"model_options": options, "cond": names[1], "uncond": names[0]}
            return comfy.samplers.cfg_function(self.inner_model, high, low, scale, x, timestep, **told)

        if weights[0] == 0:  # no negative pass: from the prompt to the voice
            return step(at_n, at_c, a, (n, c))
        if weights[1] == 0:  # equal scales: the middle pass drops out
            return step(at_u, at_c, a, (u, c))
        guided = step(at_u, at_n, s, (u, n))
        return guided + a * (at_c - at_n) if weights[2] else guided


def same_text(prompt, negative) -> bool:
    """Whether prompt and negative prompt say the same and see the same, as in a model that reads no text."""

    def told(conditioning) -> list:
        return [[text, {k: v for k, v in told.items() if k != "model_conds" or v}] for text, told in conditioning]

    return comfy.conds.is_equal(told(prompt), told(negative))


def guide_by_voice(audio_scale: float):
    """A `sampler_cfg_function` that makes the two passes of a plain KSampler three-way: its cfg is the text scale, its
    positive conditioning hears the voice. The pass without is run here, unless it counts zero."""

    def guide(args: dict):
        x, s, c, u = args["input"], args["cond_scale"], args["cond_denoised"], args["uncond_denoised"]
        without = guidance_weights(s, audio_scale)[1]
        guided = audio_scale * c + (0 if s == 1 else (1 - s) * u)
        if without:
            (n,) = comfy.samplers.calc_cond_batch(
                args["model"], [[unheard(cond) for cond in args["input_cond"]]], x, args["timestep"],
                args["model_options"],
            )  # fmt: skip
            guided = guided + without * n
        return x - guided

    return guide


def unheard(cond: dict) -> dict:
    """A condition under way, without what it hears."""
    kept = {name: value for name, value in cond["model_conds"].items() if not name.startswith("ft_")}
    return {**cond, "model_conds": kept, "uuid": uuid.uuid5(cond["uuid"], "unheard")}  # caches go by it
