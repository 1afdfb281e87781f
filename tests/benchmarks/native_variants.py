"""What bench_comfyui.py compares: a native Wan model with random weights, alone and with three LoRAs in every way."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass, field, replace
from statistics import median

import comfy.clip_vision
import comfy.hooks
import comfy.model_management
import comfy.samplers
import comfy.sd
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic
from torch import Tensor

NAMES, RANK, CHANGE = ("mn", "ls", "vq"), 128, 0.05  # a LoRA changes what a linear puts out by this part
TABLE = """step block mn  ls  vq
           0    {low}  0.9 0.1 0.5
           0    {high} 0.4 0.7 0.2
           29   {low}  0.2 0.8 0.6
           29   {high} 0.6 0.3 0.9"""


@dataclass(frozen=True)
class Preset:
    """Sizes that differ from Wan2.1-I2V-14B's, rows of CLIP, latent sizes (frames, height, width) to measure with the
    calls in a turn of each."""

    sizes: dict[str, int]
    clip: int
    latents: dict[tuple[int, int, int], int]
    dtype: torch.dtype


SMALL = {"dim": 1024, "ffn_dim": 4096, "num_heads": 8, "num_layers": 2, "text_dim": 64, "text_len": 96}
PRESETS = {
    "small": Preset(SMALL, 48, {(15, 32, 32): 2, (15, 16, 16): 4}, torch.float32),
    "14b": Preset({}, 257, {(21, 64, 64): 2}, torch.bfloat16),
}


@dataclass
class Variant:
    """A MODEL, the LoRAs that its prompt brings as hooks, and what was measured: seconds of every round, bytes, the
    result."""

    model: object
    hooked: tuple[dict[str, Tensor], ...] = ()
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    result: Tensor | None = None


def random_state(dit: torch.nn.Module, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights for the names of a model. All blocks share the first one's: 14 billion numbers are long in the making."""
    state = {}
    for name, meant in dit.named_parameters():
        first = re.sub(r"^blocks\.\d+", "blocks.0", name)
        if first not in state:
            scale = 0.2 if meant.ndim == 1 or "modulation" in name else meant[0].numel() ** -0.5
            drawn = torch.randn(meant.shape, device=device, dtype=dtype) * scale
            state[first] = drawn + (".norm" in name and name.endswith("weight"))
        state[name] = state[first]
    return state


def native_model(pack, preset: Preset, device: str):
    """The MODEL and its sizes."""
    wan = pack("fantasy_core.wan")
    config = replace(wan.PRESETS["wan2.1-i2v-14b"], audio_dim=0, audio_token_dim=0, **preset.sizes)
    with torch.device("meta"):
        dit = wan.WanDiT(config)
    told = {"config": json.dumps({"transformer": {"text_dim": config.text_dim}})}
    state, options = random_state(dit, device, preset.dtype), {"dtype": preset.dtype}
    return comfy.sd.load_diffusion_model_state_dict(state, model_options=options, metadata=told), config


def random_expert(pack, linears: dict[str, torch.nn.Linear], name: str, preset: Preset, device: str):
    """An expert on every linear, the same in all blocks."""
    files, first = pack("fantasy_core.expert_files"), {}
    for address, linear in linears.items():
        kind = address.split(".", 2)[2]
        if kind not in first:
            size_out, size_in = linear.weight.shape
            A = torch.randn(RANK, size_in, device=device) * size_in**-0.5
            B = torch.randn(size_out, RANK, device=device) * CHANGE * RANK**-0.5
            first[kind] = files.LowRank(A.to("cpu", preset.dtype), B.to("cpu", preset.dtype))
    return files.Expert(name, {address: first[address.split(".", 2)[2]] for address in linears})


def lora_of(expert) -> dict[str, Tensor]:
    """The expert as the file that the stock loaders read."""
    down = {f"diffusion_model.{address}.lora_A.weight": pair.A for address, pair in expert.pairs.items()}
    return down | {f"diffusion_model.{address}.lora_B.weight": pair.B for address, pair in expert.pairs.items()}


def patched(model, loras):
    """The stock way: LoRAs of fixed strength, patched into the weights when the model is loaded."""
    for lora in loras:
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0)
    return model


def scheduled(loras, calls: int) -> comfy.hooks.HookGroup | None:
    """The stock way with keyframes: another strength at every step, patched into the weights there and then."""
    groups = []
    for number, lora in enumerate(loras):
        group, keyframes = comfy.hooks.create_hook_lora(lora, 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
        for call in range(calls):
            strength = 0.2 + 0.3 * ((number + call) % len(NAMES))
            keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=call / calls))
        group.set_keyframes_on_hooks(keyframes)
        groups.append(group)
    return comfy.hooks.HookGroup.combine_all_hooks(groups)


def gated(pack, model, experts, blocks: int, strategy: str):
    """Ours, with a gate that differs by block and step."""
    nodes, half = pack("nodes.expert_nodes"), blocks // 2
    table = TABLE.format(low=f"0-{half - 1}", high=f"{half}-{blocks - 1}")
    gate = nodes.GateSource(f"table:{table}\n", pack("fantasy_core.flow").schedule(30, 5.0))
    chosen = tuple(nodes.ChosenExpert(expert, 1.0) for expert in experts)
    return nodes.ApplyGatedExperts.execute(model, chosen, strategy, gate).result[0]


def all_variants(pack, model, blocks: int, preset: Preset, device: str) -> dict[str, Variant]:
    linears = pack("nodes.patcher").native_host(model).linears
    experts = [random_expert(pack, linears, name, preset, device) for name in NAMES]
    loras = [lora_of(expert) for expert in experts]
    ours = {f"ours, {s}": Variant(gated(pack, model, experts, blocks, s)) for s in ("stacked", "merged", "auto")}
    stock = {
        "three LoRAs, patched once": Variant(patched(model, loras)),
        "three LoRAs, hooks with keyframes": Variant(model.clone(), tuple(loras)),
    }
    return {"base": Variant(model), **stock, **ours}


def prompt(config, clip: int) -> list:
    """Random text and a random start image's CLIP rows."""
    seen = comfy.clip_vision.Output()
    seen["penultimate_hidden_states"] = torch.randn(1, clip, config.clip_dim)
    return [[torch.randn(1, config.text_len, config.text_dim), {"pooled_output": None, "clip_vision_output": seen}]]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def take_turn(variant: Variant, conditioning: list, noise: Tensor, calls: int, device: str) -> None:
    """A sampling run whose sampler calls the model at falling noise levels, always on the same latents. All calls but
    the first are timed, and the fastest counts."""
    spent = []

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma in sigmas[:-1]:
            wait(device)
            begun = time.perf_counter()
            y = model(x, sigma.expand(len(x)), **extra_args)
            wait(device)
            spent.append(time.perf_counter() - begun)
        variant.seconds.append(min(spent[1:]))
        variant.result = y.float().cpu()
        return x

    comfy.model_management.unload_all_models()  # so that the peak is this variant's own
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    level = variant.model.get_model_object("model_sampling").percent_to_sigma
    sigmas = torch.tensor([*(float(level((call + 0.5) / calls)) for call in range(calls)), 0.0])
    guider = Guider_Basic(variant.model)
    guider.set_conds(comfy.hooks.set_hooks_for_conditioning(conditioning, scheduled(variant.hooked, calls)))
    sampler = comfy.samplers.KSAMPLER(sample)
    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
    variant.peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0


def table(variants: dict[str, Variant], device: str) -> str:
    """Ratios to the base."""
    base = variants["base"].seconds
    lines = ["| way | ms | ratio | median of ratios | peak memory |", "|---|---|---|---|---|"]
    for name, variant in variants.items():
        middle = median(a / b for a, b in zip(variant.seconds, base, strict=True))
        peak = f"{variant.peak / 2**30:.1f} GiB" if device == "cuda" else "-"
        least = min(variant.seconds)
        lines.append(f"| {name} | {least * 1e3:.4g} | {least / min(base):.3f} | {middle:.3f} | {peak} |")
    return "\n".join(lines)


def differences(variants: dict[str, Variant]) -> str:
    """How far results lie apart at most, relative to the largest value: ours from each other, all from the base."""
    pairs = [(name, "ours, stacked") for name in ("ours, merged", "ours, auto")]
    pairs += [(name, "base") for name in variants if name not in ("base", "ours, merged", "ours, auto")]
    texts = []
    for name, other in pairs:
        a, b = variants[name].result, variants[other].result
        texts.append(f"{name} from {other} {(a - b).abs().max() / b.abs().max():.1e}")
    return f"Largest difference: {'; '.join(texts)}."


def compare(pack, name: str, device: str, rounds: int) -> None:
    """Print a table for every size of the preset."""
    torch.manual_seed(0)
    preset = PRESETS[name]
    model, config = native_model(pack, preset, device)
    variants = all_variants(pack, model, config.num_layers, preset, device)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    sizes = f"d = {config.dim}, ffn {config.ffn_dim}, {config.num_layers} blocks, R = {len(NAMES)} x {RANK}"
    dtype = str(preset.dtype).removeprefix("torch.")
    print(f"\n{name}: {sizes}, {dtype}, {where}, torch {torch.__version__}, {rounds} rounds")
    for size, calls in preset.latents.items():
        conditioning, noise = prompt(config, preset.clip), torch.randn(1, 16, *size)
        fresh = {way: Variant(variant.model, variant.hooked) for way, variant in variants.items()}
        with torch.inference_mode():
            for variant in list(fresh.values()) * rounds:
                take_turn(variant, conditioning, noise, calls, device)
        tokens = math.prod(size) // 4
        print(f"\n### {tokens} tokens\n\n{table(fresh, device)}\n\n{differences(fresh)}", flush=True)
