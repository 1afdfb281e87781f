"""Load Miniature: everything that the first template needs, with nothing to download."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io

from ..fantasy_core.media import fit_image, read_audio, read_image
from ..fantasy_core.miniature.render import SIZE
from .audio_nodes import CATEGORY, Adapter
from .miniature_model import ASSETS, MiniatureEncoder, MiniatureVAE, load_adapter, load_model


class LoadMiniature(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2LoadMiniature",
            display_name="Load Miniature",
            category=CATEGORY,
            description="A tiny Wan model with a portrait and a voice, shipped with this pack: try everything in a "
            "minute, on a CPU. It draws the faces of its own small world only.",
            search_aliases=["fantasytalking demo", "tiny wan", "example model"],
            inputs=[],
            outputs=[
                io.Model.Output(),
                io.Vae.Output(),
                io.Conditioning.Output(display_name="empty prompt"),
                Adapter.Output(display_name="audio adapter"),
                io.AudioEncoder.Output(display_name="audio encoder"),
                io.Image.Output(display_name="portrait"),
                io.Audio.Output(display_name="voice"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):
            model, vae, adapter = load_model(), MiniatureVAE(), load_adapter()
        width = model.get_model_object("diffusion_model").text_dim
        prompt = [[torch.zeros(1, 1, width), {"pooled_output": None}]]
        portrait = fit_image(read_image(ASSETS / "portrait.png"), (SIZE, SIZE)).movedim(0, -1)[None]  # [1, 64, 64, 3]
        chunks = list(read_audio(ASSETS / "voice.flac"))
        sound = torch.from_numpy(np.concatenate([chunk for _, chunk in chunks], 1))[None]  # [1, channels, n]
        voice = {"waveform": sound, "sample_rate": chunks[0][0]}
        return io.NodeOutput(model, vae, prompt, adapter, MiniatureEncoder(), portrait, voice)


NODES = [LoadMiniature]
