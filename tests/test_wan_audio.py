"""FantasyTalking's audio branch against loops written from its definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_dits import TINY, audio_tokens, inputs, random_dit
from torch import nn

from fantasy_core.audio import AudioTokens
from fantasy_core.wan import WanDiT


def naive_audio(processor: nn.Module, q: torch.Tensor, audio: AudioTokens, num_heads: int) -> torch.Tensor:
    """FantasyTalking's audio attention for q [B, S, D]: per sample, frame and head, over the real rows only."""
    out, width = torch.zeros_like(q), q.shape[2] // num_heads
    frames, per_frame = audio.tokens.shape[1], q.shape[1] // audio.tokens.shape[1]
    for b in range(q.shape[0]):
        for f in range(frames):
            rows = audio.tokens.shape[2] if audio.lengths is None else int(audio.lengths[b, f])
            k = audio.tokens[b, f, :rows] @ processor.k_proj.weight.T
            v = audio.tokens[b, f, :rows] @ processor.v_proj.weight.T
            seen = slice(f * per_frame, (f + 1) * per_frame)
            for head in range(num_heads):
                part = slice(head * width, (head + 1) * width)
                weights = torch.exp(q[b, seen, part] @ k[:, part].T / math.sqrt(width))
                out[b, seen, part] = weights / weights.sum(1, keepdim=True) @ v[:, part]
    return out


def add_naive_audio(dit: WanDiT, audio: AudioTokens, scale: float) -> None:
    """Hooks: what norm_q of a cross-attention returns is the query; what `o` receives gets the scaled audio."""
    for block in dit.blocks:
        attention, seen = block.cross_attn, {}
        attention.norm_q.register_forward_hook(lambda module, args, out, seen=seen: seen.update(q=out))
        attention.o.register_forward_pre_hook(
            lambda module, args, attention=attention, seen=seen: (
                args[0] + scale * naive_audio(attention.processor, seen["q"], audio, dit.config.num_heads),
            )
        )


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_audio_equals_naive_loops(masked):
    given, audio = inputs(TINY), audio_tokens(TINY)
    audio = audio if masked else AudioTokens(audio.tokens, None)
    expected = random_dit(TINY)
    add_naive_audio(expected, audio, 0.7)
    dit = random_dit(TINY)
    ours = dit(**given, audio=audio, audio_scale=0.7)
    assert (ours - expected(**given)).abs().max() <= 2e-5
    assert (ours - dit(**given)).abs().max() > 0.1  # the audio matters


@torch.no_grad()
def test_masked_rows_are_never_seen_and_unmasked_zeros_dilute():
    dit, given, audio = random_dit(TINY), inputs(TINY), audio_tokens(TINY)
    padding = torch.arange(7) >= audio.lengths[:, :, None]
    spoiled = AudioTokens(audio.tokens + 100.0 * padding[..., None], audio.lengths)
    masked = dit(**given, audio=audio)
    assert torch.equal(masked, dit(**given, audio=spoiled))
    assert (masked - dit(**given, audio=AudioTokens(audio.tokens, None))).abs().max() > 0.01


@torch.no_grad()
def test_a_latent_frame_hears_its_own_window_only():
    """In a model of one block nothing after the audio mixes frames: new tokens for frame 1 change frame 1 alone."""
    dit, given, audio = random_dit(replace(TINY, num_layers=1)), inputs(TINY), audio_tokens(TINY)
    changed = AudioTokens(audio.tokens.clone(), audio.lengths)
    changed.tokens[:, 1] += torch.randn(2, 1, TINY.audio_token_dim)
    difference = (dit(**given, audio=audio) - dit(**given, audio=changed)).abs().amax((0, 1, 3, 4))
    assert difference[1] > 0.01
    assert difference[0] == difference[2] == 0


@torch.no_grad()
def test_audio_scale():
    """[B] scales each sample as separate calls do; 0, as a number or in a tensor, is exactly no audio."""
    dit, given, audio = random_dit(TINY), inputs(TINY), audio_tokens(TINY)
    silent = dit(**given)
    both = dit(**given, audio=audio, audio_scale=torch.tensor([0.0, 2.5]))
    assert torch.equal(both[0], silent[0])
    assert (both[1] - dit(**given, audio=audio, audio_scale=2.5)[1]).abs().max() <= 1e-5
    assert torch.equal(dit(**given, audio=audio, audio_scale=0), silent)
    assert torch.equal(dit(**given, audio=audio, audio_scale=torch.zeros(2)), silent)


def test_training_starts_silent_and_still_learns_audio():
    """Fresh weights: velocity 0 (zero head); with another head, audio changes nothing yet, yet v_proj can learn."""
    dit, given, audio = WanDiT(TINY), inputs(TINY), audio_tokens(TINY)
    assert not dit(**given).any()
    nn.init.normal_(dit.head.head.weight)
    out = dit(**given, audio=audio)
    assert torch.equal(out, dit(**given))
    out.square().mean().backward()
    assert dit.blocks[0].cross_attn.processor.v_proj.weight.grad.abs().max() > 0
