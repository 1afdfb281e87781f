"""Loads this pack as ComfyUI does: by its path, under a name of its own, from nowhere on sys.path."""

import asyncio
import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
NAME = "fantasytalking2_pack"


def load_pack():
    """Registers the folders and nodes; returns a function from a module's name in the pack to the module."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT + "/__init__.py", submodule_search_locations=[ROOT])
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    asyncio.run(extension.on_load())
    asyncio.run(extension.get_node_list())
    return lambda name: importlib.import_module(f"{NAME}.{name}")
