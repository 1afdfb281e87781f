"""Synthetic speech whose articulation is known: phonemes -> mouth and sound, and the features a model hears.

A small source-filter synthesiser: every phoneme names where the lips are (opening, width) and, separately, how it
sounds (three formants, voicing, noise). Both are read off the same time line, so the mouth is *caused* together with
the sound and is not a function of its loudness: `m` is voiced with closed lips, `s` is loud with the teeth together,
stress and distance change the level and nothing else. Speakers differ in pitch, vocal tract, pace, room tone and noise.

`features` stands in for wav2vec2: log-mel bands with some context and a code of absolute time, at the same 50 tokens a
second and on the same grid, so windows, projection and attention are those of the real model. They contain the opening
no more than any sound does. Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RATE = 16000  # samples a second
CONTROL = 200  # articulation points a second
TOKEN_HOP, TOKEN_LENGTH = 320, 400  # wav2vec2's stride and receptive field: 50 tokens a second
BANDS = 24  # mel bands
CONTEXT = (-2, 0, 2)  # tokens whose bands a feature carries
CLOCK = (8.0, 24.0, 72.0)  # periods, in tokens, of the code of absolute time
FEATURES = BANDS * len(CONTEXT) + 2 * len(CLOCK)


@dataclass(frozen=True)
class Phoneme:
    """Where the lips are (opening and width, 0..1) and how it sounds (formants in Hz, levels 0..1, noise centre)."""

    opening: float
    wide: float
    formants: tuple[float, float, float]
    voice: float
    noise: float = 0.0
    centre: float = 4000.0
    seconds: float = 0.08


VOWELS = {
    "a": Phoneme(0.95, 0.50, (760, 1220, 2550), 1.0, seconds=0.15),
    "ae": Phoneme(0.80, 0.85, (690, 1700, 2450), 1.0, seconds=0.15),
    "e": Phoneme(0.58, 0.80, (530, 1850, 2500), 1.0, seconds=0.12),
    "i": Phoneme(0.28, 1.00, (290, 2250, 3000), 0.9, seconds=0.12),
    "o": Phoneme(0.60, 0.12, (480, 850, 2450), 1.0, seconds=0.14),
    "u": Phoneme(0.26, 0.00, (320, 750, 2250), 0.85, seconds=0.12),
    "schwa": Phoneme(0.42, 0.50, (500, 1450, 2450), 0.8, seconds=0.07),
}
CONSONANTS = {
    "m": Phoneme(0.00, 0.45, (270, 1000, 2200), 0.42, seconds=0.08),
    "n": Phoneme(0.20, 0.55, (280, 1550, 2600), 0.42, seconds=0.07),
    "b": Phoneme(0.00, 0.42, (250, 900, 2200), 0.12, seconds=0.08),
    "p": Phoneme(0.00, 0.45, (250, 900, 2200), 0.0, 0.05, 1200, seconds=0.09),
    "d": Phoneme(0.20, 0.58, (300, 1700, 2700), 0.12, 0.12, 4000, seconds=0.06),
    "t": Phoneme(0.18, 0.60, (300, 1700, 2700), 0.0, 0.30, 4500, seconds=0.07),
    "k": Phoneme(0.34, 0.50, (300, 1500, 2400), 0.0, 0.26, 2000, seconds=0.08),
    "g": Phoneme(0.34, 0.50, (300, 1500, 2400), 0.15, 0.10, 2000, seconds=0.06),
    "f": Phoneme(0.08, 0.55, (300, 1100, 2300), 0.0, 0.22, 6200, seconds=0.09),
    "v": Phoneme(0.08, 0.55, (280, 1100, 2300), 0.35, 0.10, 6200, seconds=0.06),
    "s": Phoneme(0.13, 0.80, (300, 1700, 2700), 0.0, 0.75, 5600, seconds=0.11),
    "sh": Phoneme(0.20, 0.10, (300, 1700, 2500), 0.0, 0.70, 3100, seconds=0.11),
    "l": Phoneme(0.36, 0.55, (370, 1200, 2700), 0.55, seconds=0.06),
    "r": Phoneme(0.30, 0.22, (420, 1200, 1650), 0.55, seconds=0.06),
    "w": Phoneme(0.10, 0.00, (300, 650, 2200), 0.50, seconds=0.06),
    "h": Phoneme(0.45, 0.50, (500, 1450, 2450), 0.0, 0.20, 1600, seconds=0.06),
}
PAUSE = Phoneme(0.02, 0.48, (450, 1400, 2500), 0.0)


@dataclass
class Utterance:
    """A synthetic sentence: waveform [n] at 16 kHz, mouth [CONTROL * seconds, 2] (opening,
    width) at CONTROL a second."""

    waveform: np.ndarray
    mouth: np.ndarray

    def mouth_at(self, fps: float, frames: int, first_frame: int = 0) -> np.ndarray:
        """Opening and width at frames first_frame, first_frame + 1, ... -> [frames, 2]."""
        when = (first_frame + np.arange(frames)) / fps * CONTROL
        grid = np.arange(len(self.mouth))
        return np.stack([np.interp(when, grid, self.mouth[:, i]) for i in (0, 1)], 1).astype(np.float32)


def phoneme_line(seconds: float, rng: np.random.Generator) -> list[tuple[Phoneme, float, float]]:
    """Random syllables with word and phrase pauses -> [(phoneme, duration, stress), ...] covering `seconds`."""
    pace, line, total = rng.uniform(0.8, 1.3), [], 0.0

    def add(phoneme: Phoneme, duration: float, stress: float) -> None:
        nonlocal total
        line.append((phoneme, duration, stress))
        total += duration

    add(PAUSE, rng.uniform(0.05, 0.35), 1.0)
    while total < seconds:
        for _ in range(rng.integers(1, 5)):  # syllables of a word
            stress = 10 ** (rng.normal(0, 4) / 20)
            if rng.random() < 0.85:
                phoneme = CONSONANTS[rng.choice(list(CONSONANTS))]
                add(phoneme, phoneme.seconds * pace * rng.uniform(0.8, 1.3), stress)
            phoneme = VOWELS[rng.choice(list(VOWELS))]
            add(phoneme, phoneme.seconds * pace * rng.uniform(0.7, 1.6), stress)
            if rng.random() < 0.25:
                phoneme = CONSONANTS[rng.choice(list(CONSONANTS))]
                add(phoneme, phoneme.seconds * pace * rng.uniform(0.8, 1.3), 0.8 * stress)
        if rng.random() < 0.35:
            add(PAUSE, rng.uniform(0.06, 0.5), 1.0)
    return line


def control_tracks(line: list[tuple[Phoneme, float, float]], points: int) -> dict[str, np.ndarray]:
    """Piecewise-constant phoneme targets sampled CONTROL times a second: mouth, formants, voice, noise, centre."""
    ends = np.cumsum([duration for _, duration, _ in line])
    index = np.minimum(np.searchsorted(ends, np.arange(points) / CONTROL, side="right"), len(line) - 1)
    rows = {
        "mouth": [(p.opening, p.wide) for p, _, _ in line],
        "formants": [p.formants for p, _, _ in line],
        "voice": [p.voice * stress for p, _, stress in line],
        "noise": [p.noise * stress for p, _, stress in line],
        "centre": [p.centre for p, _, _ in line],
    }
    return {name: np.asarray(values, np.float64)[index] for name, values in rows.items()}


def smooth(track: np.ndarray, seconds: float) -> np.ndarray:
    """Gaussian smoothing along time (axis 0) with the given standard deviation: articulators have mass."""
    sigma = seconds * CONTROL
    reach = int(4 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(track, [(reach, reach)] + [(0, 0)] * (track.ndim - 1), mode="edge")
    columns = padded.reshape(len(padded), -1)
    done = np.stack([np.convolve(c, kernel / kernel.sum(), "valid") for c in columns.T], 1)
    return done.reshape(track.shape)


def resonances(frequency: np.ndarray, formants: np.ndarray, widths=(80.0, 110.0, 160.0)) -> np.ndarray:
    """Magnitude of three parallel formant resonances -> [frames, bins], about 1 at the strongest."""
    levels = (1.0, 0.6, 0.35)
    total = 0.02
    for i, (width, level) in enumerate(zip(widths, levels, strict=True)):
        f = formants[:, i : i + 1]
        total = total + level / np.sqrt(1 + ((frequency - f) / width) ** 2)
    return total


def glottal_pulses(pitch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pulse train at `pitch` Hz (given per sample) with a little jitter -> [n]."""
    phase = np.cumsum(pitch * (1 + 0.01 * rng.standard_normal(len(pitch))) / RATE)
    pulses = np.zeros(len(pitch))
    pulses[1:][np.diff(np.floor(phase)) > 0] = 1.0
    return pulses


def synthesise(tracks: dict[str, np.ndarray], samples: int, rng: np.random.Generator) -> np.ndarray:
    """Filter pulses and noise by the time-varying spectrum (overlap-add of short frames) -> waveform [samples]."""
    hop, length = 128, 512
    count = samples // hop + 4
    at = np.minimum((np.arange(count) * hop * CONTROL) // RATE, len(tracks["voice"]) - 1).astype(int)
    frequency = np.fft.rfftfreq(length, 1 / RATE)[None]
    tract = rng.uniform(0.92, 1.20)
    voiced = resonances(frequency, tracks["formants"][at] * tract) * tracks["voice"][at, None]
    voiced = voiced / (1 + (frequency / 900) ** 2) ** 0.35  # glottal tilt
    centre = tracks["centre"][at, None]
    hiss = np.exp(-0.5 * ((frequency - centre) / (0.28 * centre)) ** 2) * tracks["noise"][at, None]
    t = np.arange(count * hop + length) / RATE
    base = rng.uniform(85, 240)
    pitch = base * (1 - 0.04 * t) * (1 + 0.12 * np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * t + rng.uniform(0, 6)))
    sources = glottal_pulses(np.maximum(pitch, 60), rng) * 3.0, rng.standard_normal(len(t)) * 0.12
    out, window = np.zeros(len(t)), np.hanning(length + 1)[:-1]
    slices = np.arange(count)[:, None] * hop + np.arange(length)
    for source, spectrum in zip(sources, (voiced, hiss), strict=True):
        frames = np.fft.irfft(np.fft.rfft(source[slices] * window, axis=1) * spectrum, axis=1)
        for part in range(length // hop):  # frames that do not overlap each other, four sets of them
            chosen = frames[part :: length // hop].reshape(-1)
            out[part * hop : part * hop + len(chosen)] += chosen
    return out[length // 2 : length // 2 + samples] / 2


def room(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distance, tone and noise of a recording: a random level, spectral tilt and hiss. The mouth knows none of them."""
    spectrum, f = np.fft.rfft(waveform), np.fft.rfftfreq(len(waveform), 1 / RATE)
    tilt = ((f + 150) / 1150) ** rng.uniform(-0.45, 0.45)
    bump = 1 + rng.uniform(-0.5, 0.8) * np.exp(-0.5 * ((f - rng.uniform(200, 5000)) / 500) ** 2)
    voice = np.fft.irfft(spectrum * tilt * bump, len(waveform))
    level = voice.std() + 1e-9
    hiss = rng.standard_normal(len(voice)) * level * 10 ** (-rng.uniform(22, 50) / 20)
    return ((voice + hiss) / level * 10 ** (rng.uniform(-30, -14) / 20)).astype(np.float32)


def speak(seconds: float, rng: np.random.Generator) -> Utterance:
    """A random sentence of `seconds` by a random speaker in a random room."""
    points, samples = int(np.ceil(seconds * CONTROL)) + 1, int(round(seconds * RATE))
    tracks = control_tracks(phoneme_line(seconds + 0.1, rng), points)
    effort = rng.uniform(0.85, 1.1)  # some people open wider
    mouth = np.clip(smooth(tracks["mouth"], 0.028) * [effort, 1.0], 0, 1)
    tracks["formants"] = smooth(tracks["formants"], 0.018)
    tracks["voice"], tracks["noise"] = smooth(tracks["voice"], 0.012), smooth(tracks["noise"], 0.008)
    return Utterance(room(synthesise(tracks, samples, rng), rng), mouth)


def mel_filters(bins: int) -> np.ndarray:
    """Triangular mel filters 80..7600 Hz -> [bins, BANDS]."""

    def to_mel(f):
        return 2595 * np.log10(1 + f / 700)

    f = np.linspace(0, RATE / 2, bins)[:, None]
    corners = 700 * (10 ** (np.linspace(to_mel(80), to_mel(7600), BANDS + 2) / 2595) - 1)
    low, mid, high = corners[:-2], corners[1:-1], corners[2:]
    return np.clip(np.minimum((f - low) / (mid - low), (high - f) / (high - mid)), 0, None)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Level-normalised log-mel energies on wav2vec2's grid -> [L, BANDS], L = (n - 400) // 320 + 1,
    about unit scale."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, TOKEN_LENGTH)[::TOKEN_HOP]
    energy = np.sort((frames**2).mean(1))
    level = energy[len(energy) // 2 :].mean() + 1e-10  # the louder half: pauses do not change the level
    power = np.abs(np.fft.rfft(frames * np.hanning(TOKEN_LENGTH), 512, axis=1)) ** 2
    bands = power @ mel_filters(power.shape[1]) / (level * 100)
    return (np.log(bands + 1e-4) + 4.0) / 3.0


def features(waveform: np.ndarray | Tensor) -> Tensor:
    """What the miniature hears of a waveform [n] at 16 kHz -> [1, L, FEATURES] at 50 tokens a second.

    Bands of the token and of its neighbours two away, then sine and cosine of the token's absolute time: attention has
    no order of its own, and wav2vec2's features carry theirs too.
    """
    bands = log_mel(np.asarray(waveform, dtype=np.float64))
    reach = max(CONTEXT)
    padded = np.pad(bands, [(reach, reach), (0, 0)], mode="edge")
    stacked = [padded[reach + shift : reach + shift + len(bands)] for shift in CONTEXT]
    angle = 2 * np.pi * np.arange(len(bands))[:, None] / np.array(CLOCK)
    return torch.from_numpy(np.concatenate([*stacked, np.sin(angle), np.cos(angle)], 1)).float().unsqueeze(0)
