"""The miniature's own training, seconds of it: stages run in order, go on where they stopped, and can be measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fantasy_core.encoders import image_condition
from fantasy_core.miniature import load_components
from fantasy_core.miniature.world import draw_clip
from train.miniature import main
from train.miniature_base import condition_of, mouth_weight
from train.miniature_codec import decibels
from train.miniature_evaluate import interval
from train.miniature_pool import latent_pool, load_codec


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder after about a second of every training stage."""
    out = tmp_path_factory.mktemp("miniature")
    for stage in ("codec", "base", "decoder"):
        assert main(["--stage", stage, "--out", str(out), "--minutes", "0.01", "--clips", "2", "--steps", "2"]) == 0
    return out


def test_every_stage_leaves_its_file(run):
    for part in ("codec", "base", "fantasytalking"):
        assert (run / f"{part}.safetensors").exists()
    assert not list(run.glob("*.part"))


def test_base_goes_on_from_its_checkpoint(run):
    before = torch.load(run / "base_state.pt", weights_only=True)
    minutes = str(before["seconds"] / 60 + 0.01)  # in all, of which the checkpoint has used its share
    assert main(["--stage", "base", "--out", str(run), "--minutes", minutes, "--clips", "2"]) == 0
    after = torch.load(run / "base_state.pt", weights_only=True)
    assert after["step"] > before["step"] >= 1
    assert after["seconds"] > before["seconds"]


def test_evaluation_writes_its_report(run, capsys):
    report = run / "figures"
    flags = ["--count", "2", "--frames", "9", "--steps", "2", "--report", str(report)]
    assert main(["--stage", "evaluate", "--out", str(run), *flags]) == 0
    rows = json.loads(report.with_suffix(".json").read_text())["rows"]
    assert set(rows["generated"]) == {"ls", "mn", "vq", "vq_last"}
    assert report.with_suffix(".png").exists()
    assert "against another voice" in capsys.readouterr().out


def test_a_base_without_a_codec_is_refused(tmp_path, capsys):
    assert main(["--stage", "base", "--out", str(tmp_path)]) == 2
    assert "--stage codec" in capsys.readouterr().err


def test_pool_is_drawn_once_and_holds_the_worlds_clips(run):
    """Row 1 of the pool is the second training seed's first clip, as the codec codes it."""
    pool, codec = latent_pool(run, 2), load_codec(run / "codec.safetensors")
    video = draw_clip(1, 0, 81, spoil=True).video().movedim(1, 0)[None] * 2 - 1
    expected = load_codec(run / "codec.safetensors").encode(video)[0]
    coded_again = codec.encode(video[:, :, 40:])[0]
    # the decoder stage leaves the encoder alone; fp16 storage rounds by 2^-11 of values up to about 10
    assert np.abs(pool["latents"][1] - expected.numpy()).max() < 0.02
    assert np.abs(pool["later"][1] - coded_again.numpy()).max() < 0.02


def test_training_shows_the_condition_that_animate_shows(run):
    """Equal but for frame 0's trip through the decoder, which the grey frames' latents see."""
    components = load_components(folder=run)
    video = draw_clip(2, 0, 9).video().movedim(1, 0)[None] * 2 - 1
    with torch.no_grad():
        trained = condition_of(components.codec, components.encode(video))
        shown = image_condition(components.encode, video[:, :, 0], 9)
    assert torch.equal(trained[:, :4], shown[:, :4])
    assert torch.allclose(trained[:, 4:, 0], shown[:, 4:, 0])
    assert torch.nn.functional.cosine_similarity(trained[:, 4:, 1:].flatten(), shown[:, 4:, 1:].flatten(), dim=0) > 0.95


def test_mouth_weight_has_mean_one_and_is_largest_at_the_mouth():
    weight = mouth_weight()[0, 0, 0]
    assert weight.mean() == pytest.approx(1)
    assert weight.argmax() // 8 in (4, 5)


def test_interval_and_decibels():
    """The mean of 100 ones and 100 threes is 2, standard error 1 / sqrt(200) = 0.0707: 2 -+ 0.139. Squared error 4 of
    pixels whose range is 2 is 0 dB; 0.04 is 20 dB."""
    mean, low, high = interval(torch.cat([torch.ones(100), torch.full((100,), 3.0)]))
    assert mean == 2 and low == pytest.approx(1.861, abs=0.02) and high == pytest.approx(2.139, abs=0.02)
    assert decibels([(4.0, 0.04)]) == pytest.approx([0.0, 20.0])
