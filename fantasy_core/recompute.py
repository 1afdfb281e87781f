"""Activation checkpointing: what a block keeps for the backward pass, and what is computed again there."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from .errors import UserError

CHECKPOINTING = ("none", "blocks", "attention")
ATTENTION = {  # what attention is to torch, by device and backend; elsewhere `attention` is `blocks`
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward",
}


def run_block(block: nn.Module, *args, checkpointing: str) -> Tensor:
    """block(*args), of which the backward pass finds

    - `none`: everything it needs;
    - `blocks`: the input of the block, from which all of it is computed again;
    - `attention`: also the result of self-attention. One more tensor like the block's input is kept, and the half of a
      block's work that is self-attention at 81 frames is not done twice. Attention to text, image and audio is computed
      again: it has some hundred keys instead of 32,760, so its results cost as much memory and save next to nothing.

    Gradients are those of `none`. Raises UserError for another word.
    """
    if checkpointing not in CHECKPOINTING:
        raise UserError(
            "there is no such checkpointing",
            got=repr(checkpointing),
            expected=", ".join(CHECKPOINTING),
            do="use blocks where memory is short",
        )
    if checkpointing == "none" or not torch.is_grad_enabled():
        return block(*args)
    contexts = noop_context_fn
    if checkpointing == "attention":
        contexts = partial(create_selective_checkpoint_contexts, keep_self_attention)
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def keep_self_attention(context, op, *args, **kwargs) -> CheckpointPolicy:
    """Whether what an operation returns is kept: attention with as many keys as queries is the video's to itself."""
    kept = op.name() in ATTENTION and args[0].shape == args[1].shape
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
