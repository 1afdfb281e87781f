"""ComfyUI nodes: they declare and delegate to `fantasy_core`. Importable only where `comfy_api` is: inside ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class FantasyTalking2(ComfyExtension):
    """The pack's V3 extension. It lists no nodes yet: version 0.1.0 is the library and its command lines."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes that ComfyUI registers."""
        return []
