"""Writes what follows from the code: `docs/api.md`, the model card's table of inputs, Mellon's configuration.

    python docs/make_pages.py

A test compares each with what is committed.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from diffusers.modular_pipelines import ModularPipelineBlocks

import modular_diffdiff
from modular_diffdiff import SDXLDiffDiffAutoBlocks, mellon
from modular_diffdiff.publishing import BLOCKS_REPO, PACKAGE


API, CARD = Path(__file__).parent / "api.md", PACKAGE / "model_card.md"
MELLON = PACKAGE / "mellon_pipeline_config.json"
_HEAD = """# The names of `modular_diffdiff`

Made from the docstrings and the blocks by `python docs/make_pages.py`. Latents are in the scheduler's scale, of
shape (outputs, channels, h, w).
"""


def _type_name(hint: object) -> str:
    return inspect.formatannotation(hint).replace("PIL.Image.Image", "Image").replace("numpy.", "np.")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def inputs_table(blocks: ModularPipelineBlocks) -> str:
    """Name, type, default and sentence of every input, the required ones first."""
    rows = []
    for param in sorted(blocks.inputs, key=lambda param: not param.required):
        name = f"`{param.name}`" if param.name else f"`**{param.kwargs_type}`"
        default = "**required**" if param.required else f"`{param.default!r}`"
        rows.append((name, f"`{_type_name(param.type_hint)}`", default, param.description))
    return _table(("input", "type", "default", "what"), rows)


def outputs_table(blocks: ModularPipelineBlocks) -> str:
    rows = [
        (f"`{param.name}`", f"`{_type_name(param.type_hint)}`", param.description)
        for param in blocks.intermediate_outputs
        if param.name
    ]
    return _table(("output", "type", "what"), rows)


def _is_pipeline(name: str) -> bool:
    return name in ("SDXLDiffDiffBlocks", "SDXLDiffDiffAutoBlocks")


def _describe(name: str) -> str:
    public = getattr(modular_diffdiff, name)
    parts = [f"## {name}"]
    if not inspect.isclass(public):
        listed = "\n".join(f"- `{step}`: `{block.__name__}`" for step, block in public.items())
        return "\n\n".join([*parts, "An ordered dictionary of block classes, from `presets.py`:", listed])
    parts.append(inspect.getdoc(public))
    blocks = public()
    if blocks.sub_blocks:
        parts.append("\n".join(f"- `{step}`: `{type(block).__name__}`" for step, block in blocks.sub_blocks.items()))
    if not _is_pipeline(name) or public is SDXLDiffDiffAutoBlocks:
        parts.append(inputs_table(blocks))
    if not _is_pipeline(name) and blocks.intermediate_outputs:
        parts.append(outputs_table(blocks))
    return "\n\n".join(parts)


def render_api() -> str:
    """The page on all public names: the pipelines, the dictionaries that they are made of, the blocks."""
    names = sorted(modular_diffdiff.__all__, key=lambda name: (not _is_pipeline(name), not name.isupper()))
    return "\n\n".join([_HEAD.strip(), *map(_describe, names)]) + "\n"


def render_card() -> str:
    """The model card, with the inputs as they are."""
    text = CARD.read_text(encoding="utf-8")
    before, rest = text.split("<!-- inputs -->")
    after = rest.split("<!-- end of inputs -->")[1]
    table = inputs_table(SDXLDiffDiffAutoBlocks())
    return f"{before}<!-- inputs -->\n\n{table}\n\n<!-- end of inputs -->{after}"


def render_mellon() -> str:
    return mellon.build_config(BLOCKS_REPO).to_json_string()


PAGES = {API: render_api, CARD: render_card, MELLON: render_mellon}


if __name__ == "__main__":
    for path, render in PAGES.items():
        path.write_text(render(), encoding="utf-8")
