"""Writes what follows from code and pages: `api.md`, `families.md`, the card's inputs, Mellon's node, a notebook.

    make pages

A test compares each with what is committed.
"""

from __future__ import annotations

import inspect
import re
from doctest import DocTestParser
from pathlib import Path

import jupytext
import nbformat
from diffusers.modular_pipelines import ModularPipelineBlocks

import modular_diffdiff
from modular_diffdiff import DiffDiffAutoBlocks, DiffDiffSequentialBlocks, FamilyDiffDiffAutoBlocks, mellon
from modular_diffdiff.cards import inputs_table, outputs_table, table
from modular_diffdiff.catalog import FAMILIES
from modular_diffdiff.publishing import BLOCKS_REPO, PACKAGE
from tests import families as families_table
from tests import videos as videos_table


PIPELINES = ["SDXLDiffDiffBlocks", *(family.blocks for family in FAMILIES.values())]
BASES = (DiffDiffAutoBlocks, FamilyDiffDiffAutoBlocks, DiffDiffSequentialBlocks)  # others are made of them
FAMILIES_PAGE = Path(__file__).parent / "families.md"
API, CARD = Path(__file__).parent / "api.md", PACKAGE / "model_card.md"
MELLON = PACKAGE / "mellon_pipeline_config.json"
TUTORIAL, NOTEBOOK = Path(__file__).parent / "tutorial.md", Path(__file__).parent / "tutorial.ipynb"
_HEAD = """# The names of `modular_diffdiff`

Made from the docstrings and the blocks by `make pages`. Latents are in the scheduler's scale, of
shape (outputs, channels, h, w).
"""


def _describe_dictionary(public: dict) -> list[str]:
    listed = "\n".join(f"- `{step}`: `{block.__name__}`" for step, block in public.items())
    return ["An ordered dictionary of block classes, from `presets.py`:", listed]


def _describe_pipeline(public: type) -> list[str]:
    blocks = public()
    steps = "\n".join(f"- `{step}`: `{type(block).__name__}`" for step, block in blocks.sub_blocks.items())
    workflows = ", ".join(f"`{name}`" for name in blocks.available_workflows)
    if not isinstance(blocks, DiffDiffSequentialBlocks):
        return [inspect.getdoc(public), f"Workflows: {workflows}. The card of its repository lists its inputs."]
    return [inspect.getdoc(public), steps, f"Workflows: {workflows}. All inputs:", inputs_table(blocks)]


def _describe_block(public: type) -> list[str]:
    blocks = public()
    parts = [inspect.getdoc(public), inputs_table(blocks)]
    return [*parts, outputs_table(blocks)] if blocks.intermediate_outputs else parts


def _describe(name: str) -> str:
    public = getattr(modular_diffdiff, name)
    if isinstance(public, dict):
        parts = _describe_dictionary(public)
    elif not inspect.isclass(public):
        signature = inspect.signature(public)
        parts = [f"`{name}({', '.join(signature.parameters)})`", f"```\n{inspect.getdoc(public)}\n```"]
    elif name in PIPELINES:
        parts = _describe_pipeline(public)
    elif public in BASES or not issubclass(public, ModularPipelineBlocks):
        parts = [f"```\n{inspect.getdoc(public)}\n```"]
    else:
        parts = _describe_block(public)
    return "\n\n".join([f"## {name}", *parts])


def render_api() -> str:
    """The page on all public names: the pipelines, the dictionaries that they are made of, the blocks."""
    names = sorted(modular_diffdiff.__all__, key=lambda name: (name not in PIPELINES, not name.isupper()))
    return "\n\n".join([_HEAD.strip(), *map(_describe, names)]) + "\n"


def _fill(path: Path, tables: dict[str, str]) -> str:
    """A page with these tables between the marks of their names."""
    text = path.read_text(encoding="utf-8")
    for name, content in tables.items():
        before, rest = text.split(f"<!-- {name} -->")
        after = rest.split(f"<!-- end of {name} -->")[1]
        text = f"{before}<!-- {name} -->\n\n{content}\n\n<!-- end of {name} -->{after}"
    return text


def render_card() -> str:
    """The model card, with the inputs as they are."""
    return _fill(CARD, {"inputs": inputs_table(FAMILIES["sdxl"].blocks_class().sub_blocks["diffdiff"])})


def render_mellon() -> str:
    sdxl = FAMILIES["sdxl"]
    return mellon.build_config(sdxl.blocks_class(), sdxl.title, BLOCKS_REPO).to_json_string()


EMBEDDED = {"sdxl": "embedded: `still-life`", "z-image": "embedded: `still-life-flow`"}


def _kind(family) -> str:
    return "image-to-image" if family.strength else "edit model"


def render_families() -> str:
    """The table of families: what the tests' rows say, and what those tests hold of them."""
    ours = {family.blocks_class.upstream: family for family in FAMILIES.values()}
    rows, laws = [], []
    for row in families_table.FAMILIES.values():
        family = ours[row.upstream]
        rows.append(
            (
                family.title,
                f"`{family.blocks}`",
                _kind(row),
                "ε, v, x0" if row.name == "sdxl" else "flow",
                row.layout,
                "guider" if row.guided else "distilled",
                "; ".join(filter(None, [family.model and f"`{family.model}`", EMBEDDED.get(row.name)])),
            )
        )
        blocks = family.blocks_class()
        opened = [name for name in blocks.available_workflows if "diffdiff" in name]
        laws.append(
            (
                family.title,
                ", ".join(f"`{name}`" for name in opened),
                "bit for bit",
                "<= 1e-5" if row.strength else "",
                "one reference" if row.references else "yes",
                "yes" if "control_image" in blocks.get_workflow(opened[-1]).input_names else "",
                "yes" if "region_prompts" in blocks.input_names else "",
                "yes" if row.name == "sdxl" else "",
                "yes" if "map_fill" in blocks.input_names else "",
            )
        )
    videos, video_laws = [], []
    for row in videos_table.VIDEOS.values():
        family = ours[row.ours.upstream]
        blocks = family.blocks_class().get_workflow("diffdiff")
        layout = "tokens, frame by frame" if row.tokens else "grid with a frame axis"
        in_one = "yes" if "batch_guidance" in blocks.input_names else ""
        videos.append((family.title, f"`{family.blocks}`", f"{row.every}k + 1", layout, in_one, f"`{family.model}`"))
        skips = "left out" if "skip_frozen" in blocks.sub_blocks else "all run, for the sound"
        video_laws.append((family.title, "bit for bit", row.strength, "bit for bit", skips, "yes", "byte for byte"))
    left_out = [(f"`{name}`", reason) for name, reason in families_table.NOT_OPENED.items()]
    heads = {
        "families": ("family", "class", "kind", "prediction", "latents in the loop", "guidance", "default model"),
        "laws": (
            *("family", "workflows with a map", "keep law", "strength law", "batches", "ControlNet"),
            *("[regions](regions.md)", "inpainting checkpoints", "[fill](maps.md#what-lies-under-the-change)"),
        ),
        "videos": ("family", "class", "frames", "latents in the loop", "`batch_guidance`", "default model"),
        "laws of videos": (
            *("family", "keep law, each latent frame", "strength law", "a black map is upstream's text-to-video"),
            *("steps that change nothing", "batches", "overlay"),
        ),
        "left out": ("blocks of diffusers", "not opened, because it"),
    }
    tables = zip(heads.items(), (rows, laws, videos, video_laws, left_out), strict=True)
    return _fill(FAMILIES_PAGE, {name: table(head, body) for (name, head), body in tables})


def render_notebook() -> str:
    """The tutorial for Jupyter and Colab; each example of the page is a cell."""

    def split(fence: re.Match) -> str:
        sources = [example.source for example in DocTestParser().get_examples(fence[1])] or [fence[1]]
        return "\n".join(f"```python\n{source}```\n" for source in sources)

    page = re.sub(r"```python\n(.*?)```\n", split, TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)
    notebook = jupytext.reads(page, "md")
    install = "# In Colab, once the package is on PyPI:\n# %pip install modular-diffdiff"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(install))
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.writes(notebook) + "\n"


PAGES = {
    FAMILIES_PAGE: render_families,
    API: render_api,
    CARD: render_card,
    MELLON: render_mellon,
    NOTEBOOK: render_notebook,
}


if __name__ == "__main__":
    for path, render in PAGES.items():
        path.write_text(render(), encoding="utf-8")
