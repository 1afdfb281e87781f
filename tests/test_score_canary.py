"""What stops a critic before it scores: the canary, and scores that are no numbers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from test_score import arguments, rows, world  # noqa: F401

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Answer, Critic, Score, combine
from fantasy_core.critic.files import show_file
from fantasy_core.critic.thinker import load_thinker, load_tokenizer
from fantasy_core.errors import UserError
from fantasy_core.weights import open_tensors
from train import score as stage
from train.journal import Journal
from train.scorers import CriticScorer, Video, not_moved


def test_a_critic_that_hears_nothing_is_stopped(world, tmp_path, capsys):  # noqa: F811
    """The audio encoder's last layer is zero: silence and speech are the same to it."""
    base = world / "base"
    model = load_thinker(base, dtype=torch.float32)
    model.model.audio_tower.proj.weight.zero_(), model.model.audio_tower.proj.bias.zero_()
    critic = Critic(model, load_tokenizer(base), read_views("shared"), read_questions())
    clip = show_file(world / "v0.mp4", critic.views)
    with pytest.raises(UserError, match="does not react: silence, late"):
        CriticScorer(critic, 1000).canary(clip)
    mute = show_file(world / "v1.mp4", critic.views)
    assert CriticScorer(critic, 1000).canary(mute) is None
    hearing = Critic(load_thinker(base, dtype=torch.float32), critic.front.tokenizer, critic.views, critic.questions)
    assert set(CriticScorer(hearing, 1000).canary(clip)) == {"own", "silence", "late"}


Z = {"own": 1.0, "silence": 1.0, "late": 1.0, "adapter off": 1.0}


@pytest.mark.parametrize(
    ("still", "told", "untold"),
    [
        (["silence", "late"], ["audio tower"], ["train.degrade", "changes nothing"]),
        (["late"], ["train.degrade"], ["audio tower", "changes nothing"]),
        (["adapter off"], ["changes nothing"], ["audio tower", "train.degrade"]),
        (["silence", "late", "adapter off"], ["audio tower", "changes nothing"], ["train.degrade"]),
    ],
)
def test_what_to_do_is_said_by_case(still, told, untold):
    error = not_moved(still, Z)
    assert "does not react: " + ", ".join(still) in error.what and "--dtype fp32" in error.do
    assert all(text in error.do for text in told) and not any(text in error.do for text in untold)


class Singers:
    """Clips are what the canary says of them: z, None for no canary, or an error."""

    def canary(self, clip):
        if clip == "deaf":
            raise not_moved(["late"], Z)
        return None if clip == "mute" else Z


@pytest.mark.parametrize(
    ("clips", "sung"),
    [
        (["deaf", "deaf", "well"], True),
        (["mute", "deaf", "mute", "deaf", "mute", "well"], True),
        (["deaf", "deaf", "deaf", "well"], None),
        (["mute", "deaf"], None),
        (["mute", "mute"], False),
    ],
)
def test_one_clip_does_not_decide(clips, sung):
    """The run goes on with one of three that reacts; None: it stops."""
    found = [((Path(f"v{n}.mp4"), Video(f"v{n}", f"v{n}.mp4")), clip) for n, clip in enumerate(clips)]
    if sung is None:
        with pytest.raises(UserError, match="does not react: late"):
            stage.check_canary(Singers(), found)
    else:
        assert stage.check_canary(Singers(), found) is sung


# ---- scores that are no numbers ----


def overflowing(base: Path, folder: Path) -> Path:
    """A base whose last layer is infinite: its logits are NaN, as those of Qwen2.5 may be in fp16."""
    from safetensors.torch import save_file

    shutil.copytree(base, folder)
    (file,) = folder.glob("model-00001*.safetensors")
    tensors = {name: entry.read() for name, entry in open_tensors(file).entries.items()}
    tensors["thinker.lm_head.weight"] *= math.inf
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("canary", ["true", "false"])
def test_a_critic_without_numbers_is_stopped(world, tmp_path, capsys, canary):  # noqa: F811
    """By the canary, or else by the third video without a number; v2, which is no video, may have a row by then."""
    base, out = overflowing(world / "base", tmp_path / "base"), tmp_path / "out"
    assert stage.main(arguments(world, out, base=base, canary=canary)) == 2
    told = capsys.readouterr().err
    assert "gave no number" in told and "z_mn nan" in told or "own nan" in told and "--dtype bf16" in told
    assert rows(out).keys() <= {"v2"}


class Dice:
    """Gives the scores it was given."""

    critic, views = "dice", "none"


def scored(z: float, mass: float = 1.0) -> Score:
    return Score(dict.fromkeys(("mn", "ls", "vq"), z), {"mn": z, "ls": z, "vq": z}, mass, 1)


def test_a_score_that_is_no_number_is_a_failed_row():
    """Two without a number wait for the first with one, or for the end; the third in a row without any stops."""
    told = [("a", scored(math.nan)), ("b", scored(math.inf)), ("c", scored(1.0)), ("d", scored(1.0, math.nan))]
    found = {row["video"]: row for row in stage.rows_of(told, Dice())}
    assert {name: "failed" in row for name, row in found.items()} == {"a": True, "b": True, "c": False, "d": True}
    assert found["a"]["z_mn"] is None and "no number: z_mn nan" in found["a"]["failed"]
    assert found["d"]["failed"].endswith("mass nan")
    assert [row["video"] for row in stage.rows_of(told[:2], Dice())] == ["a", "b"]
    with pytest.raises(UserError, match="no number"):
        list(stage.rows_of([*told[:2], told[3], told[2]], Dice()))


def test_a_journal_holds_json_alone(tmp_path):
    with Journal(tmp_path / "rows.jsonl") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append({"z_mn": math.nan})
    assert Journal(tmp_path / "rows.jsonl").read() == []


def test_a_mass_that_is_no_number_is_warned_of():
    answer = Answer({"mn": math.nan, "ls": None, "vq": 0.0}, math.nan)
    assert any("does not answer" in warning for warning in combine([answer]).warnings)


# ---- what is said of the rows ----


def tell(rows: list[dict], first: int) -> None:
    tally = stage.Tally(first)
    for row in rows:
        tally.add(row)
    tally.end()


def row(mass: float, *warnings: str) -> dict:
    return {"mass": mass, "warnings": [*warnings, f"Yes and No have {mass:.2f} of it"] if mass < 0.5 else [*warnings]}


@pytest.mark.parametrize(
    ("masses", "loud"), [([0.1, 0.2, 0.9], "first 2"), ([0.1, 0.9, 0.1], None), ([0.3], "first 1"), ([], None)]
)
def test_a_critic_that_answers_nothing_is_warned_of(masses, loud, capsys):
    """After the first two, or at the end where there are fewer; one answer among them is enough."""
    tell([row(mass) for mass in masses] + [{"failed": "broken"}], 2)
    told = capsys.readouterr().err
    assert (f"the {loud} scores are no answers" in told) if loud else told == ""


def test_warnings_are_counted_by_kind(capsys):
    tell([row(0.1, "no sound"), row(0.2), row(0.9), row(0.9, "no sound"), row(0.3)], 2)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "warning of 3 of 5 scores: Yes and No have less than 0.5 of it",
        "warning of 2 of 5 scores: no sound",
    ]


def test_the_command_tells_them(world, tmp_path, capsys):  # noqa: F811
    """The tiny Thinker was never trained: it gives Yes and No next to nothing. v1 has no sound, v2 has failed."""
    assert stage.main(arguments(world, tmp_path)) == 0
    told = capsys.readouterr()
    assert "the first 2 scores are no answers" in told.err
    assert "warning of 5 of 5 scores: Yes and No have less than 0.5 of the probability" in told.out
    assert "warning of 1 of 5 scores: no sound: ls cannot be judged" in told.out
