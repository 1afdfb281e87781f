"""Whether a server can run a source, before anything is run: its nodes, their inputs, the files that they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from train.comfy_client import ComfyServer
from train.source_workflows import ALONE, Source, title


def lacks(server: ComfyServer, source: Source) -> list[str]:
    """What a server lacks for a source, in words; nothing if it can run it. Raises ServerGone."""
    kinds: dict[str, Any] = {}
    found = []
    for key, node in source.graph.items():
        kind = node["class_type"]
        if kind not in kinds:
            kinds[kind] = server.node(kind)
        if kinds[kind] is None:
            packs = f" (of {', '.join(source.packs)})" if source.packs else ""
            found.append(f"node {title(source.graph, key)}: this type is not installed{packs}")
        else:
            found += [f"{title(source.graph, key)}: {one}" for one in _unlike(node["inputs"], kinds[kind], source)]
    return found


def _unlike(given: Mapping[str, Any], told: Mapping[str, Any], source: Source) -> Iterator[str]:
    """Inputs that the type does not have, or needs, and values that it does not offer."""
    needed, more = (told.get("input", {}).get(group) or {} for group in ("required", "optional"))
    known = needed | more
    for name in needed.keys() - {name.partition(".")[0] for name in given}:
        yield f"input {name} is missing"
    for name, value in given.items():
        if name.partition(".")[0] not in known:
            yield f"there is no input {name}"
        elif name in known:
            offered = _offered(known[name])
            if offered is not None and not isinstance(value, list) and not _named(value) and value not in offered:
                yield _not_offered(name, value, source)


def _named(value: Any) -> bool:
    return isinstance(value, str) and ALONE.fullmatch(value) is not None


def _offered(told: list[Any]) -> list[Any] | None:
    """The values of a list to choose from, in either way that servers tell them; None for other inputs."""
    if isinstance(told[0], list):
        return told[0]
    options = told[1].get("options") if len(told) > 1 and isinstance(told[1], dict) else None
    if options is None or "COMBO" not in str(told[0]):
        return None
    return [one["key"] if isinstance(one, dict) else one for one in options]


def _not_offered(name: str, value: Any, source: Source) -> str:
    file = next((file for file in source.files if file.name == value), None)
    if file is None:
        return f"{name} has no choice {value}"
    return f"no file models/{file.folder}/{file.name} (published at {file.url})"
