"""Training a critic: data, learning, resume, processes, files. Labels here are whether a picture is bright."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_score import write_wav
from tiny_thinker import save_omni
from two_processes import together

from fantasy_core.critic.asked import read_views
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.files import show_file
from fantasy_core.critic.folders import adapter_folders, omni_folders
from fantasy_core.critic.thinker import load_thinker
from fantasy_core.errors import UserError
from fantasy_core.media import VideoWriter
from fantasy_core.weights import open_tensors, save_tensors
from train import critic as stage
from train.critic_data import CriticData
from train.critic_merge import renamed
from train.splits import held_out

ROOT = Path(__file__).parents[1]
VIDEOS = 16
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Sixteen clips of as many inputs, every other one bright, labelled so in vq; and a base."""
    folder = tmp_path_factory.mktemp("critic")
    rows, labels = [], []
    sound = write_wav(folder / "voice.wav", 2, 0)
    for number in range(VIDEOS):
        torch.manual_seed(number)
        with VideoWriter(folder / f"v{number}.mp4", 4, sound=sound) as writer:
            writer.write((torch.rand(4, 3, 56, 56) * 0.3 + 0.6 * (number % 2)).clamp(0, 1))
        row = {"video": f"v{number}", "input": f"i{number}", "source": "made"}
        rows.append(row | {"path": f"v{number}.mp4"})
        split = "train" if number < 12 else "test"
        votes = [{"by": name, "v": number % 2} for name in "abc"]
        labels.append(row | {"dimension": "vq", "votes": votes, "label": number % 2, "split": split})
    for name, held in (("videos", rows), ("annotations", labels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    save_omni(folder / "base")
    return folder


def arguments(world: Path, out: Path, **more: object) -> list[str]:
    told = {"annotations": world / "annotations.jsonl", "videos": world / "videos.jsonl", "base": world / "base"}
    told |= {"out": out, "views": "shared", "dtype": "fp32", "rank": 8, "alpha": 16, "lr": 1e-2, "batch": 4}
    told |= {"epochs": 5, "validation": 0, "workers": 0, "save-every": 2, **more}
    return [part for name, value in told.items() for part in (f"--{name}", str(value))]


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert stage.main(arguments(world, out)) == 0
    return out


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return {
        name: entry.read() for name, entry in open_tensors(out / "adapter/adapter_model.safetensors").entries.items()
    }


def test_a_critic_learns_and_judges_what_it_has_not_seen(world, trained):
    """12 labels, half of them Yes, 5 epochs of 3 iterations; four clips that were not shown are told apart."""
    log = log_of(trained)
    assert len(log) == 15 and log[-1]["loss"] < 0.3 * log[0]["loss"]
    assert log[-1]["mass"] > 0.5 > log[0]["mass"]  # it learns to answer with these words
    critic = Critic.load(world / "base", trained / "adapter", dtype=torch.float32)
    z = [critic.score(show_file(world / f"v{n}.mp4", critic.views)).z["vq"] for n in range(12, 16)]
    assert [value > 0 for value in z] == [False, True, False, True]
    about = json.loads((trained / "adapter/critic.json").read_text())
    assert about["dimensions"] == ["vq"] and critic.taught == ("vq",)
    assert about["labels"] == 12 and about["made_from"].keys() == {"annotations", "videos"}


def test_micro_batches_make_the_same_gradient(world, trained, tmp_path):
    """One clip at a time, blocks computed again: the losses of the run that took four at once, to fp32's rounding."""
    assert stage.main(arguments(world, tmp_path, micro=1, checkpointing="true", epochs=1)) == 0
    for one, other in zip(log_of(tmp_path), log_of(trained), strict=False):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_run_that_is_killed_ends_with_the_same_bits(world, trained, tmp_path):
    """SIGKILL at three random moments of training, then to the end: the undisturbed run's log and adapter."""
    command = [sys.executable, "-m", "train.critic", *arguments(world, tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    draw, quiet = random.Random(0), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, **quiet)
        while process.poll() is None and not (tmp_path / "log.jsonl").is_file():
            time.sleep(0.01)
        time.sleep(draw.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    subprocess.run(command, cwd=ROOT, env=environment, check=True, **quiet)
    assert log_of(tmp_path) == log_of(trained)
    assert all(torch.equal(tensor, adapter(trained)[name]) for name, tensor in adapter(tmp_path).items())


def test_inputs_held_out_are_looked_at_and_never_learnt(world, tmp_path):
    """A share of the inputs by their names alone: 0.4 of twelve here."""
    held = [n for n in range(12) if held_out(f"i{n}", 0.4)]
    told = {"seed": 0, "validation": 0.4, "dimensions": ("vq",)}
    data = CriticData(world / "annotations.jsonl", world / "videos.jsonl", **told)
    assert {row.input for row in data.validation} == {f"i{n}" for n in held} and held
    assert not {row.input for row in data.rows} & {f"i{n}" for n in held}
    assert {data.at(index).video for index in range(len(data))} == {row.video for row in data.rows}  # an epoch
    assert stage.main(arguments(world, tmp_path, validation=0.4, epochs=2, **{"validate-every": 2})) == 0
    looked = [line["iteration"] for line in log_of(tmp_path) if "held_out_accuracy_vq" in line]
    assert looked == sorted({n for n in range(len(log_of(tmp_path))) if n % 2} | {len(log_of(tmp_path)) - 1})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"dimension": "ls"}, "holds nothing to learn from"),
        ({"base": "nowhere"}, "cannot read the model's configuration"),
        ({"task": "nowhere.task"}, "cannot read the face landmarker"),
        ({"views": "separate"}, "the view of the face needs faces"),
        ({"preset": "best"}, "no such preset"),
        ({"lr": "1e30"}, "went astray"),
    ],
)
def test_what_cannot_be_trained_is_told(world, tmp_path, capsys, more, told):
    assert stage.main(arguments(world, tmp_path, **more)) == 2
    assert told in capsys.readouterr().err


def test_labels_of_unknown_videos_are_refused(world, tmp_path):
    (tmp_path / "videos.jsonl").write_text((world / "videos.jsonl").read_text().split("\n")[0] + "\n")
    with pytest.raises(UserError, match="has labels of videos that"):
        CriticData(world / "annotations.jsonl", tmp_path / "videos.jsonl", seed=0, validation=0, dimensions=("vq",))


def test_a_folder_belongs_to_one_run(world, trained, capsys):
    assert stage.main(arguments(world, trained, seed=1)) == 2
    assert "belongs to another run" in capsys.readouterr().err


def merge(base: Path, critic: Path, out: Path, dtype: str = "fp32") -> Path:
    told = {"base": base, "critic": critic, "out": out, "dtype": dtype}
    assert stage.main(["merge", *(part for name, value in told.items() for part in (f"--{name}", str(value)))]) == 0
    return out


def test_a_merged_critic_is_a_base_that_scores_alike(world, trained, tmp_path):
    """With the adapter's views, unasked; scores of neither are taken for the other's, nor for the base's. Merged in
    another type it is another base again."""
    base, own = world / "base", trained / "adapter"
    merged = merge(base, own, tmp_path / "m")
    places = {"base": (base, None), "adapter": (base, own), "merged": (merged, None)}
    places["rounded"] = (merge(base, own, tmp_path / "r", "bf16"), None)
    critics = {
        name: Critic.load(*place, views="shared" if name == "base" else None, dtype=torch.float32)
        for name, place in places.items()
    }
    shown = show_file(world / "v12.mp4", critics["merged"].views)
    z = {name: critic.score(shown).z["vq"] for name, critic in critics.items()}
    assert z["adapter"] == pytest.approx(z["merged"], abs=1e-3) and abs(z["base"] - z["merged"]) > 0.1
    assert len({critic.hash for critic in critics.values()}) == len(critics)


def test_a_merged_critic_is_bound_to_what_it_was_taught(world, trained, tmp_path):
    """It keeps its views, and an adapter of the base before it does not fit. ComfyUI lists it as a base alone."""
    own = trained / "adapter"
    merged = merge(world / "base", own, tmp_path / "m")
    with pytest.raises(UserError, match="was trained with other views"):
        Critic.load(merged, views="separate", dtype=torch.float32)
    with pytest.raises(UserError, match="was trained with other base"):
        Critic.load(merged, own, dtype=torch.float32)
    assert adapter_folders([tmp_path]) == {} and omni_folders([tmp_path]) == {"m": merged}
    (merged / "critic.json").write_text("{")
    with pytest.raises(UserError, match="critic.json cannot be read"):
        Critic.load(merged, dtype=torch.float32)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"out": "base"}, "would be written over its base"),
        ({"out": "adapter"}, "would be written over its critic"),
        ({"base": "other"}, "was trained with other base"),
    ],
)
def test_what_cannot_be_merged_is_told(world, trained, tmp_path, capsys, told, error):
    """Nothing is written: a base of the same sizes with another last norm is not the one the adapter was trained on."""
    places = {"base": world / "base", "adapter": trained / "adapter", "out": tmp_path / "out", "other": tmp_path / "o"}
    tensors = open_tensors(save_omni(places["other"]) / SHARD)
    held = {name: entry.read() * (1 + name.endswith("model.norm.weight")) for name, entry in tensors.entries.items()}
    save_tensors(places["other"] / SHARD, held)
    given = {"base": places[told.get("base", "base")], "critic": places["adapter"]}
    given["out"] = places[told.get("out", "out")]
    before = {path: path.read_bytes() for folder in given.values() for path in folder.glob("*")}
    assert stage.main(["merge", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]) == 2
    assert error in capsys.readouterr().err
    assert {path: path.read_bytes() for folder in given.values() for path in folder.glob("*")} == before


def test_a_face_is_looked_for_where_lips_are_learnt(world, tmp_path):
    """Visual quality alone, in views of which another one shows the face, needs no face_landmarker.task."""
    told = {"views": "separate", "dimension": "vq", "epochs": 0.1}
    assert stage.main(arguments(world, tmp_path, **told)) == 0
    assert Critic.load(world / "base", tmp_path / "adapter", dtype=torch.float32).views.crops_face


def test_a_critic_of_whole_frames_is_not_shown_faces(world, tmp_path):
    """What it was shown in training goes with it, unasked, and into a base that it is merged into."""
    assert stage.main(arguments(world, tmp_path, views="separate", face="whole", epochs=0.1)) == 0
    own = tmp_path / "adapter"
    for place in ((world / "base", own), (merge(world / "base", own, tmp_path / "m"), None)):
        assert Critic.load(*place, dtype=torch.float32).views == read_views("separate").whole()
        with pytest.raises(UserError, match=r"other views[^$]*preset separate, face whole"):
            Critic.load(*place, face="found", dtype=torch.float32)


def test_an_adapter_under_other_names(world, trained, tmp_path):
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    assert renamed(name, "transformers4") == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert renamed(name, "thinker") == "base_model.model.thinker.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert stage.main(["merge", "--critic", str(trained / "adapter"), "--out", str(tmp_path)]) == 0
    held = open_tensors(tmp_path / "adapter_model.safetensors").entries
    assert len(held) == 28 and all(".thinker.model.layers." in key for key in held)


def test_only_what_makes_the_run_is_its_identity(world, trained, tmp_path):
    """Another number of readers or tokens a pass goes on with the same run; presets are read."""
    assert stage.main(arguments(world, trained, workers=1, micro=100)) == 0
    assert stage.main([*arguments(world, tmp_path, preset="paper", epochs=0.1), "--dry-run"]) == 0
    assert load_thinker(world / "base").lm_head.weight.dtype == torch.bfloat16


def test_two_processes_are_one(world, tmp_path):
    """Each learns two of the four labels of an iteration. Sums are in another order: losses agree to 1e-5."""
    told = {"epochs": 2, "lr": 1e-4}
    assert stage.main(arguments(world, tmp_path / "one", **told)) == 0
    together(tmp_path, stage.main, arguments(world, tmp_path / "two", **told))
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert len(two) == 6 and (tmp_path / "two/adapter/critic.json").is_file()
