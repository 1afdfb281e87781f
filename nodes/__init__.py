"""ComfyUI nodes: they declare and delegate to `fantasy_core`. Importable only where `comfy_api` is: inside ComfyUI."""

from __future__ import annotations

import os

from comfy_api.latest import ComfyExtension, io

GATES = "fantasytalking2_gates"  # keys of ComfyUI's folders, so that extra_model_paths.yaml can name more
CRITICS = "fantasytalking2_critics"
LLM = "LLM"  # where other packs too keep models of language


class FantasyTalking2(ComfyExtension):
    """The pack's V3 extension."""

    async def on_load(self) -> None:
        """Make the pack's folders known to ComfyUI, in its base folder and in those that the user added."""
        import folder_paths

        own = os.path.join(folder_paths.models_dir, "fantasytalking2")
        defaults = {GATES: os.path.join(own, "gates"), CRITICS: os.path.join(own, "critics")}
        defaults[LLM] = os.path.join(folder_paths.models_dir, "LLM")
        for key, default in defaults.items():
            paths, kinds = folder_paths.folder_names_and_paths.get(key, ([], set()))
            kinds = {".safetensors"} if key == GATES else kinds
            folder_paths.folder_names_and_paths[key] = (list(dict.fromkeys([*paths, default])), kinds)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes that ComfyUI registers."""
        from . import (
            audio_nodes,
            critic_nodes,
            critic_rank,
            expert_nodes,
            lip_sync_node,
            miniature_nodes,
            sampling_nodes,
        )

        return [
            *audio_nodes.NODES,
            *expert_nodes.NODES,
            *sampling_nodes.NODES,
            *critic_nodes.NODES,
            *critic_rank.NODES,
            *lip_sync_node.NODES,
            *miniature_nodes.NODES,
        ]
