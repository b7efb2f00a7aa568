"""The model families: what each is called, which class of ours opens it, and which family a checkpoint is of.

Heavy libraries are imported where they are used: a mistake in a name is answered before they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path


PACKAGE = Path(__file__).parent
# Where the documents say that the repos are; a card names the one that it is published as.
OWNER = "modular-diffdiff"


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        title: What people call it.
        blocks: Name of its class, in `modular_diffdiff`.
        model: Where its default components are, a repository on the Hub with a folder for each; None where no such
            repository is known.
        elsewhere: Repositories of components that are not there, by component.
        module: Where the class lives; the entry module of the family's Hub repo.
    """

    title: str
    blocks: str
    model: str | None
    elsewhere: dict[str, str] = field(default_factory=dict)
    module: str = "families"

    @property
    def blocks_class(self) -> type:
        """The class that opens it."""
        return getattr(import_module(f".{self.module}", __package__), self.blocks)

    @property
    def makes_videos(self) -> bool:
        """Whether it edits videos, and not pictures."""
        return self.module == "videos"


# By the name that the command line takes.
FAMILIES = {
    "sdxl": Family(
        "Stable Diffusion XL",
        "SDXLDiffDiffAutoBlocks",
        "stabilityai/stable-diffusion-xl-base-1.0",
        module="presets",
    ),
    "sd3": Family("Stable Diffusion 3", "SD3DiffDiffAutoBlocks", "stabilityai/stable-diffusion-3.5-medium"),
    "flux": Family("Flux", "FluxDiffDiffAutoBlocks", "black-forest-labs/FLUX.1-dev"),
    "qwen-image": Family(
        "Qwen-Image",
        "QwenImageDiffDiffAutoBlocks",
        "Qwen/Qwen-Image",
        {"controlnet": "InstantX/Qwen-Image-ControlNet-Union"},
    ),
    "z-image": Family("Z-Image", "ZImageDiffDiffAutoBlocks", "Tongyi-MAI/Z-Image-Turbo"),
    "anima": Family("Anima", "AnimaDiffDiffAutoBlocks", "circlestone-labs/Anima-Base-v1.0-Diffusers"),
    "flux-kontext": Family("Flux Kontext", "FluxKontextDiffDiffAutoBlocks", "black-forest-labs/FLUX.1-Kontext-dev"),
    "qwen-image-edit": Family("Qwen-Image-Edit", "QwenImageEditDiffDiffAutoBlocks", "Qwen/Qwen-Image-Edit"),
    "qwen-image-edit-plus": Family(
        "Qwen-Image-Edit-Plus", "QwenImageEditPlusDiffDiffAutoBlocks", "Qwen/Qwen-Image-Edit-2509"
    ),
    "qwen-image-2.1": Family("Qwen-Image 2.1", "QwenImage21DiffDiffAutoBlocks", "Qwen/Qwen-Image-2.1"),
    "qwen-image-2.1-turbo": Family("Qwen-Image 2.1 Turbo", "QwenImage21TurboDiffDiffAutoBlocks", None),
    "flux2": Family("Flux 2", "Flux2DiffDiffAutoBlocks", "black-forest-labs/FLUX.2-dev"),
    "flux2-klein": Family("Flux 2 Klein", "Flux2KleinDiffDiffAutoBlocks", "black-forest-labs/FLUX.2-klein-4B"),
    "flux2-klein-base": Family(
        "Flux 2 Klein Base", "Flux2KleinBaseDiffDiffAutoBlocks", "black-forest-labs/FLUX.2-klein-base-4B"
    ),
    "flux3": Family("Flux 3", "Flux3DiffDiffAutoBlocks", None),
    "flux3-distilled": Family("Flux 3 Distilled", "Flux3DistilledDiffDiffAutoBlocks", None),
    "wan": Family("Wan 2.1", "WanDiffDiffAutoBlocks", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", module="videos"),
    "wan-2.2": Family("Wan 2.2", "Wan22DiffDiffAutoBlocks", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", module="videos"),
    "ltx": Family("LTX-Video", "LTXDiffDiffAutoBlocks", "Lightricks/LTX-Video", module="videos"),
    "ltx-2": Family("LTX-2", "LTX2DiffDiffAutoBlocks", "Lightricks/LTX-2", module="videos"),
    "hunyuan-video-1.5": Family(
        "HunyuanVideo 1.5",
        "HunyuanVideo15DiffDiffAutoBlocks",
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        module="videos",
    ),
}


class UnknownFamilyError(Exception):
    """A checkpoint of a family that none of ours opens; the message names it, and those that are known."""


def recognize(location: str) -> str:
    """The family of a checkpoint, by its model_index.json or modular_model_index.json; no weights are read.

    Args:
        location: A folder, or a repository's name on the Hub.

    Returns:
        A name in `FAMILIES`.

    Raises:
        UnknownFamilyError: If it is of none of them.
        OSError: If it has no index, or cannot be reached.
        ValueError: If its index is not a JSON object.
    """
    from diffusers import DiffusionPipeline, ModularPipeline

    try:
        index = ModularPipeline.load_config(location)
    except OSError:
        if Path(location, ModularPipeline.config_name).is_file():
            raise
        index = DiffusionPipeline.load_config(location)
    if not isinstance(index, dict):
        raise ValueError("its index is not a JSON object")
    # the blocks tell more than the pipeline: distilled models can have the pipeline of those that are not
    for upstream in (index.get("_blocks_class_name"), _upstream_blocks(index)):
        for name, family in FAMILIES.items():
            if family.blocks_class.upstream.__name__ == upstream:
                return name
    name = index.get("_class_name", "pipeline without a name")
    raise UnknownFamilyError(
        f"{location!r} is a {name}, which belongs to no known family; known are {', '.join(FAMILIES)}."
    )


def _upstream_blocks(index: dict) -> str | None:
    """Name of the automatic blocks that upstream has for a checkpoint with this index, None if it has none."""
    import diffusers
    from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING
    from diffusers.pipelines.auto_pipeline import _get_model

    pipeline = str(index.get("_class_name"))
    if not pipeline.endswith("ModularPipeline"):
        model = _get_model(pipeline)
        known = model in MODULAR_PIPELINE_MAPPING
        named = f"{pipeline.removesuffix('Pipeline')}ModularPipeline"  # of models that upstream's table leaves out
        pipeline = MODULAR_PIPELINE_MAPPING[model](index) if known else named
    return getattr(getattr(diffusers, pipeline, None), "default_blocks_name", None)
