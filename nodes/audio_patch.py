"""FantasyTalking's audio attention on a native MODEL: three layers around every cross-attention.

The voice travels in the conditioning, frames on the dimension that ComfyUI's context windows slice, so that every
window and every pass of guidance hears its own. `norm_q` tells the queries; what the audio branch makes of them is
added to what goes into `o`, whose bias therefore counts once and whose LoRAs see the voice too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import comfy.conds
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..fantasy_core.audio import AudioTokens
from ..fantasy_core.errors import UserError
from ..fantasy_core.wan import attend_frames
from ..fantasy_core.weights import load_audio
from .patcher import Injector, kept_linear, managed, native_host

KEY = "fantasytalking2.audio"
VOICE = "fantasytalking2_voice"  # in transformer_options: the Voice of the call under way
AUDIO_EXPERTS = "fantasytalking2_audio_experts"  # functions (address, x, y) -> y with experts, of `ExpertPatch`
PATCH = 2  # latents a token is wide and high


class Voice(NamedTuple):
    """What one call of the model hears."""

    tokens: Tensor  # [B, F, n, D]
    mask: Tensor | None  # [B*F, 1, 1, n], True for real rows
    loudness: Tensor  # [B, 1, 1] or, within a face mask, [B, S, 1]


@dataclass(frozen=True, eq=False)
class Source:
    """The whole voice of a conditioning, for windows that have to be cut anew. Compared by identity."""

    tensors: dict[str, Tensor]  # ft_audio, ft_lengths, ft_face: frames at dim 2


class AudioAdapter:
    """FantasyTalking's weights in ComfyUI's hands: the projection, and keys and values for every block."""

    def __init__(self, path: str | Path):
        self.projection, processors, self.report = load_audio(path)
        self.blocks, (self.dim, self.token_dim) = len(processors), processors[0].k_proj.weight.shape
        linears = [{name: kept_linear(linear.weight) for name, linear in p.named_children()} for p in processors]
        self.patcher = managed(nn.ModuleList(nn.ModuleDict(pair) for pair in linears))
        self.injector = Injector(self.layers, priority=10)  # outside of experts: they see the voice at `o`

    @property
    def audio_dim(self) -> int:
        return self.projection.proj.in_features

    def hang(self, model):
        """A clone of the MODEL that hears what its conditioning carries. Raises UserError for one of another size."""
        host = native_host(model)
        if (self.blocks, self.dim) != (host.num_blocks, host.dim):
            raise UserError(
                f"{self.report.path.name} was made for another model",
                got=f"audio weights for {self.blocks} blocks of width {self.dim}",
                expected=f"{host.num_blocks} blocks of width {host.dim}",
                do="load the Wan2.1 I2V 14B model, which FantasyTalking was trained on",
            )
        model = model.clone()
        for wrapper in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
            model.remove_wrappers_with_key(wrapper, KEY)  # an adapter that was applied before gives way
        model.set_additional_models(KEY, [self.patcher])
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, cut_windows)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, hear)
        model.set_injections(KEY, self.injector.injections)
        return model

    def layers(self, patcher) -> Iterator[tuple[nn.Module, object]]:
        for index, block in enumerate(patcher.model.diffusion_model.blocks):
            attention = block.cross_attn
            whole, norm_q, o = self.attention_layers(index, attention.num_heads)
            yield attention, whole
            yield attention.norm_q, norm_q
            yield attention.o, o

    def attention_layers(self, block: int, heads: int):
        """Layers for a cross-attention, its norm_q and its o."""
        seen = {}

        def whole(call, *args, **kwargs) -> Tensor:
            seen["options"] = kwargs.get("transformer_options") or {}
            try:
                return call(*args, **kwargs)
            finally:
                seen.clear()

        def norm_q(call, x: Tensor) -> Tensor:
            seen["q"] = q = call(x)
            return q

        def o(call, x: Tensor, *args, **kwargs) -> Tensor:
            options, q = seen.get("options", {}), seen.get("q")
            voice: Voice | None = options.get(VOICE)
            if voice is not None and q is not None:
                x = x + voice.loudness * self.attend(block, q.unflatten(2, (heads, -1)), voice, options)
            return call(x, *args, **kwargs)

        return whole, norm_q, o

    def attend(self, block: int, q: Tensor, voice: Voice, options: dict) -> Tensor:
        """q [B, S, N, d] -> what the audio branch of a block adds [B, S, N*d]."""
        tokens, made = voice.tokens.flatten(1, 2), {}
        for name, linear in self.patcher.model[block].items():
            made[name] = linear(tokens)
            for experts in options.get(AUDIO_EXPERTS, ()):
                made[name] = experts(f"blocks.{block}.cross_attn.processor.{name}", tokens, made[name])
        return attend_frames(q, made["k_proj"], made["v_proj"], voice.tokens.shape[1], voice.mask)


def with_voice(conditioning, audio: AudioTokens, scale: float, face: Tensor | None):
    """The conditioning, hearing `audio`: tokens [1, F, n, D] with lengths [1, F]; `face` [1, 1, F, h, w] or None says
    where the voice acts."""
    tensors = {"ft_audio": audio.tokens.movedim(2, 1).contiguous()}  # [1, n, F, D]
    if audio.lengths is not None:
        tensors["ft_lengths"] = audio.lengths[:, None]  # [1, 1, F]
    if face is not None:
        tensors["ft_face"] = face
    conds = {name: comfy.conds.CONDRegular(tensor) for name, tensor in tensors.items()}
    conds["ft_scale"] = comfy.conds.CONDRegular(torch.tensor([float(scale)]))
    conds["ft_source"] = comfy.conds.CONDConstant(Source(tensors))
    return [[text, {**told, "model_conds": {**told.get("model_conds", {}), **conds}}] for text, told in conditioning]


def without_voice(conditioning):
    """The same conditioning, hearing nothing."""
    silent = []
    for text, told in conditioning:
        conds = {name: cond for name, cond in told.get("model_conds", {}).items() if not name.startswith("ft_")}
        silent.append([text, {**told, "model_conds": conds}])
    return silent


def cut_windows(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """Around the model and outside of what is compiled: in a context window, cut the voice from the whole by the
    window's own frames. ComfyUI has cut it already, but with the retained first frame of the image it also put the
    voice of the video's beginning at the beginning of every window."""
    source, window = kwargs.pop("ft_source", None), (transformer_options or {}).get("context_window")
    if source is not None and window is not None:
        anchor = getattr(window, "causal_anchor_index", None)
        frames = [anchor] * (anchor is not None and anchor >= 0) + list(window.index_list)
        for name, whole in source.tensors.items():
            cut = whole[:, :, frames]
            kwargs[name] = cut.expand(len(kwargs[name]), *cut.shape[1:])
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def hear(executor, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
    """Around the transformer: what the conditioning brought becomes the Voice that its attention finds."""
    tokens, lengths, face, scale = (kwargs.pop(f"ft_{n}", None) for n in ("audio", "lengths", "face", "scale"))
    options = transformer_options or {}
    if tokens is not None:
        _check_frames(x, tokens, time_dim_concat, kwargs)
        audio = AudioTokens(tokens.movedim(2, 1), None if lengths is None else lengths[:, 0])
        loudness = scale.view(-1, 1, 1) if face is None else scale.view(-1, 1, 1) * _over_tokens(face, x)
        options = {**options, VOICE: Voice(audio.tokens, audio.mask(), loudness)}
    return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)


def _over_tokens(face: Tensor, x: Tensor) -> Tensor:
    """face [B, 1, F, h, w] in 0..1 -> its mean over each token of latents x, [B, S, 1]."""
    size = [-(-side // PATCH) for side in x.shape[3:]]
    return F.adaptive_avg_pool2d(face[:, 0], size).flatten(1)[..., None]


def _check_frames(x: Tensor, tokens: Tensor, time_dim_concat, others: dict) -> None:
    beside = [name for name in ("reference_latent", "context_latents") if others.get(name) is not None]
    beside += ["time_dim_concat"] if time_dim_concat is not None else []
    if tokens.shape[2] != x.shape[2] or beside:
        raise UserError(
            "the voice does not fit the video",
            got=f"a voice for {tokens.shape[2]} latent frames and a video of {x.shape[2]}"
            + (f", beside {', '.join(beside)}" if beside else ""),
            expected="equal numbers (1 + (length - 1) / 4), and no reference frames beside the video",
            do="give Apply FantasyTalking Audio the length of the latent, for example both from Audio to Frames",
        )
