"""What a family's Hub repo says of it: tables of inputs, the card, the index of default components."""

from __future__ import annotations

import inspect
from pathlib import Path

from diffusers.modular_pipelines import ModularPipelineBlocks

from .catalog import OWNER, PACKAGE, Family


# Of the folder of pictures, what every family's card shows.
PICTURES = ("polarity.png",)
# With the family's own in braces.
_CARD, _BLOCK_CARD = PACKAGE / "family_card.md", PACKAGE / "block_card.md"


def _type_name(hint: object) -> str:
    return inspect.formatannotation(hint).replace("PIL.Image.Image", "Image").replace("numpy.", "np.")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def inputs_table(blocks: ModularPipelineBlocks) -> str:
    """Name, type, default and sentence of every input, the required ones first."""
    rows = []
    for param in sorted(blocks.inputs, key=lambda param: not param.required):
        name = f"`{param.name}`" if param.name else f"`**{param.kwargs_type}`"
        default = "**required**" if param.required else f"`{param.default!r}`"
        rows.append((name, f"`{_type_name(param.type_hint)}`", default, param.description))
    return table(("input", "type", "default", "what"), rows)


def outputs_table(blocks: ModularPipelineBlocks) -> str:
    """Name, type and sentence of every output."""
    rows = [
        (f"`{param.name}`", f"`{_type_name(param.type_hint)}`", param.description)
        for param in blocks.intermediate_outputs
        if param.name
    ]
    return table(("output", "type", "what"), rows)


# What a card says of pictures and of videos.
_OF_PICTURES = {
    "task": "image-to-image",
    "kind": "image",
    "packages": "",
    "original": "a photo of yours as `photo.png`",
    "helpers": "load_image",
    "read": 'load_image("photo.png")',
    "write": "",
}
_OF_VIDEOS = {
    "task": "video-to-video",
    "kind": "video",
    "packages": " imageio imageio-ffmpeg ftfy",
    "original": "a clip of yours as `clip.mp4`",
    "helpers": "export_to_video, load_video",
    "read": 'load_video("clip.mp4")',
    "write": 'export_to_video(video, "clip-edit.mp4", fps=24)\n',
}


def family_card(family: Family, repo_id: str) -> str:
    """The model card of a family's repo."""
    blocks = family.blocks_class()
    about = (
        f"The default components are those of [{family.model}](https://huggingface.co/{family.model})."
        if family.model
        else "There are no default components: name a checkpoint of the family."
    )
    return _CARD.read_text(encoding="utf-8").format(
        base=f"base_model: {family.model}\n" if family.model else "",
        title=family.title,
        owner=OWNER,
        repo=repo_id,
        source="" if family.model else 'pretrained_model_name_or_path="owner/name", ',
        workflows=", ".join(f"`{name}`" for name in blocks.available_workflows),
        about=about,
        inputs=inputs_table(blocks.get_workflow("diffdiff")),
        module=family.module,
        **(_OF_VIDEOS if family.makes_videos else _OF_PICTURES),
    )


def block_card(name: str, block: ModularPipelineBlocks, repo_id: str) -> str:
    """The card of a repo that holds one block."""
    models = [f"`{spec.name}` (a `{spec.type_hint.__name__}`)" for spec in block.expected_components]
    return _BLOCK_CARD.read_text(encoding="utf-8").format(
        block=type(block).__name__,
        about=block.description,
        owner=OWNER,
        repo=repo_id,
        name=name.replace("-", "_"),
        components=f"It needs {' and '.join(models)}: set them with `update_components`." if models else "",
        inputs=inputs_table(block),
        outputs=outputs_table(block),
    )


def write_index(family: Family, folder: Path) -> None:
    """Writes `modular_model_index.json`: where each component comes from by default."""
    pipe = family.blocks_class().init_pipeline()
    for name in pipe.pretrained_component_names:
        spec = pipe.get_component_spec(name)
        spec.pretrained_model_name_or_path = family.elsewhere.get(name, family.model)
        spec.subfolder = "" if name in family.elsewhere else name
        pipe.register_to_config(**{name: (*pipe.config[name][:2], pipe._component_spec_to_dict(spec))})
    pipe.save_config(str(folder))
