"""Runs with ComfyUI's interpreter, which has torchvision: RAFT behind our optical flow; files: weights to write."""

import start

import numpy as np
import torch
import torch.nn.functional as F
from pack import load_pack
from torchvision.models.optical_flow import raft_large

(weights,) = start.files
pack = load_pack()
backends, UserError = pack("fantasy_core.metrics.flow_backends"), pack("fantasy_core.errors").UserError
torch.manual_seed(0)
network = raft_large(weights=None).eval()
torch.save(network.state_dict(), weights)
flow = backends.RaftFlow(weights)
rng = np.random.default_rng(0)
first, second = rng.integers(0, 256, (2, 132, 141, 3), np.uint8)
given = [torch.from_numpy(one).movedim(-1, 0)[None].float() / 127.5 - 1 for one in (first, second)]
with torch.inference_mode():
    padded = [F.pad(one, (0, 3, 0, 4), mode="replicate") for one in given]
    expected = network(*padded)[-1][0, :, :132, :141].movedim(0, -1)
found = {"ours": torch.from_numpy(flow.between(first, second)), "expected": expected}
torch.save({"fc.weight": torch.zeros(2)}, weights)
try:
    backends.RaftFlow(weights)
    told = "nothing was raised"
except UserError as error:
    told = str(error)
start.leave({**found, "told": told, "settings": {k: str(v) for k, v in flow.settings.items()}})
