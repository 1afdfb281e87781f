"""The miniature's velocity by ComfyUI's native Wan class; files: base.safetensors, inputs."""

import start

import comfy.sd
import torch

patcher = comfy.sd.load_diffusion_model(start.files[0], model_options={"dtype": torch.float32})
given = torch.load(start.files[1], weights_only=True)
latents = torch.cat([given["latents"], given["condition"]], 1)
with torch.no_grad():
    start.leave({"velocity": patcher.model.diffusion_model(latents, given["timestep"], given["text"])})
