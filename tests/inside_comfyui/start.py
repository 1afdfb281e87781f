"""First import of every script here: ComfyUI on sys.path, on the CPU, ready to import. `files` are the script's own
arguments, `leave` hands its results back."""

import sys

folder, output, *files = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(1, folder)

import torch

# torchvision's CUDA build does not import beside CPU torch unless two operators are declared by hand
vision = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):
    vision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    vision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import comfy.options

comfy.options.enable_args_parsing()
import comfy.sd  # noqa: F401


def leave(found: dict) -> None:
    torch.save(found, output)
