"""ComfyUI's own mapping of LoRA keys onto the miniature: every key of our file must find its weight; files: base,
expert."""

import start

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import torch

patcher = comfy.sd.load_diffusion_model(start.files[0], model_options={"dtype": torch.float32})
keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(start.files[1], safe_load=True))
patches = comfy.lora.load_lora(state, keys, log_missing=False)
used = set().union(*(patch.loaded_keys for patch in patches.values()))
name = "diffusion_model.blocks.0.ffn.2.weight"
before = patcher.model.state_dict()[name].clone()
patcher.add_patches(patches, 1.0)
patcher.patch_model()
changed = patcher.model.state_dict()[name] - before
start.leave({"left over": sorted(set(state) - used), "patched": sorted(patches), "change": changed})
