"""A portrait and a voice become a video: `python -m fantasy_core.animate --portrait P --audio A --out V.mp4`.

Reads top to bottom: what is checked before a model is loaded, the video itself, the command (its flags: `flags.py`).
The miniature is the default; `--model wan2.1-i2v-14b` runs Wan2.1-I2V-14B with FantasyTalking (unverified with real
weights). Left out of FantasyTalking: its two-step resize of the portrait and its tiled VAE decoder, whose tiles show.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import audio, flow, media
from .components import Components, WanComponents, check_device
from .encoders import image_condition
from .errors import UserError, report
from .estimate import estimate
from .flags import DTYPES, Settings, parser
from .manifest import Failures, Job, check_out, read_jobs, remove_partials, settings_of, sha256
from .mixture import Mixture
from .progress import Progress
from .windows import Window, assemble, hold, plan_windows, window_noise

GROUP = 16  # lines of a manifest that share one loading of the models
VERSION = 1  # of the settings in the metadata: raise it when equal settings make another video


@dataclass(frozen=True)
class Clip:
    """A job that passed all checks: its frames, (width, height), windows, and the record that its video will carry."""

    job: Job
    frames: int
    size: tuple[int, int]
    windows: list[Window]
    record: dict


@dataclass(frozen=True)
class Inputs:
    """What the encoders made of one clip: portrait [1, 3, H, W] in [-1, 1], the rest as `Components` says."""

    portrait: Tensor
    clip: Tensor | None
    voice: Tensor
    text: Tensor
    negative: Tensor


# ---- before any model is loaded ----


def read_portrait(path: Path, settings: Settings) -> Tensor:
    return media.fit_image(media.read_image(path), settings.size)[None] * 2 - 1


def check_job(job: Job, settings: Settings, components: Components, mixture: Mixture | None = None) -> Clip:
    """Read portrait and voice, warn about the portrait, plan the windows. Raises UserError for unusable files."""
    portrait = read_portrait(job.portrait, settings)
    seconds = len(audio.load_voice(job.audio)) / audio.SAMPLE_RATE
    check_out(job.out)
    if job.out.resolve() in (job.portrait.resolve(), job.audio.resolve()):
        raise UserError(
            "the video would replace what it is made from",
            got=str(job.out),
            expected="another file than the portrait and the voice",
            do="give another --out (in a manifest: `out`)",
        )
    if not 0 <= job.seed < 2**63:
        raise UserError("the seed is out of range", got=str(job.seed), expected="0 to 2^63 - 1", do="choose another")
    frames, size = settings.frames(seconds), (portrait.shape[3], portrait.shape[2])
    if warning := components.check(portrait):
        print(f"warning: {job.portrait}: {warning}", file=sys.stderr)
    record = asdict(settings)
    del record["passes"]
    record |= {
        "version": VERSION, "model": components.name, "weights": components.fingerprint,
        "dtype": str(components.dtype).removeprefix("torch."), "prompt": job.prompt, "seed": job.seed,
        "portrait": sha256(job.portrait), "audio": sha256(job.audio), "frames": frames, "size": list(size),
    }  # fmt: skip
    if mixture is not None:
        record |= mixture.record
    return Clip(job, frames, size, plan_windows(frames, settings.window, settings.overlap), record)


# ---- the video ----


def encode_prompts(components: Components, clips: list[Clip], settings: Settings) -> dict[str, Tensor]:
    """All prompts of a group of clips at once, by their text: the text encoder is the largest of the encoders."""
    prompts = list(dict.fromkeys([settings.negative_prompt, *(clip.job.prompt for clip in clips)]))
    return dict(zip(prompts, components.text(prompts).split(1), strict=True))


def encode_inputs(components: Components, clip: Clip, texts: dict[str, Tensor], settings: Settings) -> Inputs:
    portrait = read_portrait(clip.job.portrait, settings).to(components.device)
    voice = components.voice(audio.trim(audio.load_voice(clip.job.audio), clip.frames, settings.fps))
    text, negative = texts[clip.job.prompt], texts[settings.negative_prompt]
    return Inputs(portrait, components.clip(portrait), voice, text, negative)


def hear(voice: Tensor, window: Window, settings: Settings) -> audio.AudioTokens:
    """What each latent frame of the window hears: by absolute time, or stretched as FantasyTalking does."""
    time = {} if settings.frames_rule == "official" else {"fps": settings.fps, "first_frame": window.start}
    return audio.window(voice, audio.window_ranges(voice.shape[1], window.frames, **time))


def render_window(
    window: Window,
    tail: Tensor | None,
    *,
    components: Components,
    dit: Callable[..., Tensor],
    inputs: Inputs,
    settings: Settings,
    seed: int,
    on_step: flow.StepFn | None = None,
) -> Iterator[Tensor]:
    """The frames of one window, a few at a time; `tail` [overlap, 3, H, W] as `windows.assemble` gives it."""
    image = inputs.portrait if tail is None else tail[:1]
    held = None if tail is None else components.encode(tail.transpose(0, 1)[None])
    condition = image_condition(components.encode, image, window.frames)
    channels = components.config.out_dim
    noise = window_noise((1, channels, *condition.shape[2:]), seed, window).to(image.device)
    velocity = flow.guided(
        dit, inputs.text, hear(inputs.voice, window, settings), negative=inputs.negative, condition=condition,
        clip=inputs.clip, text_scale=settings.text_scale, audio_scale=settings.audio_scale, passes=settings.passes,
    )  # fmt: skip
    sigmas = flow.schedule(settings.steps, settings.shift)
    velocity = hold(velocity, noise, held)
    return components.decode(flow.sample(velocity, noise, sigmas, solver=settings.solver, on_step=on_step))


@torch.inference_mode()
def make_video(
    components: Components, dit: Callable[..., Tensor], clip: Clip, inputs: Inputs, settings: Settings
) -> None:
    """Write the video of one clip. Nothing of it is left when this is interrupted."""
    job = clip.job
    remove_partials(job.out)
    progress = Progress(job.out.name, settings.steps * len(clip.windows))
    writer = media.VideoWriter(job.out, settings.fps, sound=job.audio, settings=clip.record)

    def render(window: Window, tail: Tensor | None) -> Iterator[Tensor]:
        note = f"window {clip.windows.index(window) + 1}/{len(clip.windows)}"
        return render_window(
            window, tail, components=components, dit=dit, inputs=inputs, settings=settings, seed=job.seed,
            on_step=lambda *_: progress.step(note),
        )  # fmt: skip

    with progress, writer:
        for frames in assemble(clip.windows, render):
            writer.write((frames + 1) / 2)
    print(f"{job.out}: {clip.frames} frames, {clip.frames / settings.fps:.2f} s", file=sys.stderr)


def with_experts(
    components: Components, dit: Callable[..., Tensor], mixture: Mixture | None, settings: Settings
) -> AbstractContextManager:
    """The DiT with its experts and gate, while the context is open (Eq. 4)."""
    if mixture is None:
        return nullcontext()
    sigmas = flow.schedule(settings.steps, settings.shift)
    return mixture.attached(
        dit, sigmas, device=components.device, dtype=components.dtype, streamed=offloaded(components)
    )


def make_group(
    components: Components, clips: list[Clip], settings: Settings, failures: Failures, mixture: Mixture | None = None
) -> None:
    """The videos of a few clips. Text encoder and DiT are loaded once for all of them."""
    with torch.inference_mode():
        texts, ready = encode_prompts(components, clips, settings), []
        for clip in clips:
            with failures.of(clip.job):
                ready.append((clip, encode_inputs(components, clip, texts, settings)))
        with components.dit() as dit, with_experts(components, dit, mixture, settings):
            for clip, inputs in ready:
                with failures.of(clip.job):
                    make_video(components, dit, clip, inputs, settings)


# ---- the command ----


def load_components(flags: argparse.Namespace) -> Components:
    """The parts of the chosen model, checked but not loaded. Raises UserError for absent or superfluous flags."""
    real = {"--wan": flags.wan, "--fantasytalking": flags.fantasytalking, "--wav2vec": flags.wav2vec}
    small = flags.model == "miniature"
    wrong = [name for name, value in real.items() if (value is None) != small]
    if small and flags.offload != "none":
        wrong.append("--offload")
    if wrong:
        raise UserError(
            f"{flags.model} {'takes no' if small else 'needs'} {', '.join(wrong)}",
            got=f"--model {flags.model}",
            expected="--wan, --fantasytalking and --wav2vec together with --model wan2.1-i2v-14b",
            do="add --model wan2.1-i2v-14b, or leave them out" if small else f"give {', '.join(wrong)}",
        )
    device, dtype = check_device(flags.device), DTYPES.get(flags.dtype)
    if small:
        from . import miniature

        return miniature.load_components(device=device, dtype=dtype)
    return WanComponents(
        flags.wan, flags.fantasytalking, flags.wav2vec, device=device, dtype=dtype, offload=flags.offload
    )


def offloaded(components: Components) -> bool:
    return getattr(components, "offload", "none") == "blocks"


def print_plan(components: Components, clips: list[Clip], settings: Settings, mixture: Mixture | None = None) -> None:
    """What each video costs, by arithmetic (`estimate`); a shorter last window counts as a whole one."""
    for clip in clips:
        same = clip.job.prompt == settings.negative_prompt
        weights = flow.guidance_weights(settings.text_scale, settings.audio_scale, same_text=same)
        passes, (width, height) = sum(weight != 0 for weight in weights), clip.size
        batch = passes if settings.passes == "batched" else 1
        cost = estimate(
            components.config, clip.windows[0].frames, height, width, settings.steps, passes, components.dtype,
            offloaded(components), windows=len(clip.windows), batch=batch,
        )  # fmt: skip
        print(f"{clip.job.out}: {clip.frames} frames, {clip.frames / settings.fps:.2f} s\n{cost}")
        if cost.vae:  # windows alternate between both, so the DiT stays
            print(f"{'memory, VAE beside the DiT':<28}{(cost.weights + cost.vae) / 2**30:.1f} GiB")
        if mixture is not None:
            print(mixture.explain(cost.grid, batch, components.dtype, offloaded(components)))
            if mixture.measured_on(components.device, components.dtype):
                print("on a CPU in half precision the run measures what merging costs, and may choose otherwise")
        print()


def run(flags: argparse.Namespace) -> None:
    components = load_components(flags)
    settings = Settings.from_flags(flags, components.defaults)
    mixture = Mixture.from_flags(flags, components.config, flow.schedule(settings.steps, settings.shift))
    failures = Failures(one_job=flags.manifest is None)
    jobs = read_jobs(flags, failures)
    total, clips = len(jobs) + len(failures.lines), []
    for job in jobs:
        with failures.of(job):
            clips.append(check_job(job, settings, components, mixture))
    if flags.manifest is not None:
        there = len(clips)
        clips = [clip for clip in clips if settings_of(clip.job.out) != clip.record]
        print(f"{len(clips)} videos to make, {there - len(clips)} are there already", file=sys.stderr)
    if flags.dry_run:
        print_plan(components, clips, settings, mixture)
    else:
        for first in range(0, len(clips), GROUP):
            make_group(components, clips[first : first + GROUP], settings, failures, mixture)
    failures.report(total)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for a UserError (a wrong flag exits with 2 too), 130 after Ctrl-C."""
    flags = parser().parse_args(argv)
    return report(lambda: run(flags), debug=flags.debug)


if __name__ == "__main__":
    sys.exit(main())
