"""The shipped miniature as ComfyUI's own kinds of things: a native Wan MODEL, a VAE and an audio encoder."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from ..fantasy_core.audio import SAMPLE_RATE, as_voice
from ..fantasy_core.miniature.codec import Codec
from ..fantasy_core.miniature.components import WEIGHTS, load_components
from ..fantasy_core.miniature.speech import features
from .audio_patch import AudioAdapter

ASSETS = Path(__file__).parent.parent / "fantasy_core" / "miniature" / "assets"
BYTES_PER_PIXEL = 400  # of activations while the codec runs, per pixel of a frame; generous


def load_model():
    """The miniature's transformer by the stock loader, stored and computed in fp32 on every device."""
    return comfy.sd.load_diffusion_model(str(WEIGHTS / "base.safetensors"), model_options={"dtype": torch.float32})


def load_adapter() -> AudioAdapter:
    return AudioAdapter(WEIGHTS / "fantasytalking.safetensors")


class WanScaled(nn.Module):
    """The codec behind Wan's scaling of latents, which the sampler takes off again: the transformer gets exactly the
    codec's own latents, and LATENTs mean between nodes what they always mean."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.codec, self.scaling = codec, comfy.latent_formats.Wan21()

    def encode(self, video: Tensor, **_) -> Tensor:
        return self.scaling.process_out(self.codec.encode(video))

    def decode(self, latents: Tensor, **_) -> Tensor:
        return self.codec.decode(self.scaling.process_in(latents))


class MiniatureVAE(comfy.sd.VAE):
    """ComfyUI's VAE with the codec in it. The parent knows its models by key names, so it is built empty and filled."""

    def __init__(self):
        log = logging.getLogger()
        log.disabled, before = True, log.disabled  # "No VAE weights detected" is what we want here
        try:
            super().__init__(sd={})
        finally:
            log.disabled = before
        self.first_stage_model = WanScaled(load_components().codec)
        self.latent_channels, self.latent_dim = 16, 3
        self.upscale_ratio = (lambda latent_frames: max(0, 4 * latent_frames - 3), 8, 8)
        self.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
        self.upscale_index_formula = self.downscale_index_formula = (4, 8, 8)
        self.memory_used_encode = lambda shape, dtype: BYTES_PER_PIXEL * shape[-3] * shape[-2] * shape[-1]
        self.memory_used_decode = lambda shape, dtype: BYTES_PER_PIXEL * 256 * shape[-3] * shape[-2] * shape[-1]
        self.working_dtypes, self.vae_dtype = [torch.float32], torch.float32
        self.disable_offload = True
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.model_size()


class MiniatureEncoder:
    """What the miniature hears of a voice, in place of wav2vec2: an AUDIO_ENCODER."""

    def encode_voice(self, waveform: Tensor) -> Tensor:
        """Waveform [n] at 16 kHz -> features [1, L, C], 50 a second."""
        return features(waveform)

    def encode_audio(self, audio: Tensor, sample_rate: int) -> dict:
        """As ComfyUI's encoders: sound [1, channels, n] at any rate."""
        heard = self.encode_voice(as_voice(audio[0], sample_rate))
        samples = round(audio.shape[-1] / sample_rate * SAMPLE_RATE)
        return {"encoded_audio": heard, "encoded_audio_all_layers": (heard,), "audio_samples": samples}
