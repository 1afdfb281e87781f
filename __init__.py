"""ComfyUI's door: the entry point imports the nodes when ComfyUI calls it, and nothing before that."""

WEB_DIRECTORY = "web"  # help pages, under whatever name the folder has


async def comfy_entrypoint():
    """Return the pack's extension. ComfyUI logs an error raised here as one line, so it must stand on its own."""
    from .nodes import FantasyTalking2

    return FantasyTalking2()
