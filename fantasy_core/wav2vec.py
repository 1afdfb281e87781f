"""wav2vec2-base-960h of transformers, for a voice of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .audio import HOP, RECEPTIVE, check_voice, normalised, token_count
from .errors import UserError
from .media import check_file


class Wav2Vec:
    """facebook/wav2vec2-base-960h from a local folder: waveform [n] -> audio features [1, L, 768], fp32.

    Up to 30 s the track is encoded whole, as transformers does. A longer one is normalised as a whole (the waveform,
    and the GroupNorm of the first convolution) and convolved piece by piece, which is exact; self-attention runs over
    30 s at a time: linear time, bounded memory, and no context of a length that the network does not know. Neighbouring
    pieces share 10 s, of which the middle 2 s are cross-faded, so that each token has 4 s of context and none jumps.
    """

    def __init__(self, folder: str | Path, *, audio_dim: int = 768, device: str | torch.device = "cpu"):
        self.model = _load_wav2vec(Path(folder), audio_dim, device)

    @torch.inference_mode()
    def __call__(self, waveform: Tensor, *, span: int = 1500, overlap: int = 500, fade: int = 100) -> Tensor:
        """Encode [n] at 16 kHz. `span`, `overlap`, `fade`: tokens of a piece, shared by two, and cross-faded."""
        check_voice(waveform)
        sound = normalised(waveform).to(self.model.device)
        hidden = torch.cat(
            [self.model.feature_projection(x)[0] for x in self._convolved(sound, span)], dim=1
        )  # [1, L, D]
        total = hidden.shape[1]
        result = torch.zeros_like(hidden)
        for first, last, share in pieces(total, span, overlap, fade):
            encoded = self.model.encoder(hidden[:, first:last]).last_hidden_state
            result[:, first:last] += share.to(hidden)[:, None] * encoded
        return result

    def _convolved(self, sound: Tensor, span: int) -> Iterator[Tensor]:
        """The convolutional features [1, <= span, C], piece by piece, with GroupNorm over the whole track."""
        first, *others = self.model.feature_extractor.conv_layers
        mean, variance = self._statistics(sound, first.conv, span)
        for token in range(0, token_count(len(sound)), span):
            piece = sound[token * HOP : (token + span - 1) * HOP + RECEPTIVE][None, None]
            norm = first.layer_norm
            piece = F.batch_norm(first.conv(piece), mean, variance, norm.weight, norm.bias, eps=norm.eps)
            piece = first.activation(piece)
            for layer in others:
                piece = layer(piece)
            yield piece.transpose(1, 2)

    @staticmethod
    def _statistics(sound: Tensor, conv: nn.Conv1d, span: int) -> tuple[Tensor, Tensor]:
        """Mean and variance [C] of the first convolution over the whole track, summed in fp64."""
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        outputs, step = (len(sound) - kernel) // stride + 1, span * HOP // stride
        total = squares = torch.zeros((), dtype=torch.float64, device=sound.device)
        for output in range(0, outputs, step):
            piece = sound[output * stride : (output + step - 1) * stride + kernel][None, None]
            values = conv(piece)[0].double()  # [C, step]
            total, squares = total + values.sum(1), squares + values.square().sum(1)
        mean = total / outputs
        return mean.float(), (squares / outputs - mean.square()).float()


def pieces(total: int, span: int, overlap: int, fade: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first, last, share [last - first]) of overlapping pieces of `span` tokens; shares add up to one."""
    for first in range(0, max(total - overlap, 1), span - overlap):
        last = min(first + span, total)
        ramp = ((torch.arange(last - first) - (overlap - fade) / 2 + 0.5) / fade).clamp(0, 1)
        rise = ramp if first else torch.ones_like(ramp)
        yield first, last, rise if last == total else rise * ramp.flip(0)


def _load_wav2vec(folder: Path, audio_dim: int, device: str | torch.device) -> Any:
    """Wav2Vec2Model in fp32 from a folder as transformers writes it, of the encoder alone or with its CTC head."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from .weights.files import open_tensors
    from .weights.strict import fill

    do, path = "bring facebook/wav2vec2-base-960h: config.json, model.safetensors", folder / "config.json"
    try:
        config = Wav2Vec2Config.from_pretrained(check_file(path, "wav2vec2 configuration"), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path}", got=str(error), expected="JSON of transformers", do=do) from error
    if config.hidden_size != audio_dim or config.feat_extract_norm != "group" or config.do_stable_layer_norm:
        name = " (a wav2vec2-large)" if config.hidden_size == 1024 else ""
        got = f"width {config.hidden_size}, {config.feat_extract_norm} norm{name}"
        raise UserError(f"wrong wav2vec2 in {folder}", got=got, expected=f"width {audio_dim}, group norm", do=do)
    config.mask_time_prob = config.mask_feature_prob = 0.0  # else the model has a weight that only training uses
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    old = folder / "pytorch_model.bin"
    tensors = open_tensors(old if old.is_file() and not list(folder.glob("*.safetensors")) else folder)
    return fill(model, tensors.renamed(_wav2vec_name), "wav2vec2-base", device=device, dtype=torch.float32)


def _wav2vec_name(name: str) -> str | None:
    """Names of Wav2Vec2Model: no prefix, no CTC head, no masking, weight normalisation as torch parametrises it now."""
    if name.startswith("lm_head.") or name.endswith("masked_spec_embed"):
        return None
    for part, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = name.replace(f"pos_conv_embed.conv.{part}", f"pos_conv_embed.conv.parametrizations.weight.{new}")
    return name.removeprefix("wav2vec2.")
