"""Voice -> wav2vec2 features -> projection -> one window of tokens per latent frame.

wav2vec2 makes 50 tokens a second. A latent frame covers four video frames (the first one a single frame), so its window
is about `200 / fps` tokens, widened by four on both sides (FantasyTalking). Two time bases:

- *official* (`fps=None`): the whole track is stretched over the frames, whatever its length;
- *absolute* (`fps` given): frame k hears the audio at k / fps, in every window of a long video, without drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .errors import NoSound, UserError
from .media import rational, read_audio

SAMPLE_RATE = 16_000
TOKEN_RATE = 50  # wav2vec2 tokens a second
HOP, RECEPTIVE = 320, 400  # samples from one token to the next, samples that one token hears
FRAMES_PER_LATENT = 4
SILENCE = 1e-4  # peak, -80 dB: below is silence
LOUDEST = 1e4  # peak: above is no sound, whatever its scale was


@dataclass(frozen=True, eq=False)
class AudioTokens:
    """One window of audio tokens per latent frame: `tokens` [B, F, n, D], `lengths` [B, F] int64 or None.

    The first `lengths[b, f]` rows are real, the rest is zero padding. `lengths=None` leaves the padding unmasked, which
    FantasyTalking does without flash-attention: zero keys dilute the attention of the first and last latent frames.
    """

    tokens: Tensor
    lengths: Tensor | None = None

    def to(self, *args, **kwargs) -> AudioTokens:
        """`Tensor.to` on the tokens; the lengths follow to the same device and stay int64."""
        tokens = self.tokens.to(*args, **kwargs)
        return AudioTokens(tokens, None if self.lengths is None else self.lengths.to(tokens.device))

    def mask(self) -> Tensor | None:
        """[B*F, 1, 1, n], True for real rows; None where padding is not masked."""
        if self.lengths is None:
            return None
        rows = torch.arange(self.tokens.shape[2], device=self.tokens.device)
        return (rows < self.lengths.to(rows.device)[:, :, None]).flatten(0, 1)[:, None, None]


class AudioProjection(nn.Module):
    """Audio features [B, L, audio_dim] -> audio tokens [B, L, token_dim] (FantasyTalking's `proj_model`)."""

    def __init__(self, audio_dim: int = 768, token_dim: int = 2048):
        super().__init__()
        self.proj = nn.Linear(audio_dim, token_dim, bias=False)
        self.norm = nn.LayerNorm(token_dim, eps=1e-5)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features))


def check_frames(num_frames: int) -> int:
    """`num_frames` itself when it is 1 + 4k, as the VAE needs; else a UserError."""
    if num_frames < 1 or num_frames % FRAMES_PER_LATENT != 1:
        below = max(num_frames - 1, 0) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
        raise UserError(
            "number of frames does not fit the VAE",
            got=f"{num_frames} frames",
            expected="1 + 4k frames (1, 5, 9, ..., 81)",
            do=f"ask for {below} or {below + FRAMES_PER_LATENT} frames",
        )
    return num_frames


def window_ranges(
    num_tokens: int, num_frames: int, *, fps: float | Fraction | None = None, first_frame: int = 0
) -> list[tuple[int, int]]:
    """The audio tokens (first, last) that each latent frame hears, both ends inclusive, before widening.

    With t tokens a frame and half = int(2 t), latent frame i >= 1 gets c - half .. c + half around c = int(t (4 i - 1))
    - 1, the middle of its four frames; latent frame 0 gets as many tokens, ending where range 1 begins (FantasyTalking,
    which raises IndexError for a single frame because it looks range 1 up; here a single frame works).

    `fps=None`: t = num_tokens / num_frames in floating point, FantasyTalking to the letter.
    `fps` given: t = 50 / fps exactly, and frames count from `first_frame`, the absolute number (multiple of 4) of the
    window's frame 0, so a latent frame has the same range in every window; the window's latent frame 0, though it
    covers one frame only, has the range of the four frames that end there, at most two tokens later. The number of
    tokens plays no part: ranges may lie outside the track, `window` clips them. For 81 frames at 23 fps (175 tokens)
    both rules differ by one token at most.
    """
    check_frames(num_frames)
    if first_frame < 0 or first_frame % FRAMES_PER_LATENT:
        raise UserError(
            "window starts inside a latent frame",
            got=f"first frame {first_frame}",
            expected="a multiple of 4, 0 or more",
            do="move windows by whole latent frames",
        )
    assert fps is not None or first_frame == 0, "first_frame needs the absolute time base: pass fps"
    tokens_per_frame = num_tokens / num_frames if fps is None else TOKEN_RATE / rational(fps)
    half = int(tokens_per_frame * FRAMES_PER_LATENT / 2)

    def centre(i: int) -> int:
        begin = first_frame + (i - 1) * FRAMES_PER_LATENT + 1
        return int((tokens_per_frame * begin + tokens_per_frame * (begin + FRAMES_PER_LATENT)) / 2) - 1

    centres = [centre(1) - 2 * half] + [centre(i) for i in range(1, (num_frames - 1) // FRAMES_PER_LATENT + 1)]
    return [(c - half, c + half) for c in centres]


def window(tokens: Tensor, ranges: list[tuple[int, int]], expand: int = 4) -> AudioTokens:
    """Cut `tokens` [B, L, D] into one window per range: `AudioTokens` [B, F, n, D] with lengths [B, F].

    Each range is widened by `expand` tokens on both sides and clipped to the track, both ends inclusive; the padding is
    zero and always to the right, for a negative start too (FantasyTalking). A range wholly outside the track (never by
    the official rule) keeps the nearest token: every length is 1 or more.
    """
    batch, num_tokens, _ = tokens.shape
    wide = torch.tensor(ranges, dtype=torch.int64) + torch.tensor([-expand, expand])  # [F, 2]
    rows = int((wide[:, 1] - wide[:, 0]).max()) + 1
    first, last = wide.clamp(0, num_tokens - 1).unbind(1)  # [F], [F]
    lengths = last - first + 1
    offsets = torch.arange(rows)
    index = (first[:, None] + offsets).clamp(max=num_tokens - 1).to(tokens.device)  # [F, n]
    real = (offsets < lengths[:, None]).to(tokens.device)  # [F, n]
    cut = tokens[:, index].masked_fill(~real[None, :, :, None], 0)  # [B, F, n, D]
    return AudioTokens(cut, lengths.to(tokens.device).expand(batch, -1))


def window_at(tokens: Tensor, num_frames: int, *, fps: float | Fraction, first_frame: int = 0) -> AudioTokens:
    """The audio of the `num_frames` frames from `first_frame` on, cut from the tokens [B, L, D] of the whole track."""
    return window(tokens, window_ranges(tokens.shape[1], num_frames, fps=fps, first_frame=first_frame))


def frames_for(duration: float, fps: float | Fraction, *, rule: str = "within", max_frames: int | None = None) -> int:
    """How many frames (1 + 4k) a voice of `duration` seconds gets.

    "within": the largest number with frames / fps <= duration, so the picture never outruns the voice, with half a
    sample at 16 kHz (31 microseconds) of tolerance, so that 81 / 23 seconds give 81. "official": int(fps * duration //
    4) * 4 + 5, up to five frames longer than the voice (FantasyTalking). Raises UserError for a voice shorter than the
    shortest video: 5 frames, or the one latent frame of 4 that the official rule needs.
    """
    exact = Fraction(duration + 0.5 / SAMPLE_RATE) * rational(fps) if math.isfinite(duration) else Fraction(0)
    shortest = 5 if rule == "within" else FRAMES_PER_LATENT
    if exact < shortest:
        raise UserError(
            "the voice is shorter than the shortest video",
            got=f"{duration:.3f} s, {float(exact):.1f} frames at {float(fps):g} fps",
            expected=f"at least {shortest} frames ({shortest / fps:.3f} s)",
            do="bring a longer recording, or pad it with silence",
        )
    if rule == "within":
        frames = (math.floor(exact) - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    elif rule == "official":
        frames = int(float(fps) * duration // FRAMES_PER_LATENT) * FRAMES_PER_LATENT + 5
    else:
        raise ValueError(f"rule is 'within' or 'official', not {rule!r}")
    return frames if max_frames is None else min(frames, check_frames(max_frames))


def trim(waveform: Tensor, num_frames: int, fps: float | Fraction) -> Tensor:
    """The first int(num_frames / fps * 16000) samples: what FantasyTalking normalises and encodes for one video."""
    return waveform[: int(num_frames / rational(fps) * SAMPLE_RATE)]


def token_count(num_samples: int) -> int:
    """wav2vec2 tokens of `num_samples`: unpadded convolutions of (kernel, stride) (10, 5), 4 x (3, 2), 2 x (2, 2)."""
    return max((num_samples - RECEPTIVE) // HOP + 1, 0)


def load_voice(path: str | Path) -> Tensor:
    """The sound of an audio or video file as a waveform [n], fp32, 16 kHz, mono.

    Decoded by PyAV, which alone reads wav, mp3, flac, m4a and the sound tracks of videos, then what librosa.load does:
    mean of the channels, soxr. Raises UserError for a file without a usable voice.
    """
    rate, mono = SAMPLE_RATE, [np.zeros(0, np.float32)]
    for rate, sound in read_audio(path):  # noqa: B007
        mono.append(sound.mean(axis=0))
    return as_voice(torch.from_numpy(np.concatenate(mono))[None], rate, str(path))


def as_voice(sound: Tensor, rate: int, name: str = "the voice") -> Tensor:
    """Sound [channels, n] at any rate -> waveform [n] at 16 kHz: `load_voice` of sound that is in memory already."""
    import librosa

    waveform = check_voice(sound.float().mean(0).cpu(), rate, name)
    return torch.from_numpy(librosa.resample(waveform.numpy(), orig_sr=rate, target_sr=SAMPLE_RATE))


def normalised(waveform: Tensor) -> Tensor:
    """Zero mean and unit population variance over the whole track, as wav2vec2-base-960h was trained; fp32."""
    waveform = waveform.double()
    return ((waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()).float()


def check_voice(waveform: Tensor, rate: int = SAMPLE_RATE, name: str = "the voice") -> Tensor:
    """`waveform` [n] itself when it can be a voice; a UserError when it is too short to encode, NaN or silent."""
    shortest, got, kind = math.ceil(RECEPTIVE * rate / SAMPLE_RATE), None, NoSound
    if len(waveform) < shortest:
        got = f"{len(waveform)} samples at {rate} Hz" if len(waveform) else "no samples"
    elif not torch.isfinite(waveform).all():
        got, kind = f"{int((~torch.isfinite(waveform)).sum())} NaN or infinite samples", UserError
    elif (loudest := float(waveform.abs().max())) > LOUDEST:
        got, kind = f"samples up to {loudest:.1e}: broken, for sound is between -1 and 1", UserError
    elif (peak := float((waveform - waveform.mean()).abs().max())) < SILENCE:
        got = f"silence: the loudest sample is {peak:.1e}, below {SILENCE:g} (-80 dB)"
    if got:
        expected = f"a voice one can hear, {shortest} samples ({shortest / rate * 1000:.0f} ms) or longer"
        raise kind(f"{name} holds no voice", got=got, expected=expected, do="check the recording in a player")
    return waveform
