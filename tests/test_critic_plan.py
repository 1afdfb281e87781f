"""What the critic costs, before it runs: sizes against the model, FLOPs against torch's count, the dry runs."""

from __future__ import annotations

import json
import re

import pytest
import torch
from test_score import arguments as score_arguments
from test_score import world  # noqa: F401
from test_train_critic import arguments as train_arguments
from tiny_thinker import save_omni
from torch.utils.flop_counter import FlopCounterMode

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.files import show_file
from fantasy_core.critic.sizes import sizes_of
from fantasy_core.critic.thinker import add_adapter, load_thinker, load_tokenizer
from fantasy_core.errors import UserError
from fantasy_core.media import VideoWriter
from train import critic as training
from train import score as scoring
from train.critic_plan import LOOKED_AT, QUESTION, flops, look


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_omni(tmp_path_factory.mktemp("base"))


def test_sizes_are_those_of_the_model(base):
    """Of all weights, of its parts, and of what an adapter of rank 8 adds."""
    sizes, model = sizes_of(base), load_thinker(base)
    assert sizes.total == sum(weight.numel() for weight in model.parameters())
    parts = (model.model.language_model.layers, model.model.visual, model.model.audio_tower)
    assert (sizes.language, sizes.vision, sizes.audio) == tuple(sum(w.numel() for w in p.parameters()) for p in parts)
    adapted = add_adapter(model, 8, 16)
    assert 8 * sizes.linears == sum(w.numel() for name, w in adapted.named_parameters() if "lora_" in name)


def test_flops_are_what_torch_counts(base, world):  # noqa: F811
    """Two for every weight of the blocks and every token that passes them: torch counts products alone, without biases
    and norms, which are some per cent of so small a model."""
    model = load_thinker(base, dtype=torch.float32)
    critic = Critic(model, load_tokenizer(base), read_views("shared"), read_questions())
    (windows,) = show_file(world / "v0.mp4", critic.views).values()
    counter = FlopCounterMode(display=False)
    with counter:
        critic.ask(windows[:1], ["vq"])
    counts = next(told for name, told in counter.get_flop_counts().items() if name.endswith(".language_model"))
    products = sum(count for op, count in counts.items() if str(op) in ("aten.mm", "aten.addmm"))
    sizes, tokens = sizes_of(base), critic.front.batch(windows[:1], ["vq"])["input_ids"].shape[1]
    assert products == pytest.approx(2 * sizes.language * tokens, rel=0.1)
    language = 2 * sizes.language * (windows[0].tokens + QUESTION)
    passes = [flops(sizes, windows[0], 1, passes) for passes in (1, 2, 3)]
    assert passes[1] - passes[0] == passes[2] - passes[1] == language


def test_a_plan_of_scores(world, tmp_path, capsys):  # noqa: F811
    """Six videos, of which one is broken: its reason is told. The hours are those of all files that are there."""
    given = score_arguments(world, tmp_path / "out", workers=2)
    assert scoring.main([*given, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "in the language model)" in told and "MiB in float32" in told
    assert "looked at 6 videos" in told and "1 failed: cannot read the video" in told
    assert re.search(r"6 videos to score: [\d.]+ [MGT]FLOP, on one GPU RTX 4090 [\d.e-]+ s", told)
    assert "reading takes 2 workers" in told and not (tmp_path / "out").exists()


def test_a_plan_of_what_is_left(world, tmp_path, capsys):  # noqa: F811
    """Videos that have a row are not counted again; where none of those that are left can be shown, nothing is said
    to cost nothing."""
    given = score_arguments(world, tmp_path / "out")
    rows = [{"video": f"v{number}", "critic": "c", "views": "v"} for number in (0, 1, 3, 4, 5)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scoring.main([*given, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "1 videos to score: FLOPs unknown" in told and "reading takes this process" in told
    assert "6 videos; 5 have a row" in told


def test_a_few_videos_of_many_are_looked_at(tmp_path):
    """Spread over the list: of 20 videos the first and others up to the end, not the first eight."""
    files = []
    for number in range(20):
        path = tmp_path / f"{number:02d}.mp4"
        with VideoWriter(path, 8) as writer:
            writer.write(torch.rand(4, 3, 56, 56))
        files.append(path)
    files[-3].write_bytes(b"no video")
    looked = look(files, read_views("shared"), None)
    assert len(looked.shown) + len(looked.failed) == LOOKED_AT and "17.mp4" in str(looked)


def test_a_plan_of_training(world, base, tmp_path, capsys):  # noqa: F811
    """Two epochs cost twice one. Blocks that are computed again are one more pass of the language model's: as much as
    epochs times labels times (its FLOPs with three passes less those with two)."""
    rows = [json.loads(line) for line in (world / "videos.jsonl").read_text().splitlines()]
    rows = [row | {"source": "made", "input": row["video"]} for row in rows if row["video"] != "v2"]
    rows = [row | {"path": str(world / row["path"])} for row in rows]
    labels = []
    for number, row in enumerate(rows):
        votes = [{"by": name, "v": number % 2} for name in "abc"]
        labels.append(row | {"dimension": "vq", "votes": votes, "label": number % 2, "split": "train"})
    for name, held in (("videos", rows), ("annotations", labels)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))

    def planned(**more) -> float:
        given = train_arguments(tmp_path, tmp_path / "out", **{"base": base, "micro": 100, **more})
        assert training.main([*given, "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert "the adapter with its gradient and AdamW's moments" in told and not (tmp_path / "out").exists()
        number, unit = re.search(r"([\d.]+) ([MGT])FLOP, on one GPU", told).groups()
        return float(number) * {"M": 1e6, "G": 1e9, "T": 1e12}[unit]

    once = planned(epochs=1)
    assert planned(epochs=2) == pytest.approx(2 * once, rel=0.02)
    (shown,) = show_file(world / "v0.mp4", read_views("shared")).values()
    two, three = (flops(sizes_of(base), shown[0], 1, passes) for passes in (2, 3))
    assert planned(epochs=1, checkpointing="true") / once == pytest.approx(three / two, rel=0.05)  # of other videos


BROKEN = {
    "config.json": "cannot read the model's configuration",
    "model.safetensors.index.json": "cannot read the index of the weights",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("text", ['{"thinker_config": {', "[]"])
def test_broken_files_of_a_base(tmp_path, name, text):
    base = save_omni(tmp_path / "base")
    (base / name).write_text(text)
    with pytest.raises(UserError, match=BROKEN[name]):
        load_thinker(base)


@pytest.mark.parametrize("spoil", ["half", "text", "list"])
def test_broken_files_of_an_adapter(base, tmp_path, spoil):
    """A file that was cut off, a configuration that is none."""
    adapted = add_adapter(load_thinker(base), 4, 8)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    if spoil == "half":
        file = tmp_path / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (tmp_path / "adapter_config.json").write_text("{" if spoil == "text" else "[]")
    from fantasy_core.critic.thinker import load_adapter

    with pytest.raises(UserError) as told:
        load_adapter(load_thinker(base), tmp_path)
    assert all((told.value.what, told.value.got, told.value.expected, told.value.do))
