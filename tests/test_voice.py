"""A voice from any file as librosa loads it, and its wav2vec2 features as transformers computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sounds import encode

from fantasy_core.audio import check_voice, load_voice, token_count, trim
from fantasy_core.errors import UserError
from fantasy_core.wav2vec import Wav2Vec, pieces


@pytest.mark.parametrize(
    "name, codec", [("a.wav", "pcm_s16le"), ("b.wav", "pcm_f32le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame")]
)
@pytest.mark.parametrize("rate, channels", [(44_100, 2), (16_000, 1), (48_000, 1)])
def test_loading_equals_librosa(tmp_path, name, codec, rate, channels):
    """The waveform librosa.load(sr=16000, mono=True) gives; mp3 too, where both undo the encoder's delay."""
    import librosa

    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (channels, rate + 777))
    path = encode(tmp_path / name, sound, rate, codec)
    expected, _ = librosa.load(path, sr=16_000, mono=True)
    got = load_voice(path)
    assert got.dtype == torch.float32 and len(got) == len(expected)
    assert np.abs(got.numpy() - expected).max() < (1e-4 if name.endswith("mp3") else 1e-6)


def test_m4a(tmp_path):
    """AAC, which soundfile cannot read: a 440 Hz tone keeps its length within an AAC frame, pitch and loudness."""
    seconds = np.arange(44_100 * 2) / 44_100
    tone = np.sin(2 * np.pi * 440 * seconds)[None] * 0.5
    got = load_voice(encode(tmp_path / "a.m4a", np.concatenate([tone, tone]), 44_100, "aac")).numpy()
    assert abs(len(got) - 32_000) <= 1024
    middle = got[8000:24_000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 440 and abs(np.sqrt((middle**2).mean()) - 0.5 / np.sqrt(2)) < 0.01


BAD = {
    "no samples": np.zeros((1, 0)),
    "1 samples": np.ones((1, 1)),
    "300 samples": np.ones((1, 300)),
    "silence": np.zeros((1, 16_000)),
    "silence: ": np.full((1, 16_000), 0.25),  # a constant voltage is no sound
    "NaN": np.where(np.arange(16_000) == 100, np.nan, 0.1)[None],
    "infinite": np.where(np.arange(16_000) == 100, np.inf, 0.1)[None],
}


@pytest.mark.parametrize("got", BAD)
def test_unusable_voices(tmp_path, got):
    import soundfile

    soundfile.write(tmp_path / "bad.wav", BAD[got].T, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="holds no voice") as caught:
        load_voice(tmp_path / "bad.wav")
    assert got in caught.value.got and "bad.wav" in caught.value.what


def test_minus_80_decibels():
    tone = torch.sin(torch.arange(16_000) * 0.1)
    assert check_voice(1.2e-4 * tone) is not None
    with pytest.raises(UserError, match="silence"):
        check_voice(0.8e-4 * tone)


def test_unreadable_voices(tmp_path):
    (tmp_path / "noise.wav").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.mp3").touch()
    for path, got in [
        ("noise.wav", "got"),
        ("empty.mp3", "empty file"),
        ("none.wav", "no such file"),
        ("", "a folder"),
    ]:
        with pytest.raises(UserError, match=got):
            load_voice(tmp_path / path)


# ---- wav2vec2


def save_wav2vec(folder, head=False, **options):
    """A random wav2vec2 with the real convolution stack and tiny widths, saved as transformers does."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**{**sizes, **convolutions, **options})
    torch.manual_seed(0)
    model = (Wav2Vec2ForCTC if head else Wav2Vec2Model)(config).eval()
    model.save_pretrained(folder)
    return model.wav2vec2 if head else model


def voice(seconds, seed=0):
    """A noise that grows louder, so that statistics of a part are not those of the whole."""
    noise = torch.randn(int(seconds * 16_000), generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.01, 0.3, len(noise)) + 0.05


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wav2vec2")
    return save_wav2vec(folder, head=True), Wav2Vec(folder, audio_dim=32)


@settings(max_examples=50, deadline=None)
@given(samples=st.integers(0, 200_000))
def test_token_count(samples):
    """The chain of unpadded convolutions, one by one; 56347 samples (81 frames at 23 fps) are 175 tokens."""
    length = samples
    for kernel, stride in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]:
        length = max((length - kernel) // stride + 1, 0)
    assert token_count(samples) == length
    assert (
        token_count(len(trim(torch.zeros(60_000), 81, 23))) == 175 and len(trim(torch.zeros(60_000), 81, 23)) == 56_347
    )


@pytest.mark.parametrize("seconds", [0.025, 0.5, 3.52, 9.99])
@torch.inference_mode()
def test_features_equal_transformers(tiny, seconds):
    """Feature extractor and model of transformers, from a checkpoint with a CTC head, against ours."""
    from transformers import Wav2Vec2FeatureExtractor

    reference, ours = tiny
    waveform = voice(seconds)
    values = Wav2Vec2FeatureExtractor(do_normalize=True)(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    expected = reference(values.input_values).last_hidden_state
    got = ours(waveform)
    assert got.shape == (1, token_count(len(waveform)), 32) and got.dtype == torch.float32
    assert (got - expected).abs().max() < 2e-5


@torch.inference_mode()
def test_pieces_convolve_as_the_whole(tiny):
    """Seams cannot matter before the self-attention: convolved in pieces of 50 tokens the features are those of the
    whole track. They are not when each piece takes its own GroupNorm statistics, so the test can tell."""
    reference, ours = tiny
    waveform = voice(8.13)
    expected = reference.feature_extractor(waveform[None]).transpose(1, 2)
    got = torch.cat(list(ours._convolved(waveform, 50)), dim=1)
    assert got.shape == expected.shape and (got - expected).abs().max() < 1e-5
    alone = reference.feature_extractor(waveform[None, : 49 * 320 + 400]).transpose(1, 2)
    assert (alone - expected[:, :50]).abs().max() > 1e-2


@torch.inference_mode()
def test_no_seam_in_the_self_attention(tiny):
    """10 s in pieces of 200 tokens that share 100 and fade over 40. Attention over 200 tokens is not that over 499:
    so the features differ a little from the whole everywhere; what may not happen is a jump of that difference at a
    seam: its largest step from token to token stays below a hundredth of the features' own, and below a twentieth of
    what pieces put end to end make."""
    _, ours = tiny
    waveform = voice(10)
    whole = ours(waveform)

    def jump(**pieces):
        return (ours(waveform, **pieces) - whole).diff(dim=1).norm(dim=-1).max()

    faded, abrupt = jump(span=200, overlap=100, fade=40), jump(span=200, overlap=0, fade=1)
    own = whole.diff(dim=1).norm(dim=-1).mean()
    assert faded < own / 100 and faded < abrupt / 20


@settings(max_examples=40, deadline=None)
@given(total=st.integers(1, 3000), overlap=st.integers(2, 200), data=st.data())
def test_pieces_share_every_token(total, overlap, data):
    """Whatever the length and the pieces, the shares of a token in all pieces add up to one."""
    fade, span = data.draw(st.integers(1, overlap)), data.draw(st.integers(2 * overlap, 600))
    shares = torch.zeros(total)
    for first, last, share in pieces(total, span, overlap, fade):
        assert 0 <= first < last <= total and last - first <= span
        shares[first:last] += share
    assert (shares - 1).abs().max() < 1e-5


def test_wav2vec_large_is_refused(tmp_path):
    save_wav2vec(tmp_path, hidden_size=1024, num_hidden_layers=1, num_attention_heads=1, feat_extract_norm="layer")
    with pytest.raises(UserError, match="wav2vec2-large") as caught:
        Wav2Vec(tmp_path)
    assert "facebook/wav2vec2-base-960h" in caught.value.do


def test_wav2vec_files_are_checked(tmp_path):
    """A missing, a foreign and a cut tensor, no weights, no folder: each is an error that names it."""
    save_wav2vec(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)

    def refused(match):
        with pytest.raises(UserError, match=match):
            Wav2Vec(tmp_path, audio_dim=32)

    save_file({k: v for k, v in good.items() if "layers.1.final_layer_norm" not in k}, file, {"format": "pt"})
    refused("missing: encoder.layers.1.final_layer_norm")
    save_file({**good, "quantizer.codevectors": torch.zeros(1)}, file, {"format": "pt"})
    refused("unexpected: quantizer.codevectors")
    save_file({**good, "feature_projection.projection.bias": torch.zeros(5)}, file, {"format": "pt"})
    refused(r"feature_projection.projection.bias \[5\]")
    save_file(good, file, {"format": "pt"})
    Wav2Vec(tmp_path, audio_dim=32)
    file.write_bytes(file.read_bytes()[:1000])
    refused("damaged")
    file.unlink()
    refused("no weights")
    old = {name.replace("parametrizations.weight.original0", "weight_g"): tensor for name, tensor in good.items()}
    old = {name.replace("parametrizations.weight.original1", "weight_v"): tensor for name, tensor in old.items()}
    torch.save({f"wav2vec2.{name}": tensor for name, tensor in old.items()}, tmp_path / "pytorch_model.bin")
    Wav2Vec(tmp_path, audio_dim=32)
    (tmp_path / "config.json").write_text("{")
    refused("cannot read")
    with pytest.raises(UserError, match="config.json"):
        Wav2Vec(tmp_path / "none")
