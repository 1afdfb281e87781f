"""Our layers on ComfyUI's native Wan model, against the plain core on the same weights (fp32, a tiny I2V model).

One ComfyUI process runs all cases (`inside_comfyui/native_cases.py`); each test compares some of them.
"""

from __future__ import annotations

import pytest
import torch
from comfyui import inside_comfyui
from native_wan import CONFIG, METADATA, NAMES, base_state, native_bank, native_dit, native_gate, quantised, write_files
from safetensors.torch import save_file
from small_experts import random_expert

from fantasy_core.audio import AudioTokens
from fantasy_core.experts import ExpertBank
from fantasy_core.fusion import attach
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS
from fantasy_core.gate import Beside
from fantasy_core.manual_gates import manual_gate

pytestmark = pytest.mark.comfy
STRATEGIES = ("stacked", "merged", "auto")
LIMIT = 5e-5  # of the issue: fp32, velocities of about 1


@pytest.fixture(scope="module")
def given() -> dict[str, torch.Tensor]:
    """Two samples of unlike timesteps and audio scales, five latent frames of 4 x 4 tokens."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "latents": random(2, 16, 5, 8, 8), "condition": random(2, 20, 5, 8, 8), "text": random(2, 7, CONFIG.text_dim),
        "clip": random(2, 257, CONFIG.clip_dim), "tokens": random(2, 5, 6, CONFIG.audio_token_dim),
        "lengths": torch.tensor([[2, 6, 6, 5, 1], [6, 3, 6, 6, 4]]), "scale": torch.tensor([1.0, 0.3]),
        "timestep": torch.tensor([987.3, 12.5]), "alike": torch.tensor([500.5, 500.5]),
        "frames": torch.tensor([[0.0, 300, 500, 700, 999], [900, 20, 20, 400, 100]]),
        "face_mask": torch.rand(2, 1, 5, 4, 4, generator=generator),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(given, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("native")
    write_files(folder)
    save_file(base_state(native_dit(seed=1)), folder / "other.safetensors", METADATA)
    stored, _ = quantised(base_state(native_dit()))
    save_file(stored, folder / "int8.safetensors", METADATA)
    torch.save(given, folder / "inputs.pt")
    return inside_comfyui("native_cases", folder, folder)


@torch.no_grad()
def expected(given, *, audio=False, bank=None, gate=None, seed=0, weights=None, **replaced) -> torch.Tensor:
    """The core's velocity."""
    told, dit = {**given, **replaced}, native_dit(seed)
    if weights is not None:
        dit.load_state_dict(weights, strict=False)
    keys = ("latents", "timestep", "text", "condition", "clip")
    heard = AudioTokens(told["tokens"], told["lengths"]) if audio else None

    def run():
        return dit(**{key: told[key] for key in keys}, audio=heard, audio_scale=told["scale"])

    if bank is None:
        return run()
    with attach(dit, bank, gate, "naive"):
        return run()


def with_gate(given, **kw) -> torch.Tensor:
    dit = native_dit()
    return expected(given, bank=native_bank(dit), gate=native_gate(dit), **kw)


def steady(given, text: str, names=NAMES, **kw) -> torch.Tensor:
    bank = native_bank(native_dit())
    bank = ExpertBank.stack([bank.expert(name) for name in names], native_dit())
    gate = manual_gate(text, names, CONFIG.num_layers, torch.linspace(1, 0, 5).double())
    return expected(given, bank=bank, gate=gate, **kw)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def test_the_base_and_the_voice(found, given):
    """Rows of one batch hear at their own scale; a MODEL that could hear and hears nothing is the base bit for bit."""
    assert apart(found["base"], expected(given)) < LIMIT
    voice = expected(given, audio=True)
    assert apart(found["audio"], voice) < LIMIT and apart(voice, found["base"]) > 0.05
    assert torch.equal(found["audio, not heard"], found["base"])


def test_a_face_mask_limits_the_voice(found, given):
    """Each token's voice is weighed by the mask's mean over it: here the mask has one value a token."""
    dit, seen = native_dit(), given["face_mask"].flatten(1)[..., None]  # [B, S, 1]
    for block in dit.blocks:
        block.cross_attn.processor.register_forward_hook(lambda module, args, heard: heard * seen)
    heard = AudioTokens(given["tokens"], given["lengths"])
    keys = ("latents", "timestep", "text", "condition", "clip")
    with torch.no_grad():
        masked = dit(**{key: given[key] for key in keys}, audio=heard, audio_scale=given["scale"])
    assert apart(found["face"], masked) < LIMIT and apart(masked, found["audio"]) > 0.01


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_experts_and_gate(found, given, strategy):
    """Samples of unlike timesteps are weighed by themselves; of one timestep, `merged` merges; either order of nodes,
    and experts of the audio linears, which lie in the adapter."""
    dit = native_dit()
    own = ExpertBank.stack([random_expert(dit, n, r, seed=i, linears=LINEARS + AUDIO_LINEARS) for i, (n, r) in
                            enumerate(zip(NAMES, (4, 2, 3), strict=True))], dit)  # fmt: skip
    without = ExpertBank.stack(
        [type(e)(e.name, {a: p for a, p in e.pairs.items() if not a.endswith(AUDIO_LINEARS)}) for e in
         map(own.expert, NAMES)], dit)  # fmt: skip
    ones = Beside(None, dict.fromkeys(NAMES, 1.0), CONFIG.num_layers)
    assert apart(found[f"experts {strategy}"], expected(given, bank=without, gate=ones)) < LIMIT
    assert apart(found[f"gate {strategy}"], with_gate(given)) < LIMIT
    assert apart(found["base"], with_gate(given)) > 0.05
    both = with_gate(given, audio=True)
    assert apart(found[f"audio, then experts {strategy}"], both) < LIMIT
    assert apart(found[f"experts {strategy}, then audio"], both) < LIMIT
    one = with_gate(given, audio=True, timestep=given["alike"])
    assert apart(found[f"one timestep {strategy}"], one) < LIMIT


def test_strength_multiplies_what_the_gate_says(found, given):
    dit, gate = native_dit(), native_gate(native_dit())

    def half(t_emb, timestep):
        return 0.5 * gate(t_emb, timestep)

    half.names, half.num_blocks = NAMES, CONFIG.num_layers
    assert apart(found["strength"], expected(given, bank=native_bank(dit), gate=half)) < LIMIT


def test_a_timestep_for_each_frame(found, given):
    """Equal ones are one timestep; unlike ones are Eq. 3 and 4 written out frame by frame."""
    one = with_gate(given, audio=True, timestep=given["alike"])
    assert apart(found["equal frames"], one) < LIMIT
    assert apart(found["frames"], found["frames, written out"]) < LIMIT
    assert apart(found["frames merged"], found["frames, written out"]) < LIMIT  # cannot be merged, and is not
    assert apart(found["frames"], found["gate stacked"]) > 0.05


def test_nothing_stays_behind(found):
    assert torch.equal(found["silent gate"], found["base"])
    assert torch.equal(found["base at last"], found["base"])
    assert found["left behind"] == 0
    for case in ("clones", "after an idle clone went", "after all went", "first beside it", "after unloading",
                 "base after LoRAs"):  # fmt: skip
        assert not found[case].any(), case


def test_two_sets_of_experts_at_once(found, given):
    bank = native_bank(native_dit())
    pair = ExpertBank.stack([bank.expert("mn"), bank.expert("vq")], native_dit())
    gate = manual_gate("constant:0.5,0.7", ("mn", "vq"), CONFIG.num_layers, torch.linspace(1, 0, 5).double())
    assert apart(found["two sets"], expected(given, bank=pair, gate=gate)) < LIMIT


def test_a_second_model(found, given):
    dit = native_dit()
    assert apart(found["second model"], expected(given, bank=native_bank(dit), gate=_gate_of(1), seed=1)) < LIMIT


def _gate_of(seed: int):
    """The gate's weights are the same on another base; its t_emb is that base's."""
    return native_gate(native_dit(seed))


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
@pytest.mark.parametrize("kind", ["stock", "bypass"])
def test_beside_comfyuis_own_loras(found, given, strategy, kind):
    """A LoRA of 0.6 patched into the weights, or beside them, before or after: the core with a fourth expert."""
    dit = native_dit()
    bank, static = native_bank(dit), random_expert(dit, "static", 3, seed=77)
    four = ExpertBank.stack([*map(bank.expert, NAMES), static], dit)
    together = expected(given, bank=four, gate=Beside(native_gate(dit), {"static": 0.6}, CONFIG.num_layers))
    assert apart(found[f"{kind}, {strategy}"], together) < LIMIT
    assert apart(found[f"{strategy}, {kind}"], together) < LIMIT


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_narrow_storage(found, given, strategy, kind):
    """Weights stored in bf16 or fp8 and computed in fp32: the core with what ComfyUI stored."""
    stored = found[f"{kind} weights"]
    assert 0 < apart(stored["blocks.0.ffn.0.weight"], native_dit().blocks[0].ffn[0].weight) < 0.05
    assert apart(found[f"{kind} {strategy}"], with_gate(given, audio=True, weights=stored)) < LIMIT


def test_int8(found, given):
    """ComfyUI rounds activations to int8 as well, so the base differs from exact by some percent, and the experts'
    change is compared: it acts on ffn.2 too, which is never called as a module there."""
    assert found["int8 calls"] == 0, "ffn.2 was called: this case has nothing to prove"
    _, meant = quantised(base_state(native_dit()))
    exact = with_gate(given, weights=meant) - expected(given, weights=meant)
    noise = apart(found["int8 base"], expected(given, weights=meant))
    for strategy in ("auto", "merged"):
        change = found[f"int8 {strategy}"] - found["int8 base"]
        assert apart(change, exact) < 2 * noise, strategy  # of two runs with that noise
        assert alike(change, exact) > 0.95, strategy
    tails = found["int8 ffn.2 alone"] - found["int8 base"], found["ffn.2 alone"] - found["base"]
    assert alike(*tails) > 0.9 and 0.9 < tails[0].norm() / tails[1].norm() < 1.1


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_weights_in_host_memory(found, given, strategy):
    assert apart(found[f"lowvram {strategy}"], with_gate(given, audio=True)) < LIMIT


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_torch_compile(found, strategy):
    """Base, experts, experts, base, experts, base at several sigmas, compiled (eager backend), against the same
    models uncompiled."""
    assert found[f"compiled {strategy}"].max() < LIMIT
