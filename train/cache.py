"""Encodes every video once, for all stages of training: latents, image condition, text, CLIP, audio, lip masks.

    python -m train.cache --videos videos.jsonl --out cache --task face_landmarker.task
    python -m train.cache --out cache --verify true

`videos.jsonl` names each video's id, input and path (relative to the file) and, if it has one, its prompt. The mp4
stays the source of truth; the cache can be made again from it. Interrupted, it goes on where it stopped; a video that
changed is encoded anew. Lip masks come from mediapipe (`--task`) or from files of your own (`--masks FOLDER`,
NAME.safetensors with `mask` [T, H, W] in 0..1); a video whose lips cannot be followed gets none, and is counted.
Without either there are no masks.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core import audio, lips, media
from fantasy_core.components import Components, WanComponents, WanFromText, check_device
from fantasy_core.encoders import image_condition
from fantasy_core.errors import UserError
from fantasy_core.estimate import told_bytes
from fantasy_core.flags import DTYPES, TRAINED
from fantasy_core.manifest import sha256
from fantasy_core.progress import Progress
from train.cache_sources import (
    Source,
    check_sources,
    kept_frames,
    read_mask,
    read_sources,
    same_rate,
)
from train.cost import cached_bytes
from train.run import check_folder, command, setting
from train.shards import SHARD_BYTES, Cache, Encoded, ShardWriter

SAMPLE = 200  # videos whose headers a dry run reads


@dataclass(frozen=True)
class CacheSettings:
    out: Path = setting(help="folder of the cache")
    videos: Path | None = setting(None, "videos.jsonl or .parquet: video, input, path, and prompt if there is one")
    model: str = setting(TRAINED[0], "whose encoders", choices=TRAINED)
    wan: Path | None = setting(None, "folder or file of Wan2.1-I2V-14B, or T2V-1.3B")
    fantasytalking: Path | None = setting(None, "FantasyTalking's checkpoint")
    wav2vec: Path | None = setting(None, "folder of wav2vec2-base-960h")
    device: str = setting("cpu", "cpu, cuda, ...")
    dtype: str = setting("fp32", "of what is stored", choices=tuple(DTYPES))
    fps: float | None = setting(None, "of all videos (default: the model's, 23 of FantasyTalking)", least=1.0)
    task: Path | None = setting(None, "mediapipe's face_landmarker.task: makes lip masks")
    masks: Path | None = setting(None, "instead: a folder with NAME.safetensors for every video")
    shard_bytes: int = setting(SHARD_BYTES, "size of a shard", least=1)
    verify: bool = setting(False, "check the hashes of a cache that is there")


def components_of(settings: CacheSettings, *, dtype: torch.dtype | None = None, offload: str = "none") -> Components:
    """The model of the settings; dtype (None: the model's own) and offload are its DiT's, which stays in fp8 if it is
    stored so."""
    device = check_device(settings.device)
    if settings.model == "miniature":
        from fantasy_core.miniature import load_components

        return load_components(device=device, dtype=dtype, offload=offload)
    silent = settings.model == WanFromText.name
    files = {name: getattr(settings, name) for name in (("wan",) if silent else ("wan", "fantasytalking", "wav2vec"))}
    absent = [name for name, path in files.items() if path is None]
    if absent:
        raise UserError(
            "the encoders' files are not named",
            got="no " + ", ".join(absent),
            expected="the folders and files of the model",
            do="give " + ", ".join(f"--{name}" for name in absent),
        )
    kind = WanFromText if silent else WanComponents
    return kind(**files, device=device, dtype=dtype, offload=offload, keep=True, fp8="kept")


def read_clip(path: Path, fps: float, *, heard: bool = True) -> tuple[Tensor, Tensor | None]:
    """Frames [T, 3, H, W] in 0..1, the first 4k + 1 of a video, and its voice [n] at 16 kHz if it is `heard`. Raises
    UserError for another frame rate: a cache that mixes them would teach wrong speeds."""
    times, frames = zip(*media.read_video(path), strict=True)
    measured = (len(times) - 1) / times[-1] if len(times) > 1 and times[-1] > 0 else fps
    if not same_rate(measured, fps):
        raise UserError(
            f"{path} has another frame rate",
            got=f"{measured:.2f} frames a second",
            expected=f"{fps:g}",
            do=f"convert it (ffmpeg -i IN -r {fps:g} OUT), or give --fps",
        )
    kept = torch.stack(frames[: kept_frames(len(frames))])
    return kept, audio.trim(audio.load_voice(path), len(kept), fps) if heard else None


@torch.inference_mode()
def encode(components: Components, frames: Tensor, voice: Tensor | None, text: Tensor, fps: float) -> Encoded:
    """What a video is for the transformer: what its model does not know (portrait, voice) is not there."""
    video = frames.movedim(1, 0)[None].to(components.device) * 2 - 1  # [1, 3, T, H, W]
    portrait = video[:, :, 0]
    encoded = {"latents": components.encode(video)[0], "text": text.clone()}  # videos share their prompts, files do not
    if components.config.condition_dim:
        encoded["image"] = image_condition(components.encode, portrait, len(frames))[0, 4:]
    if (clip := components.clip(portrait)) is not None:
        encoded["clip"] = clip[0]
    if voice is not None:
        heard = audio.window_at(components.voice(voice), len(frames), fps=fps)
        encoded |= {"audio": heard.tokens[0], "lengths": heard.lengths[0]}
    return encoded


def lip_latents(frames: Tensor, source: Source, settings: CacheSettings, detectors) -> tuple[Tensor | None, str | None]:
    """The lip mask on the latent grid [F, h, w], or None and why there is none."""
    if settings.masks is not None:
        mask = read_mask(settings.masks, source.video, (len(frames), *frames.shape[2:]))
        return (lips.project(mask), None) if mask.any() else (None, "the given mask is empty")
    if detectors is None:
        return None, None
    pixels = (frames * 255).round().byte().movedim(1, -1).numpy()
    found = lips.track(pixels, *detectors)
    if (reason := found.unusable) is not None:
        return None, reason
    return lips.project(found.masks(*frames.shape[2:])), None


def fill(settings: CacheSettings, sources: list[Source], components: Components) -> None:
    """Encode what is not there yet."""
    dtype, facts = DTYPES[settings.dtype], {"model": components.name, "weights": components.fingerprint}
    facts |= {"fps": settings.fps, "dtype": settings.dtype}
    facts |= {"lips": "given" if settings.masks else "mediapipe" if settings.task else "none"}
    writer, dropped = ShardWriter(settings.out, facts, settings.shard_bytes), {}
    hears = components.config.audio_token_dim > 0
    hashes = {source.video: hashes_of(source, settings) for source in sources}
    left = [source for source in sources if not writer.has(source.video, **hashes[source.video])]
    print(f"{len(sources)} videos, {len(sources) - len(left)} of them cached already")
    check_sources(left, settings.videos.parent, settings.fps, settings.masks, heard=hears)
    prompts = sorted({source.prompt for source in left} | (set() if writer.has_empty_prompt else {""}))
    texts = dict(zip(prompts, components.text(prompts), strict=True)) if prompts else {}
    with ExitStack() as stack, Progress("cache", len(left)) as progress:
        detectors = None
        if settings.task is not None and settings.masks is None:
            detectors = [stack.enter_context(lips.landmarker(settings.task, confidence=c)) for c in (0.5, 0.9)]
        for source in left:
            frames, voice = read_clip(place(source, settings), settings.fps, heard=hears)
            encoded = encode(components, frames, voice, texts[source.prompt], settings.fps)
            mask, reason = lip_latents(frames, source, settings, detectors)
            encoded |= {} if mask is None else {"lips": mask}
            dropped |= {} if reason is None else {source.video: reason}
            stored = {n: t.cpu() if n == "lengths" else t.to("cpu", dtype) for n, t in encoded.items()}
            entry = hashes[source.video] | {"input": source.input, "frames": len(frames), "lips": reason}
            writer.add(source.video, stored, entry)
            progress.step(source.video)
        writer.finish()
    if not writer.has_empty_prompt:
        writer.add_empty_prompt(texts[""].to("cpu", dtype).clone())
    for video, reason in dropped.items():
        print(f"no lip mask for {video}: {reason}")
    print(f"{len(left)} encoded, {len(dropped)} of them without a lip mask")


def hashes_of(source: Source, settings: CacheSettings) -> dict[str, str]:
    """Of what an entry is made from: the video and, if it is given, its mask."""
    found = {"sha256": sha256(place(source, settings))}
    if settings.masks is not None:
        found["mask_sha256"] = sha256(settings.masks / f"{source.video}.safetensors")
    return found


def disk_plan(settings: CacheSettings, sources: list[Source], components: Components) -> str:
    """What the cache will take, from the headers of the first videos."""
    told = {"dtype": DTYPES[settings.dtype], "fps": settings.fps, "lips": bool(settings.task or settings.masks)}
    sizes = [media.video_size(place(source, settings)) for source in sources[:SAMPLE]]
    sizes = [(kept_frames(frames), height, width) for frames, height, width in sizes]
    each = [cached_bytes(components.config, *size, **told) for size in sizes]
    total = sum(each) * len(sources) // max(len(each), 1)
    sampled = f", by the first {SAMPLE}" if len(sources) > SAMPLE else ""
    kinds = ", ".join(f"{n} of {t} frames {w} x {h}" for (t, h, w), n in Counter(sizes).most_common(3))
    return f"disk: {told_bytes(total)}{sampled}; {kinds}"


def place(source: Source, settings: CacheSettings) -> Path:
    return settings.videos.parent / source.path


def run(settings: CacheSettings, dry_run: bool) -> None:
    if settings.verify:
        cache = Cache(settings.out)
        if damaged := list(cache.damaged()):
            raise UserError(
                f"{settings.out} is damaged",
                got=f"{len(damaged)} of {len(cache.videos)} videos, {damaged[0]} first",
                expected="the tensors that were written",
                do="remove the folder and make the cache again",
            )
        print(f"{len(cache.videos)} videos, all sound")
        return
    if settings.videos is None:
        raise UserError("there is nothing to encode", got="no --videos", expected="videos.jsonl", do="give --videos")
    check_folder(settings.out)
    sources = read_sources(settings.videos, settings.masks)
    components = components_of(settings)
    settings = replace(settings, fps=settings.fps or components.defaults.fps)
    if dry_run:
        hears = components.config.audio_token_dim > 0
        check_sources(sources, settings.videos.parent, settings.fps, settings.masks, heard=hears)
        print(f"dry run: {len(sources)} videos would be encoded by {components.name} into {settings.out}")
        print(disk_plan(settings, sources, components))
        return
    fill(settings, sources, components)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(CacheSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
