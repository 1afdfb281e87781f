"""Talking-Critic under ComfyUI's memory manager: loaded whole or not at all, freed when others need the room."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

from ..fantasy_core.critic.asked import Views
from ..fantasy_core.critic.critic import Answer, Critic, Score, combine
from ..fantasy_core.critic.in_memory import digest
from ..fantasy_core.critic.shown import Shown
from ..fantasy_core.critic.thinker import base_of

REMEMBERED = 2048  # views of clips; a few hundred bytes each
_answers: OrderedDict[tuple, list[Answer]] = OrderedDict()


class TalkingCriticModel(nn.Module):
    """A plain module around transformers' model, whose `device` is read-only: ComfyUI sets that of what it manages."""

    def __init__(self, thinker: nn.Module):
        super().__init__()
        self.thinker = thinker


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """All or nothing: transformers' linears cannot cast weights that lie elsewhere, so there is no half of it."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False) -> None:
        self.model.to(device_to)
        self.model.device = device_to
        self.model.model_loaded_weight_memory = self.model_size()
        self.model.model_lowvram = False
        self.model.current_weight_patches_uuid = self.patches_uuid

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False) -> int:
        return 0  # bytes freed: ComfyUI then takes the whole

    def __del__(self):
        if not sys.is_finalizing():  # ComfyUI's own would import what is gone by then
            super().__del__()


class ManagedCritic:
    """What goes from node to node as TALKING_CRITIC."""

    def __init__(self, critic: Critic):
        self.critic = critic
        self.patcher = WholePatcher(
            TalkingCriticModel(critic.model),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def made_by(self, views: Views) -> dict[str, str]:
        """What its scores are scores of: compared only where these are equal. views: as the clip was shown in them."""
        return {"critic": self.critic.hash, "views": views.hash, "preset": views.preset}

    def score(
        self,
        windows: Mapping[str, Sequence[Shown]],
        dimensions: Sequence[str],
        done: Callable[[int, int], None] = lambda read, windows: None,
    ) -> Score:
        """The score of a clip. done: called with how many of how many windows have been read. Stops between windows
        where the user says so; views that were read whole are remembered, by what was shown in them."""
        by_view, answers = self.critic.by_view(dimensions), []
        total = sum(len(windows[view]) for view in by_view)
        weight = next(self.patcher.model.parameters())
        for view, asked in by_view.items():
            shown = {view: windows[view]}
            key = (digest(shown), self.critic.hash, self.critic.views.hash, weight.dtype, tuple(asked))
            if key not in _answers:
                read = len(answers)
                _answers[key] = self._read(shown, asked, lambda count, before=read: done(before + count, total))
            _answers.move_to_end(key)
            answers += _answers[key]
            done(len(answers), total)
        while len(_answers) > REMEMBERED:
            _answers.popitem(last=False)
        return combine(answers, dimensions, self.critic.taught)

    def _read(
        self, shown: Mapping[str, Sequence[Shown]], asked: Sequence[str], done: Callable[[int], None]
    ) -> list[Answer]:
        """The answers to each window of one view."""
        needed = memory_for(self.critic.model, max(one.tokens for one in chain(*shown.values())))
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)
        comfy.model_management.throw_exception_if_processing_interrupted()
        answers = []
        for answer in self.critic.answers(shown, asked):
            answers.append(answer)
            done(len(answers))
            comfy.model_management.throw_exception_if_processing_interrupted()
        return answers


def memory_for(model: nn.Module, tokens: int) -> int:
    """About how many bytes reading so many tokens takes beside the weights: a generous estimate, 2.4 GiB for 4.3
    thousand of the 7B in bf16.

    Of the language model a block's states and the keys and values of all of them, twice for questions that share a
    reading; of the visual encoder four patches a token.
    """
    config, bytes_each = base_of(model).config, next(model.parameters()).element_size()
    text, sight = config.get_text_config(), config.vision_config
    kept = text.num_hidden_layers * 2 * text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    block = 4 * text.intermediate_size + 12 * text.hidden_size + 2 * kept
    patch = 4 * sight.intermediate_size + 12 * sight.hidden_size
    pixels = sight.in_channels * sight.temporal_patch_size * sight.patch_size**2 * torch.float32.itemsize
    return tokens * (bytes_each * (block + 4 * patch) + 4 * pixels)
