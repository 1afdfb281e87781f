"""Help pages, translations and the page of this repository say the same as the nodes' schemas, read from their source:
no ComfyUI is needed."""

from __future__ import annotations

import ast
import json

import pytest
from source_tree import ROOT, sources, tree

SCHEMAS = json.loads((ROOT / "tests" / "node_schemas.json").read_text("utf-8"))
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())


def declared() -> dict[str, str]:
    """{node id: display name} of every io.Schema in nodes/."""
    calls = [node for name in sources("nodes") for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    told = [{k.arg: k.value for k in call.keywords} for call in calls if ast.unparse(call.func) == "io.Schema"]
    return {schema["node_id"].value: schema["display_name"].value for schema in told}


def test_every_node_is_in_the_golden_schemas_with_a_help_page():
    assert sorted(declared()) == sorted(SCHEMAS) == sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


@pytest.mark.parametrize("node", SCHEMAS)
def test_help_names_every_input_and_output(node):
    page, schema = (ROOT / "web" / "docs" / f"{node}.md").read_text("utf-8"), SCHEMAS[node]
    assert page.startswith(f"# {declared()[node]}\n")
    for key, _ in [*schema.get("required", []), *schema.get("optional", []), *schema["output"]]:
        assert key in page, key


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_cover_the_schemas(language):
    """Every node, input and output, and nothing that is not there."""
    told = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert told.keys() == SCHEMAS.keys()
    for node, schema in SCHEMAS.items():
        inputs = [key for key, _ in [*schema.get("required", []), *schema.get("optional", [])]]
        assert sorted(told[node].get("inputs", {})) == sorted(inputs), node
        assert sorted(told[node]["outputs"], key=int) == [str(i) for i in range(len(schema["output"]))], node
        assert told[node]["display_name"] and told[node]["description"], node
    if language == "en":
        assert {node: told[node]["display_name"] for node in told} == declared()


def test_readme_lists_every_node_and_workflow():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in declared().values():
        assert f"**{name}**" in readme, name
    for workflow in (ROOT / "workflows" / "api").glob("*.json"):
        assert f"`{workflow.stem}`" in readme, workflow.stem
        assert (ROOT / "workflows" / f"{workflow.stem}.jpg").is_file(), workflow.stem


def test_workflows_use_nodes_of_the_schemas():
    """Every input that a graph gives to a node of ours is one of its inputs, and every required one is given."""
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        for node in json.loads(path.read_text("utf-8")).values():
            if node["class_type"].startswith("FT2"):
                schema = SCHEMAS[node["class_type"]]
                required, optional = ({key for key, _ in schema.get(group, [])} for group in ("required", "optional"))
                given = {key.partition(".")[0] for key in node["inputs"]}  # takes.take0: a socket of `takes`
                assert required <= given <= required | optional, f"{path.name}: {node['class_type']}"
