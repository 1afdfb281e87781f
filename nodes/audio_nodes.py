"""Nodes that give a MODEL a voice: Load FantasyTalking Audio, Audio to Frames, Apply FantasyTalking Audio."""

from __future__ import annotations

import folder_paths
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..fantasy_core.audio import (
    HOP,
    RECEPTIVE,
    SAMPLE_RATE,
    AudioTokens,
    as_voice,
    check_frames,
    frames_for,
    normalised,
    token_count,
    trim,
    window_at,
)
from ..fantasy_core.errors import UserError
from ..fantasy_core.wav2vec import pieces
from .audio_patch import PATCH, AudioAdapter, with_voice, without_voice

CATEGORY = "FantasyTalking2"
Adapter = io.Custom("FT2_AUDIO_ADAPTER")
FOLDERS = ("model_patches", "diffusion_models")
RULES = {"within the voice": "within", "FantasyTalking's": "official"}
PADDING = ("masked", "unmasked")
MOST_FRAMES = 16384


class LoadFantasyTalkingAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = {name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)}
        named = sorted(files, key=lambda name: ("fantasytalking" not in name.lower(), name.lower()))
        return io.Schema(
            node_id="FT2LoadFantasyTalkingAudio",
            display_name="Load FantasyTalking Audio",
            category=CATEGORY,
            description="Loads FantasyTalking's audio weights from models/model_patches or models/diffusion_models.",
            search_aliases=["fantasytalking loader", "talking head", "lip sync", "audio adapter"],
            inputs=[io.Combo.Input("file", options=named, tooltip="fantasytalking_model.ckpt or a safetensors of it")],
            outputs=[Adapter.Output(display_name="audio adapter")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(AudioAdapter(find_file(FOLDERS, file)))


def find_file(folders: tuple[str, ...], name: str) -> str:
    """The path of a file that ComfyUI lists in one of its folders. Raises UserError when it is not there any more."""
    for folder in folders:
        if path := folder_paths.get_full_path(folder, name):
            return path
    raise UserError(
        f"{name} is not there",
        got="no file of that name",
        expected="in " + " or ".join(path for folder in folders for path in folder_paths.get_folder_paths(folder)),
        do="put it there, press R to refresh the lists and choose it again",
    )


class AudioToFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2AudioToFrames",
            display_name="Audio to Frames",
            category=CATEGORY,
            description="How many frames (4k+1) a voice fills, and the voice cut to exactly these.",
            search_aliases=["audio length", "frame count", "video length from audio"],
            inputs=[
                io.Audio.Input("audio"),
                io.Float.Input("fps", default=23.0, min=1.0, max=120.0, step=0.01, tooltip="FantasyTalking: 23"),
                io.Combo.Input("rule", options=list(RULES), tooltip="never longer than the voice, or up to 5 frames"),
                io.Int.Input("most_frames", default=0, min=0, max=MOST_FRAMES, tooltip="0: as long as the voice"),
                io.Int.Input("first_frame", default=0, min=0, max=MOST_FRAMES, tooltip="begin here, to continue"),
            ],
            outputs=[
                io.Int.Output(display_name="frames"),
                io.Audio.Output(display_name="audio"),
                io.Float.Output(display_name="fps"),
                io.Float.Output(display_name="seconds"),
            ],
        )

    @classmethod
    def execute(cls, audio, fps: float, rule: str, most_frames: int, first_frame: int) -> io.NodeOutput:
        rate, sound = audio["sample_rate"], audio["waveform"][..., round(first_frame / fps * audio["sample_rate"]) :]
        most = (most_frames - 1) // 4 * 4 + 1 if most_frames else None
        frames = frames_for(sound.shape[-1] / rate, fps, rule=RULES[rule], max_frames=most)
        samples = round(frames / fps * rate)
        sound = F.pad(sound, (0, max(samples - sound.shape[-1], 0)))[..., :samples]
        return io.NodeOutput(frames, {"waveform": sound, "sample_rate": rate}, fps, frames / fps)


class ApplyFantasyTalkingAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FT2ApplyFantasyTalkingAudio",
            display_name="Apply FantasyTalking Audio",
            category=CATEGORY,
            description="Lets a Wan I2V model hear a voice. Give it a voice with its encoder, or encoded audio.",
            search_aliases=["talking portrait", "lip sync", "audio driven", "speech to video"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                Adapter.Input("audio_adapter"),
                io.Int.Input("length", default=81, min=5, max=MOST_FRAMES, step=4, tooltip="frames, as of the latent"),
                io.Float.Input("fps", default=23.0, min=1.0, max=120.0, step=0.01),
                io.Float.Input("scale", default=1.0, min=0.0, max=10.0, step=0.01, tooltip="of the audio branch"),
                io.Combo.Input("padding", options=list(PADDING), tooltip="unmasked: FantasyTalking without flash-attn"),
                io.AudioEncoder.Input("audio_encoder", optional=True, tooltip="wav2vec2-base-960h"),
                io.Audio.Input("audio", optional=True),
                io.AudioEncoderOutput.Input("audio_encoder_output", optional=True, tooltip="instead of both"),
                io.Mask.Input("face_mask", optional=True, tooltip="where the voice acts; one mask, or one a frame"),
            ],
            outputs=[
                io.Model.Output(),
                io.Conditioning.Output(display_name="positive with audio"),
                io.Conditioning.Output(display_name="positive without"),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, audio_adapter: AudioAdapter, length: int, fps: float, scale: float, padding: str,
        audio_encoder=None, audio=None, audio_encoder_output=None, face_mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        heard = audio_adapter.hang(model)
        features = voice_features(audio_encoder, audio, audio_encoder_output, check_frames(length), fps)
        _check_width(features, audio_adapter)
        windows = window_at(audio_adapter.projection(features), length, fps=fps)
        if padding == "unmasked":
            windows = AudioTokens(windows.tokens)
        face = None if face_mask is None else face_over_frames(face_mask, length)
        return io.NodeOutput(heard, with_voice(positive, windows, scale, face), without_voice(positive))


def voice_features(encoder, audio, encoded, length: int, fps: float) -> Tensor:
    """Audio features [1, L, C] of what is connected: an encoder and a voice, or features that are there already."""
    if encoded is not None and encoder is None and audio is None:
        return encoded["encoded_audio"][:1].float().cpu()
    if encoder is None or audio is None or encoded is not None:
        given = {"audio_encoder": encoder, "audio": audio, "audio_encoder_output": encoded}
        raise UserError(
            "it is not clear what the model is to hear",
            got=", ".join(name for name, value in given.items() if value is not None) or "no voice",
            expected="audio_encoder and audio, or audio_encoder_output alone",
            do="connect Load Audio Encoder (wav2vec2-base-960h) and Load Audio, and nothing else",
        )
    waveform = trim(as_voice(audio["waveform"][0], audio["sample_rate"]), length, fps)
    if hasattr(encoder, "encode_voice"):  # the miniature's, which hears the waveform as it is
        return encoder.encode_voice(waveform)
    return encoded_in_pieces(encoder, normalised(waveform))


def encoded_in_pieces(encoder, waveform: Tensor, span: int = 1500, overlap: int = 500, fade: int = 100) -> Tensor:
    """Features [1, L, C] of a normalised waveform [n]; beyond 30 s in pieces that share 10 s and are cross-faded, as
    the core does (there the first GroupNorm also sees the whole track, here each piece its own)."""
    total, result = token_count(len(waveform)), None
    for first, last, share in pieces(total, span, overlap, fade):
        end = len(waveform) if last == total else (last - 1) * HOP + RECEPTIVE  # GroupNorm hears the last samples too
        part = waveform[first * HOP : end]
        features = encoder.encode_audio(part[None, None], SAMPLE_RATE)["encoded_audio"].float().cpu()
        result = features.new_zeros(1, total, features.shape[-1]) if result is None else result
        result[:, first:last] += share[:, None] * features
    return result


def face_over_frames(mask: Tensor, length: int) -> Tensor:
    """A MASK [h, w], [1, h, w] or one for each frame [T, h, w] -> [1, 1, F, h', w'] on the grid of tokens or finer:
    frame 0 alone, then the mean of each four (the last mask holds on to the end)."""
    mask = (mask[None] if mask.ndim == 2 else mask).float()
    side = 8 * PATCH
    mask = F.adaptive_avg_pool2d(mask[None], [-(-size // side) for size in mask.shape[1:]])[0]  # [T, h', w']
    mask = torch.cat([mask, mask[-1:].expand(max(length - len(mask), 0), -1, -1)])[:length]
    later = mask[1:].unflatten(0, (-1, 4)).mean(1)
    return torch.cat([mask[:1], later])[None, None]


def _check_width(features: Tensor, adapter: AudioAdapter) -> None:
    width, wanted = features.shape[-1], adapter.audio_dim
    if width != wanted:
        name = {1024: " (a wav2vec2-large)", 1280: " (Whisper)"}.get(width, "")
        raise UserError(
            "the audio encoder is not the one that these weights were trained with",
            got=f"features {width} wide{name}",
            expected=f"{wanted} wide" + (": wav2vec2-base-960h" if wanted == 768 else ""),
            do="put wav2vec2-base-960h (model.safetensors of facebook/wav2vec2-base-960h) into models/audio_encoders "
            "and choose it in Load Audio Encoder"
            if wanted == 768
            else "connect the audio encoder that comes with this adapter",
        )


NODES = [LoadFantasyTalkingAudio, AudioToFrames, ApplyFantasyTalkingAudio]
