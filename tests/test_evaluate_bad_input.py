"""What is wrong with videos, folders, weights and names: a named error in its own cell, the table stands."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from plain_metrics import COLOURS, PLAIN, write_grey, write_methods
from sounds import encode

from train.evaluate import main
from train.evaluate_videos import Protocol, decoded, facts_of

SHADES = {"a": (0.3, 0.5), "b": (0.4, 0.6)}


@pytest.fixture
def methods(tmp_path) -> list[str]:
    return write_methods(tmp_path, SHADES)


def evaluate(tmp_path: Path, methods: list[str], *more: str, metrics=(PLAIN,), code: int = 0) -> dict:
    told = ["--out", str(tmp_path / "out"), "--workers", "0", "--method", *methods, "--metrics", *metrics]
    assert main([*told, *map(str, more)]) == code
    return json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))


def refused(tmp_path: Path, capsys, methods: list[str], *more: str, metrics=(PLAIN,)) -> str:
    """The error of a command that computes nothing."""
    told = ["--out", str(tmp_path / "out"), "--workers", "0", "--method", *methods, "--metrics", *metrics]
    assert main([*told, *map(str, more)]) == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


def write_frames(path: Path, frames: list[np.ndarray], *, pts=None, codec="libx264", pixels="yuv420p", rate=10) -> Path:
    """Frames uint8 [H, W, 3] at times pts / 1000 s, in any codec and pixel format."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pixels, Fraction(1, 1000)
        stream.codec_context.options = {"crf": "4"}
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (pts or [100 * n for n in range(len(frames))])[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def greys(count: int, size=(32, 32)) -> list[np.ndarray]:
    return [np.full((*size, 3), 100 + k, np.uint8) for k in range(count)]


# ---- videos ----


def test_a_corrupt_video_is_named_and_the_rest_is_written(tmp_path, methods, capsys):
    path = tmp_path / "a" / "01.mp4"
    path.write_bytes(b"no video at all" * 50)
    told = evaluate(tmp_path, methods)
    assert told["cells"]["a"]["brightness"]["n"] == 1 and told["cells"]["a"]["brightness"]["of"] == 2
    assert [(e["method"], e["input"], e["metric"]) for e in told["errors"]] == [("a", "01", None)]
    assert any("1 videos cannot be read" in w for w in told["warnings"])
    assert any("of different inputs" in w for w in told["warnings"])
    table = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "(1 of 2)" in table and "a/01, the file: cannot read the video" in table
    capsys.readouterr()
    evaluate(tmp_path, methods, "--strict", code=2)
    assert str(path) in capsys.readouterr().err


def test_an_empty_file_and_one_without_pictures_are_named(tmp_path, methods):
    (tmp_path / "a" / "00.mp4").write_bytes(b"")
    encode(tmp_path / "a" / "01.mp4", np.zeros((1, 16000)), 16000, "aac")
    told = evaluate(tmp_path, methods)
    assert [error["got"] for error in told["errors"]] == ["an empty file", "a file without moving pictures"]
    assert "an empty file" in told["cells"]["a"]["brightness"]["reason"]


def test_a_video_that_was_cut_off_is_named(tmp_path, methods):
    """Its head is whole, so it has facts; its frames end early: an error of every metric on it."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    path = write_frames(tmp_path / "a" / "01.mkv", list(noise))
    (tmp_path / "a" / "01.mp4").unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 40])
    told = evaluate(tmp_path, methods)
    assert {error["input"] for error in told["errors"]} == {"01"}
    assert told["cells"]["b"]["brightness"]["n"] == 2


def test_one_frame_is_measured_but_has_no_rate(tmp_path, methods):
    write_grey(tmp_path / "a" / "01.mp4", 0.5, frames=1)
    told = evaluate(tmp_path, methods)
    assert told["videos"]["a"]["01"]["values"]["frames"] == 1
    assert any("a single frame: a/01" in w for w in told["warnings"])
    told = evaluate(tmp_path, methods, "--fps", "20")
    (error, *_) = told["errors"]
    assert error["input"] == "01" and "single picture" in error["what"]


def test_no_sound_is_a_reason(tmp_path, methods):
    told = evaluate(tmp_path, methods)
    assert told["videos"]["a"]["00"]["reasons"]["loudness"] == "no sound"
    assert told["cells"]["a"]["loudness"]["mean"] is None and told["cells"]["a"]["loudness"]["reason"] == "no sound"
    assert any(w.startswith("no sound track: a/00") for w in told["warnings"])


def test_many_channels_are_their_mean(tmp_path):
    """5.1 in which one channel of six holds a constant 0.6: the mean is 0.1."""
    sound = np.zeros((6, 48000), np.float32)
    sound[0] = 0.6 * np.sin(np.arange(48000) / 20)
    source = encode(tmp_path / "v.mkv", sound, 48000, "pcm_s16le", picture=True)
    assert "6 channels of sound, measured as their mean" in facts_of(source).notes
    heard = decoded(source, Protocol()).sound
    assert np.abs(heard).max() == pytest.approx(0.1, abs=0.005) and len(heard) == pytest.approx(16000, abs=32)


def test_variable_frame_rate_goes_by_time(tmp_path):
    """Five frames at 0, 0.1, 0.2, 0.8, 0.9 s, the last as long as the mean of the others: 1.125 s, eleven frames at 10
    a second, of which the third stays from 0.2 until 0.8 s."""
    pictures = [np.full((32, 32, 3), 100 + 20 * k, np.uint8) for k in range(5)]
    path = write_frames(tmp_path / "v.mkv", pictures, pts=[0, 100, 200, 800, 900])
    facts = facts_of(path)
    assert facts.notes[0].startswith("variable frame rate, 1.67 to 10 fps")
    assert facts.fps == pytest.approx(4 / 0.9, abs=1e-3)
    shown = decoded(path, Protocol(fps=10)).frames[:, 0, 0, 0].astype(float)
    assert ((shown - 100) / 20).round().tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4]


def test_ten_bits_are_measured_with_eight(tmp_path):
    path = write_frames(tmp_path / "v.mp4", greys(4), codec="libx265", pixels="yuv420p10le")
    assert "10 bits a channel, measured with 8" in facts_of(path).notes
    assert np.abs(decoded(path, Protocol()).frames[0].astype(int) - 100).max() <= 2


def test_a_turned_video_is_upright(tmp_path):
    """Stored 48 wide and 32 high, with the left half bright; its header says to turn it by 90 degrees: shown it is 32
    wide and 48 high, and the bright half is above or below."""
    lying = np.zeros((32, 48, 3), np.uint8)
    lying[:, :24] = 200
    path = turned(write_frames(tmp_path / "v.mp4", [lying] * 4))
    facts, frame = facts_of(path), decoded(path, Protocol()).frames[0]
    assert (facts.width, facts.height) == (32, 48) and frame.shape == (48, 32, 3)
    assert abs(float(frame[:20].mean()) - float(frame[28:].mean())) > 150
    assert np.ptp(frame[:, :, 0].astype(float).mean(0)) < 12
    assert any("degrees on showing" in note for note in facts.notes)


def turned(path: Path) -> Path:
    """The display matrix of an mp4's track header becomes a turn by 90 degrees, as phones write it."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags; times, track, duration; layer, volume
    one = 1 << 16
    matrix = [0, one, 0, -one, 0, 0, 32 * one, 0, 1 << 30]
    content[place : place + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in matrix)
    path.write_bytes(content)
    return path


def test_a_scene_cut_is_told(tmp_path, methods):
    pictures = [np.full((32, 32, 3), 30 if k < 6 else 200, np.uint8) for k in range(12)]
    write_frames(tmp_path / "b" / "01.mp4", pictures)
    told = evaluate(tmp_path, methods)
    assert any(w.startswith("a cut at 0.60 s: b/01") for w in told["warnings"])


def test_a_metric_that_fails_on_one_clip_costs_that_cell(tmp_path, methods):
    write_grey(tmp_path / "a" / "00.mp4", 0.0)
    told = evaluate(tmp_path, methods, metrics=(PLAIN, COLOURS))
    (error,) = told["errors"]
    assert (error["method"], error["input"], error["metric"]) == ("a", "00", PLAIN) and "black" in error["what"]
    assert told["cells"]["a"]["brightness"]["n"] == 1 and told["cells"]["b"]["brightness"]["n"] == 2


# ---- rates and sizes that differ ----


def test_methods_of_other_rates_are_not_compared_unawares(tmp_path, methods):
    for number, shade in enumerate(SHADES["b"]):
        write_grey(tmp_path / "b" / f"{number:02d}.mp4", shade, fps=20, frames=12)
    told = evaluate(tmp_path, methods)
    assert told["best"] == {} and told["tests"] == [] and told["cells"]["b"]["brightness"]["mean"] > 0.4
    words = "differ in frame rate or size on 2 inputs (00: a 10 fps, 32x32; b 20 fps, 32x32)"
    assert any(words in warning for warning in told["warnings"])
    told = evaluate(tmp_path, methods, "--fps", "10")
    assert told["best"]["brightness"] == ["b"] and len(told["tests"]) == 1


def test_methods_of_other_rates_without_a_common_input_are_not_compared_unawares(tmp_path, methods):
    """Nothing of x0 and x1 at 20 frames a second can be held against 00 and 01 at 10; brought to one rate it can."""
    for number, shade in enumerate(SHADES["b"]):
        write_grey(tmp_path / "other" / f"x{number}.mp4", shade, fps=20, frames=12)
    methods = [methods[0], f"other={tmp_path / 'other'}"]
    told = evaluate(tmp_path, methods)
    assert told["best"] == {} and told["tests"] == []
    assert any(
        "differ in frame rate or size (a 2 x 10 fps, 32x32; other 2 x 20 fps, 32x32)" in w for w in told["warnings"]
    )
    assert any(w.startswith("a and other share no input, nothing of them is paired") for w in told["warnings"])
    told = evaluate(tmp_path, methods, "--fps", "10")
    assert told["best"]["brightness"] == ["other"] and any("share no input" in w for w in told["warnings"])


def test_a_reference_of_another_size_gives_no_distance(tmp_path, methods):
    write_methods(tmp_path, {"real": (0.4, 0.5)}, size=(64, 48))
    reference = ("--reference", tmp_path / "real")
    told = evaluate(tmp_path, methods, *reference, metrics=(COLOURS, PLAIN))
    cell = told["cells"]["a"]["colours"]
    assert (
        cell["mean"] is None and "not comparable: 2 x 10 fps, 32x32, the reference 2 x 10 fps, 48x64" in cell["reason"]
    )
    assert told["cells"]["a"]["brightness"]["mean"] is not None
    told = evaluate(tmp_path, methods, *reference, "--size", "32x32", metrics=(COLOURS, PLAIN))
    assert told["cells"]["a"]["colours"]["mean"] is not None


# ---- weights ----


def test_missing_weights_are_a_reason_never_a_zero(tmp_path, methods, capsys):
    told = evaluate(tmp_path, methods, metrics=(PLAIN, "fid", "sync"))
    assert told["cells"]["a"]["fid"]["mean"] is None
    assert told["cells"]["a"]["fid"]["reason"].startswith("no weights: pt_inception-2015-12-05-6726825d.pth, from")
    assert "| FID, KID |" in (tmp_path / "out" / "table.md").read_text("utf-8")
    capsys.readouterr()
    evaluate(tmp_path, methods, "--strict", "true", metrics=(PLAIN, "fid"), code=2)
    assert "no weights" in capsys.readouterr().err


def test_weights_of_another_model_are_refused_by_their_column(tmp_path, methods):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    weights = ("--weights", f"fid={tmp_path / 'other.pth'}", f"fvd={tmp_path / 'absent.pt'}")
    told = evaluate(tmp_path, methods, *weights, metrics=(PLAIN, "fid", "fvd"))
    assert told["cells"]["a"]["fid"]["reason"].startswith("cannot be measured:")
    assert "no such file" in told["cells"]["a"]["fvd"]["reason"]
    assert told["cells"]["a"]["brightness"]["n"] == 2


# ---- folders and names ----


def test_folders_and_names_that_cannot_be_compared(tmp_path, methods, capsys):
    (tmp_path / "empty").mkdir()
    a, b = tmp_path / "a", tmp_path / "b"
    assert "holds no footage" in refused(tmp_path, capsys, [f"a={a}", f"e={tmp_path / 'empty'}"])
    assert "no such folder" in refused(tmp_path, capsys, [f"a={tmp_path / 'nowhere'}"])
    assert "the same name" in refused(tmp_path, capsys, [f"a={a}", f"a={b}"])
    assert "the same folder" in refused(tmp_path, capsys, [f"a={a}", f"b={b / '..' / 'a'}"])
    assert "without a name" in refused(tmp_path, capsys, [str(a)])
    (a / "00.mkv").write_bytes((a / "00.mp4").read_bytes())
    assert "several videos of one input" in refused(tmp_path, capsys, methods)


@pytest.mark.parametrize(
    "flags, metrics, words",
    [
        ((), ("brightnes",), "no such metric"),
        ((), ("plain_metrics:Nothing",), "cannot be imported"),
        (("--weights", "fid=x.pth"), (PLAIN,), "--weights cannot be understood"),
        (("--options", "every=2"), (PLAIN,), "--options cannot be understood"),
        (("--options", f"{PLAIN}.gian=2"), (PLAIN,), "no such setting"),
        (("--options", f"{PLAIN}.gain=much"), (PLAIN,), "wrong value"),
        (("--size", "12x"), (PLAIN,), "size is not readable"),
        (("--fps", "0"), (PLAIN,), "fps has a wrong value"),
        ((), (PLAIN, "plain_metrics:Slow"), "the same columns"),
        (("--metrics", "none"), (PLAIN,), "no metric was asked for"),
        (("--out", "/proc/nowhere/out"), (PLAIN,), "choose another --out"),
    ],
)
def test_flags_that_mean_nothing(tmp_path, methods, capsys, flags, metrics, words):
    assert words in refused(tmp_path, capsys, methods, *flags, metrics=metrics)


def test_unpaired_inputs_are_reported(tmp_path, methods):
    write_grey(tmp_path / "b" / "07.mp4", 0.5)
    told = evaluate(tmp_path, methods)
    assert told["unpaired"] == {"a": ["07"]} and told["inputs"] == ["00", "01", "07"]
    assert any("a lacks 1 inputs: 07" in w for w in told["warnings"])
    assert next(t for t in told["tests"] if t["column"] == "brightness")["n"] == 2
