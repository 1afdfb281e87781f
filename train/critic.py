"""Talking-Critic learns from people's labels: instruction tuning by one word, Yes or No (paper, 3.2, 4.1).

    python -m train.critic --annotations annotations/annotations.jsonl --videos videos.jsonl \\
        --base models/Qwen2.5-Omni-7B --task face_landmarker.task --preset practical --device cuda --out runs/critic
    python -m train.critic eval --annotations annotations/annotations.jsonl --scores scores --base-scores base_scores \\
        --metrics metrics.csv --out runs/critic_eval
    python -m train.critic merge --base models/Qwen2.5-Omni-7B --critic runs/critic/adapter --out models/critic

LoRA on the linears of the language model alone; both encoders stay as they are. The result is OUT/adapter, with what
the critic was asked and shown in critic.json. Before the first step all labelled videos are looked at: labels of those
that cannot be read, and labels of lip sync of those that show no face, are left out (OUT/left_out.json). Interrupted,
the same command goes on and ends with the same bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fantasy_core.critic.about import ABOUT, views_for
from fantasy_core.critic.asked import FACES, read_questions
from fantasy_core.critic.critic import Critic
from fantasy_core.critic.shown import Shown
from fantasy_core.critic.thinker import add_adapter, base_of, fingerprint, load_thinker, load_tokenizer
from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file
from fantasy_core.pair_rules import DIMENSIONS
from fantasy_core.progress import Progress
from train.annotations import Annotation
from train.checkpoint import Checkpoint, Log
from train.config_file import write_settings
from train.critic_data import CriticData
from train.critic_plan import training_plan
from train.distributed import join
from train.labelled import keep, left_out
from train.optimizers import check_optimizer, make_optimizer
from train.presets import read_preset
from train.run import command, made_from, setting, write_json
from train.scorers import by_tokens, check_task, prepare_reader, read_window
from train.trainer import check_finite
from train.workers import each

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FREE = ("out", "resume", "device", "workers", "micro", "checkpointing", "save_every")  # may change when a run goes on


@dataclass(frozen=True)
class CriticSettings:
    annotations: Path = setting(help="annotations.jsonl of train.annotate")
    videos: Path = setting(help="videos.jsonl: video, path (relative to it)")
    base: Path = setting(help="folder of Qwen2.5-Omni, 3B or 7B")
    out: Path = setting(help="run folder")
    resume: bool = setting(False, "an error where there is nothing to go on from (a run that is there always goes on)")
    preset: str | None = setting(None, "paper or practical: settings to begin with")
    dimension: tuple[str, ...] = setting(DIMENSIONS, "which are learnt", choices=DIMENSIONS)
    views: str = setting("separate", "what the critic is shown: separate or shared")
    task: Path | None = setting(None, "face_landmarker.task, for the view of the face")
    face: str = setting("found", "found, or whole: views of the face show all of the frame", choices=FACES)
    rank: int = setting(64, "of the LoRA", least=1)
    alpha: float = setting(128.0, "of the LoRA", least=0)
    lr: float = setting(1e-4, "of AdamW", least=0)
    weight_decay: float = setting(0.0, "of AdamW", least=0)
    optimizer: str = setting("adamw", "adamw or adamw8bit")
    loss: str = setting("words", "cross-entropy over all words, or over Yes and No alone", choices=("words", "two"))
    epochs: float = setting(3.0, "passes over the balanced labels", least=0)
    batch: int = setting(32, "labels of an iteration, of all processes", least=1)
    micro: int = setting(8192, "tokens that go through the model at once", least=1)
    clip_norm: float = setting(1.0, "of the gradient; 0: none", least=0)
    validation: float = setting(0.05, "share of the training inputs that is held out", least=0, most=0.9)
    validate_every: int = setting(100, "iterations between looks at it; 0: at the end alone", least=0)
    seed: int = setting(0, "of the adapter's start and of the order")
    dtype: str = setting("bf16", "of the base; the adapter is fp32", choices=tuple(DTYPES))
    device: str = setting("cpu", "cpu or cuda")
    checkpointing: bool = setting(False, "compute blocks again in the backward pass")
    workers: int = setting(2, "processes that decode; 0: this one", least=0)
    save_every: int = setting(100, "iterations between checkpoints", least=1)

    @property
    def recorded(self) -> dict:
        """What makes a run what it is."""
        return {name: value for name, value in vars(self).items() if name not in FREE}


class Run:
    """What a training works with, opened and checked."""

    def __init__(self, settings: CriticSettings):
        self.settings, self.views = settings, views_for({}, settings.views, settings.face)
        self.world = join(settings.device)
        self.world.check(settings.batch, "buffers")
        told = {"seed": settings.seed, "validation": settings.validation, "dimensions": settings.dimension}
        self.data = CriticData(settings.annotations, settings.videos, **told)
        check_task(settings.task, self.views.only(settings.dimension))
        check_file(settings.base / "config.json", "model's configuration")
        check_optimizer(settings.optimizer, self.world.device)
        self.origin = made_from({"annotations": settings.annotations, "videos": settings.videos})
        asked = {"questions": read_questions().hash, "views": self.views.hash}
        self.checkpoint = Checkpoint(settings.out, settings.recorded | self.origin | asked)
        self.checkpoint.check(needed=settings.resume)

    @property
    def iterations(self) -> int:
        return math.ceil(self.settings.epochs * len(self.data) / self.settings.batch)

    def look(self) -> None:
        """Leave out the labels of videos that cannot be read, or show no face where it is shown."""
        labels, settings = [(row.video, row.dimension) for row in self.data.known], self.settings
        where = {"views": self.views, "task": settings.task, "out": settings.out}
        found = left_out(labels, self.data.files, workers=settings.workers, world=self.world, **where)
        begun = self.checkpoint.file.is_file()
        if self.world.is_main or begun:
            keep(found, settings.out, begun)
        if found:
            print(f"warning: left out {len(found)} of {len(labels)} labels, whose videos cannot be shown: ", end="")
            print(some(f"{video} {dimension} ({why})" for (video, dimension), why in found.items()))
            self.data.leave_out(found)

    def tell(self) -> None:
        print(f"{len(self.data)} balanced labels, {len(self.data.validation)} held out, {self.iterations} iterations")
        for cell in self.data.dropped:
            print(f"warning: left out, for it has no {'No' if cell.label else 'Yes'}: {cell}")

    def looks_after(self, iteration: int) -> bool:
        """Whether the inputs held out are looked at after this iteration."""
        every = self.settings.validate_every
        return bool(every) and (iteration + 1) % every == 0

    def shown(self, labels: Sequence[Annotation]) -> Iterator[tuple[Annotation, Shown]]:
        """(label, what it is learnt from) in order; a video that can no longer be read stops the run."""
        jobs = ((self.data.files[label.video], label.dimension) for label in labels)
        given = (self.views, self.settings.task if self.views.crops_face else None)
        read = each(read_window, jobs, self.settings.workers, prepare=prepare_reader, given=given)
        for label, (_, found) in zip(labels, read, strict=True):
            if isinstance(found, UserError):
                raise found
            yield label, found


def loss_of(logits: Tensor, labels: Tensor, yes: int, no: int, kind: str) -> Tensor:
    """Cross-entropy [B] of the answer's first word; labels [B], 1 is Yes."""
    if kind == "two":
        return F.cross_entropy(logits[:, [no, yes]], labels, reduction="none")
    return F.cross_entropy(logits, torch.where(labels == 1, yes, no), reduction="none")


def learn(run: Run, critic: Critic, batch: list[tuple[Annotation, Shown]]) -> dict[str, float]:
    """Gradients of a batch's mean loss, a micro-batch at a time; what to log of it."""
    settings, sums = run.settings, {"loss": 0.0, "accuracy": 0.0, "mass": 0.0}
    for group in by_tokens([(number, shown) for number, (_, shown) in enumerate(batch)], settings.micro):
        loss, right, mass = answered(critic, [batch[number] for number, _ in group], settings.loss)
        (loss.sum() / settings.batch).backward()
        for name, values in (("loss", loss), ("accuracy", right), ("mass", mass)):
            sums[name] += float(values.detach().sum())
    return sums


def answered(critic: Critic, batch: Sequence[tuple[Annotation, Shown]], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, whether z has the label's sign, and the mass of Yes and No, each [B]."""
    labels, shown = zip(*batch, strict=True)
    asked = [label.dimension for label in labels]
    logits = critic.logits(shown, asked)
    told = torch.tensor([label.label for label in labels], device=logits.device)
    z, mass = critic.read(logits)
    return loss_of(logits, told, critic.front.yes, critic.front.no, kind), (z > 0) == (told == 1), mass


@torch.no_grad()
def validate(run: Run, critic: Critic) -> dict[str, float]:
    """Accuracy at z = 0 and loss on the inputs held out, by dimension; each process looks at all of them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for label, shown in run.shown(run.data.validation):
        loss, right, _ = answered(critic, [(label, shown)], run.settings.loss)
        found.setdefault(label.dimension, []).append((float(loss), float(right)))
    told = {}
    for dimension, rows in found.items():
        loss, accuracy = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        told |= {f"held_out_loss_{dimension}": loss, f"held_out_accuracy_{dimension}": accuracy}
    return told


def train(run: Run, critic: Critic) -> None:
    settings, world, checkpoint = run.settings, run.world, run.checkpoint
    parameters = [p for p in critic.model.parameters() if p.requires_grad]
    told = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    optimizer = make_optimizer(settings.optimizer, parameters, **told)
    first = checkpoint.load(parameters, optimizer)
    world.agree(checkpoint.hash, first)
    with checkpoint.kept():
        log = Log(settings.out / "log.jsonl", first) if world.is_main else None
    indices = (index for i in range(first, run.iterations) for index in world.share(i, settings.batch))
    stream = run.shown([run.data.at(index) for index in indices])
    with Progress("critic", run.iterations, shown=world.is_main) as progress:
        progress.done = first
        for iteration in range(first, run.iterations):
            batch = list(islice(stream, settings.batch // world.size))
            optimizer.zero_grad(set_to_none=True)
            line = world.mean([learn(run, critic, batch)], settings.batch)
            world.sum_gradients(parameters)
            line["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf))
            check_finite(line, iteration, checkpoint)
            optimizer.step()
            last = iteration + 1 == run.iterations
            if run.data.validation and (last or run.looks_after(iteration)):
                line |= validate(run, critic)
            if log is None:
                continue
            with checkpoint.kept():
                log.write(iteration, line)
                if (iteration + 1) % settings.save_every == 0 or last:
                    checkpoint.save(iteration + 1, parameters, optimizer)
            progress.step(f"loss {line['loss']:.4f}, accuracy {line['accuracy']:.2f}")


def save(run: Run, critic: Critic) -> Path:
    """The adapter, and beside it what it belongs to."""
    folder, questions = run.settings.out / "adapter", critic.questions
    critic.model.save_pretrained(folder, save_embedding_layers=False)
    about = {
        "questions": {"version": questions.version, "hash": questions.hash},
        "views": {"preset": run.views.preset, "face": run.views.face, "hash": run.views.hash},
        "base": fingerprint(critic.model),
        "dimensions": [d for d in run.settings.dimension if any(row.dimension == d for row in run.data.rows)],
        "labels": len(run.data),
        "iterations": run.iterations,
        "made_from": run.origin,
        "settings": {name: str(value) for name, value in run.settings.recorded.items()},
    }
    write_json(folder / ABOUT, about)
    return folder


def smaller(settings: CriticSettings) -> str:
    """What takes less memory and leaves the run what it is."""
    ways = ["--checkpointing true"] * (not settings.checkpointing) + [f"--micro {settings.micro // 2}"]
    return f"pass {' and '.join(ways)}"


def run(settings: CriticSettings, dry_run: bool) -> None:
    found = Run(settings)
    if dry_run:
        found.tell()
        print(training_plan(settings, found.data, found.views, DTYPES[settings.dtype]))
        print("labels whose video cannot be read, or shows no face, will be left out before the first step")
        print(f"dry run: an adapter of rank {settings.rank} would be trained into {settings.out}")
        return
    found.world.meet()
    found.look()
    found.tell()
    needed = "the weights that --dry-run tells, and the activations of --micro tokens"
    with found.checkpoint.fits(needed, smaller(settings)):
        model = load_thinker(settings.base, dtype=DTYPES[settings.dtype], device=found.world.device)
        if settings.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        adapted = add_adapter(model, settings.rank, settings.alpha, settings.seed)
        base_of(adapted).train(settings.checkpointing)  # there is no dropout: the mode is what turns checkpointing on
        critic = Critic(adapted, load_tokenizer(settings.base), found.views, read_questions())
        if found.world.is_main:
            write_settings(settings.out / "config.toml", settings, "given back as --config, this repeats the run")
            write_json(settings.out / "made_from.json", found.origin)
        with found.world.together():
            train(found, critic)
    if found.world.is_main:
        print(save(found, critic))
    found.world.leave()


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["eval"]:
        from train.critic_eval import main as evaluate

        return evaluate(given[1:])
    if given[:1] == ["merge"]:
        from train.critic_merge import main as merge

        return merge(given[1:])
    return command(CriticSettings, __doc__, run, argv, partial(read_preset, "critic"))


if __name__ == "__main__":
    sys.exit(main())
