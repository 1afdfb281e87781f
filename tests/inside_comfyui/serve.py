"""ComfyUI's server with everything of its own below one folder: models, input, output, custom_nodes.

serve.py COMFYUI_DIR BASE_FOLDER PORT
"""

import os
import runpy
import sys

import torch

folder, base, port = sys.argv[1:]
vision = torch.library.Library("torchvision", "FRAGMENT")  # see start.py
if not hasattr(torch.ops.torchvision, "nms"):
    vision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    vision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
os.chdir(folder)
sys.path[0] = folder
sys.argv = ["main.py", "--port", port, "--base-directory", base, "--disable-auto-launch", "--disable-api-nodes"]
sys.argv += ["--database-url", "sqlite:///:memory:"] + ["--cpu"] * (not torch.cuda.is_available())
runpy.run_path("main.py", run_name="__main__")
