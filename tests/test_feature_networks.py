"""FID and FVD: published layouts, outputs of the published code on planted weights, strict opening, named failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fantasy_core.errors import UserError
from fantasy_core.metrics.contract import Opens, SetMetric, Video
from fantasy_core.metrics.i3d import Fvd, is_script
from fantasy_core.metrics.i3d import prepared as square
from fantasy_core.metrics.i3d_model import I3d
from fantasy_core.metrics.inception import Fid, prepared
from fantasy_core.metrics.inception_model import Inception
from fantasy_core.metrics.networks import Network
from fantasy_core.metrics.sampling import at_rate, evenly
from tests.planted_weights import layout, planted_file, planted_state


def ramp(frames: int, height: int, width: int) -> np.ndarray:
    """Pictures anybody can make again: uint8 [T, H, W, 3] of one long sine."""
    place = np.arange(frames * height * width * 3).reshape(frames, height, width, 3)
    return ((np.sin(place * 0.37) * 0.5 + 0.5) * 255).astype(np.uint8)


def clip(frames: int, fps: float = 25.0, size: tuple[int, int] = (16, 24)) -> Video:
    return Video(Path("clip.mp4"), ramp(frames, *size), np.arange(frames) / fps)


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> Path:
    return planted_file(Inception, tmp_path_factory.mktemp("fid") / "pt_inception.pth")


@pytest.fixture(scope="module")
def i3d(tmp_path_factory) -> Path:
    return planted_file(I3d, tmp_path_factory.mktemp("fvd") / "i3d.pt")


def test_layouts_are_the_published_ones():
    """Names and shapes of torchvision's Inception3 as pytorch-fid patches it (1008 classes, no auxiliary head) and of
    the InceptionI3d of VideoGPT, hashed from their own code."""
    state = planted_state(Inception)
    assert len(state) == 566 and layout(state) == "8cdd2faeb41211e17f0fb47e66168d0cb1f981aa773b5f44e5b9cc93857fe492"
    state = planted_state(I3d)
    assert len(state) == 344 and layout(state) == "e478222be240be6354fb52106c552bf25393919a93ac3ff472c670e1b8a2724e"


def test_inception_computes_what_pytorch_fid_does(inception):
    """Mean, spread and one feature are what pytorch-fid's InceptionV3 gave for these weights and this picture."""
    features = Fid(inception).measure(Video(Path("a"), ramp(1, 40, 60), np.zeros(1))).features
    assert features is not None and features.shape == (1, 2048)
    told = [features.mean(), features.std(ddof=1), features[0, 320]]
    assert told == pytest.approx([0.018700946, 0.032924775, 0.00049217592], rel=1e-3)


def test_i3d_computes_what_videogpt_does(i3d):
    """Three logits and their spread are what VideoGPT's InceptionI3d gave."""
    network = Network(I3d, i3d, "I3D").open()
    with torch.inference_mode():
        logits = network(square(ramp(16, 224, 224))[None])[0]
    assert logits[[0, 100, 399]].tolist() == pytest.approx([0.53376734, 0.041358754, -0.15482576], rel=1e-3)
    assert float(logits.std()) == pytest.approx(0.110454075, rel=1e-3)


def test_average_pools_leave_the_padding_out():
    """A picture of ones stays ones up to its corners; counted in, a corner would be 4/9."""
    block = Inception().Mixed_5b.eval()
    torch.nn.init.constant_(block.branch_pool.conv.weight, 1 / 192)
    pooled = block._pooled(torch.ones(1, 192, 5, 5))
    assert pooled.flatten().tolist() == pytest.approx([1 / 1.001**0.5] * 32 * 25, rel=1e-5)


def test_metrics_keep_the_contract_and_name_their_weights(inception, i3d):
    fid, fvd = Fid(inception, every=3, batch=2), Fvd(i3d)
    for metric in (fid, fvd):
        assert isinstance(metric, SetMetric) and not metric.verified
        assert len(str(metric.settings["weights_sha256"])) == 64 and set(metric.better) == set(metric.columns)
    features = fid.measure(clip(8)).features  # frames 0, 3, 6
    assert features is not None and features.shape == (3, 2048)
    assert fid.compare(features, features + 1).values["fid"] == pytest.approx(2048, rel=1e-6)  # a shift by 1 in each


def test_fvd_takes_whole_windows_at_25_a_second(i3d):
    """A second and a half at 23 fps: 34 frames last 34 / 23 s = 36 ticks of 1/25 s: two windows of 16."""
    found = Fvd(i3d).measure(clip(34, 23.0))
    assert found.features is not None and found.features.shape == (2, 400) and not found.values
    with pytest.raises(UserError, match="too short"):
        Fvd(i3d).measure(clip(15))
    with pytest.raises(UserError, match="single picture"):
        Fvd(i3d).measure(clip(1))


def test_resize_legacy_and_clean_are_what_they_say():
    """Legacy without antialiasing: halving 598 to 299 averages the two middle pixels only; a bright column stands or
    falls with its place. Clean is Pillow's bicubic of each channel in floats, (x - 128) / 128."""
    frames = np.zeros((1, 1196, 1196, 3), np.uint8)
    frames[:, :, 0::4] = 255  # outside the two middle pixels of every four
    assert prepared(frames, "legacy").unique().tolist() == [-1.0]
    clean = prepared(frames, "clean")
    assert clean.shape == (1, 3, 299, 299) and float(clean.mean()) == pytest.approx((63.75 - 128) / 128, abs=0.02)
    with pytest.raises(UserError):
        Fid("nowhere", resize="best")


def test_middle_square_of_the_short_side():
    """112 x 224 doubles to 224 x 448, of which columns 112..335 stay: the left and right quarters are gone."""
    frames = np.zeros((2, 112, 224, 3), np.uint8)
    frames[:, :, :50], frames[:, :, -50:] = 255, 255
    assert square(frames).shape == (3, 2, 224, 224) and square(frames).unique().tolist() == [-1.0]


def test_weights_of_another_model_are_refused(inception, i3d, tmp_path):
    for metric, foreign in ((Fid, i3d), (Fvd, inception)):
        with pytest.raises(UserError, match="not a complete"):
            metric(foreign)
    with pytest.raises(UserError):
        Fid(tmp_path / "absent.pth")
    state = planted_state(I3d)
    state["logits.conv3d.bias"] = torch.zeros(600)
    torch.save(state, tmp_path / "600.pt")
    with pytest.raises(UserError, match="other shapes"):
        Fvd(tmp_path / "600.pt")


def test_a_network_is_read_when_it_is_needed(tmp_path):
    """A metric is made from what the file says of its tensors; without the file nothing is left to open."""
    files = [planted_file(Inception, tmp_path / f"{name}.pth") for name in ("read", "unread")]
    read, unread = map(Fid, files)
    assert isinstance(read, Opens)
    read.open()
    for file in files:
        file.unlink()
    assert read.measure(clip(1)).features.shape == (1, 2048)
    with pytest.raises(UserError):
        unread.open()


def test_files_without_training_counts_open(tmp_path):
    """Files older than torch 0.4.1 have no num_batches_tracked."""
    state = {name: t for name, t in planted_state(I3d).items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    assert Fvd(tmp_path / "old.pt").settings["network"] == "I3D Kinetics-400 logits"


class Program(torch.nn.Module):
    """What i3d_torchscript.pt looks like from outside: 400 numbers, here the mean of the first frame."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return x[:, :, 0].mean((1, 2, 3))[:, None].expand(-1, 400)


class Foreign(torch.nn.Module):
    """A program of something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_programs_run_only_where_trusted(tmp_path, i3d):
    """Of a black video in -1..1 the mean is -1."""
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.save(torch.jit.script(Program()), str(path))
    assert is_script(path) and not is_script(i3d)
    with pytest.raises(UserError, match="is a program"):
        Fvd(path)
    video = Video(Path("a"), np.zeros((16, 8, 8, 3), np.uint8), np.arange(16) / 25)
    found = Fvd(path, trust_script=True)
    features = found.measure(video).features
    assert features is not None and features.tolist() == [[-1.0] * 400]
    assert "TorchScript" in str(found.settings["network"])
    torch.jit.save(torch.jit.script(Foreign()), str(path))
    with pytest.raises(UserError, match="no I3D"):
        Fvd(path, trust_script=True).measure(video)


def test_sampling_goes_by_timestamps():
    """Frames at 0, 0.1, 0.3 s, mean 0.15, so 0.45 s long: at 10 a second the ticks 0, 0.1, 0.2, 0.3 show 0, 1, 1, 2."""
    video = Video(Path("a"), np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 0.1, 0.3]))
    assert at_rate(video, 10).tolist() == [0, 1, 1, 2]
    assert at_rate(clip(50), 25).tolist() == list(range(50))
    assert evenly(16, 8).tolist() == [1, 3, 5, 7, 9, 11, 13, 15] and evenly(3, 8).tolist() == [0, 1, 2]
