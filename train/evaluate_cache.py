"""What has been measured, by content: journals that are only appended to, so that a killed evaluation goes on.

OUT/cache/files.jsonl has the hash and the facts of every file as it was seen (path, size, time of change), so that
unchanged files are not read again; OUT/cache/part-00000.jsonl a row for each video (by hash), metric and settings (by
hash, together with the frame rate and size that were asked for), with what was measured or why that video cannot be;
OUT/cache/features/ the features of metrics of sets. Other settings or another video are other rows. What failed for
any other reason (a full GPU, a missing package, a file that is still being written) has no row, and is tried again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fantasy_core.errors import UserError
from fantasy_core.media.files import replacing
from fantasy_core.metrics.contract import Measured
from train.evaluate_videos import Facts
from train.journal import Journal, part_of

Failure = Mapping[str, str]  # what, got, expected, do
State = tuple[str, int, int]  # of a file: its whole path, its size, when it was changed
VERSION = 1  # of how videos are decoded and harmonised: another one measures all anew


@dataclass(frozen=True)
class Found:
    """A metric of a video: what it said, or how it failed; and the library versions it was measured with.

    lasting: whether it would be the same the next time; what is not is never kept. of_metric: the metric itself could
    not be opened, so that no other video would have gone better.
    """

    measured: Measured | None
    failure: Failure | None
    versions: Mapping[str, str]
    lasting: bool = True
    of_metric: bool = False


@dataclass(frozen=True)
class Seen:
    """A file: its hash, and its facts or why it cannot be read. One without a hash was not read to its end, which may
    go well the next time."""

    sha256: str
    facts: Facts | None
    failure: Failure | None


def told(error: UserError) -> dict[str, str]:
    return {"what": error.what, "got": error.got, "expected": error.expected, "do": error.do}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A name of settings: equal ones have equal names."""
    text = json.dumps([VERSION, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """The journals of a folder, held while it is a context manager."""

    def __init__(self, folder: Path):
        self.folder, self._held = folder, ExitStack()
        self._files, self._part = Journal(folder / "files.jsonl"), part_of(folder, 0)

    def __enter__(self) -> Cache:
        with ExitStack() as held:
            held.enter_context(self._files)
            held.enter_context(self._part)
            self._held = held.pop_all()
        self._seen = {(row["path"], row["size"], row["mtime_ns"]): row for row in self._files.read()}
        self._rows = {row["key"]: row for row in self._part.read()}
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    # ---- files ----

    def seen(self, path: Path) -> Seen | None:
        """What is known of a file that has not changed since."""
        row = self._seen.get(state_of(path))
        if row is None or not row["sha256"]:
            return None
        facts = Facts(**{**row["facts"], "notes": tuple(row["facts"]["notes"])}) if row["facts"] else None
        return Seen(row["sha256"], facts, row["failed"])

    def see(self, path: Path, seen: Seen, before: State) -> None:
        """before: the file's state before it was read. One that has changed meanwhile is not kept."""
        if not seen.sha256 or before != state_of(path):
            return
        name, size, changed = before
        facts = asdict(seen.facts) if seen.facts else None
        row = {"path": name, "size": size, "mtime_ns": changed, "sha256": seen.sha256, "facts": facts}
        self._files.append(row | {"failed": seen.failure})

    # ---- measurements ----

    def get(self, video: str, metric: str, settings: str) -> Found | None:
        """None where it was not measured, or where its features are gone."""
        row = self._rows.get(f"{video}:{metric}:{settings}")
        if row is None:
            return None
        if row["failed"] and not row.get("lasting"):  # older caches kept every failure
            return None
        if row["failed"]:
            return Found(None, row["failed"], row["versions"])
        path = self.folder / "features" / f"{row['features']}.npy"
        if row["features"] and not path.is_file():
            return None
        features = np.load(path, allow_pickle=False) if row["features"] else None
        return Found(Measured(row["values"], row["reasons"], features), None, row["versions"])

    def put(self, video: str, metric: str, settings: str, found: Found) -> None:
        """Keeps what is lasting."""
        if not found.lasting:
            return
        key, measured = f"{video}:{metric}:{settings}", found.measured or Measured()
        row = {
            "key": key,
            "values": dict(measured.values),
            "reasons": dict(measured.reasons),
            "features": None if measured.features is None else self._store(key, measured.features),
            "failed": found.failure,
            "lasting": True,
            "versions": dict(found.versions),
        }
        self._part.append(row)
        self._rows[key] = row

    def _store(self, key: str, features: np.ndarray) -> str:
        """Features are whole on the disk before their row is."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = self.folder / "features" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        return name

    # ---- what costs long and is no video's own: intervals of distances of sets ----

    def kept(self, key: str) -> dict[str, Any] | None:
        row = self._rows.get(f"set:{key}")
        return row and row["values"]

    def keep(self, key: str, values: dict[str, Any]) -> None:
        row = {"key": f"set:{key}", "values": values}
        self._part.append(row)
        self._rows[row["key"]] = row


def state_of(path: Path) -> State:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns
