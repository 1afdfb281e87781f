"""Settings of a run: presets under a TOML under flags, epochs or iterations, and a TOML that says all of them again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from train import expert as expert_stage
from train import gate as gate_stage
from train.config_file import write_settings
from train.expert import ExpertSettings
from train.gate import GateSettings
from train.presets import preset_names, read_preset
from train.run import read_settings, setting
from train.stage_settings import FREE

STAGES = {"expert": ExpertSettings, "gate": GateSettings}
FILES = {"out": "run", "pairs": "pairs.jsonl", "cache": "cache"}


def settings_of(stage: str, toml: Path | None = None, **flags):
    """A stage's settings from flags, as its command reads them."""
    own = {"dimension": "mn"} if stage == "expert" else {"expert": ["a=b"]}
    given = {name: value if isinstance(value, list) else str(value) for name, value in (FILES | own | flags).items()}
    return read_settings(STAGES[stage], toml, given, lambda *args: read_preset(stage, *args))


def test_the_paper_is_what_the_paper_says():
    """Rank 128, lr 1e-5, beta 5000, 10 epochs of mn and vq and 20 of ls, by lip masks there, all 14 linears; the gate
    at lr 1e-6, beta 1000, 5 epochs, per block and timestep, a softmax."""
    for dimension, epochs in (("mn", 10), ("ls", 20), ("vq", 10)):
        told = settings_of("expert", preset="paper", dimension=dimension)
        assert (told.rank, told.lr, told.beta, told.epochs) == (128, 1e-5, 5000, epochs)
        assert told.audio_linears and told.by_lips == (dimension == "ls") and told.loss == "dpo"
    told = settings_of("gate", preset="paper")
    assert (told.lr, told.beta, told.epochs) == (1e-6, 1000, 5)
    assert (told.granularity, told.timestep, told.gate_form) == ("block", True, "softmax")


@pytest.mark.parametrize("stage", STAGES)
def test_paper_names_every_choice(stage):
    """All settings that make a run what it is, less what only the user knows: files, the model, the dimension."""
    users = {"pairs", "cache", "model", "wan", "fantasytalking", "wav2vec", "dimension", "expert"}
    named = {field.name for field in dataclasses.fields(STAGES[stage])} - set(FREE) - users | {"epochs"}
    assert named <= read_preset(stage, "paper", {}).keys() <= named | {"checkpointing"}


@pytest.mark.parametrize("stage", STAGES)
def test_practical_is_a_budget_of_steps(stage):
    told = settings_of(stage, preset="practical")
    assert told.epochs is None and told.unit == "input" and told.checkpointing == "blocks" and told.anchor_weight == 1
    assert preset_names(stage) == ["paper", "practical"]
    assert "paper or practical" in next(f for f in dataclasses.fields(told) if f.name == "preset").metadata["help"]


def test_flags_win_over_the_toml_and_the_toml_over_the_preset(tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text('preset = "paper"\nrank = 16\nbeta = 100\n')
    told = settings_of("expert", toml, beta="7")
    assert (told.lr, told.rank, told.beta, told.preset) == (1e-5, 16, 7.0, "paper")
    assert settings_of("expert", toml, preset="practical").lr == 5e-5


@pytest.mark.parametrize(
    ("toml", "flags", "expected"),
    [
        ("", {}, (1000, None)),
        ('preset = "paper"', {}, (1000, 10.0)),
        ('preset = "paper"', {"iterations": 5}, (5, None)),
        ('preset = "paper"\niterations = 6', {}, (6, None)),
        ('preset = "practical"\nepochs = 2', {}, (1000, 2.0)),
        ("epochs = 2", {"iterations": 5}, (5, None)),
        ("iterations = 5", {"epochs": 0.5}, (1000, 0.5)),
        ('preset = "paper"\nepochs = "none"\niterations = 8', {}, (8, None)),
    ],
)
def test_of_epochs_and_iterations_the_later_wins(tmp_path, toml, flags, expected):
    (tmp_path / "run.toml").write_text(toml)
    told = settings_of("expert", tmp_path / "run.toml", **flags)
    assert (told.iterations, told.epochs) == expected


def test_both_at_one_place_are_an_error(tmp_path):
    (tmp_path / "run.toml").write_text("iterations = 5\nepochs = 2\n")
    for toml, flags in ((tmp_path / "run.toml", {}), (None, {"iterations": 5, "epochs": 2})):
        with pytest.raises(UserError, match="epochs and iterations are given together"):
            settings_of("expert", toml, **flags)


@pytest.mark.parametrize(
    ("epochs", "units", "batch", "iterations"),
    [(10, 7, 4, 18), (1, 8, 4, 2), ("0.7", 10, 1, 7), (0.001, 10, 4, 1), (20, 130_000, 16, 162_500)],
)
def test_epochs_are_so_many_iterations(epochs, units, batch, iterations):
    """ceil(epochs units / batch): 70 / 4 = 17.5 -> 18. 0.7 x 10 is 7, though as floats a hair more; never none."""
    told = settings_of("expert", epochs=epochs, batch=batch).for_units(units)
    assert (told.iterations, told.epochs) == (iterations, None)


@pytest.mark.parametrize(("stage", "module"), [("expert", expert_stage), ("gate", gate_stage)])
def test_an_unknown_preset_is_answered_with_those_there_are(tmp_path, capsys, stage, module):
    assert module.main(["--preset", "papper", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"train.{stage} has no such preset" in error and "papper" in error and "paper or practical" in error


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"epochs": "0"}, "float, 0.001 or more"),
        ({"epochs": "inf"}, "float, 0.001 or more"),
        ({"text_dropout": "1.5"}, "float, 0 to 1"),
        ({"audio_dropout": "-0.1"}, "float, 0 to 1"),
        ({"tracker": ["tensorboard", "mlflow"]}, "tensorboard, wandb, trackio"),
        ({"sample_steps": "0"}, "int, 1 or more"),
    ],
)
def test_values_out_of_range_are_answered(flags, word):
    with pytest.raises(UserError, match=word):
        settings_of("expert", **flags)


def test_none_of_several_is_none(tmp_path):
    (tmp_path / "run.toml").write_text('tracker = ["tensorboard", "trackio"]\n')
    assert settings_of("expert", tmp_path / "run.toml").tracker == ("tensorboard", "trackio")
    assert settings_of("expert", tmp_path / "run.toml", tracker=["none"]).tracker == ()


@dataclasses.dataclass(frozen=True)
class Everything:
    """A field of every kind."""

    text: str = setting()
    path: Path = setting()
    number: float = setting()
    count: int = setting()
    flag: bool = setting()
    several: tuple[str, ...] = setting()
    nothing: float | None = setting(5.0)


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, texts, st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.booleans(), st.lists(texts))
def test_written_settings_read_back_are_the_same(tmp_path_factory, text, path, number, count, flag, several):
    """Any text, escapes and all; floats to the last bit; None over a default that is something else."""
    if several == ["none"]:  # what stands for nothing
        several = []
    told = Everything(text, Path(path), number, count, flag, tuple(several), None)
    file = tmp_path_factory.getbasetemp() / "config.toml"
    write_settings(file, told, "a comment")
    assert read_settings(Everything, file, {}) == told and file.read_text("utf-8").startswith("# a comment\n")
