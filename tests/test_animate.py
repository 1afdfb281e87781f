"""From portrait and voice to a file with picture and sound, by code and by command."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from known_motion import FPS, KnownMotion
from PIL import Image
from sounds import encode, whole

from fantasy_core.animate import check_job, main, make_group
from fantasy_core.errors import UserError
from fantasy_core.flags import Settings, parser
from fantasy_core.manifest import Failures, Job, settings_of
from fantasy_core.media import read_video

ROOT = Path(__file__).parents[1]
QUICK = ["--steps", "1", "--max-frames", "5"]


def speech(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Noise [1, n] whose loudness jumps every 80 ms."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.02, 1, int(seconds / 0.08) + 1), int(0.08 * rate))[: int(seconds * rate)]
    return (0.3 * loudness * rng.uniform(-1, 1, len(loudness)))[None].astype(np.float32)


@pytest.fixture
def files(tmp_path):
    """A portrait and a voice of 1.3 s in an empty folder."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    encode(tmp_path / "a.wav", speech(1.3), 16_000)
    return tmp_path


def flags_for(folder: Path, *more: str) -> list[str]:
    return ["--portrait", f"{folder}/p.png", "--audio", f"{folder}/a.wav", "--out", f"{folder}/v.mp4", *more]


def job_in(folder: Path, out: str = "v.mp4", **other) -> Job:
    given = {"portrait": folder / "p.png", "audio": folder / "a.wav", "out": folder / out, "prompt": "", "seed": 1}
    return Job(**{**given, **other})


def loudness(waveform: torch.Tensor) -> torch.Tensor:
    """Root mean square of 20 ms each: [n] at 16 kHz -> [L], 50 a second."""
    return waveform[: len(waveform) // 320 * 320].unflatten(0, (-1, 320)).square().mean(1).sqrt()


def lamp(values: torch.Tensor) -> torch.Tensor:
    """Loudness [T] -> grey frames [T, 3, 16, 16] in [-1, 1], brighter when louder."""
    return (8 * values - 0.8).clamp(-1, 1)[:, None, None, None].expand(-1, 3, 16, 16)


def settings_with(*more: str) -> Settings:
    return Settings.from_flags(parser().parse_args(list(more)), KnownMotion.defaults)


# ---- sound and picture ----


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sound_and_picture_agree_in_the_last_second(tmp_path, rate):
    """A lamp as bright as the voice is loud, through 14 windows, H.264 and AAC: over the last second brightness follows
    loudness best at an offset of zero frames. 9.1 s at 25 fps are 225 frames (4k + 1), 9 s of sound."""
    Image.new("RGB", (16, 16)).save(tmp_path / "p.png")
    encode(tmp_path / "a.wav", speech(9.1, rate), rate)
    model, settings = KnownMotion(loudness, lamp), settings_with()
    clip = check_job(job_in(tmp_path), settings, model)
    assert (clip.frames, len(clip.windows)) == (225, 14)
    make_group(model, [clip], settings, Failures(one_job=True))
    times, frames = zip(*read_video(clip.job.out), strict=True)
    assert len(frames) == 225 and times[-1] == pytest.approx(224 / FPS, abs=1e-3)
    sound, heard_rate = whole(clip.job.out)
    assert abs(sound.shape[1] / heard_rate - 9.0) <= 1024 / heard_rate  # one audio frame
    bright = np.array([frame.mean().item() for frame in frames])
    starts = (np.arange(225) / FPS * heard_rate).astype(int)
    loud = np.array([np.sqrt(np.mean(sound[0, at : at + heard_rate // 50] ** 2)) for at in starts])
    last = slice(225 - 25 - 4, 225 - 4)
    agreement = {lag: np.corrcoef(bright[last], loud[last.start + lag : last.stop + lag])[0, 1] for lag in range(-4, 5)}
    assert max(agreement, key=agreement.get) == 0 and agreement[0] > 0.9


def test_settings_in_the_metadata_say_how_it_was_made(files):
    model, settings = KnownMotion(loudness, lamp), settings_with("--steps", "2", "--text-scale", "1")
    clip = check_job(job_in(files, prompt="ein Gruß", seed=5), settings, model)
    make_group(model, [clip], settings, Failures(one_job=True))
    record = settings_of(files / "v.mp4")
    assert record == clip.record
    assert (record["prompt"], record["seed"], record["steps"], record["frames"]) == ("ein Gruß", 5, 2, 29)
    assert record["size"] == [16, 16] and record["model"] == "known motion" and len(record["portrait"]) == 64


def test_official_rule_is_one_window_that_outruns_the_voice(files):
    """FantasyTalking: int(25 * 1.3 // 4) * 4 + 5 = 37 frames for 32.5, at most one window of them."""
    model = KnownMotion(loudness)
    whole_voice = check_job(job_in(files), settings_with("--frames-rule", "official", "--window", "81"), model)
    assert (whole_voice.frames, len(whole_voice.windows)) == (37, 1)
    assert check_job(job_in(files), settings_with("--frames-rule", "official"), model).frames == 21
    within = check_job(job_in(files), settings_with(), model)
    assert (within.frames, len(within.windows)) == (29, 2)


def test_one_bad_clip_does_not_stop_the_others(files):
    """The folder of the first video vanishes while the models load: the second is made, the first named at the end."""
    model, settings, failures = KnownMotion(loudness, lamp), settings_with(), Failures(one_job=False)
    (files / "gone").mkdir()
    clips = [check_job(job, settings, model) for job in (job_in(files, "gone/v.mp4"), job_in(files, "w.mp4"))]
    (files / "gone").rmdir()
    make_group(model, clips, settings, failures)
    assert settings_of(files / "w.mp4") == clips[1].record
    with pytest.raises(UserError, match="1 of 2 lines") as told:
        failures.report(2)
    assert "gone/v.mp4" in told.value.got


# ---- the command, with the miniature ----


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_portrait_and_voice_become_a_video(files, capsys):
    """1.3 s at 23 fps: 29 frames fit into the voice. A portrait of noise is no face of the miniature's world."""
    assert main(flags_for(files, "--steps", "2")) == 0
    told = capsys.readouterr().err
    frames = [frame for _, frame in read_video(files / "v.mp4")]
    assert len(frames) == 29 and frames[0].shape == (3, 64, 64)
    sound, rate = whole(files / "v.mp4")
    assert abs(sound.shape[1] / rate - 29 / 23) <= 1024 / rate
    assert "warning" in told and "step 2/2" in told and " left" in told
    assert settings_of(files / "v.mp4")["steps"] == 2
    assert content(files) == ["a.wav", "p.png", "v.mp4"]


def test_batched_passes_and_a_second_run_make_the_same_video(files):
    """Same seed, same file; guidance passes change the rounding alone (2 levels of 255); another seed another video."""
    videos = []
    for more in ([], [], ["--guidance-passes", "batched"], ["--seed", "2"]):
        assert main(flags_for(files, *QUICK, "--audio-scale", "3", *more)) == 0
        videos.append(torch.stack([frame for _, frame in read_video(files / "v.mp4")]))
    assert torch.equal(videos[0], videos[1])
    assert (videos[0] - videos[2]).abs().max() <= 2 / 255
    assert (videos[0] - videos[3]).abs().max() > 2 / 255


def test_dry_run_prints_the_plan_and_writes_nothing(files, capsys):
    before = content(files)
    assert main(flags_for(files, "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "29 frames" in told and "FLOP" in told and "memory" in told
    assert content(files) == before


def test_a_manifest_is_resumed_and_its_bad_lines_are_listed(files, capsys):
    """Three lines, one without a portrait: exit code 2, two videos. Again: both are there. Other flags: both anew."""
    portraits = ["p.png", "no.png", "p.png"]
    lines = [{"portrait": name, "audio": "a.wav", "out": f"{k}.mp4"} for k, name in enumerate(portraits)]
    (files / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["--manifest", f"{files}/m.jsonl", *QUICK]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "2 videos to make, 0 are there" in told and "1.mp4" in told.split("error:")[1] and "no such file" in told
    assert content(files) == ["0.mp4", "2.mp4", "a.wav", "m.jsonl", "p.png"]
    made = (files / "2.mp4").stat().st_mtime_ns
    (files / "0.mp4").unlink()
    assert main(command) == 2
    assert "1 videos to make, 1 are there" in capsys.readouterr().err
    assert (files / "2.mp4").stat().st_mtime_ns == made
    assert main([*command, "--seed", "3"]) == 2
    assert "2 videos to make, 0 are there" in capsys.readouterr().err


def broken_inputs(folder: Path) -> None:
    """One file of each kind of bad input."""
    voice = speech(1.3)
    encode(folder / "silent.wav", np.zeros_like(voice), 16_000)
    encode(folder / "sample.wav", voice[:, :1], 16_000)
    encode(folder / "short.wav", voice[:, : 16_000 * 3 // 23], 16_000)
    holes = voice.copy()
    holes[0, 500] = np.nan
    encode(folder / "nan.wav", holes, 16_000, "pcm_f32le")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("hello")
    (folder / "cut.wav").write_bytes((folder / "a.wav").read_bytes()[:9000])
    (folder / "cut.png").write_bytes((folder / "p.png").read_bytes()[:900])
    (folder / "folder.mp4").mkdir()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"--audio": "silent.wav"}, "silence"),
        ({"--audio": "sample.wav"}, "1 samples"),
        ({"--audio": "short.wav"}, "shorter than the shortest video"),
        ({"--audio": "nan.wav"}, "NaN"),
        ({"--audio": "empty.wav"}, "empty file"),
        ({"--audio": "text.wav"}, "text.wav"),
        ({"--audio": "cut.wav"}, "cut off"),
        ({"--audio": "p.png"}, "no sound"),
        ({"--audio": "absent.wav"}, "no such file"),
        ({"--portrait": "cut.png"}, "cut.png"),
        ({"--portrait": "a.wav"}, "a.wav"),
        ({"--portrait": "absent.png"}, "no such file"),
        ({"--out": "absent/v.mp4"}, "no folder"),
        ({"--out": "v.avi"}, "v.avi"),
        ({"--out": "folder.mp4"}, "a folder of that name"),
        ({"--size": "100"}, "multiple of 16"),
        ({"--size": "64x40"}, "multiple of 16"),
        ({"--size": "big"}, "'big'"),
        ({"--max-frames": "80"}, "1 + 4k"),
        ({"--window": "80"}, "1 + 4k"),
        ({"--overlap": "12"}, "1 + 4k"),
        ({"--window": "13", "--overlap": "13"}, "move on"),
        ({"--steps": "0"}, "steps 0"),
        ({"--shift": "nan"}, "shift nan"),
        ({"--fps": "0"}, "fps 0"),
        ({"--audio-scale": "inf"}, "scale"),
        ({"--seed": "-1"}, "seed"),
        ({"--device": "toaster"}, "toaster"),
        ({"--offload": "blocks"}, "--offload"),
        ({"--wan": "models"}, "--wan"),
        ({"--model": "wan2.1-i2v-14b"}, "--fantasytalking"),
        ({"--model": "wan2.1-i2v-14b", "--wan": "no", "--fantasytalking": "no", "--wav2vec": "no"}, "not found"),
        ({"--manifest": "m.jsonl"}, "--manifest"),
        ({"--audio": None}, "--audio"),
    ],
)
def test_bad_input_gets_four_parts_and_exit_code_2(files, capsys, monkeypatch, flags, told):
    broken_inputs(files)
    before = content(files)
    monkeypatch.chdir(files)
    given = {"--portrait": "p.png", "--audio": "a.wav", "--out": "v.mp4", **flags}
    argv = [part for flag, value in given.items() if value is not None for part in (flag, value)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ") and "Traceback" not in error
    assert all(part in error for part in ("got:", "expected:", "do:"))
    assert content(files) == before


def test_debug_shows_the_traceback(files):
    with pytest.raises(UserError):
        main(flags_for(files, "--steps", "0", "--debug"))


@pytest.fixture
def begun(files):
    """The command in a process, with its first window behind it and many to go."""
    encode(files / "a.wav", np.tile(speech(6.0), (1, 10)), 16_000)
    command = [sys.executable, "-m", "fantasy_core.animate", *flags_for(files, "--window", "21", "--overlap", "5")]
    command += ["--steps", "10"]
    hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (background jobs are deaf)
    process = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, preexec_fn=hear)
    for line in process.stderr:
        if (found := re.search(r"window (\d+)/", line)) and int(found[1]) > 1:  # frames of the first one are written
            break
    yield process, files
    process.kill()
    process.wait()
    process.stderr.close()


def test_ctrl_c_leaves_no_half_file(begun):
    process, files = begun
    assert len(content(files)) == 3  # the part of the video is there
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130 and "Traceback" not in process.stderr.read()
    assert content(files) == ["a.wav", "p.png"]


def test_a_killed_run_leaves_one_named_part_that_the_next_run_removes(begun):
    process, files = begun
    process.kill()
    process.wait()
    assert content(files) == [f".v.mp4.{process.pid}.part", "a.wav", "p.png"]
    assert main(flags_for(files, *QUICK)) == 0 and content(files) == ["a.wav", "p.png", "v.mp4"]


def test_a_full_disk_is_told_and_leaves_nothing(files):
    """The process may write files of 2 kB at most: the video does not fit."""
    limited = "import resource, signal, sys; from fantasy_core.animate import main; "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", limited, *flags_for(files, *QUICK)]
    ended = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: cannot write" in ended.stderr and "File too large" in ended.stderr
    assert content(files) == ["a.wav", "p.png"]
