"""What stage 1 (experts) and stage 2 (the gate) have in common: settings, and what is checked before training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.components import Components
from fantasy_core.errors import UserError, some
from fantasy_core.experts import ExpertBank
from fantasy_core.media import check_file
from fantasy_core.offload import check_training
from fantasy_core.preference import Objective
from fantasy_core.wan import WanDiT
from train.budget import Budget, of_stage
from train.cache import CacheSettings, components_of
from train.calibration import calibrate, report, with_fitting_beta
from train.checkpoint import Checkpoint
from train.config_file import write_settings
from train.distributed import join, shard_blocks
from train.optimizers import check_optimizer
from train.reference import Context, KeptReference, LiveReference
from train.run import check_folder, made_from, write_json
from train.samples import Samples
from train.shards import INDEX, Cache
from train.stage_settings import DTYPES, StageSettings
from train.trackers import Trackers, check_trackers
from train.trainer import PairData, train
from train.watch import Watch, held_out


class Stage:
    """What a stage trains with, opened and checked: the settings with their iterations, the pairs and those held out,
    the base, and what the run is made from. Only headers are read, so that a dry run finds all that does not fit.

    experts: files by name, for the gate. Raises UserError for pairs and a cache that do not belong together, a cache or
    experts of another base, and a folder with another run.
    """

    def __init__(
        self,
        settings: StageSettings,
        dimension: str,
        *,
        masked: bool = False,
        experts: Mapping[str, Path] | None = None,
    ):
        _check_ways(settings)
        check_folder(settings.out)
        self.objective, cache = settings.objective, Cache(settings.cache)
        self.world = join(settings.device, settings.shard)
        self.world.check(settings.batch, settings.form)
        check_trackers(settings.tracker)
        told = {"unit": settings.unit, "masked": masked, "dropout": settings.dropout, "dimension": dimension}
        self.data = PairData(settings.pairs, cache, **told)
        self.settings = settings = settings.for_units(len(self.data))
        if settings.form == "joint":
            self.data.check_one_size()
        given = {name: getattr(settings, name) for name in ("model", "wan", "fantasytalking", "wav2vec")}
        given["device"] = "cpu" if self.world.sharded else str(self.world.device)  # sharded on the way to the device
        self.components = components_of(
            CacheSettings(out=settings.cache, **given), dtype=DTYPES.get(settings.dtype), offload=settings.offload
        )
        _check_base(cache, self.components)
        check_optimizer(settings.optimizer, self.world.device)
        if settings.offload == "blocks":
            check_training(settings.checkpointing)
        self.held_out = None
        if settings.held_out_every:
            self.held_out = held_out(
                settings.pairs, cache, settings.sigmas, masked=masked, most=settings.held_out_pairs, world=self.world
            )
        self.samples = Samples(settings, cache, self.components, self.world) if settings.sample_every else None
        self.experts = ExpertBank.load(experts, self.blueprint) if experts else None
        if self.experts is not None:
            _check_experts(self.experts, self.components, settings.other_base)
        files = {f"expert {name}": path for name, path in (experts or {}).items()}
        self.origin = made_from({**files, "pairs": settings.pairs, "cache": settings.cache / INDEX})
        self.identity = settings.recorded | self.origin
        self.checkpoint = Checkpoint(settings.out, self.identity)
        self.checkpoint.check(needed=settings.resume)
        pairs = sum(len(unit.pairs) for unit in self.data.units)
        print(f"{pairs} pairs, {len(self.data)} units, {settings.iterations} iterations")

    @property
    def blueprint(self) -> WanDiT:
        """The base without its weights."""
        with torch.device("meta"):
            return WanDiT(self.components.config)

    @property
    def budget(self) -> Budget:
        """What the run will cost; `str()` is a table."""
        return of_stage(self)

    @property
    def smaller(self) -> str:
        """What takes less memory and leaves the run what it is."""
        ways = ["--checkpointing blocks"] * (self.settings.checkpointing != "blocks")
        ways += ["--offload blocks"] * (self.settings.offload != "blocks")
        return (
            f"pass {' and '.join(ways)}" if ways else "take a device with more memory, or smaller videos in a new run"
        )

    @contextmanager
    def dit(self) -> Iterator[WanDiT]:
        """The base, frozen, and sharded if asked; the run is on record from here on."""
        self.world.meet()
        if self.world.is_main:
            about = f"{self.settings.iterations} iterations; given back as --config, this repeats the run"
            write_settings(self.settings.out / "config.toml", self.settings, about)
            write_json(self.settings.out / "made_from.json", self.origin)
        with (
            self.checkpoint.fits("what --dry-run prints, and a tenth more", self.smaller),
            self.components.dit() as dit,
        ):
            dit.requires_grad_(False).checkpointing = self.settings.checkpointing
            if self.world.sharded:
                shard_blocks(dit, self.world)
            yield dit
        self.world.leave()

    def train(
        self,
        dit: WanDiT,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        reference: Context,
        statistics: Callable[[], dict] = dict,
        *,
        calibrated: bool = False,
    ) -> None:
        """`trainer.train` with what is here; in `reference()` the model is the reference. calibrated: tell first what
        the run begins with, for a policy that does not begin as the reference."""
        settings, known = self.settings, LiveReference(reference)
        if settings.reference_errors == "cached":
            facts = {"weights": self.components.fingerprint, "dtype": str(self.components.dtype)}
            facts |= {"distribution": settings.distribution, "shift": settings.shift}
            known = KeptReference(reference, self.data.cache, facts)
        held = partial(self.held_out, reference=reference) if self.held_out else None
        tracked = Trackers(settings.tracker, settings.out, self.checkpoint.hash, self.identity)
        with self.world.together(), tracked as track:
            finds_beta = settings.loss == "simpo" and settings.beta == 0
            if calibrated or finds_beta:
                self.objective = self.calibrate(dit, reference)
            train(
                settings.plan, self.data, settings.draws, dit, parameters, optimizer, self.objective, known,
                self.checkpoint, settings.out, self.world, held_out=held, statistics=statistics,
                watch=Watch(self.objective), samples=self.samples, track=track,
            )  # fmt: skip

    def calibrate(self, dit: WanDiT, reference: Context) -> Objective:
        """Tell what the run begins with; the objective, with SimPO's own beta if it is asked for. Every process looks
        for itself; a run with a checkpoint does not begin again."""
        file, seed = self.settings.out / "calibration.json", self.settings.seed
        if self.checkpoint.file.is_file():
            told = json.loads(check_file(file, "what the run began with").read_text("utf-8"))
        else:
            units = [self.data.at(index, seed) for index in range(self.settings.calibration_pairs)]
            draws = [self.settings.draws(index, unit.input) for index, unit in enumerate(units)]
            numbered = enumerate(zip(units, draws, strict=True))
            errors = [self.data.errors(dit, unit, draw, seed, index) for index, (unit, draw) in numbered]
            told = calibrate(errors, self.objective, reference)
            if self.world.is_main:
                write_json(file, told)
        objective = self.objective if self.settings.beta else with_fitting_beta(self.objective, told)
        report(told, objective)
        return objective


def _check_ways(settings: StageSettings) -> None:
    """Where blocks are sharded, every process makes every pass; videos that lost their voice or text have other errors
    than those that are kept, and cannot share a pass with others."""
    special = ["--reference-errors cached"] if settings.reference_errors == "cached" else []
    special += ["--form joint"] if settings.form == "joint" else []
    beside_shards = special + (["--offload blocks"] if settings.offload == "blocks" else [])
    if beside_shards and settings.shard != "none":
        raise UserError(
            f"sharded blocks do not go with {' and '.join(beside_shards)}",
            got=f"--shard {settings.shard}",
            expected="every pass made by all processes, one video at a time, each with its part of every block",
            do="use --reference-errors live, --form buffers and --offload none, or --shard none",
        )
    if special and (settings.text_dropout or settings.audio_dropout):
        raise UserError(
            f"dropout does not go with {' and '.join(special)}",
            got=f"text dropout {settings.text_dropout}, audio dropout {settings.audio_dropout}",
            expected="all videos whole, where their errors are kept or many go through one pass",
            do="leave out the dropout, or use --reference-errors live and --form buffers",
        )


def _check_base(cache: Cache, components: Components) -> None:
    if cache.facts.get("weights") != components.fingerprint:
        raise UserError(
            f"{cache.folder} was encoded by another model",
            got=f"weights {cache.facts.get('weights')}",
            expected=f"{components.fingerprint}, those that are to be trained",
            do="make the cache with this model",
        )


def _check_experts(bank: ExpertBank, components: Components, other_base: bool) -> None:
    """Experts say in `tlpo.weights` on which base they were trained; those of others' trainers do not."""
    told = {name: bank.metadata[name].get("tlpo.weights", components.fingerprint) for name in bank.names}
    strangers = [f"{name}: {weights}" for name, weights in told.items() if weights != components.fingerprint]
    if strangers and not other_base:
        raise UserError(
            "these experts were trained on another base",
            got=some(strangers),
            expected=f"{components.fingerprint}, the base that they are to be fused on",
            do="train them on this base; or, if it is a quantised copy of theirs, give --other-base true",
        )
