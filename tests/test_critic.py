"""Talking-Critic on a tiny random Thinker of the real layout: scores, what is refused, the adapter, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_critic_shown import shown
from tiny_thinker import save_omni, thinker, tokenizer

from fantasy_core.critic.asked import read_questions, read_views
from fantasy_core.critic.critic import Answer, Critic, combine
from fantasy_core.critic.front_end import FrontEnd
from fantasy_core.critic.shown import Shown
from fantasy_core.critic.thinker import (
    add_adapter,
    answer_logits,
    answers_to_all,
    base_of,
    check_inputs,
    fingerprint,
    load_adapter,
    load_thinker,
)
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS
from train.scorers import CriticScorer

FRONT = FrontEnd(tokenizer(), read_questions())
CLIPS = [shown(3.0, 4.0, 1), shown(5.0, 4.0, 2, 84, 56), shown(4.25, 4.0, 3)]


@pytest.fixture(scope="module")
def model():
    return thinker()


def trained(model, seed: int = 7):
    """An adapter that does something: B is random rather than zero."""
    adapted = add_adapter(model, rank=4, alpha=8)
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


# ---- scores ----


@torch.no_grad()
def test_only_the_answers_column_is_made_into_logits(model):
    """transformers' own logits at the last column, for a batch of clips of three lengths, left padded."""
    batch = FRONT.batch(CLIPS, DIMENSIONS)
    full = model(**batch, use_audio_in_video=True).logits[:, -1]
    assert (answer_logits(model, batch, FRONT.words) - full).abs().max() < 1e-5


@torch.no_grad()
def test_a_batch_is_its_clips_one_by_one(model):
    together = answer_logits(model, FRONT.batch(CLIPS, DIMENSIONS), FRONT.words)
    alone = [
        answer_logits(model, FRONT.batch([clip], [d]), FRONT.words) for clip, d in zip(CLIPS, DIMENSIONS, strict=True)
    ]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


@torch.no_grad()
def test_questions_that_share_a_reading_are_those_asked_alone(model):
    tails = [FRONT.question(d) for d in DIMENSIONS]
    shared = answers_to_all(model, FRONT.media(CLIPS), tails, FRONT.words)
    for logits, dimension in zip(shared, DIMENSIONS, strict=True):
        alone = answer_logits(model, FRONT.batch(CLIPS, [dimension] * len(CLIPS)), FRONT.words)
        assert (logits - alone).abs().max() < 1e-5


def test_z_and_mass_by_hand(model):
    """Logits ln 6 for Yes, ln 2 for No and 0 for n = V - 2 others: z = ln 3, mass = 8 / (8 + n)."""
    critic = Critic(model, tokenizer(), read_views("shared"), read_questions())
    logits = torch.zeros(1, len(tokenizer()))
    logits[0, FRONT.yes], logits[0, FRONT.no] = np.log(6), np.log(2)
    z, mass = critic.read(logits)
    assert z.item() == pytest.approx(np.log(3)) and mass.item() == pytest.approx(8 / (8 + len(tokenizer()) - 2))


@torch.no_grad()
@pytest.mark.parametrize("asked", [["ls"], list(DIMENSIONS)])
def test_z_is_no_coarser_than_its_numbers(asked):
    """In bf16, the default, with logits in 16..32, where a bf16 product knows steps of 1/8 alone: z is the fp64 product
    of the same hidden state with the two rows, asked alone or with other questions."""
    model = thinker().bfloat16()
    critic, seen = Critic(model, tokenizer(), read_views("shared"), read_questions()), []
    model.model.language_model.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state[0].double()))
    critic.ask(CLIPS[:1], asked)
    hidden = seen[-1][-1]  # at the end of the last question
    for word, logit in zip(FRONT.words, (20.0, 23.3), strict=True):
        row = model.lm_head.weight[word]
        row *= logit / (row.double() @ hidden)
    yes, no = (model.lm_head.weight[word].double() @ hidden for word in FRONT.words)
    assert critic.ask(CLIPS[:1], asked)[0].z[asked[-1]] == pytest.approx((yes - no).item(), abs=1e-4)


def test_windows_are_averaged_and_the_least_is_told():
    """Two windows with z of 1 and -3 for mn: mean -1, least -3; ls could not be said in either; vq was asked once."""
    answers = [Answer({"mn": 1.0, "ls": None}, 0.9), Answer({"mn": -3.0, "ls": None}, 0.8), Answer({"vq": 2.0}, 0.7)]
    score = combine(answers)
    assert score.z == {"mn": -1.0, "ls": None, "vq": 2.0} and score.least["mn"] == -3.0
    assert (score.mass, score.windows, score.warnings) == (0.7, 2, ["no sound: ls cannot be judged"])
    assert score.score["vq"] == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_silent_clip_has_no_lip_sync_but_the_rest(model):
    critic = Critic(model, tokenizer(), read_views("shared"), read_questions())
    clip = CLIPS[0]
    mute = Shown(clip.frames, clip.fps, np.zeros_like(clip.sound), silent=True)
    score = critic.score({"shared": [mute]})
    assert score.z["ls"] is None and score.z["mn"] is not None and any("no sound" in w for w in score.warnings)
    assert any("does not answer" in warning for warning in score.warnings)  # random weights: Yes and No are two of many


def test_what_was_not_taught_gets_no_score(model):
    """A critic of quality and lip sync is not asked about motion; what has learnt nothing of what is asked has no
    number, and is not said to answer badly."""
    critic = Critic(model, tokenizer(), read_views("shared"), read_questions(), taught=("ls", "vq"))
    whole = Critic(model, tokenizer(), read_views("shared"), read_questions())
    windows = {"shared": CLIPS[:1]}
    found, all_three = critic.score(windows), whole.score(windows)
    assert found.z["mn"] is None and found.z["vq"] == pytest.approx(all_three.z["vq"], abs=1e-5)
    assert any("not taught mn" in told for told in found.warnings)
    assert not any("not taught" in told for told in all_three.warnings)
    nothing = critic.score(windows, ["mn"])
    assert nothing.z == {"mn": None} and nothing.warnings == ["this critic was not taught mn"]
    ((number, scored),) = CriticScorer(critic, 4096).scores([windows])
    assert number == 0 and scored.z == pytest.approx(found.z)


def test_sound_is_heard_and_time_matters(model):
    critic = Critic(model, tokenizer(), read_views("shared"), read_questions())
    clip = CLIPS[0]
    late = Shown(clip.frames, clip.fps, np.roll(clip.sound, 8000))
    z = [critic.ask([one], ["ls"])[0].z["ls"] for one in (clip, late, Shown(clip.frames, 8.0, clip.sound[:24000]))]
    assert len({round(value, 6) for value in z}) == 3


# ---- what would go wrong in silence ----


def test_a_forgotten_flag_raises_nothing_there_but_here(model):
    """transformers: other positions, no error. `check_inputs`: an error."""
    batch = FRONT.batch(CLIPS[:1], ["ls"])
    arguments = (batch["input_ids"], None, batch["video_grid_thw"], batch["attention_mask"])
    heard = (batch["feature_attention_mask"].sum(-1), batch["video_second_per_grid"])
    with_flag, without = (model.model.get_rope_index(*arguments, flag, *heard)[0] for flag in (True, False))
    assert not torch.equal(with_flag, without)
    with pytest.raises(ValueError, match="without use_audio_in_video"):
        check_inputs(batch, FRONT.ids["AUDIO"], use_audio_in_video=False)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda b: b.pop("video_second_per_grid"), "lacks video_second_per_grid"),
        (lambda b: b.pop("feature_attention_mask"), "lacks feature_attention_mask"),
        (
            lambda b: b["input_ids"][1].masked_fill_(b["input_ids"][1] == FRONT.ids["AUDIO"], 0),
            "1 of 3 clips have no sound",
        ),
        (lambda b: b.update(input_features=b["input_features"][:2]), "differ in number"),
    ],
)
def test_inputs_that_would_be_misread_are_refused(model, spoil, told):
    batch = FRONT.batch(CLIPS, DIMENSIONS)
    check_inputs(batch, FRONT.ids["AUDIO"], use_audio_in_video=True, most=84 * 56)
    spoil(batch)
    with pytest.raises(ValueError, match=told):
        check_inputs(batch, FRONT.ids["AUDIO"], use_audio_in_video=True)


def test_frames_that_were_blown_up_are_refused(model):
    with pytest.raises(ValueError, match="frames of 4704 pixels where the view has 3136"):
        check_inputs(FRONT.batch(CLIPS, DIMENSIONS), FRONT.ids["AUDIO"], use_audio_in_video=True, most=3136)


# ---- the adapter ----


def test_only_the_language_models_linears_are_adapted():
    """2 layers x 7 linears x (A, B) = 28 tensors; none in the encoders. B is zero: the fresh critic is the base."""
    batch, base = FRONT.batch(CLIPS, DIMENSIONS), thinker()
    with torch.no_grad():
        before = answer_logits(base, batch, FRONT.words)
    adapted = add_adapter(base, rank=4, alpha=8)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 28 and all("language_model.layers" in name and "lora_" in name for name in names)
    with torch.no_grad():
        assert torch.equal(answer_logits(adapted, batch, FRONT.words), before)
    answer_logits(adapted, batch, FRONT.words).sum().backward()
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} == set(names)


def test_an_adapter_is_saved_and_comes_back(tmp_path):
    batch, adapted = FRONT.batch(CLIPS, DIMENSIONS), trained(thinker())
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    with torch.no_grad():
        told = answer_logits(adapted, batch, FRONT.words)
        assert torch.equal(answer_logits(load_adapter(thinker(), tmp_path), batch, FRONT.words), told)
        merged = load_adapter(thinker(), tmp_path).merge_and_unload()
        assert (answer_logits(merged, batch, FRONT.words) - told).abs().max() < 1e-4
    with pytest.raises(UserError, match="does not fit this base"):
        load_adapter(thinker(hidden=32), tmp_path)
    with pytest.raises(UserError, match="does not fit this base"):
        load_adapter(thinker(layers=3), tmp_path)


# ---- files ----


def test_only_the_thinkers_shards_are_opened(tmp_path):
    """A whole Omni checkpoint under the hub's names, whose talker was never fetched."""
    folder = save_omni(tmp_path / "omni", talker=False)
    found, own = load_thinker(folder, dtype=torch.float32), thinker()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in own.state_dict().items())
    assert fingerprint(found) == fingerprint(own) == fingerprint(trained(thinker()))
    assert fingerprint(thinker(hidden=32)) != fingerprint(own)


def test_a_thinker_saved_alone_loads_too(tmp_path):
    thinker().save_pretrained(tmp_path)
    found = load_thinker(tmp_path, dtype=torch.bfloat16)
    assert found.lm_head.weight.dtype == torch.bfloat16 and not any(p.requires_grad for p in found.parameters())
    tokenizer().save_pretrained(tmp_path)
    critic = Critic.load(tmp_path, views="shared", dtype=torch.bfloat16)
    assert np.isfinite(critic.score({"shared": CLIPS[:1]}).z["ls"])


def test_what_a_folder_lacks_is_told(tmp_path):
    folder = save_omni(tmp_path / "omni")
    (folder / "model-00001-of-00002.safetensors").rename(tmp_path / "away")
    with pytest.raises(UserError, match="lacks weights"):
        load_thinker(folder)
    (tmp_path / "away").rename(folder / "model-00001-of-00002.safetensors")
    told = json.loads((folder / "config.json").read_text())
    told["thinker_config"]["text_config"] |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="missing keys"):
        load_thinker(folder)
    told["thinker_config"]["text_config"]["layer_types"] = []
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="not a Qwen2.5-Omni model"):
        load_thinker(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "wan"}))
    with pytest.raises(UserError, match="not a Qwen2.5-Omni model"):
        load_thinker(folder)


def test_scores_name_the_critic_that_made_them(tmp_path):
    folder = save_omni(tmp_path / "omni")
    base = Critic.load(folder, views="shared", dtype=torch.float32)
    with pytest.raises(UserError, match="not an adapter of Talking-Critic"):
        Critic.load(folder, tmp_path, views="shared")
    adapter = tmp_path / "adapter"
    trained(base.model).save_pretrained(adapter, save_embedding_layers=False)
    about = {"questions": {"hash": base.questions.hash}, "base": fingerprint(base.model)}
    about["views"] = {"preset": "shared", "hash": base.views.hash}
    (adapter / "critic.json").write_text(json.dumps(about))
    critic = Critic.load(folder, adapter, dtype=torch.float32)
    assert critic.views.preset == "shared" and critic.hash != base.hash
    z = critic.ask(CLIPS[:1], DIMENSIONS)[0].z
    with critic.without_adapter:
        off = critic.ask(CLIPS[:1], DIMENSIONS)[0].z
    assert off == pytest.approx(
        Critic.load(folder, views="shared", dtype=torch.float32).ask(CLIPS[:1], DIMENSIONS)[0].z
    )
    assert abs(off["mn"] - z["mn"]) > 1e-4
    with pytest.raises(UserError, match="was trained with other views"):
        Critic.load(folder, adapter, views="separate", dtype=torch.float32)
    (adapter / "critic.json").write_text(json.dumps(about | {"base": "other"}))
    with pytest.raises(UserError, match="was trained with other base"):
        Critic.load(folder, adapter, dtype=torch.float32)


def test_a_base_is_the_same_with_and_without_an_adapter():
    model = thinker()
    assert base_of(add_adapter(model, 2, 4)) is model and base_of(model) is model
