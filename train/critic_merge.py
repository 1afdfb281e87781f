"""A trained critic as files for other hosts: merged into its base, or as an adapter under other names.

    python -m train.critic merge --base models/Qwen2.5-Omni-7B --critic runs/critic/adapter --out models/critic
    python -m train.critic merge --critic runs/critic/adapter --names thinker --out adapters/critic

With --base: a folder that loads as the base does (train.score --base, vLLM), with a critic.json that tells it from the
base and binds it to its questions and views. Without: the adapter under the names of
`transformers4` (4.5x: model.layers) or of a whole Omni (`thinker`: thinker.model.layers, vLLM's); unverified there.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from fantasy_core.critic.about import ABOUT, ADAPTER, about_merged, check_trained, read_about
from fantasy_core.critic.thinker import fingerprint, load_adapter, load_thinker
from fantasy_core.errors import UserError
from fantasy_core.media import check_file
from fantasy_core.media.files import read_json
from fantasy_core.weights import open_tensors, save_tensors
from train.run import command, setting, write_json

PEFT, OWN = "base_model.model.", "model.language_model."
NAMES = {"transformers4": "model.", "thinker": "thinker.model."}
MODEL = "model.safetensors"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class MergeSettings:
    critic: Path = setting(help="adapter folder of train.critic")
    out: Path = setting(help="folder for the result")
    base: Path | None = setting(None, "folder of Qwen2.5-Omni: merge into it")
    names: str = setting("thinker", "without --base: whose names the adapter gets", choices=tuple(NAMES))
    dtype: str = setting("bf16", "of the merged weights", choices=tuple(DTYPES))


def renamed(name: str, names: str) -> str:
    """A peft key of ours under another host's module names."""
    return PEFT + NAMES[names] + name.removeprefix(PEFT + OWN)


def merge(settings: MergeSettings, base: Path) -> None:
    """base + adapter, under a Thinker's own names, beside the base's configuration and tokenizer. critic.json tells
    what is in it, and is there before the weights are: without it they would pass for the base's."""
    about = read_about(settings.critic)
    found = load_thinker(base, dtype=DTYPES[settings.dtype])
    check_trained(settings.critic, about, base=fingerprint(found))
    model = load_adapter(found, settings.critic).merge_and_unload()
    settings.out.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".jinja") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, settings.out / file.name)
    (settings.out / MODEL).unlink(missing_ok=True)
    write_json(settings.out / ABOUT, about_merged(about, settings.critic, settings.dtype))
    tensors = {f"thinker.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(settings.out / MODEL, tensors, {"format": "pt"})


def rename(settings: MergeSettings) -> None:
    held = open_tensors(settings.critic / ADAPTER)
    tensors = {renamed(name, settings.names): entry.read() for name, entry in held.entries.items()}
    settings.out.mkdir(parents=True, exist_ok=True)
    save_tensors(settings.out / ADAPTER, tensors, held.metadata)
    about = read_json(settings.critic / "adapter_config.json", "adapter's configuration")
    about["target_modules"] = about["target_modules"].replace("language_model\\.", "")
    write_json(settings.out / "adapter_config.json", about)


def check(settings: MergeSettings) -> None:
    """Raise UserError for what can be known before the base is loaded."""
    for name in (ADAPTER, "adapter_config.json"):
        check_file(settings.critic / name, "adapter")
    sources = {"base": settings.base, "critic": settings.critic}
    for name, folder in sources.items():
        if folder is not None and folder.resolve() == settings.out.resolve():
            raise UserError(
                f"the result would be written over its {name}",
                got=f"--out {settings.out}",
                expected=f"another folder than --{name}",
                do="give a new folder as --out",
            )
    if settings.base is not None:
        read_about(settings.critic)
        check_file(settings.base / "config.json", "model's configuration")


def run(settings: MergeSettings, dry_run: bool) -> None:
    check(settings)
    if dry_run:
        print(f"dry run: nothing was written to {settings.out}")
    elif settings.base is None:
        rename(settings)
    else:
        merge(settings, settings.base)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(MergeSettings, __doc__, run, argv)
