"""critic.json: what a trained critic was asked and shown. It lies beside an adapter, and in a base that one was merged
into, which is a base of its own from then on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..manifest import sha256
from ..pair_rules import DIMENSIONS
from .asked import Views, read_views

ABOUT, ADAPTER = "critic.json", "adapter_model.safetensors"
MERGED = "merged"  # its entry where weights of the adapter are in those of the base: hash of the adapter, dtype


def read_about(folder: Path) -> dict[str, Any]:
    """critic.json of an adapter or of a merged base. Raises UserError where there is none that can be read."""
    file = folder / ABOUT
    if not file.is_file():
        raise UserError(
            f"{folder} is not an adapter of Talking-Critic",
            got=f"no {ABOUT}",
            expected=f"a folder that train.critic made: adapter_config.json, {ADAPTER}, {ABOUT}",
            do="give the run's adapter folder",
        )
    try:
        about = json.loads(file.read_text("utf-8"))
        read_views(about["views"]["preset"])
        trained(about)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected="what train.critic wrote: questions, views and base",
            do="copy it again from the run, or train it anew",
        ) from error
    return about


def trained(about: Mapping[str, Any]) -> dict[str, str]:
    """The hashes that a critic is bound to."""
    return {"questions": about["questions"]["hash"], "views": about["views"]["hash"], "base": about["base"]}


def taught(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The dimensions that a critic has learnt to judge; of a base as published, all are asked."""
    return tuple(d for d in DIMENSIONS if d in about.get("dimensions", DIMENSIONS))


def merged_about(base: Path) -> dict[str, Any]:
    """What is said of the adapter that was merged into a base; {} of a base as published."""
    if not (base / ABOUT).is_file():
        return {}
    about = read_about(base)
    return about if MERGED in about else {}


def about_merged(about: Mapping[str, Any], adapter: Path, dtype: str) -> dict[str, Any]:
    """critic.json for a base that the adapter is merged into."""
    return {**about, MERGED: {"adapter": sha256(adapter / ADAPTER), "dtype": dtype}}


def merged_into(base: Path) -> str:
    """Which adapter a base has in its weights, and which base it was before; empty for a base as published."""
    about = merged_about(base)
    return json.dumps([about["base"], about[MERGED]], sort_keys=True) if about else ""


def views_for(about: Mapping[str, Any], preset: str | None, face: str | None) -> Views:
    """The views that are asked for, else those the critic was trained with, else `separate` with the face `found`.
    face: `found`, or `whole` for all of the frame in its place."""
    own = about.get("views", {})
    views = read_views(preset or own.get("preset", "separate"))
    return views.whole() if (face or own.get("face", "found")) == "whole" else views


def check_trained(folder: Path, about: Mapping[str, Any], **told: str) -> None:
    """Raise UserError where what a critic is used with (questions, views, base: hashes) is not what it was trained
    with."""
    own = trained(about)
    wrong = [name for name in told if told[name] != own[name]]
    if wrong:
        raise UserError(
            f"{folder} was trained with other {' and '.join(wrong)}",
            got=", ".join(f"{name} {told[name]}" for name in wrong),
            expected=", ".join(f"{name} {own[name]}{_named(about, name)}" for name in wrong),
            do="use the base and the views it was trained with, or train it anew",
        )


def _named(about: Mapping[str, Any], name: str) -> str:
    views = about["views"]
    return f" (preset {views['preset']}, face {views.get('face', 'found')})" if name == "views" else ""
