"""The cache of encoded videos: safetensors shards of about a gigabyte, and index.json, which says what lies where.

Tensors of a video, by name: latents [16, F, h, w], image [16, F, h, w] (the image condition without its constant mask
channels), audio [F, n, D] with lengths [F], text [L, d], and, where there are any, clip [257, c] and lips [F, h, w]. A
shard is written whole and then entered into the index: what was interrupted is made again, what is there is not.
empty_prompt.safetensors holds the text [L, d] of the empty prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fantasy_core.components import WanFromText
from fantasy_core.errors import UserError, some
from fantasy_core.weights import TensorSet, open_tensors, save_tensors, tensors_hash
from fantasy_core.weights.files import Lazy
from train.run import write_json

SHARD_BYTES = 10**9
CONDITIONS = ("latents", "image", "audio", "text")  # of a model that is given a portrait and a voice
INDEX, EMPTY_PROMPT = "index.json", "empty_prompt.safetensors"
Encoded = dict[str, Tensor]


class ShardWriter:
    """Collects videos and writes full shards; `finish` writes the rest.

    facts: what all videos of the cache have in common (the models they were encoded with); another cache in the folder
    is refused.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object], shard_bytes: int = SHARD_BYTES):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shard_bytes = folder, shard_bytes
        self.index = read_index(folder) if (folder / INDEX).is_file() else {"facts": dict(facts), "videos": {}}
        _check_facts(folder, self.index["facts"], facts)
        self.waiting: dict[str, tuple[Encoded, dict]] = {}
        self.bytes = 0

    def has(self, video: str, sha256: str, mask_sha256: str | None = None) -> bool:
        """Whether the video is there already, made from this very file and, if one is given, from this mask. Caches of
        earlier versions do not say of which mask they are: they are taken as they are."""
        entry = self.index["videos"].get(video, {})
        return entry.get("sha256") == sha256 and entry.get("mask_sha256", mask_sha256) == mask_sha256

    @property
    def has_empty_prompt(self) -> bool:
        return (self.folder / EMPTY_PROMPT).is_file()

    def add_empty_prompt(self, text: Tensor) -> None:
        save_tensors(self.folder / EMPTY_PROMPT, {"text": text})

    def add(self, video: str, tensors: Encoded, entry: dict) -> None:
        """`entry` must have `sha256`, the hash of the video's file."""
        self.waiting[video] = (tensors, entry)
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self.bytes >= self.shard_bytes:
            self.finish()

    def finish(self) -> None:
        if not self.waiting:
            return
        number = 1 + max((int(entry["shard"]) for entry in self.index["videos"].values()), default=0)
        parts = {f"{video}/{name}": t for video, (held, _) in self.waiting.items() for name, t in held.items()}
        save_tensors(self.folder / shard_name(number), parts)
        for video, (tensors, entry) in self.waiting.items():
            told = {"shard": number, "names": sorted(tensors), "hash": tensors_hash(tensors)}
            self.index["videos"][video] = entry | told
        write_json(self.folder / INDEX, self.index)
        self.waiting, self.bytes = {}, 0


class Cache:
    """Encoded videos by id, read from the shards where they lie (memory-mapped)."""

    def __init__(self, folder: Path):
        if not (folder / INDEX).is_file():
            raise UserError(
                f"{folder} is no cache of encoded videos",
                got=f"no {INDEX}",
                expected="a folder that train.cache has written",
                do="run train.cache, or give its --out",
            )
        self.folder, index = folder, read_index(folder)
        self.facts, self.videos = index["facts"], index["videos"]
        self.shards: dict[int, TensorSet] = {}

    def __contains__(self, video: str) -> bool:
        return video in self.videos

    def __getitem__(self, video: str) -> Encoded:
        return {name: self._lazy(video, name).read() for name in self.videos[video]["names"]}

    @cached_property
    def empty_prompt(self) -> Tensor | None:
        """Its text [L, d]; None in a cache that was made without."""
        file = self.folder / EMPTY_PROMPT
        return open_tensors(file).entries["text"].read() if file.is_file() else None

    def size(self, video: str) -> tuple[int, ...]:
        """(F, h, w) of its latents, without reading them."""
        return self.shape(video, "latents")[1:]

    def shape(self, video: str, name: str) -> tuple[int, ...]:
        """Of one of its tensors, without reading it."""
        return tuple(self._lazy(video, name).shape)

    def _lazy(self, video: str, name: str) -> Lazy:
        number = self.videos[video]["shard"]
        if number not in self.shards:
            self.shards[number] = open_tensors(self.folder / shard_name(number))
        return self.shards[number].entries[f"{video}/{name}"]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The tensors that every video has, by what the model knows of it."""
        return ("latents", "text") if self.facts.get("model") == WanFromText.name else CONDITIONS

    def need(self, videos: set[str], *names: str) -> None:
        """Raise UserError unless all these videos are there with tensors of these names."""
        absent = {video for video in videos if video not in self}
        lacking = {video for video in videos - absent if not set(names) <= set(self.videos[video]["names"])}
        if absent or lacking:
            raise UserError(
                f"{self.folder} does not hold what is to be trained on",
                got=f"absent: {some(absent) or 'none'}; without {', '.join(names)}: {some(lacking) or 'none'}",
                expected=f"{len(videos)} videos, each with {', '.join(names) or 'its latents'}",
                do="run train.cache on the videos of these pairs"
                + (" with --task or --masks" if "lips" in names else ""),
            )

    def damaged(self) -> Iterator[str]:
        """Ids of the videos whose tensors are not those that were written."""
        for video, entry in self.videos.items():
            try:
                sound = tensors_hash(self[video]) == entry["hash"]
            except (UserError, KeyError):
                sound = False
            if not sound:
                yield video


def read_index(folder: Path) -> dict:
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        for video, entry in index["videos"].items():
            if not {"shard", "names", "hash", "sha256"} <= entry.keys():
                raise ValueError(f"the entry of {video} has {some(entry) or 'nothing'}")
        return {"facts": dict(index["facts"]), "videos": dict(index["videos"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / INDEX} is damaged", got=str(error), expected="what train.cache wrote", do="make the cache again"
        ) from error


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"


def condition_of(encoded: Encoded) -> Tensor | None:
    """The image condition [20, F, h, w]: the mask, 1 at latent frame 0, and the image's latents. None without one."""
    if "image" not in encoded:
        return None
    mask = torch.zeros_like(encoded["image"][:1]).repeat(4, 1, 1, 1)
    mask[:, 0] = 1
    return torch.cat([mask, encoded["image"]])


def _check_facts(folder: Path, there: Mapping, wanted: Mapping) -> None:
    differing = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    if differing:
        raise UserError(
            f"{folder} holds videos that were encoded otherwise",
            got=", ".join(f"{key} {there.get(key)!r}" for key in differing),
            expected=", ".join(f"{key} {wanted.get(key)!r}" for key in differing),
            do="write to another folder, or remove this one",
        )
