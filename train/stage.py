"""What stage 1 (experts) and stage 2 (the gate) have in common: settings, and what is checked before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.components import Components
from fantasy_core.errors import UserError
from fantasy_core.flags import MODELS
from fantasy_core.preference import FORMS, LOSSES, Objective
from train.cache import CacheSettings, components_of
from train.run import made_from, setting
from train.shards import INDEX, Cache
from train.trainer import UNITS, PairData, Plan
from train.watch import HeldOut, held_out, sigma_quantiles

DISTRIBUTIONS = ("logit-normal", "uniform")
FREE = ("out", "iterations", "save_every", "held_out_every", "held_out_pairs", "device")  # not part of what a run is


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    out: Path = setting(help="folder of the run")
    pairs: Path = setting(help="pairs_DIMENSION.jsonl")
    cache: Path = setting(help="folder of train.cache")
    iterations: int = setting(1000, "of the optimiser")
    batch: int = setting(4, "units (pairs or inputs) in an iteration")
    unit: str = setting("pair", "what shares one draw: a pair, or all pairs of an input", choices=UNITS)
    loss: str = setting("dpo", "of a pair", choices=LOSSES)
    label_smoothing: float = setting(0.0, "share of pairs labelled the wrong way round")
    sft_weight: float = setting(0.0, "of the chosen videos' own error")
    anchor_weight: float = setting(0.0, "of beta/2 times what the chosen videos' error rises above the reference's")
    distribution: str = setting("logit-normal", "of sigma", choices=DISTRIBUTIONS)
    shift: float = setting(1.0, "of sigma")
    form: str = setting("buffers", "of the gradient: more memory, or a third more work", choices=FORMS)
    clip_norm: float = setting(1.0, "of the gradient, 0 = none")
    checkpointing: bool = setting(False, "recompute blocks instead of keeping activations")
    save_every: int = setting(50, "iterations between checkpoints")
    held_out_every: int = setting(100, "iterations between looks at pairs of split validation, 0 = none")
    held_out_pairs: int = setting(8, "how many of them")
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


def opened(
    settings: StageSettings, *, masked: bool = False, files: Mapping[str, Path] | None = None
) -> tuple[PairData, HeldOut | None, Components, dict[str, str]]:
    """Pairs with their cache, those held out, the base, and the hashes of what the run is made from (`files` among it).
    Raises UserError for pairs and a cache that do not belong together, and for a cache of another base."""
    cache = Cache(settings.cache)
    data = PairData(settings.pairs, cache, unit=settings.unit, masked=masked)
    given = {name: getattr(settings, name) for name in ("model", "wan", "fantasytalking", "wav2vec", "device")}
    components = components_of(CacheSettings(out=settings.cache, **given))
    if cache.facts.get("weights") != components.fingerprint:
        raise UserError(
            f"{cache.folder} was encoded by another model",
            got=f"weights {cache.facts.get('weights')}",
            expected=f"{components.fingerprint}, those that are to be trained",
            do="make the cache with this model",
        )
    print(f"{sum(len(unit.pairs) for unit in data.units)} pairs, {len(data)} units, {settings.iterations} iterations")
    held = None
    if settings.held_out_every:
        held = held_out(settings.pairs, cache, settings.sigmas, masked=masked, most=settings.held_out_pairs)
    return (
        data,
        held,
        components,
        made_from({**(files or {}), "pairs": settings.pairs, "cache": settings.cache / INDEX}),
    )
