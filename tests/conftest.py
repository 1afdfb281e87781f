"""The ground every test stands on: few threads, default dtype and seed set back, no network, fixed hypothesis."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers or diffusers is imported; inherited by subprocesses
os.environ["TRANSFORMERS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one core for each worker and what it starts: threads that wait, spin
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

# Derandomised, so that a red suite is red for everybody; `--hypothesis-profile=explore` searches further.
settings.register_profile("house", max_examples=25, deadline=None, derandomize=True, database=None)
settings.register_profile("explore", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(2, os.cpu_count() or 1)))


def _refuse_network(event: str, args: tuple) -> None:
    """Audit hook: a connection or look-up that leaves this machine is an error, whichever library tries it."""
    if event == "socket.connect":
        host = args[1][0] if isinstance(args[1], tuple) else "localhost"  # a str or bytes is a Unix socket
    elif event == "socket.getaddrinfo":
        host = args[0] or "localhost"
    else:
        return
    if str(host) not in ("localhost", "127.0.0.1", "::1"):
        raise PermissionError(f"tests must not use the network: {event} {host}")


sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def clean_torch_state():
    """Every test starts with float32, seed 0 and deterministic mode off, and leaves nothing to the next one."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)
    yield
    torch.set_default_dtype(torch.float32)
