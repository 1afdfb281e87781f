"""Runs inside ComfyUI: our layers on the native Wan model, case by case; what comes out is compared outside with the
core on the same weights; files: the folder of models and inputs."""

import start

import gc
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from pack import load_pack

pack = load_pack()

folder = Path(start.files[0])
given = torch.load(folder / "inputs.pt", weights_only=True)
audio_patch, expert_patch, expert_nodes = (pack(f"nodes.{n}") for n in ("audio_patch", "expert_patch", "expert_nodes"))
guidance, sampling_nodes, patcher = (pack(f"nodes.{n}") for n in ("guidance", "sampling_nodes", "patcher"))
AudioTokens = pack("fantasy_core.audio").AudioTokens
found = {}


def load(name="base", **options):
    return comfy.sd.load_diffusion_model(
        str(folder / f"{name}.safetensors"), model_options={"dtype": torch.float32, **options}
    )


def experts(*names, strength=1.0, twin=True):
    chosen = ()
    for name in names:
        loaded = pack("fantasy_core.experts").load_expert(folder / f"{name}.safetensors", name, with_audio=twin)
        chosen = (*chosen, expert_nodes.ChosenExpert(loaded, strength))
    return chosen


ALL = experts("mn", "ls", "vq")
GATE = expert_nodes.GateSource(str(folder / "gate.safetensors"))


def gated(model, chosen=ALL, strategy="stacked", gate=GATE):
    return expert_nodes.ApplyGatedExperts.execute(model, chosen, strategy, gate).result[0]


def steady(model, text, chosen=ALL, strategy="stacked"):
    """With a manual gate."""
    return gated(model, chosen, strategy, expert_nodes.GateSource(text, torch.linspace(1, 0, 5).double()))


adapter = audio_patch.AudioAdapter(folder / "adapter.safetensors")


def loaded(model):
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    return model


def velocity(model, *, audio=False, transformer=None, **replaced):
    """One call of the transformer as BaseModel makes it, with the MODEL's wrappers."""
    loaded(model)
    told = {**given, **replaced}
    x = torch.cat([told["latents"], told["condition"]], 1)
    kwargs = {}
    if audio:
        kwargs = {
            "ft_audio": told["tokens"].movedim(2, 1),
            "ft_lengths": told["lengths"][:, None],
            "ft_scale": told["scale"],
        }
        if "face" in told:
            kwargs["ft_face"] = told["face"]
    options = {**model.model_options.get("transformer_options", {}), "wrappers": model.wrappers}
    run = transformer or model.model.diffusion_model
    return run(x, told["timestep"], told["text"], told["clip"], None, options, **kwargs).clone()


def base_is_clean(model):
    """No layer, no forward, no weight function of ours is left on the loaded model."""
    modules = list(model.model.diffusion_model.modules())
    chains = [m for m in modules if "forward" in vars(m)]
    functions = [m for m in modules if getattr(m, "weight_function", None)]
    return torch.tensor(len(chains) + len(functions))


def frame_by_frame(model, timesteps):
    """Eq. 3 and 4 with a timestep for each latent frame, by hooks and loops: every token of the video by its frame's
    weights, text and image tokens by the mean over frames."""
    transformer = loaded(model).model.diffusion_model
    gates = comfy.utils.load_torch_file(str(folder / "gate.safetensors"))
    frames, handles = timesteps.shape[1], []
    wave = pack("fantasy_core.wan").sinusoid(timesteps.flatten(), transformer.freq_dim)
    t_emb = transformer.time_embedding(wave).unflatten(0, timesteps.shape)  # [B, F, d]
    for block in range(3):
        logits = t_emb @ gates[f"blocks.{block}.gate.weight"].T
        w = logits.softmax(-1) + gates[f"blocks.{block}.gate.bias"]  # [B, F, E]
        for name in pack("fantasy_core.fusion.hosts").LINEARS:

            def hook(module, args, y, w=w, address=f"blocks.{block}.{name}", name=name):
                x = args[0]
                video = name not in ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
                each = x.shape[1] // frames
                for e, chosen in enumerate(ALL):
                    pair = chosen.expert.pairs[address]
                    change = pair.scale * (x @ pair.A.T) @ pair.B.T
                    for f in range(frames) if video else ():
                        tokens = slice(f * each, (f + 1) * each)
                        y[:, tokens] += w[:, f, e, None, None] * change[:, tokens]
                    if not video:
                        y += w[:, :, e].mean(1)[:, None, None] * change
                return y

            handles.append(transformer.blocks[block].get_submodule(name).register_forward_hook(hook))
    result = velocity(model, timestep=timesteps)
    for handle in handles:
        handle.remove()
    return result


with torch.inference_mode():
    base = load()
    found["base"] = velocity(base)
    heard = adapter.hang(base)
    found["audio"] = velocity(heard, audio=True)
    found["audio, not heard"] = velocity(heard)
    found["face"] = velocity(heard, audio=True, face=given["face_mask"])
    for strategy in ("stacked", "merged", "auto"):
        found[f"experts {strategy}"] = velocity(gated(base, experts("mn", "ls", "vq", twin=False), strategy, None))
        found[f"gate {strategy}"] = velocity(gated(base, ALL, strategy))
        found[f"audio, then experts {strategy}"] = velocity(gated(heard, ALL, strategy), audio=True)
        found[f"experts {strategy}, then audio"] = velocity(adapter.hang(gated(base, ALL, strategy)), audio=True)
        alike = given["alike"]
        found[f"one timestep {strategy}"] = velocity(gated(heard, ALL, strategy), audio=True, timestep=alike)
    found["strength"] = velocity(gated(base, experts("mn", "ls", "vq", strength=0.5), "stacked"))
    both = gated(heard)
    found["equal frames"] = velocity(both, audio=True, timestep=given["alike"][:, None].expand(-1, 5).contiguous())
    found["frames, written out"] = frame_by_frame(base, given["frames"])
    found["frames"] = velocity(gated(base), timestep=given["frames"])
    found["frames merged"] = velocity(gated(base, strategy="merged"), timestep=given["frames"])
    found["silent gate"] = velocity(steady(base, "constant:0,0,0", strategy="merged"))
    found["two sets"] = velocity(
        steady(steady(base, "constant:0.5", experts("mn")), "constant:0.7", experts("vq"), "merged")
    )
    found["base at last"] = velocity(base)
    found["left behind"] = base_is_clean(base)

    # the order in which clones come and go
    first, second = gated(base), steady(heard, "constant:0.2,0.4,0.6")
    alone = velocity(first)
    velocity(second, audio=True)
    found["clones"] = torch.stack([(velocity(first) - alone).abs().max(), (velocity(base) - found["base"]).abs().max()])
    idle = loaded(first).clone()  # believes that it injected what `first` did
    del idle
    gc.collect()
    found["after an idle clone went"] = (velocity(first) - alone).abs().max()
    del first, second
    gc.collect()
    found["after all went"] = (velocity(base) - found["base"]).abs().max()
    other = load("other")
    with_both = gated(other)
    found["second model"] = velocity(with_both)
    found["first beside it"] = (velocity(base) - found["base"]).abs().max()
    comfy.model_management.unload_all_models()
    found["after unloading"] = (velocity(gated(base)) - found["gate stacked"]).abs().max()

    # LoRAs of ComfyUI, before and after, patched into weights or beside them
    static = comfy.utils.load_torch_file(str(folder / "static.safetensors"))

    def stock_lora(model):
        return comfy.sd.load_lora_for_models(model, None, static, 0.6, 0)[0]

    def bypass_lora(model):
        return comfy.sd.load_bypass_lora_for_models(model, None, static, 0.6, 0)[0]

    for strategy in ("stacked", "merged"):
        for name, add in (("stock", stock_lora), ("bypass", bypass_lora)):
            found[f"{name}, {strategy}"] = velocity(gated(add(base), strategy=strategy))
            found[f"{strategy}, {name}"] = velocity(add(gated(base, strategy=strategy)))
    found["base after LoRAs"] = (velocity(base) - found["base"]).abs().max()

    # storage
    for kind, dtype in (("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)):
        model = load("base", dtype=dtype)
        model.set_model_compute_dtype(torch.float32)
        stored = model.model.diffusion_model.state_dict()
        found[f"{kind} weights"] = {name: tensor.float() for name, tensor in stored.items()}
        for strategy in ("stacked", "merged"):
            found[f"{kind} {strategy}"] = velocity(gated(adapter.hang(model), ALL, strategy), audio=True)
    quantised = comfy.sd.load_diffusion_model(str(folder / "int8.safetensors"))
    called = []
    last = quantised.model.diffusion_model.blocks[0].ffn[2]
    handle = last.register_forward_hook(lambda *_: called.append(1))
    found["int8 base"], found["int8 calls"] = velocity(quantised), torch.tensor(len(called))
    handle.remove()
    for strategy in ("auto", "merged"):
        found[f"int8 {strategy}"] = velocity(gated(quantised, ALL, strategy))
    only = [c.expert for c in ALL]
    Expert = pack("fantasy_core.experts").Expert
    tails = tuple(
        expert_nodes.ChosenExpert(Expert(e.name, {a: p for a, p in e.pairs.items() if a.endswith("ffn.2")}), 1.0)
        for e in only
    )
    found["int8 ffn.2 alone"] = velocity(gated(quantised, tails, "auto", None))
    found["ffn.2 alone"] = velocity(gated(base, tails, "stacked", None))

    # everything in host memory, weights cast call by call
    for strategy in ("stacked", "merged"):
        model = gated(adapter.hang(load()), ALL, strategy)
        for part in [model, *model.get_nested_additional_models()]:
            part.patch_model(torch.device("cpu"), lowvram_model_memory=1)
        found[f"lowvram {strategy}"] = velocity(model, audio=True)

    # torch.compile, as the node does it, switching between models that share the transformer
    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return model

    def applied(model, sigma):
        """Through BaseModel.apply_model, where the compiled transformer is put in."""
        loaded(model)
        told = {"wrappers": model.wrappers, **model.model_options.get("transformer_options", {})}
        audio = {
            "ft_audio": given["tokens"].movedim(2, 1),
            "ft_lengths": given["lengths"][:, None],
            "ft_scale": given["scale"],
        }
        return model.model.apply_model(
            given["latents"], sigma, c_concat=given["condition"], c_crossattn=given["text"], clip_fea=given["clip"],
            transformer_options=told, **audio,
        ).clone()  # fmt: skip

    torch._dynamo.reset()
    for strategy in ("stacked", "merged"):
        plain = {"base": heard, "experts": gated(heard, ALL, strategy)}
        fast = {name: compiled(model) for name, model in plain.items()}
        worst = []
        for name, level in (
            ("base", 0.9),
            ("experts", 0.9),
            ("experts", 0.4),
            ("base", 0.4),
            ("experts", 0.7),
            ("base", 0.9),
        ):
            sigma = torch.full((2,), level)
            worst.append((applied(fast[name], sigma) - applied(plain[name], sigma)).abs().max())
        found[f"compiled {strategy}"] = torch.stack(worst)
start.leave(found)
