"""What a run leaves in its folder: settings that repeat it, a log with what was measured, trackers, sample videos; and
units without text or voice."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from test_cache import FRAMES
from test_train_preferences import data, expert_arguments, log_of, same_expert  # noqa: F401 (a fixture)

from fantasy_core.audio import AudioTokens
from fantasy_core.errors import UserError
from fantasy_core.flow import draw_noise, velocity_target, x_sigma
from fantasy_core.media import read_image, read_video
from fantasy_core.miniature import load_components
from fantasy_core.pair_rules import Pair
from fantasy_core.preference import video_error
from fantasy_core.weights import save_tensors
from train import cache as cache_stage
from train import expert as expert_stage
from train import trainer
from train.distributed import World
from train.dropout import Dropout
from train.errors import NOISE, Draw
from train.expert import ExpertSettings
from train.run import read_rows, read_toml, write_rows
from train.samples import SAMPLE, SAMPLE_SEED, Samples, inputs_of
from train.scorers import Video
from train.shards import EMPTY_PROMPT, Cache, condition_of
from train.trackers import TRACKERS, scalars
from train.trainer import PairData

TOKENS = 5 * 8 * 8 // 4  # of a video: 17 frames are 5 of latents, 64 pixels are 8, patches are 1 x 2 x 2


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> Path:  # noqa: F811
    """A run of four iterations by epochs: two units, batch 1, two epochs; nothing but the log."""
    out = tmp_path_factory.mktemp("plain") / "run"
    arguments = expert_arguments(data, out, epochs=2)
    at = arguments.index("--iterations")
    assert expert_stage.main(arguments[:at] + arguments[at + 2 :]) == 0
    return out


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# ---- settings and log ----


def test_the_folder_says_how_to_repeat_the_run(plain, tmp_path):
    """config.toml alone, with another folder, makes the same log and expert, and says the same but for that folder."""
    told = read_toml(plain / "config.toml")
    assert (told["iterations"], told["epochs"], told["dimension"], told["tracker"]) == (4, "none", "ls", [])
    assert expert_stage.main(["--config", f"{plain}/config.toml", "--out", str(tmp_path / "again")]) == 0
    assert len(log_of(plain)) == 4 and log_of(tmp_path / "again") == log_of(plain)
    same_expert(tmp_path / "again", plain)
    assert read_toml(tmp_path / "again" / "config.toml") == told | {"out": str(tmp_path / "again")}
    made_from = json.loads((plain / "made_from.json").read_text())
    assert made_from.keys() == {"pairs", "cache"} and all(len(digest) == 64 for digest in made_from.values())


def test_resume_wants_a_run(data, plain, tmp_path, capsys):  # noqa: F811
    """Where there is none it is an error, which a mistaken --out would hide; where there is one it changes nothing."""
    assert expert_stage.main([*expert_arguments(data, tmp_path / "none"), "--resume"]) == 2
    assert "no run to go on with" in capsys.readouterr().err and not (tmp_path / "none").exists()
    shutil.copytree(plain, tmp_path / "run")
    given = ["--config", f"{plain}/config.toml", "--out", str(tmp_path / "run"), "--resume"]
    assert expert_stage.main(given) == 0 and log_of(tmp_path / "run") == log_of(plain)


@pytest.mark.parametrize(("settings", "passes"), [({}, 4), ({"form": "prepass"}, 6), ({"loss": "simpo", "beta": 1}, 2)])
def test_tokens_are_counted_as_they_pass(data, tmp_path, settings, passes):  # noqa: F811
    """Chosen and rejected through policy and reference: 4 passes; the pre-pass runs the policy twice, SimPO has no
    reference. Two pairs an iteration. Memory is the process's peak, so it never falls."""
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", iterations=2, batch=2, **settings)) == 0
    measured = [row["measured"] for row in rows_of(tmp_path / "run")]
    for told in measured:
        assert told["seconds"] * told["tokens_per_second"] == pytest.approx(2 * passes * TOKENS, rel=0.01)
    assert 10**8 < measured[0]["memory"] <= measured[1]["memory"]


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has a capacity of ...")


def test_a_device_that_is_too_small(data, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Memory that runs out in iteration 3 is told with the last good state, and the same command with blocks that are
    computed again ends as a run that never stopped. What is passed already is not advised."""
    given = {"iterations": 4, "save-every": 2}
    assert expert_stage.main(expert_arguments(data, tmp_path / "whole", **given)) == 0
    passed, gradient = [], trainer.gradient

    def full(*told):
        passed.append(1)
        if len(passed) == 4:
            raise FULL
        return gradient(*told)

    monkeypatch.setattr(trainer, "gradient", full)
    capsys.readouterr()
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", checkpointing="none", **given)) == 2
    told = capsys.readouterr().err
    assert "Tried to allocate 2 GiB.\n" in told and "holds the state after iteration 2" in told
    assert "pass --checkpointing blocks and --offload blocks, and give the same command again" in told
    monkeypatch.undo()
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", checkpointing="blocks", **given)) == 0
    same_expert(tmp_path / "run", tmp_path / "whole")


def test_a_base_that_does_not_fit(data, tmp_path, capsys, monkeypatch):  # noqa: F811
    """The commonest case: memory runs out while the base is loaded."""

    def full(*_, **__):
        raise FULL

    monkeypatch.setattr("fantasy_core.miniature.components.load_dit", full)
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", checkpointing="blocks")) == 2
    told = capsys.readouterr().err
    assert "pass --offload blocks, and" in told and "no checkpoint had been written yet" in told


# ---- trackers ----


def test_rows_are_read_as_they_were_written(tmp_path):
    """Line separators that JSON may hold are no ends of lines; values of another kind are named with their line."""
    rows = [Video("v\u2028\u0085\x0b", "a b.mp4"), Video("w", "c.mp4", "\x1c")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path / "rows.jsonl", Video)) == rows
    (tmp_path / "rows.jsonl").write_text('{"video": "v", "path": "a"}\r\n{"video": null, "path": 5}\r\n')
    with pytest.raises(UserError, match=r"(?s)line 2 of .* is not a row.*video None, path 5"):
        list(read_rows(tmp_path / "rows.jsonl", Video))


def test_numbers_of_a_line_by_name():
    line = {"loss": 0.5, "held_out_margin": [1.0, 2.0], "measured": {"seconds": 3.0}}
    expected = {"loss": 0.5, "held_out_margin/0": 1.0, "held_out_margin/1": 2.0, "measured/seconds": 3.0}
    assert scalars(line) == expected


def test_tensorboard_shows_what_the_log_says(data, tmp_path):  # noqa: F811
    """Read back by tensorboard. The checkpoint of iteration 2 is put back under a run that had come to 4, as a kill
    leaves it, and the run goes on to 6: every step once, in order, with the log's last word on it."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out, kept = tmp_path / "run", tmp_path / "kept"
    for iterations in (2, 4, 6):
        if iterations == 6:
            shutil.copytree(kept, out / "checkpoint", dirs_exist_ok=True)
        arguments = expert_arguments(data, out, iterations=iterations, tracker="tensorboard")
        assert expert_stage.main(arguments) == 0
        if iterations == 2:
            shutil.copytree(out / "checkpoint", kept)
    rows = rows_of(out)
    assert [row["iteration"] for row in rows] == list(range(6))
    read = events.EventAccumulator(str(out / "tensorboard")).Reload()
    for name in ("loss", "margin", "measured/seconds"):
        points = read.Scalars(name)
        assert [point.step for point in points] == list(range(6))
        assert [point.value for point in points] == pytest.approx([scalars(row)[name] for row in rows], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_answered(data, tmp_path, capsys):  # noqa: F811
    absent = [name for name in TRACKERS if importlib.util.find_spec(name) is None]
    if not absent:
        pytest.skip("all trackers are installed")
    assert expert_stage.main([*expert_arguments(data, tmp_path / "run", tracker=absent[0]), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert f"no package {absent[0]}" in error and f"pip install {absent[0]}" in error and "expected:" in error
    assert not (tmp_path / "run").exists()


# ---- sample videos ----


def test_sampling_changes_nothing_of_the_training(data, plain, tmp_path):  # noqa: F811
    """The same losses and expert, bit for bit. Before the first iteration, every third, and at the end: a silent video
    of each of two inputs, and a sheet of two rows for each, 8 frames of 64 pixels doubled. The policy changes."""
    told = {"sample-every": 3, "sample-steps": 2, "iterations": 4}
    assert expert_stage.main(expert_arguments(data, tmp_path / "run", **told)) == 0
    assert log_of(tmp_path / "run") == log_of(plain)
    same_expert(tmp_path / "run", plain)
    made = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    names = [f"iteration_{done:06d}{end}" for done in (0, 3, 4) for end in (".png", "_v0.mp4", "_v2.mp4")]
    assert made == sorted(names)
    first, last = ([f for _, f in read_video(tmp_path / "run" / "samples" / n)] for n in (names[1], names[-2]))
    assert len(first) == FRAMES and first[0].shape == (3, 64, 64)
    assert any(not torch.equal(a, b) for a, b in zip(first, last, strict=True))
    assert read_image(tmp_path / "run" / "samples" / names[0]).shape == (3, 4 * 128, 8 * 128)


def test_a_sample_is_what_the_model_makes(data):  # noqa: F811
    """One Euler step from sigma 1 to 0: noise - v, with v = -1.5 silent + 2.5 heard, of the second input's chosen."""
    components, cache = load_components(), Cache(data / "cache")
    files = {"out": data, "pairs": data / "pairs_ls.jsonl", "cache": data / "cache"}
    settings = ExpertSettings(**files, dimension="ls", sample_every=1, sample_steps=1, sample_scale=2.5)
    samples, held = Samples(settings, cache, components, World(components.device)), cache["v2"]
    assert samples.videos == ["v0", "v2"]
    noise = draw_noise((1, 16, 5, 8, 8), SAMPLE_SEED, SAMPLE, 1)
    with components.dit() as dit, torch.no_grad():
        inputs = {"condition": condition_of(held)[None]}
        time, text = torch.tensor([1000.0]), held["text"][None]
        silent = dit(noise, time, text, **inputs)
        heard = dit(noise, time, text, audio=AudioTokens(held["audio"][None], held["lengths"][None]), **inputs)
        torch.testing.assert_close(samples.latents(dit, 1), noise + 1.5 * silent - 2.5 * heard)


def test_inputs_are_sampled_once_each_and_held_out_ones_first(tmp_path):
    rows = [("a", "0", "train"), ("b", "1", "train"), ("c", "2", "test"), ("d", "1", "train")]
    write_rows(tmp_path / "pairs.jsonl", [Pair(v, "x", i, "mn", 1.0, split) for v, i, split in rows])
    assert inputs_of(tmp_path / "pairs.jsonl", 5) == ["a", "b"] and inputs_of(tmp_path / "pairs.jsonl", 1) == ["a"]
    rows += [("e", "3", "validation"), ("f", "3", "validation")]
    write_rows(tmp_path / "pairs.jsonl", [Pair(v, "x", i, "mn", 1.0, split) for v, i, split in rows])
    assert inputs_of(tmp_path / "pairs.jsonl", 5) == ["e"]


# ---- dropout ----


def test_shares_of_units_are_dropped_each_by_itself(data):  # noqa: F811
    """Of 2000 units 600 without text, 200 without voice and 60 without both, within five binomial deviations; equal
    however often they are asked for."""
    held = {"text": torch.ones(1, 16), "audio": torch.ones(1), "lengths": torch.ones(1)}
    cache, drop = Cache(data / "cache"), Dropout(0.3, 0.1)  # the empty prompt is zeros
    found = [drop([held, held], cache, 7, index) for index in range(2000)]
    assert all(one.keys() == other.keys() and torch.equal(one["text"], other["text"]) for one, other in found)
    silent, mute = torch.tensor([["audio" not in a, not a["text"].any()] for a, _ in found]).T
    for share, wanted in ((mute, 0.3), (silent, 0.1), (mute & silent, 0.03)):
        assert abs(share.sum() - 2000 * wanted) < 5 * (2000 * wanted * (1 - wanted)) ** 0.5
    assert all(("lengths" in a) == ("audio" in a) for a, _ in found)
    assert drop([held], cache, 7, 3)[0].keys() == found[3][0].keys()


def test_a_unit_without_text_or_voice_is_asked_so(data, tmp_path):  # noqa: F811
    """The error under the empty prompt (here one that differs) and without audio tokens, by hand."""
    shutil.copytree(data / "cache", tmp_path / "cache")
    empty = draw_noise((1, 16), 0)
    save_tensors(tmp_path / "cache" / EMPTY_PROMPT, {"text": empty})
    cache, sigma = Cache(tmp_path / "cache"), 0.4
    dropped = PairData(data / "pairs_mn.jsonl", cache, dropout=Dropout(1.0, 1.0))
    unit = dropped.units[0]
    latents = cache[unit.videos[1]]["latents"][None]
    noise = draw_noise(latents.shape[1:], 5, NOISE, 9)[None]
    with load_components().dit() as dit:
        draw = Draw(sigma, (5, NOISE, 9))
        found = dropped.errors(dit, unit, draw)(1)
        condition = condition_of(cache[unit.videos[1]])[None]
        with torch.no_grad():
            time = torch.tensor([1000 * sigma])
            velocity = dit(x_sigma(latents, noise, sigma), time, empty[None], condition=condition)
        torch.testing.assert_close(found, video_error(velocity, velocity_target(latents, noise))[0])
        whole = PairData(data / "pairs_mn.jsonl", cache).errors(dit, unit, draw)(1)
    assert found != pytest.approx(float(whole), rel=1e-3)


def test_dropout_does_not_go_with_kept_errors_and_joint_passes(data, tmp_path, capsys):  # noqa: F811
    for told in ({"reference-errors": "cached"}, {"form": "joint"}):
        arguments = expert_arguments(data, tmp_path / "run", **{"audio-dropout": 0.1}, **told)
        assert expert_stage.main([*arguments, "--dry-run"]) == 2
        assert "dropout does not go with" in capsys.readouterr().err


def test_sharded_blocks_go_with_neither_of_these(data, tmp_path, capsys):  # noqa: F811
    for told, word in (
        ({"reference-errors": "cached"}, "--reference-errors cached"),
        ({"form": "joint"}, "--form joint"),
        ({"offload": "blocks", "checkpointing": "blocks"}, "--offload blocks"),
    ):
        arguments = expert_arguments(data, tmp_path / "run", shard="blocks", **told)
        assert expert_stage.main([*arguments, "--dry-run"]) == 2
        assert f"sharded blocks do not go with {word}" in capsys.readouterr().err


def test_with_dropout_a_run_in_two_parts_is_the_run_in_one(data, tmp_path):  # noqa: F811
    """Half of the units are silent, so that some iterations train no linear of the voice."""
    told = {"audio-dropout": 0.5, "text-dropout": 0.5, "iterations": 4}
    assert expert_stage.main(expert_arguments(data, tmp_path / "one", **told)) == 0
    for iterations in (1, 4):
        assert expert_stage.main(expert_arguments(data, tmp_path / "two", **told | {"iterations": iterations})) == 0
    assert log_of(tmp_path / "one") == log_of(tmp_path / "two")
    same_expert(tmp_path / "one", tmp_path / "two")


def test_a_cache_without_the_empty_prompt_is_refused_and_mended(data, tmp_path, capsys):  # noqa: F811
    """By training without text alone; train.cache adds it and encodes nothing anew."""
    shutil.copytree(data / "cache", tmp_path / "cache")
    (tmp_path / "cache" / EMPTY_PROMPT).unlink()
    arguments = [*expert_arguments(data, tmp_path / "run", **{"text-dropout": 0.1}), "--dry-run"]
    arguments[arguments.index("--cache") + 1] = str(tmp_path / "cache")
    assert expert_stage.main(arguments) == 2 and "does not hold the empty prompt" in capsys.readouterr().err
    files = ["--videos", f"{data}/videos.jsonl", "--out", f"{tmp_path}/cache", "--masks", f"{data}/masks"]
    assert cache_stage.main(files) == 0 and "0 encoded" in capsys.readouterr().out
    assert expert_stage.main(arguments) == 0
    assert torch.equal(Cache(tmp_path / "cache").empty_prompt, torch.zeros(1, 16))
