"""Workflows with named places: what fills them, what is refused and in which words, and those that are shipped."""

from __future__ import annotations

import json

import pytest
from comfy_peer import GRAPH, TOML
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from train.candidate_jobs import draw
from train.source_workflows import ALONE, NAMES, NEEDED, Source, fill, load_source, places, shipped_sources, title

VALUES = {name: 7.5 if name.endswith("scale") else number for number, name in enumerate(NAMES)}
VALUES |= {
    name: f"a {name} {{of}} its {{own}}" for name in ("portrait", "audio", "prompt", "negative_prompt", "prefix")
}
PIECES = st.sampled_from([f"{{{name}}}" for name in NAMES] + ["{a|b}", "{", "}", "{}", " ", "x", "{Seed}", "{{", "ü"])
TEXTS = st.lists(PIECES, max_size=4).map("".join).filter(lambda text: not ALONE.fullmatch(text) or text[1:-1] in NAMES)
INPUTS = st.dictionaries(st.text("abc", min_size=1), TEXTS | st.integers() | st.floats(allow_nan=False) | st.booleans())
GRAPHS = st.dictionaries(st.text("123", min_size=1), INPUTS.map(lambda told: {"class_type": "T", "inputs": told}))


@given(graph=GRAPHS)
def test_filling_by_the_definition(graph):
    """A value that is one place alone becomes the value with its type; in a longer text every place becomes text, once
    (what a value brings in is not filled again); everything else, and the graph itself, stays."""
    before = json.dumps(graph)
    filled = fill(graph, VALUES)
    assert json.dumps(graph) == before and filled.keys() == graph.keys()
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            got = filled[key]["inputs"][name]
            if isinstance(value, str) and value[1:-1] in NAMES and value[0] + value[-1] == "{}":
                assert got == VALUES[value[1:-1]] and type(got) is type(VALUES[value[1:-1]])
            elif isinstance(value, str):
                pieces = value
                for place in NAMES:
                    pieces = pieces.replace(f"{{{place}}}", f"\0{place}\0")
                expected = "".join(str(VALUES[p]) if i % 2 else p for i, p in enumerate(pieces.split("\0")))
                assert got == expected
            else:
                assert got is value


@given(graph=GRAPHS)
def test_places_are_what_filling_changes(graph):
    marked = {name: f"<{name}>" for name in NAMES}
    changed = {
        (key, name)
        for key, node in fill(graph, marked).items()
        for name, value in node["inputs"].items()
        if value != graph[key]["inputs"][name]
    }
    assert {(key, name) for key, _, name in places(graph)} == changed


def own(folder, change=lambda graph: None, toml: str = TOML, name: str = "toy") -> str:
    """A workflow of one's own with something changed -> its path."""
    graph = json.loads(json.dumps(GRAPH))
    change(graph)
    (folder / f"{name}.json").write_text(json.dumps(graph))
    (folder / f"{name}.toml").write_text(toml)
    return str(folder / f"{name}.json")


def test_a_workflow_of_ones_own(tmp_path):
    source = load_source(own(tmp_path))
    assert (source.name, source.saver, source.fps, source.frames, source.least_frames) == ("toy", "4", 10.0, 9, 5)
    assert source.scales == {"text_scale": (2.0, 6.0)} and source.files[0].folder == "diffusion_models"


def write(key: str, name: str, value):
    return lambda graph: graph[key]["inputs"].update({name: value})


MISTAKES = {
    "no seed": (write("3", "seed", 1), TOML, ["{seed}"]),
    "no portrait": (write("1", "image", "a.png"), TOML, ["{portrait}"]),
    "no prefix": (write("4", "filename_prefix", "x"), TOML, ["{prefix}", "SaveVideo (node 4)"]),
    "an unknown name": (write("3", "text", "{promt}"), TOML, ["The sampler (Toy, node 3)", "text", "{promt}"]),
    "two that save": (
        lambda graph: graph.update({"5": {"class_type": "SaveWEBM", "inputs": {"filename_prefix": "{prefix}"}}}),
        TOML,
        ["SaveVideo (node 4) and SaveWEBM (node 5)", "one node"],
    ),
    "a scale without a range": (write("3", "a", "{audio_scale}"), TOML, ["audio_scale", "toy.toml"]),
    "a range without a place": (write("3", "cfg", 4.0), TOML, ["text_scale", "places for none"]),
    "a range upside down": (write("3", "a", 1), TOML.replace("[2, 6]", "[6, 2]"), ["[6, 2]"]),
    "frames that no video has": (write("3", "a", 1), TOML.replace("frames = 9", "frames = 8"), ["4k + 1"]),
    "an unknown key": (write("3", "a", 1), "framez = 9\n" + TOML, ["framez"]),
    "a key of another type": (write("3", "a", 1), TOML.replace("width = 64", "width = 'wide'"), ["width", "int"]),
    "the page's format": (lambda graph: (graph.clear(), graph.update(nodes=[], links=[])), TOML, ["Export (API)"]),
    "no nodes": (lambda graph: graph.update({"9": {"type": "x"}}), TOML, ["class_type"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_anything_runs(mistake, tmp_path):
    change, toml, words = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        load_source(own(tmp_path, change, toml))
    for word in [*words, "got:", "expected:", "do:"]:
        assert word in str(caught.value), str(caught.value)


def test_a_name_that_is_not_shipped():
    with pytest.raises(UserError, match="fantasytalking, humo"):
        load_source("nothing")


@pytest.mark.parametrize("name", shipped_sources())
def test_shipped_sources_are_whole(name):
    """They load; every link leads to a node; every model file that a graph names is described, and no other; and each
    but the miniature says what about it was never run."""
    source = load_source(name)
    assert {place for _, place, _ in places(source.graph)} >= set(NEEDED)
    values = [value for node in source.graph.values() for value in node["inputs"].values()]
    assert {value[0] for value in values if isinstance(value, list)} <= source.graph.keys()
    named = {v for v in values if isinstance(v, str) and v.endswith((".safetensors", ".pt"))}
    assert named == {file.name for file in source.files}
    assert bool(source.not_run) == (name != "miniature") and source.about


def toy(low: float = 2.0, high: float = 6.0) -> Source:
    scales = {"text_scale": (low, high)}
    return Source("toy", {}, "", 10.0, 9, 5, 64, 64, "", scales, (), (), "")


def test_draws_depend_on_nothing_else_and_fill_their_range():
    """Of 400 draws from [2, 6] the mean is 4 within four deviations (4 / sqrt(12) / 20 = 0.058) and each tenth of the
    range is met; the same four words always draw the same; any other word draws another seed."""
    drawn = [draw(0, f"i{i}", toy(), variant) for i in range(100) for variant in range(4)]
    scales = [one["text_scale"] for one in drawn]
    assert min(scales) >= 2 and max(scales) <= 6 and abs(sum(scales) / 400 - 4) < 4 * 0.058
    assert {int((scale - 2) * 2.499) for scale in scales} == set(range(10))
    assert drawn == [draw(0, f"i{i}", toy(), variant) for i in range(100) for variant in range(4)]
    assert len({one["seed"] for one in drawn}) == 400 and draw(1, "i0", toy(), 0)["seed"] != drawn[0]["seed"]
    assert all(one["audio_scale"] is None for one in drawn), "there is no place for it"


def test_titles():
    assert title(GRAPH, "3") == "The sampler (Toy, node 3)" and title(GRAPH, "4") == "SaveVideo (node 4)"
