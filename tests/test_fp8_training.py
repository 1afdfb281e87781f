"""Training on a base that stays in fp8: what a base of the dequantised weights gives, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from eq4 import random_gate
from layouts import CONFIG, tiny_dit, write_comfy_dit, write_fantasytalking_ckpt
from small_dits import audio_tokens, inputs
from small_experts import random_bank
from test_cache import write_clip
from test_components import SIZES, models  # noqa: F401
from test_train_preferences import log_of

from fantasy_core import offload
from fantasy_core.fp8_linear import FP8, Fp8Linear
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, attach, host_of
from fantasy_core.pair_rules import Pair
from fantasy_core.wan import WanDiT
from fantasy_core.weights import load_dit, load_fantasytalking, tensors_hash
from train import cache as cache_stage
from train import expert as expert_stage
from train.cache import CacheSettings, components_of
from train.run import write_rows

FORMS = ("fp8", "e5m2", "scaled", "comfy_quant", "rows")  # of a file: plain casts, one scale, one scale a row
THREE = replace(CONFIG, num_layers=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One transformer with audio in every form."""
    folder, dit = tmp_path_factory.mktemp("fp8"), tiny_dit(THREE)
    for form in FORMS:
        write_comfy_dit(folder / f"{form}.safetensors", dit, form)
    return folder


def fp8_linears(dit: WanDiT) -> list[Fp8Linear]:
    return [module for module in dit.modules() if isinstance(module, Fp8Linear)]


@pytest.mark.parametrize("form", FORMS)
def test_the_base_is_stored_as_the_file_has_it(files, form):
    """All 14 linears of every block, and nothing else, in one byte a number; no cast touches them, and what they
    compute is what the dequantised weights do."""
    kept, plain = (
        load_dit(files / f"{form}.safetensors", dtype=torch.bfloat16, fp8=how) for how in ("kept", "dequantised")
    )
    assert len(fp8_linears(kept)) == 3 * 14 and not fp8_linears(plain)
    before = tensors_hash(kept.state_dict())
    kept.half().to(torch.float32).bfloat16()
    assert all(linear.weight.dtype in FP8 for linear in fp8_linears(kept))
    given = inputs(THREE, 1) | {"audio": audio_tokens(THREE, 1)}
    with torch.no_grad():
        assert torch.equal(kept(**given), plain(**given))
    assert tensors_hash(kept.state_dict()) == before


def gradients(dit: WanDiT, trained: str, offloaded: bool) -> list[torch.Tensor]:
    """Of the gate, or of an fp32 expert on all 14 linears."""
    torch.manual_seed(0)
    names = ("mn", "ls", "vq") if trained == "gate" else ("mn",)
    generator = tiny_dit(THREE)  # experts of one size, whatever the base is stored in
    bank = random_bank(generator, (2,) * len(names), names, linears=LINEARS + AUDIO_LINEARS)
    gate = random_gate(generator, bank, "block").requires_grad_(trained == "gate")
    bank.requires_grad_(trained == "expert")
    parameters = [p for part in (gate, bank) for p in part.parameters() if p.requires_grad]
    given = inputs(THREE, 1) | {"audio": audio_tokens(THREE, 1)}
    with offload.blocks(dit, "cpu") if offloaded else nullcontext(), attach(dit, bank, gate, "stacked"):
        found = torch.autograd.grad(dit(**given).square().mean(), parameters)
    assert all(gradient.any() and gradient.dtype == torch.float32 for gradient in found)
    return list(found)


@pytest.mark.parametrize("trained", ["gate", "expert"])
@pytest.mark.parametrize(
    ("form", "dtype"), [("fp8", torch.bfloat16), ("scaled", torch.float32), ("rows", torch.bfloat16)]
)
def test_gradients_are_those_of_the_dequantised_base(files, form, trained, dtype):
    """Everything kept, and attention kept with blocks offloaded: the same bits; the stored bytes are untouched."""
    expected = gradients(load_dit(files / f"{form}.safetensors", dtype=dtype), trained, False)
    dit = load_dit(files / f"{form}.safetensors", dtype=dtype, fp8="kept")
    before = tensors_hash(dit.state_dict())
    for checkpointing, offloaded in (("none", False), ("attention", True)):
        dit.checkpointing = checkpointing
        assert all(map(torch.equal, gradients(dit, trained, offloaded), expected))
    assert tensors_hash(dit.state_dict()) == before


def test_no_dequantised_weight_waits_for_the_backward_pass(files):
    """Of a linear, autograd saves the stored weight and its scale: nothing is as wide as the input's dtype."""
    dit, seen = load_dit(files / "scaled.safetensors", dtype=torch.float32, fp8="kept"), []
    linear = fp8_linears(dit)[0]
    x = torch.randn(5, linear.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        linear(x)
    assert {t.data_ptr() for t in seen} == {linear.weight.data_ptr(), linear.scale_weight.data_ptr()}


def test_audio_linears_that_come_separately_are_in_the_dtype_of_the_computation(files, tmp_path):
    """FantasyTalking's own file is not fp8: its linears are installed in what the transformer computes in."""
    write_comfy_dit(tmp_path / "wan.safetensors", tiny_dit(THREE, audio=False), "fp8")
    dit = load_dit(tmp_path / "wan.safetensors", dtype=torch.bfloat16, fp8="kept")
    load_fantasytalking(write_fantasytalking_ckpt(tmp_path / "ft.ckpt", tiny_dit(THREE)), dit)
    linears = host_of(dit).linears
    assert {linears[f"blocks.1.{name}"].weight.dtype for name in AUDIO_LINEARS} == {torch.bfloat16}
    assert {linears[f"blocks.1.{name}"].weight.dtype for name in LINEARS} == {torch.float8_e4m3fn}


@pytest.mark.slow
def test_wan_in_fp8_through_the_commands(models, tmp_path):  # noqa: F811
    """An fp8 file of Wan2.1 with FantasyTalking's, two clips cached and compared: the base of 2 blocks keeps its 12
    linears in fp8, in bf16 the first margin is 0, and with offloaded blocks the run is the same."""
    write_comfy_dit(models / "wan" / "wan2.1_fp8.safetensors", tiny_dit(SIZES, audio=False), "scaled")
    for seed in range(2):
        write_clip(tmp_path / f"v{seed}.mp4", seed)
    rows = [f'{{"video": "v{seed}", "input": "i", "path": "v{seed}.mp4"}}\n' for seed in range(2)]
    (tmp_path / "videos.jsonl").write_text("".join(rows))
    write_rows(tmp_path / "pairs.jsonl", [Pair("v0", "v1", "i", "mn", 1.0, "train")])
    files = {"wan": models / "wan" / "wan2.1_fp8.safetensors", "fantasytalking": models / "fantasytalking_model.ckpt"}
    files |= {"wav2vec": models / "wav2vec"}
    base = ["--model", "wan2.1-i2v-14b", *(part for name, path in files.items() for part in (f"--{name}", str(path)))]
    cache = str(tmp_path / "cache")
    assert cache_stage.main(["--videos", str(tmp_path / "videos.jsonl"), "--out", cache, *base]) == 0
    with components_of(CacheSettings(out=tmp_path, model="wan2.1-i2v-14b", **files)).dit() as dit:
        assert len(fp8_linears(dit)) == 2 * 12
    told = ["--pairs", str(tmp_path / "pairs.jsonl"), "--cache", cache, "--dimension", "mn", *base]
    told += ["--iterations", "2", "--batch", "1", "--rank", "2", "--beta", "50", "--lr", "1e-3", "--dtype", "bf16"]
    for out, more in (("plain", []), ("less", ["--checkpointing", "attention", "--offload", "blocks"])):
        assert expert_stage.main([*told, "--out", str(tmp_path / out), *more]) == 0
    log = log_of(tmp_path / "less")
    assert log[0]["margin"] == 0 and log[0]["grad_norm"] > 0 and log == log_of(tmp_path / "plain")
