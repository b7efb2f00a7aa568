"""The README and the cards, run as they are pasted, and the pages that are made from the code."""

import importlib.util
import json
import re
import shlex
from dataclasses import fields
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, DocTestParser, OutputChecker
from pathlib import Path

import nbformat
import numpy as np
import pytest
from diffusers.modular_pipelines.mellon_node_utils import MELLON_PARAM_TEMPLATES, MellonParam, MellonPipelineConfig
from nbclient import NotebookClient
from PIL import Image

import modular_diffdiff
from modular_diffdiff import cli, demo, publishing
from modular_diffdiff.still_life.controls import depth
from modular_diffdiff.still_life.scene import SIZE, Scene, render

from .clients import files_in, run_command, run_python


PACKAGE = Path(modular_diffdiff.__file__).parent
ROOT = PACKAGE.parent
# Each with what its code must have left behind, and where other tests run what cannot be run in these.
RUN = {
    ROOT / "README.md": ("photo-edit.png", "photo-fan.png", "bottle.png", "sdxl.png"),
    PACKAGE / "model_card.md": ("my-edit/presets.py", "my-edit/unet/config.json", "pear.png", "run.png"),
    PACKAGE / "still_life" / "model_card.md": ("pear.png",),
}
EDITED = {ROOT / "README.md": "edited.png", PACKAGE / "model_card.md": "pear.png"}  # by the half map
ELSEWHERE = {
    "make demo": "test_cli.py runs what it runs, and .ci/run the target",
    "make test": "this is it",
    "modular-diffdiff web": "test_page.py opens it",
    "modular-diffdiff batch": "test_batch_ray.py runs it, on both engines",
    "diffusers-cli schema": "test_hub.py runs it, and reads what it prints",
    "pip install": ".ci/run installs the package, and these tests what the card asks for",
}


# Our own commands, one after the other, in the process of the Python code: each would import torch again.
OURS = """
import sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="modular-diffdiff")
for sys.argv in {commands}:
    try:
        script.load()()
    except SystemExit as end:
        assert not end.code, (sys.argv, end)
"""


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands_of(page: Path) -> list[str]:
    lines = re.sub(r"\\\n *", "", "".join(blocks_of(page, "console"))).splitlines()
    commands = [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]
    return [command for command in commands if not command.startswith(tuple(ELSEWHERE))]


@pytest.fixture
def folder(tmp_path):
    """Where somebody has run `modular-diffdiff demo`, at half its size for speed, and has pictures that steer."""
    drawn = zip(cli.DEMO_NAMES[1:], demo.draw_examples(), strict=True)
    steer = {"depth": depth(demo.TWO), "orange": Image.fromarray(render(Scene("apple", "orange", "plain", light=0.3)))}
    for name, picture in [*drawn, *((f"{name}.png", picture) for name, picture in steer.items())]:
        picture.resize((SIZE // 2, SIZE // 2)).save(tmp_path / name)
    return tmp_path


def check_half(photo: Path, edited: Path):
    """An edit by the half map keeps what is white, and changes what is black."""
    before, after = (np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (photo, edited))
    kept, _, changed = np.array_split(abs(before - after), 3, axis=1)
    assert kept.mean() < 10 < 20 < changed.mean()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs_as_it_is_pasted(hub, folder, page, monkeypatch):
    monkeypatch.setitem(hub.repositories, "ada/diffdiff-sdxl", hub.repositories[publishing.BLOCKS_REPO])
    code = blocks_of(page, "python")
    assert code
    commands = [shlex.split(command) for command in commands_of(page)]
    ours = [command for command in commands if command[0] == "modular-diffdiff"]
    run_python("\n".join([*code, OURS.format(commands=ours)]), hub, folder)
    if page in EDITED:
        check_half(folder / "photo.png", folder / EDITED[page])
    for command in commands:
        if command not in ours:
            run_command(command, hub, folder)
    for name in RUN[page]:
        assert (folder / name).exists(), name


def test_a_familys_card_runs_as_it_is_pasted(hub, folder):
    """One stands for all: they are made from one text."""
    content = publishing.blocks_of("z-image")
    content.assemble(folder / "repo")
    hub.add(content.default_repo, files_in(folder / "repo"))
    (code,) = blocks_of(folder / "repo" / "README.md", "python")
    run_python(code + "\nimage.save('edited.png')", hub, folder)
    check_half(folder / "photo.png", folder / "edited.png")


@pytest.mark.parametrize("page", [*RUN, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_code_is_python_or_a_command(page):
    languages = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
    assert set(languages) <= {"python", "console", "bibtex", ""}


def make_pages():
    spec = importlib.util.spec_from_file_location("make_pages", ROOT / "docs" / "make_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["API", "CARD", "FAMILIES_PAGE", "MELLON", "NOTEBOOK"])
def test_what_is_made_from_the_code_is_as_it_would_be_made_now(name):
    pages = make_pages()
    path = getattr(pages, name)
    assert path.read_text() == pages.PAGES[path](), "run `make pages`"


def test_the_tutorial_runs_as_a_notebook_and_prints_what_it_says(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    printed = {cell.source: "".join(map(text_of, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"}
    code = "".join(blocks_of(ROOT / "docs" / "tutorial.md", "python"))
    examples = [example for example in DocTestParser().get_examples(code) if example.want]
    assert len(examples) > 15
    for example in examples:
        got = printed[example.source.strip()] + "\n"
        assert OutputChecker().check_output(example.want, got, ELLIPSIS | NORMALIZE_WHITESPACE), (example.source, got)


def text_of(output) -> str:
    """What a cell prints, or shows as its value."""
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    return output.get("data", {}).get("text/plain", "")


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index


def test_the_card_has_what_the_hub_searches_by():
    from huggingface_hub import ModelCard

    data = ModelCard.load(PACKAGE / "model_card.md").data
    assert data.license == "apache-2.0"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "image-to-image"
    assert data.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert {"modular-diffusers", "custom-pipeline-blocks", "differential-diffusion"} <= set(data.tags)
    text = (PACKAGE / "model_card.md").read_text()
    assert re.search(r"\A---\n.*?\n---\n\s*!\[", text, re.DOTALL), "the picture comes first"


# Mellon


NODE = json.loads((PACKAGE / "mellon_pipeline_config.json").read_text())["node_params"]["custom"]
KNOWN = {field.name for field in fields(MellonParam)} - {"name", "required_block_params"}


@pytest.mark.parametrize("name", NODE["params"])
def test_every_socket_is_one_that_upstream_knows(name):
    param = NODE["params"][name]
    assert param.keys() <= KNOWN
    assert MellonParam(name=name, **param).to_dict() == param
    displays = {template.get("display") for template in MELLON_PARAM_TEMPLATES.values()}
    assert param.get("display") in displays | {None}
    if param.get("display") == "slider":
        assert param["min"] <= param["default"] <= param["max"]
        assert param["min"] < param["max"]
        assert 0 < param["step"] <= param["max"] - param["min"]
    if "options" in param:
        assert param["value"] in param["options"]


def test_the_node_has_every_input_that_the_call_takes_and_its_components():
    blocks = modular_diffdiff.SDXLDiffDiffAutoBlocks().sub_blocks["diffdiff"]
    taken = {param.name for param in blocks.inputs if param.name} - {"guidance_scale"}
    assert set(NODE["input_names"]) == taken
    assert set(NODE["model_input_names"]) == set(blocks.component_names)
    assert "images" in NODE["output_names"]
    starred = {name for name, param in NODE["params"].items() if param["label"].endswith(" *")}
    assert starred == {"prompt", "image"}  # and of what makes a map, any


def test_a_widget_starts_at_the_default_of_its_input():
    blocks = modular_diffdiff.SDXLDiffDiffAutoBlocks().sub_blocks["diffdiff"]
    defaults = {param.name: param.default for param in blocks.inputs}
    for name, param in NODE["params"].items():
        if "default" in param or "value" in param:
            shown = param.get("default", param.get("value"))
            assert shown == (defaults[name] if defaults[name] is not None else ""), name


def test_upstream_reads_the_node_back():
    config = MellonPipelineConfig.load(PACKAGE)
    assert config.node_params["custom"] == NODE
