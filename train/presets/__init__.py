"""Settings to begin with, by name: `--preset paper` reads STAGE.paper.toml in this folder.

`paper` is the paper's training, with every choice that it leaves open named as ours; `practical` fits one GPU. A table
in a preset, [ls], holds for that dimension alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError
from train.run import Given, read_toml

FOLDER = Path(__file__).parent


def preset_names(stage: str) -> list[str]:
    """What `--preset` can be for a stage, `expert` or `gate`."""
    return sorted(path.name.split(".")[1] for path in FOLDER.glob(f"{stage}.*.toml"))


def read_preset(stage: str, name: str, above: Mapping[str, Any]) -> Given:
    """The settings of a preset, for the dimension in `above`, the settings that win over it. Raises UserError for a
    name that no preset has."""
    if name not in preset_names(stage):
        raise UserError(
            f"train.{stage} has no such preset",
            got=name,
            expected=" or ".join(preset_names(stage)),
            do="choose one of them, or write your settings into a TOML and give it with --config",
        )
    held = read_toml(FOLDER / f"{stage}.{name}.toml")
    plain = {key: value for key, value in held.items() if not isinstance(value, dict)}
    return plain | held.get(above.get("dimension"), {})
