"""Qwen2.5-Omni's Thinker: its part of a checkpoint loaded, its adapter, and the logits where the answer stands.

transformers has the model; here is what it does not refuse. Forgetting one flag, the frame rate or a clip's sound
changes the positions of the tokens and raises nothing there; `check_inputs` does.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, some
from ..media import check_file
from ..media.files import read_json
from ..weights import open_tensors
from .about import merged_into
from .front_end import PAIR, Batch

PREFIX = "thinker."
INDEX = "model.safetensors.index.json"
LINEARS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"  # never the encoders'
MEDIA_KEYS = ("pixel_values_videos", "video_grid_thw", "video_second_per_grid", "input_features")


# ---- loading ----


def load_thinker(folder: Path, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu") -> nn.Module:
    """The Thinker of a Qwen2.5-Omni folder (3B or 7B, sharded or one file), or of one that holds the Thinker alone.

    Only shards with its weights are opened, so the talker's need not be there. Raises UserError for missing shards or
    weights, and for another model.
    """
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    config = thinker_config(folder)
    model, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=_thinker_tensors(folder, dtype), dtype=dtype, output_loading_info=True
    )
    wrong = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[name]}
    if wrong:
        raise UserError(
            f"{folder} does not hold this Thinker",
            got="; ".join(f"{kind.replace('_', ' ')}: {some(map(str, names))}" for kind, names in wrong.items()),
            expected="every weight of its config.json, and no other of the Thinker",
            do="fetch the folder again",
        )
    model.merged = merged_into(folder)
    return model.to(device).eval().requires_grad_(False)


def thinker_config(folder: Path):
    """The Thinker's configuration in a folder. Raises UserError for another model's, or for a broken file."""
    from transformers import Qwen2_5OmniThinkerConfig

    told = read_json(folder / "config.json", "model's configuration")
    told = told.get("thinker_config", told)
    if "audio_config" not in told or "vision_config" not in told:
        raise _not_omni(folder, f"a configuration of {told.get('model_type', 'an unnamed model')}")
    try:
        config = Qwen2_5OmniThinkerConfig(**told)
    except Exception as error:  # huggingface_hub's own kinds, which older releases do not have
        raise _not_omni(folder, f"config.json: {str(error).splitlines()[-1].strip()}") from error
    config.vision_start_token_id = told.get("vision_start_token_id", 151652)  # not declared, but read for positions
    return config


def _not_omni(folder: Path, got: str) -> UserError:
    return UserError(
        f"{folder} is not a Qwen2.5-Omni model",
        got=got,
        expected="thinker_config with vision_config and audio_config",
        do="give the folder of Qwen/Qwen2.5-Omni-7B or -3B",
    )


def _shards(folder: Path) -> list[Path]:
    """The files that hold weights of the Thinker."""
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    files = read_json(folder / INDEX, "index of the weights").get("weight_map")
    if not isinstance(files, dict):
        raise _not_omni(folder, f"{INDEX} without a weight_map")
    whole = any(key.startswith(PREFIX) for key in files)
    return sorted({folder / name for key, name in files.items() if key.startswith(PREFIX) or not whole})


def _thinker_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The Thinker's weights under the names of a Thinker alone."""
    shards = _shards(folder)
    absent = [path.name for path in shards if not path.is_file()]
    if absent or not shards:
        raise UserError(
            f"{folder} lacks weights",
            got=f"no {some(absent)}" if absent else "no safetensors file",
            expected="the shards that hold thinker. (the talker's are not needed)",
            do="fetch these files into the folder",
        )
    held = {name: entry for path in shards for name, entry in open_tensors(path).entries.items()}
    mine = {name[len(PREFIX) :]: entry for name, entry in held.items() if name.startswith(PREFIX)} or held
    return {name: entry.read().to(dtype) for name, entry in mine.items()}


def load_tokenizer(folder: Path):
    """The tokenizer in a model's folder; nothing is downloaded."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the talker's numbers in config.json
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} has no tokenizer that can be read",
            got=str(error).splitlines()[0],
            expected="tokenizer.json or vocab.json and merges.txt, with tokenizer_config.json",
            do="fetch the tokenizer's files of the same model",
        ) from error
    finally:
        logging.set_verbosity(loud)


def fingerprint(model: nn.Module) -> str:
    """Which base this is: its configuration's sizes, its last norm's weights, which no adapter changes, and what was
    merged into the others."""
    base = base_of(model)
    text = base.config.get_text_config()
    sizes = [text.hidden_size, text.num_hidden_layers, text.vocab_size, base.config.vision_config.depth]
    norm = base.model.language_model.norm.weight.detach().float().cpu().numpy().tobytes()
    return hashlib.sha256(json.dumps(sizes).encode() + norm + getattr(base, "merged", "").encode()).hexdigest()[:16]


# ---- the adapter ----


def base_of(model: nn.Module) -> nn.Module:
    """The Thinker, with or without a peft adapter around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def add_adapter(model: nn.Module, rank: int, alpha: float, seed: int = 0) -> nn.Module:
    """A fresh LoRA on the linears of the language model's blocks, and on nothing else (the paper freezes the visual and
    the audio encoder): 252 of the 3B, 196 of the 7B. Its weights are fp32 whatever the base is."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        told = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none"}
        return get_peft_model(model, LoraConfig(target_modules=LINEARS, **told), autocast_adapter_dtype=True)


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """A saved adapter on its base. Raises UserError for a folder without one, or one that does not fit."""
    from peft import PeftModel

    read_json(folder / "adapter_config.json", "adapter's configuration")
    held = set(open_tensors(check_file(folder / "adapter_model.safetensors", "adapter")).entries)
    try:
        with warnings.catch_warnings(action="ignore"):  # what peft only warns of is an error below
            found = PeftModel.from_pretrained(model, folder, local_files_only=True)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise _other_base(folder, f"{type(error).__name__}: {error}".splitlines()[0]) from error
    own = {name.replace(".default.", ".") for name, _ in found.named_parameters() if ".default." in name}
    if held != own:
        raise _other_base(folder, f"{len(held - own)} weights too many, {len(own - held)} too few")
    return found.eval()


def _other_base(folder: Path, got: str) -> UserError:
    return UserError(
        f"{folder} does not fit this base",
        got=got,
        expected="an adapter that was trained on this model (3B and 7B do not mix)",
        do="give the base that its critic.json names",
    )


# ---- forward ----


def check_inputs(batch: Batch, audio_token: int, *, use_audio_in_video: bool, most: int | None = None) -> None:
    """Raise ValueError where the model would compute something else without a word.

    Audio between video tokens without the flag, or the flag without audio, gives text positions; a clip without sound
    in a batch with sound shifts all later clips' sound; without seconds per grid the frames would be 2 a second
    whatever they are; frames of more than `most` pixels have been blown up.
    """
    ids = batch["input_ids"]
    heard = (ids == audio_token).any(1)
    absent = [name for name in (*MEDIA_KEYS, "feature_attention_mask") if name not in batch]
    if absent:
        raise ValueError(f"the batch lacks {', '.join(absent)}: positions would be guessed")
    if not heard.all():
        raise ValueError(f"{int((~heard).sum())} of {len(ids)} clips have no sound: give them silence of their length")
    if not use_audio_in_video:
        raise ValueError("audio tokens without use_audio_in_video=True: they would get the positions of text")
    if {len(batch[name]) for name in MEDIA_KEYS[1:]} != {len(ids)}:
        raise ValueError("clips, grids, frame rates and sounds differ in number")
    largest = int((batch["video_grid_thw"][:, 1] * batch["video_grid_thw"][:, 2]).max()) * 14**2
    if most is not None and largest > most:
        raise ValueError(f"frames of {largest} pixels where the view has {most}: they have been blown up")
    if not (batch["video_second_per_grid"] <= PAIR / 0.1).all():
        raise ValueError("less than a frame in ten seconds")


def hidden_at_answer(model: nn.Module, batch: Batch, most: int | None = None) -> Tensor:
    """Where the answer stands: the last column's hidden state [B, d]. Batches are left padded. most: pixels of the
    view."""
    base = base_of(model)
    check_inputs(batch, base.config.audio_token_id, use_audio_in_video=True, most=most)
    found = base.model(**_on(batch, base), use_audio_in_video=True, use_cache=False)
    return found.last_hidden_state[:, -1]


def answer_logits(model: nn.Module, batch: Batch, words: Sequence[int], most: int | None = None) -> Tensor:
    """Logits over the vocabulary [B, V], fp32, of the first word of the answer, exact for the `words`. The other
    columns' are never made: 3.4 GiB for 4 thousand tokens of the 7B."""
    return logits_of(model, hidden_at_answer(model, batch, most), words)


def logits_of(model: nn.Module, hidden: Tensor, words: Sequence[int]) -> Tensor:
    """Logits [B, V], fp32, of hidden states [B, d]. Those of the `words` (ids) are multiplied in fp32: a bf16 product
    comes in steps of 1/8 from 16 on, and so would the difference of two of them."""
    rows = base_of(model).lm_head.weight
    exact = torch.tensor(words, device=rows.device)
    logits = F.linear(hidden, rows).float()
    return logits.index_copy(1, exact, F.linear(hidden.float(), rows[exact].float()))


@torch.no_grad()
def answers_to_all(
    model: nn.Module, media: Batch, tails: Sequence[Sequence[int]], words: Sequence[int], most: int | None = None
) -> list[Tensor]:
    """Logits [B, V] for each question about the same clips: the media are read once, and all questions go on from there
    in one pass, side by side: each sees the media and itself.

    media: `FrontEnd.media`. tails: the ids after the media, a list for each question. words: of `logits_of`. most:
    pixels of the view.
    """
    base = base_of(model)
    check_inputs(media, base.config.audio_token_id, use_audio_in_video=True, most=most)
    media = _on(media, base)
    read = base.model(**media, use_audio_in_video=True, use_cache=True).past_key_values
    asked = torch.tensor([token for tail in tails for token in tail], device=media["input_ids"].device)  # [m]
    embedded = base.model.get_input_embeddings()(asked).expand(len(media["input_ids"]), -1, -1)  # [B, m, d]
    mask = _side_by_side(media["attention_mask"], tails, embedded.dtype)
    hidden = base.model.language_model(
        inputs_embeds=embedded, position_ids=_positions_after(base, media, tails), past_key_values=read,
        attention_mask=dict.fromkeys(("full_attention", "sliding_attention"), mask), use_cache=True,
    ).last_hidden_state  # fmt: skip
    ends = torch.tensor([len(tail) for tail in tails]).cumsum(0) - 1
    return [logits_of(model, hidden[:, end], words) for end in ends.tolist()]


def _positions_after(base: nn.Module, media: Batch, tails: Sequence[Sequence[int]]) -> Tensor:
    """Positions [3, B, m] of questions that all begin where the media end."""
    heard, grids = media["feature_attention_mask"].sum(-1), media["video_second_per_grid"]
    arguments = (media["input_ids"], None, media["video_grid_thw"], media["attention_mask"], True, heard, grids)
    first = base.model.get_rope_index(*arguments)[0].amax((0, 2)) + 1  # [B]
    steps = torch.cat([torch.arange(len(tail)) for tail in tails]).to(first)
    return (first[:, None] + steps).expand(3, -1, -1)


def _side_by_side(read: Tensor, tails: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
    """Mask [B, 1, m, n + m], 0 where a token may look and the least number where not: the media that are no padding
    (`read` [B, n]), and what came before in its own question."""
    own = torch.block_diag(*[torch.ones(len(tail), len(tail)).tril() for tail in tails]).bool().to(read.device)
    seen = torch.cat([read.bool()[:, None].expand(-1, len(own), -1), own.expand(len(read), -1, -1)], 2)
    return torch.zeros(seen.shape, dtype=dtype, device=read.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _on(batch: Batch, model: nn.Module) -> Batch:
    weight = model.lm_head.weight
    floats = ("pixel_values_videos", "input_features")
    return {n: t.to(weight.device, weight.dtype if n in floats else None) for n, t in batch.items()}
