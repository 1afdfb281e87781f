"""The tiny world: what is drawn is what the judge reads, the voice causes the mouth, the shipped model follows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.audio import token_count
from fantasy_core.miniature import load_components
from fantasy_core.miniature.codec import Codec, principal_start
from fantasy_core.miniature.components import WEIGHTS
from fantasy_core.miniature.judge import fit, judge, lip_sync
from fantasy_core.miniature.render import IDENTITY, SIZE, mouth_box, render
from fantasy_core.miniature.speech import CONSONANTS, FEATURES, RATE, features, log_mel, speak
from fantasy_core.miniature.world import FPS, TEST, TRAIN, VALIDATION, draw_clip, draw_identity, portrait
from fantasy_core.wan import PRESETS
from fantasy_core.weights import open_fantasytalking, open_tensors
from train.miniature_evaluate import generate, held_out, score


@pytest.fixture(scope="module")
def small():
    return load_components()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_world_is_frozen():
    """Figures of the miniature compare only while clip (0, 0) stays what it was when they were measured.

    A difference here means that the world changed: then every published figure is void, and the model needs training
    anew.
    """
    clip = draw_clip(0, 0, 21)
    assert clip.identity[:3].tolist() == pytest.approx(WORLD["skin"], abs=1e-5)
    assert clip.pose[20].tolist() == pytest.approx(WORLD["pose"], abs=1e-5)
    assert float(np.abs(clip.waveform).mean()) == pytest.approx(WORLD["level"], rel=1e-3)


WORLD = {
    "skin": [0.780679, 0.600061, 0.524076],
    "pose": [0.065367, -0.018783, 0.113448, 0.444472, 1.0],
    "level": 0.061387,
}


def test_splits_do_not_meet_and_leave_900_alone():
    used = set(TRAIN) | set(VALIDATION) | set(TEST)
    assert len(used) == len(TRAIN) + len(VALIDATION) + len(TEST) == 300
    assert max(used) < 900


def test_same_numbers_same_clip():
    one, two, other = draw_clip(7, 3, 9, spoil=True), draw_clip(7, 3, 9, spoil=True), draw_clip(7, 4, 9, spoil=True)
    assert torch.equal(one.video(), two.video()) and np.array_equal(one.waveform, two.waveform)
    assert not torch.equal(one.identity, other.identity)


def test_a_clip_looks_the_same_each_time_it_is_drawn():
    """Stains and all: drawing must not use up the clip's own randomness."""
    stained = [clip for clip in (draw_clip(seed, 0, 9, spoil=True) for seed in range(12)) if "vq" in clip.spoiled]
    assert stained and all(torch.equal(clip.video(), clip.video()) for clip in stained)


def test_portrait_frame_is_clean_in_every_spoiled_clip():
    """Frame 0 is what the model is given: no flaw touches it. Clip 0 of these seeds covers all kinds of flaws."""
    clips = [draw_clip(seed, 0, 9, spoil=True) for seed in range(12)]
    assert {flaw for clip in clips for flaw in clip.spoiled} == {"ls", "mn", "vq"}
    for clip in clips:
        clean = render(clip.identity[None], clip.pose[None])[0]
        assert torch.allclose(clip.video()[0], clean[0])
        assert torch.allclose(clip.video(), clean) == ("vq" not in clip.spoiled)


def test_lips_close_on_loud_sounds():
    """The mouth is caused by phonemes, not by loudness: m is voiced and s is loud, both with (nearly) closed lips."""
    assert CONSONANTS["m"].opening == 0 and CONSONANTS["m"].voice > 0.3
    assert CONSONANTS["s"].opening < 0.2 and CONSONANTS["s"].noise > 0.5


def test_features_carry_the_opening_but_not_as_a_number():
    """A least-squares readout from loudness alone explains less than half the opening's variance (r^2 < 0.55), from all
    features more, and no single feature is the opening. Fitted on 40 clips, checked on 15 others."""
    rows, openings = [], []
    for index in range(55):
        clip = draw_clip(50, index, 41)
        heard = clip.features()[0].double().numpy()
        at = (np.arange(len(heard)) * 320 + 200) / RATE * FPS
        rows.append(heard)
        openings.append(np.interp(at, np.arange(41), clip.mouth[:, 0].numpy()))
    fitted, checked = (
        (np.concatenate(rows[:40]), np.concatenate(openings[:40])),
        (np.concatenate(rows[40:]), np.concatenate(openings[40:])),
    )

    def explained(columns) -> float:
        design = [np.c_[columns(x), np.ones(len(x))] for x in (fitted[0], checked[0])]
        weights = np.linalg.lstsq(design[0], fitted[1], rcond=None)[0]
        return float(np.corrcoef(design[1] @ weights, checked[1])[0, 1] ** 2)

    loudness = explained(lambda x: x[:, 24:48].mean(1, keepdims=True))
    single = max(abs(np.corrcoef(checked[0][:, i], checked[1])[0, 1]) for i in range(72))
    everything = explained(lambda x: x[:, :72])
    assert loudness < 0.55 < everything < 0.95
    assert single < 0.85


@given(seconds=st.floats(0.8, 1.5), gain=st.floats(0.2, 3))
def test_features_lie_on_wav2vec2s_grid_and_ignore_level(seconds, gain):
    waveform = speak(seconds, np.random.default_rng(1)).waveform.astype(np.float64)
    heard = features(waveform)
    assert heard.shape == (1, token_count(len(waveform)), FEATURES)
    assert torch.allclose(features(waveform * gain), heard, atol=1e-3)


def test_log_mel_hears_a_tone_in_its_band():
    """A 1 kHz tone is loudest in the band whose triangle peaks nearest: mel(1000) = 1000 of a scale 114..2831 in 25
    steps gives band (1000 - 114) / 108.7 - 1 = 7.15, the eighth."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert (log_mel(tone).mean(0)).argmax() == 7


def test_judge_reads_back_what_was_drawn():
    """Clean clips: the fitted head is right to a fiftieth of a pixel at the median,
    and all three scores are at their top."""
    clips = [draw_clip(seed, 0, 9) for seed in (0, 1)]
    who, pose = torch.stack([c.identity for c in clips]), torch.stack([c.pose for c in clips])
    found = judge(torch.stack([c.video() for c in clips]), who, torch.stack([c.mouth for c in clips]))
    assert (found["pose"][..., :2] - pose[..., :2]).abs().median() < 2 / SIZE / 50
    assert (found["ls"] > 0.98).all() and (found["vq"] > 50).all()


def test_judge_sees_each_flaw_in_its_own_dimension():
    """The same clip with other lips, a frozen head, a blur: only the spoiled score falls far."""
    clip = draw_clip(3, 1, 17)
    pose, mouth = clip.pose.clone(), clip.mouth[None]
    dumb, frozen = pose.clone(), pose.clone()
    dumb[:, 2] = pose[:, 2].flip(0)
    frozen[:, :2] = pose[:1, :2]
    clean = render(clip.identity[None], pose[None])
    blurred = torch.nn.functional.avg_pool2d(clean.flatten(0, 1), 3, 1, 1).view_as(clean)
    videos = [clean, render(clip.identity[None], dumb[None]), render(clip.identity[None], frozen[None]), blurred]
    top, lips, head, soft = (judge(video, clip.identity[None], mouth) for video in videos)
    assert lips["ls"] < top["ls"] - 0.5 and lips["vq"] > top["vq"] - 5
    assert head["mn"] < 0.1 * top["mn"] and head["ls"] > 0.95
    assert soft["vq"] < top["vq"] - 15 and soft["ls"] > 0.9


def test_lip_sync_closed_forms():
    """r(x, x) = 1, r(x, -x) = -1, r of a mouth with half the floor's spread: spread / floor = 0.03 / 0.06 = 0.5."""
    wave = torch.sin(torch.linspace(0, 4 * torch.pi, 101))[None, :100].double()
    unit = wave / wave.std(unbiased=False)
    unit = unit - unit.mean()
    assert lip_sync(unit, unit).item() == pytest.approx(1, abs=1e-6)
    assert lip_sync(unit, -unit).item() == pytest.approx(-1, abs=1e-6)
    assert lip_sync(0.03 * unit, unit).item() == pytest.approx(0.5, abs=1e-3)


def test_fit_is_exact_to_the_background_when_pose_is_known():
    who = draw_identity(np.random.default_rng(0))
    assert who.shape == (IDENTITY,)
    pose = torch.tensor([[[0.05, -0.02, 0.5, 0.4, 1.0]]])
    found, error = fit(render(who[None], pose), who[None], iterations=8)
    assert error.item() < 1e-7 and torch.allclose(found, pose, atol=2e-3)


def test_mouths_stay_in_the_mouth_box():
    """Opening the mouth changes nothing outside the box that losses weigh (jaw and lips included)."""
    box = mouth_box().bool()
    for seed in range(6):
        who = draw_identity(np.random.default_rng(seed))[None]
        shut, wide = (render(who, torch.tensor([[[0.0, 0.0, o, 0.5, 1.0]]]))[0, 0] for o in (0.0, 1.0))
        moved = (shut - wide).abs().amax(0)
        assert moved[~box].mean() < 0.02 * moved[box].mean()


def test_codec_codes_frame_0_alone_and_groups_beside_it():
    """Latent k depends on frames 0 and 4k-3..4k only; decoding a stream equals decoding the whole."""
    codec = Codec().eval()
    principal_start(codec.encoder.linear[0], codec.decoder.linear[0], torch.rand(40, 3, 64, 64))
    video = torch.rand(1, 3, 13, 64, 64) * 2 - 1
    changed = video.clone()
    changed[:, :, 5:9] = 0
    with torch.no_grad():
        one, two = codec.encode(video), codec.encode(changed)
        same = [torch.equal(one[:, :, k], two[:, :, k]) for k in range(4)]
        assert same == [True, True, False, True]
        assert torch.equal(torch.cat(list(codec.stream(one)), 2), codec.decode(one))


def test_shipped_codec_on_held_out_clips(small):
    """>= 32 dB on people it has not seen, unit-scale latents."""
    video = torch.stack([draw_clip(seed, 0, 13).video() for seed in range(100, 106)]).movedim(2, 1) * 2 - 1
    with torch.no_grad():
        latents = small.codec.encode(video)
        assert psnr(small.codec.decode(latents) / 2, video / 2) > 32
    assert 0.6 < latents.std() < 1.5 and latents.abs().mean() < 1.5


def test_shipped_model_is_a_wan_model_with_a_fantasytalking_file(small):
    """Its DiT is told by shapes alone, but for heads and text_len; its audio file has FantasyTalking's names."""
    with small.dit() as dit:
        assert dit.config == PRESETS["miniature"] == small.config
    assert small.config.dim % 128 == 0
    base = open_tensors(WEIGHTS / "base.safetensors")
    assert not any("processor" in name or "proj_model" in name for name in base.entries)
    assert open_fantasytalking(WEIGHTS / "fantasytalking.safetensors")[1] == "official"
    parts = (WEIGHTS / f"{part}.safetensors" for part in ("base", "codec", "fantasytalking"))
    assert sum(file.stat().st_size for file in parts) <= 12_000_000


def test_miniature_knows_its_own_people(small):
    assert all(small.check(portrait(seed)[None] * 2 - 1) is None for seed in range(100, 110))
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blocks = torch.nn.functional.interpolate(noise, (64, 64), mode="nearest")
    assert "miniature" in small.check(blocks)


def test_shipped_model_follows_the_voice(small):
    """Two held-out people, 41 frames at the default guidance: their mouths follow their own voices and not each
    other's.

    The full figure, over the whole test split with its interval, is in the README.
    """
    clips = held_out("validation", 2, 41)
    defaults = small.defaults
    video = generate(small, clips, steps=12, shift=defaults.shift, scale=defaults.audio_scale)
    found = score(video, clips)
    assert found["ls"].mean() > 0.3
    assert found["ls"].mean() > found["ls_shuffled"].mean() + 0.2
    assert found["vq"].mean() > 24
