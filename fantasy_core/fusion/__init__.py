"""Experts on a host, weighed by a gate (Eq. 3, 4): the strategies, the plan that chooses among them, and `attach`."""

from .attach import Attached, attach
from .hosts import AUDIO_LINEARS, LINEARS, Host, host_of
from .plan import NAMES, Tokens, build_plan
from .strategies import STRATEGIES

__all__ = [
    "AUDIO_LINEARS",
    "LINEARS",
    "NAMES",
    "STRATEGIES",
    "Attached",
    "Host",
    "Tokens",
    "attach",
    "build_plan",
    "host_of",
]
