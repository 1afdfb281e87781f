"""Runs inside ComfyUI with the public GGUF pack: our layers on a model in Q8_0; files: the folder of models and inputs,
the pack's folder."""

import start
import importlib.util
import sys
from pathlib import Path

import comfy.model_management
import gguf
import torch
from pack import load_pack
from safetensors.torch import load_file

pack = load_pack()
folder, place = Path(start.files[0]), start.files[1]
spec = importlib.util.spec_from_file_location("gguf_pack", place + "/__init__.py", submodule_search_locations=[place])
sys.modules["gguf_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["gguf_pack"])
given = torch.load(folder / "inputs.pt", weights_only=True)
audio_patch, expert_nodes = pack("nodes.audio_patch"), pack("nodes.expert_nodes")

# the blocks' linears in Q8_0, all else in fp32; GGUF knows four dimensions, the pack a note for five
writer, meant, q8 = gguf.GGUFWriter(folder / "base.gguf", "wan"), {}, gguf.GGMLQuantizationType.Q8_0
for name, tensor in load_file(folder / "base.safetensors").items():
    values = tensor.float().numpy()
    if name.startswith("blocks.") and values.ndim == 2:
        stored = gguf.quants.quantize(values, q8)
        writer.add_tensor(name, stored, raw_dtype=q8)
        values = gguf.quants.dequantize(stored, q8)
    elif values.ndim == 5:
        writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(side) for side in values.shape])
        writer.add_tensor(name, values.reshape(-1, *values.shape[2:]))
    else:
        writer.add_tensor(name, values)
    meant[name] = torch.from_numpy(values.copy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

ops = sys.modules["gguf_pack.ops"].GGMLOps()
ops.Linear.dequant_dtype = torch.float32  # as its advanced loader offers; the default rounds through fp16
state = sys.modules["gguf_pack.loader"].gguf_sd_loader(str(folder / "base.gguf"))
state = state[0] if isinstance(state, tuple) else state
model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"custom_operations": ops})
model = sys.modules["gguf_pack.nodes"].GGUFModelPatcher.clone(model)


def velocity(model):
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    x = torch.cat([given["latents"], given["condition"]], 1)
    audio = {"ft_audio": given["tokens"].movedim(2, 1), "ft_lengths": given["lengths"][:, None]}
    audio = {**audio, "ft_scale": given["scale"]}
    options = {"wrappers": model.wrappers}
    return model.model.diffusion_model(
        x, given["timestep"], given["text"], given["clip"], None, options, **(audio if model.injections else {})
    ).clone()


with torch.inference_mode():
    load = pack("fantasy_core.experts").load_expert
    experts = tuple(expert_nodes.ChosenExpert(load(folder / f"{n}.safetensors", n), 1.0) for n in ("mn", "ls", "vq"))
    gate = expert_nodes.GateSource(str(folder / "gate.safetensors"))
    heard = audio_patch.AudioAdapter(folder / "adapter.safetensors").hang(model)
    found = {"base": velocity(model), "weights": meant}
    for strategy in ("stacked", "merged"):
        found[strategy] = velocity(expert_nodes.ApplyGatedExperts.execute(heard, experts, strategy, gate).result[0])
    found["base again"] = velocity(model)
start.leave(found)
