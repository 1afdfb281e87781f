"""Runs inside ComfyUI: whole sampling runs through our nodes and the stock ones; what comes out is compared outside
with the core; files: the folder of models and inputs."""

import start
import gc
from pathlib import Path

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from pack import load_pack

import nodes as stock
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_wan import WanImageToVideo

pack = load_pack()
folder = Path(start.files[0])
given = torch.load(folder / "inputs.pt", weights_only=True)
audio_patch, expert_nodes, sampling = (pack(f"nodes.{n}") for n in ("audio_patch", "expert_nodes", "sampling_nodes"))
AudioTokens, schedule = pack("fantasy_core.audio").AudioTokens, pack("fantasy_core.flow").schedule
scaling, found = comfy.latent_formats.Wan21(), {}
SEED = 11


def load(name):
    return comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors"), model_options={"dtype": torch.float32})


def counting(model, rows):
    """A clone that notes the rows of every call of the transformer."""

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model


def tlpo(model, s, a, low=None, latent=None, **kw):
    told = {"seed": SEED, "steps": 4, "shift": 5.0, "sampler_name": "euler", **kw}
    latent = latents if latent is None else latent
    result = sampling.TLPOSampler.execute(
        model, heard, unheard, negative, latent, text_scale=s, audio_scale=a, low_noise_model=low, **told
    )
    return scaling.process_in(result.result[0]["samples"])


def conditioned(frames):
    """Prompt and negative prompt with a start image and CLIP tokens, and an empty latent."""
    seen = comfy.clip_vision.Output()
    seen["penultimate_hidden_states"] = given["clip"]
    prompts = [[[given[name], {"pooled_output": None}]] for name in ("text", "negative")]
    return WanImageToVideo.execute(*prompts, vae, 64, 64, frames, 1, given["image"], seen).result


with torch.inference_mode():
    vae = pack("nodes.miniature_model").MiniatureVAE()
    base, other = load("base"), load("other")
    adapter = audio_patch.AudioAdapter(folder / "adapter.safetensors")
    positive, negative, latents = conditioned(17)
    windows = AudioTokens(given["tokens"], given["lengths"])
    heard, unheard = audio_patch.with_voice(positive, windows, 1.0, None), audio_patch.without_voice(positive)
    noise = comfy.sample.prepare_noise(latents["samples"], SEED)
    found["noise"] = noise
    hearing = adapter.hang(base)
    chosen = tuple(
        expert_nodes.ChosenExpert(pack("fantasy_core.experts").load_expert(folder / f"{n}.safetensors", n), 1.0)
        for n in ("mn", "ls", "vq")
    )
    trained = expert_nodes.GateSource(str(folder / "gate.safetensors"))
    curve = expert_nodes.GateSource("steps:mn=0,1;ls=0.5;vq=1,0", schedule(4, 5.0))
    gated = expert_nodes.ApplyGatedExperts.execute(hearing, chosen, "merged", trained).result[0]

    for s, a in ((5.0, 3.0), (4.0, 4.0), (1.0, 1.0), (1.0, 3.0), (3.0, 0.0)):
        rows = []
        found[f"tlpo {s} {a}"] = tlpo(counting(hearing, rows), s, a)
        found[f"rows {s} {a}"] = torch.tensor(sum(rows))
    found["gated 5.0 3.0"] = tlpo(gated, 5.0, 3.0)

    guider = Guider_DualCFG(hearing)
    guider.set_conds(heard, unheard, negative)
    guider.set_cfg(3.0, 5.0)
    sampler = comfy.samplers.sampler_object("euler")
    found["stock dual guider"] = scaling.process_in(
        guider.sample(noise, latents["samples"], sampler, schedule(4, 5.0).float(), seed=SEED)
    )
    for s, a in ((5.0, 3.0), (4.0, 4.0), (1.0, 1.0)):
        rows = []
        (shifted,) = ModelSamplingSD3().patch(counting(hearing, rows), 5.0)
        (guided,) = sampling.AudioGuidance.execute(shifted, a).result
        run = stock.common_ksampler(guided, SEED, 4, s, "euler", "simple", heard, negative, latents)[0]
        found[f"ksampler {s} {a}"], found[f"ksampler rows {s} {a}"] = (
            scaling.process_in(run["samples"]),
            torch.tensor(sum(rows)),
        )
    found["sigmas"] = sampling.FantasyTalkingSigmas.execute(30, 5.0, 1.0).result[0]
    found["sigmas, half"] = sampling.FantasyTalkingSigmas.execute(15, 5.0, 0.5).result[0]

    # a pair of models, one for high noise and one for low, with one gate
    found["the same model twice"] = tlpo(hearing, 5.0, 3.0, low=hearing)
    pair = [
        expert_nodes.ApplyGatedExperts.execute(adapter.hang(m), chosen, "stacked", curve).result[0]
        for m in (base, other)
    ]
    found["pair"] = tlpo(pair[0], 5.0, 3.0, low=pair[1], boundary=0.8)

    # what every context window hears
    positive, negative, long_latents = conditioned(49)  # 13 latent frames
    tokens, lengths = given["long tokens"], given["long lengths"]
    heard = audio_patch.with_voice(positive, AudioTokens(tokens, lengths), 1.0, given["long face"])
    unheard = audio_patch.without_voice(positive)
    for retain in ("", "0"):
        for fix in (False, True):
            windowed = ContextWindowsManualNode.execute(
                hearing, 5, 2, "standard_static", 1, False, "pyramid", 2, False, retain, causal_window_fix=fix
            ).result[0]
            errors, anchored = [], []

            def listen(executor, x, t, context, clip, concat, options, errors=errors, anchored=anchored, **kw):
                voice = options.get(audio_patch.VOICE)
                if voice is not None:
                    window = options["context_window"]
                    anchor = getattr(window, "causal_anchor_index", None)
                    anchored.append(anchor is not None)
                    frames = [anchor] * (anchor is not None) + window.index_list
                    errors.append((voice.tokens - tokens[:, frames]).abs().max())
                    real = (torch.arange(tokens.shape[2]) < lengths[:, frames, None]).flatten(0, 1)[:, None, None]
                    errors.append((voice.mask != real).float().max())
                    loudness = given["long face"][:, 0, frames].flatten(1)[..., None]
                    errors.append((voice.loudness - loudness).abs().max())
                return executor(x, t, context, clip, concat, options, **kw)

            windowed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "listen", listen)
            tlpo(windowed, 4.0, 4.0, latent=long_latents, steps=1)
            found[f"windows {retain!r} {fix}"] = torch.stack(errors)
            found[f"anchors {retain!r} {fix}"] = torch.tensor(sum(anchored))

    # interrupted in the middle, then the base again
    positive, negative, latents = conditioned(17)
    heard, unheard = audio_patch.with_voice(positive, windows, 1.0, None), audio_patch.without_voice(positive)
    deaf = base.clone()
    before, calls = tlpo(deaf, 4.0, 4.0), []

    def stop(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    stopped = gated.clone()
    stopped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stop", stop)
    try:
        tlpo(stopped, 4.0, 4.0)
        found["interrupted"] = torch.tensor(False)
    except comfy.model_management.InterruptProcessingException:
        found["interrupted"] = torch.tensor(len(calls) < 8)
    found["base after interrupt"] = (tlpo(base.clone(), 4.0, 4.0) - before).abs().max()
    gc.collect()

    # what the memory estimate is told
    shapes = []

    def note(executor, model, noise_shape, conds, *args, **kwargs):
        shapes.append(model.model.memory_required(list(noise_shape)))
        return executor(model, noise_shape, conds, *args, **kwargs)

    for strategy in ("stacked", "merged"):
        asked = expert_nodes.ApplyGatedExperts.execute(base, chosen, strategy, trained).result[0]
        asked.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "note", note)
        tlpo(asked, 1.0, 1.0, steps=1)
    found["memory"] = torch.tensor(shapes)
    plot = expert_nodes.GatePlot.execute(base, chosen, trained, 6, 5.0).result[0]
    found["plot"] = torch.tensor([*plot.shape, float(plot.std() > 0.05)])
start.leave(found)
