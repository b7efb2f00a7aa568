"""Change maps from files to files: what `modular-diffdiff map` does.

Heavy libraries are imported where they are used: a mistake in a file's name is answered before they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from . import editing, loading


# The option that names a model, by the input that needs it.
OPTIONS = {
    "map_text": "--segmenter",
    "map_points": "--mask-generator",
    "map_boxes": "--mask-generator",
    "map_depth": "--depth-estimator",
}


@dataclass(frozen=True)
class Request:
    """What a map is made of, and how it is shaped.

    Attributes:
        image: The picture that it is for.
        inputs: Of the blocks `make_map` and `shape_map`, by name; pictures are `editing.Picture`s.
        models: The folder or Hub repository of the model for an input that needs one, by the input's name.
        inverted: Whether the map that is written is white where the picture changes.
    """

    image: editing.Picture
    inputs: dict[str, Any]
    models: dict[str, str] = field(default_factory=dict)
    inverted: bool = False

    def pictures(self) -> dict[str, editing.Picture]:
        given = {name: value for name, value in self.inputs.items() if isinstance(value, editing.Picture)}
        return {"image": self.image, **given}


def make_map(request: Request) -> np.ndarray:
    """(H, W) floats in [0, 1], of the image's size: 1 where the original stays, unless it is inverted.

    Raises:
        UserError: If a model cannot be loaded, or a block refuses an input.
    """
    from diffusers.modular_pipelines import SequentialPipelineBlocks

    from .blocks.diffdiff_make_map import DiffDiffMakeMapStep
    from .blocks.diffdiff_shape import DiffDiffShapeMapStep

    blocks = {"make_map": DiffDiffMakeMapStep(), "shape_map": DiffDiffShapeMapStep()}
    pipe = SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()
    pipe.update_components(**load_models(request.models))
    pixels = {name: picture.pixels.convert("RGB") for name, picture in request.pictures().items()}
    if "mask_image" in pixels:
        pixels["mask_image"] = request.inputs["mask_image"].pixels  # of any depth
    with editing.spoken({name: picture.title for name, picture in request.pictures().items()}):
        keep = pipe(**request.inputs | pixels, output="diffdiff_map")[0, 0].numpy()
    return 1 - keep if request.inverted else keep


def load_models(locations: dict[str, str]) -> dict[str, Any]:
    """The components of the sources that are asked for.

    Raises:
        UserError: If one cannot be loaded.
    """
    from .blocks.diffdiff_make_map import SOURCES

    components = {}
    for source in SOURCES:
        (asked_by,) = source.needs
        if asked_by in locations:
            kinds = {name: kind for name, (kind, _) in source.models.items()}
            components |= loading.load_map_model(locations[asked_by], OPTIONS[asked_by], kinds)
    return components


def as_png(values: np.ndarray) -> PIL.Image.Image:
    """A map in [0, 1] as a picture of 16 bits, which `edit` reads as it was to 1 / 131,070."""
    return PIL.Image.fromarray(np.rint(65_535 * values).astype(np.uint16))


def describe(request: Request) -> dict[str, Any]:
    """All that decides a map, as JSON takes it."""
    told = {
        name: {"name": value.name, "sha256": value.sha256} if isinstance(value, editing.Picture) else value
        for name, value in {"image": request.image, **request.inputs}.items()
    }
    versions = {name: editing.find_version(name) for name in editing.VERSIONS}
    return told | {"models": request.models, "inverted": request.inverted, "versions": versions}
