"""ComfyUI nodes: they declare and delegate to `fantasy_core`. Importable only where `comfy_api` is: inside ComfyUI."""

from __future__ import annotations

import os

from comfy_api.latest import ComfyExtension, io

GATES = "fantasytalking2_gates"  # a key of ComfyUI's folders, so that extra_model_paths.yaml can name more


class FantasyTalking2(ComfyExtension):
    """The pack's V3 extension."""

    async def on_load(self) -> None:
        """Make models/fantasytalking2/gates known to ComfyUI, in its base folder and in those that the user added."""
        import folder_paths

        default = os.path.join(folder_paths.models_dir, "fantasytalking2", "gates")
        paths, _ = folder_paths.folder_names_and_paths.get(GATES, ([], set()))
        folder_paths.folder_names_and_paths[GATES] = (list(dict.fromkeys([*paths, default])), {".safetensors"})

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes that ComfyUI registers."""
        from . import audio_nodes, expert_nodes, miniature_nodes, sampling_nodes

        return [
            *audio_nodes.NODES,
            *expert_nodes.NODES,
            *sampling_nodes.NODES,
            *miniature_nodes.NODES,
        ]
