"""What stage 1 (experts) and stage 2 (the gate) have in common: settings, and what is checked before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.components import Components
from fantasy_core.errors import UserError
from fantasy_core.experts import ExpertBank
from fantasy_core.flags import MODELS
from fantasy_core.preference import FORMS, LOSSES, Objective
from fantasy_core.wan import WanDiT
from train.cache import CacheSettings, components_of
from train.checkpoint import Checkpoint
from train.run import made_from, setting, write_json
from train.shards import INDEX, Cache
from train.trainer import UNITS, PairData, Plan, train
from train.watch import Watch, held_out, sigma_quantiles

DISTRIBUTIONS = ("logit-normal", "uniform")
FREE = ("out", "iterations", "save_every", "held_out_every", "held_out_pairs", "device")  # not part of what a run is


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    out: Path = setting(help="folder of the run")
    pairs: Path = setting(help="pairs_DIMENSION.jsonl")
    cache: Path = setting(help="folder of train.cache")
    iterations: int = setting(1000, "of the optimiser", least=1)
    batch: int = setting(4, "units (pairs or inputs) in an iteration", least=1)
    unit: str = setting("pair", "what shares one draw: a pair, or all pairs of an input", choices=UNITS)
    loss: str = setting("dpo", "of a pair", choices=LOSSES)
    label_smoothing: float = setting(0.0, "share of pairs labelled the wrong way round")
    sft_weight: float = setting(0.0, "of the chosen videos' own error")
    anchor_weight: float = setting(0.0, "of beta/2 times what the chosen videos' error rises above the reference's")
    distribution: str = setting("logit-normal", "of sigma", choices=DISTRIBUTIONS)
    shift: float = setting(1.0, "of sigma", least=0.01)
    form: str = setting("buffers", "of the gradient: more memory, or a third more work", choices=FORMS)
    clip_norm: float = setting(1.0, "of the gradient, 0 = none", least=0)
    checkpointing: bool = setting(False, "recompute blocks instead of keeping activations")
    save_every: int = setting(50, "iterations between checkpoints", least=1)
    held_out_every: int = setting(100, "iterations between looks at pairs of split validation, 0 = none", least=0)
    held_out_pairs: int = setting(8, "how many of them", least=1)
    seed: int = setting(0, "of everything that is drawn")
    model: str = setting(MODELS[0], "the base", choices=MODELS)
    wan: Path | None = setting(None, "folder or file of Wan2.1-I2V-14B")
    fantasytalking: Path | None = setting(None, "FantasyTalking's checkpoint")
    wav2vec: Path | None = setting(None, "folder of wav2vec2-base-960h")
    device: str = setting("cpu", "cpu, cuda, ...")

    @property
    def objective(self) -> Objective:
        names = ("loss", "beta", "label_smoothing", "sft_weight", "anchor_weight")
        return Objective(**{name: getattr(self, name) for name in names})

    @property
    def plan(self) -> Plan:
        return Plan(**{field: getattr(self, field) for field in Plan.__dataclass_fields__})

    @property
    def sigmas(self) -> list[float]:
        """Nine noise levels to look at."""
        return sigma_quantiles(self.distribution, self.shift)

    @property
    def recorded(self) -> dict:
        """As JSON, less what does not make it another run: where it lies, how long it goes, when it is looked at."""
        kept = {n: v for n, v in vars(self).items() if n not in FREE}
        return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


class Stage:
    """What a stage trains with, opened and checked: the pairs and those held out, the base, and what the run is made
    from. Only headers are read, so that a dry run finds all that does not fit.

    experts: files by name, for the gate. Raises UserError for pairs and a cache that do not belong together, a cache or
    experts of another base, and a folder with another run.
    """

    def __init__(self, settings: StageSettings, *, masked: bool = False, experts: Mapping[str, Path] | None = None):
        self.settings, self.objective, cache = settings, settings.objective, Cache(settings.cache)
        self.data = PairData(settings.pairs, cache, unit=settings.unit, masked=masked)
        given = {name: getattr(settings, name) for name in ("model", "wan", "fantasytalking", "wav2vec", "device")}
        self.components = components_of(CacheSettings(out=settings.cache, **given))
        _check_base(cache, self.components)
        self.held_out = None
        if settings.held_out_every:
            self.held_out = held_out(
                settings.pairs, cache, settings.sigmas, masked=masked, most=settings.held_out_pairs
            )
        self.experts = ExpertBank.load(experts, self.blueprint) if experts else None
        files = {f"expert {name}": path for name, path in (experts or {}).items()}
        self.origin = made_from({**files, "pairs": settings.pairs, "cache": settings.cache / INDEX})
        self.identity = settings.recorded | self.origin
        self.checkpoint = Checkpoint(settings.out, self.identity)
        self.checkpoint.check()
        pairs = sum(len(unit.pairs) for unit in self.data.units)
        print(f"{pairs} pairs, {len(self.data)} units, {settings.iterations} iterations")

    @property
    def blueprint(self) -> WanDiT:
        """The base without its weights."""
        with torch.device("meta"):
            return WanDiT(self.components.config)

    @contextmanager
    def dit(self) -> Iterator[WanDiT]:
        """The base, frozen; the run is on record from here on."""
        write_json(self.settings.out / "config.json", self.identity)
        with self.components.dit() as dit:
            dit.requires_grad_(False).checkpointing = self.settings.checkpointing
            yield dit

    def train(
        self,
        dit: WanDiT,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        reference: Callable[[], AbstractContextManager],
        statistics: Callable[[], dict] = dict,
    ) -> None:
        """`trainer.train` with what is here."""
        train(
            self.settings.plan, self.data, dit, parameters, optimizer, self.objective, reference, self.checkpoint,
            self.settings.out, held_out=self.held_out, statistics=statistics, watch=Watch(self.objective),
        )  # fmt: skip


def _check_base(cache: Cache, components: Components) -> None:
    if cache.facts.get("weights") != components.fingerprint:
        raise UserError(
            f"{cache.folder} was encoded by another model",
            got=f"weights {cache.facts.get('weights')}",
            expected=f"{components.fingerprint}, those that are to be trained",
            do="make the cache with this model",
        )
