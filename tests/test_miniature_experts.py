"""The experts and the gate that come with the miniature: they fit its base and one another, and are small."""

from __future__ import annotations

import pytest
import torch

from fantasy_core.experts import ExpertBank
from fantasy_core.fusion import attach
from fantasy_core.gate_files import base_warning, load_gate
from fantasy_core.miniature import load_components
from fantasy_core.miniature.components import WEIGHTS
from fantasy_core.pair_rules import DIMENSIONS
from fantasy_core.weights import open_tensors

EXPERTS = {dimension: WEIGHTS / f"{dimension}.safetensors" for dimension in DIMENSIONS}


def test_they_are_small():
    """With their twins for the audio linears and the gate, 6 MB at most."""
    files = [*EXPERTS.values(), *(WEIGHTS / f"{d}.audio.safetensors" for d in DIMENSIONS), WEIGHTS / "gate.safetensors"]
    assert sum(file.stat().st_size for file in files) <= 6e6


def test_they_say_what_they_are():
    """One for each dimension, trained on this very base."""
    for dimension, file in EXPERTS.items():
        told = open_tensors(file).metadata
        assert told["tlpo.dimension"] == dimension and told["tlpo.weights"] == load_components().fingerprint
        assert told["tlpo.mask"] == ("lips" if dimension == "ls" else "none")


def test_they_fit_base_and_gate_and_change_what_it_says():
    """The gate names these experts by their hashes, or it would be refused; together they move the velocity, each
    by itself as well, and leave the base as it was."""
    components = load_components()
    with components.dit() as dit, torch.no_grad():
        bank = ExpertBank.load(EXPERTS, dit)
        gate = load_gate(WEIGHTS / "gate.safetensors", hashes=bank.hashes, host=dit)
        assert base_warning(gate, dit) is None
        generator = torch.Generator().manual_seed(0)
        latents, condition = (torch.randn(1, c, 3, 8, 8, generator=generator) for c in (16, 20))
        given = (latents, torch.tensor([900.0]), torch.zeros(1, 1, dit.config.text_dim))
        alone = dit(*given, condition=condition)
        with attach(dit, bank, gate, "auto"):
            together = dit(*given, condition=condition)
        again = dit(*given, condition=condition)
    assert torch.equal(alone, again)
    change = float((together - alone).norm() / alone.norm())
    assert 1e-3 < change < 1, change


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_every_expert_counts(dimension):
    """The gate's weights of none are zero everywhere."""
    table = open_tensors(WEIGHTS / "gate.safetensors").entries["table"].read()  # [1001, J, M, E]
    assert table[..., DIMENSIONS.index(dimension)].abs().max() > 0.1
