"""Change maps from files to files: what `modular-diffdiff map` does.

Heavy libraries are imported where they are used: a mistake in a file's name is answered before they are loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from . import editing, loading


if TYPE_CHECKING:
    import torch

# The maps of single sources, by what they were made of.
Memory = dict[tuple, "torch.Tensor"]

# What the commands call the inputs of the blocks that make and shape maps, pictures aside.
INPUTS = {
    "text": "map_text",
    "threshold": "map_text_threshold",
    "point": "map_points",
    "box": "map_boxes",
    "depth": "map_depth",
    "gradient": "map_gradient",
    "combine": "map_combine",
    "invert_map": "invert_diffdiff_map",
    "levels": "map_levels",
    "gamma": "map_gamma",
    "grow": "map_grow",
    "feather": "map_feather",
    "seam": "map_seam",
    "limits": "map_limits",
}
PICTURES = {"MAP": "diffdiff_map", "--mask": "mask_image", "--difference": "map_difference"}
# Any of these says what changes.
SOURCES = ("text", "point", "box", "depth", "gradient", "mask", "difference")
# The option that names a model, by the input that needs it.
OPTIONS = {
    "map_text": "--segmenter",
    "map_points": "--mask-generator",
    "map_boxes": "--mask-generator",
    "map_depth": "--depth-estimator",
    "region_texts": "--segmenter",
}


@dataclass(frozen=True)
class Region:
    """A part of a picture with a prompt of its own.

    Attributes:
        prompt: What to draw there.
        where: A picture that is white there, or words.
    """

    prompt: str
    where: editing.Picture | str


@dataclass(frozen=True)
class Request:
    """What a map is made of, and how it is shaped.

    Attributes:
        image: The picture that it is for.
        inputs: Of the blocks `make_map` and `shape_map`, by name; pictures are `editing.Picture`s.
        models: The folder or Hub repository of the model for an input that needs one, by the input's name.
        inverted: Whether the map that is written is white where the picture changes.
        regions: The parts with a prompt of their own.
    """

    image: editing.Picture
    inputs: dict[str, Any]
    models: dict[str, str] = field(default_factory=dict)
    inverted: bool = False
    regions: tuple[Region, ...] = ()

    def pictures(self) -> dict[str, editing.Picture]:
        given = {name: value for name, value in self.inputs.items() if isinstance(value, editing.Picture)}
        return {"image": self.image, **given}

    def titles(self) -> dict[str, str]:
        """What messages call the pictures, by input."""
        return {name: picture.title for name, picture in self.pictures().items()}

    def changes(self) -> bool:
        """Whether each frame of a video has another map: it is a video, or models make it of the frames."""
        videos = [picture for picture in self.pictures().values() if isinstance(picture, editing.Clip)]
        return len(videos) > 1 or (len(videos) == 1 and bool(self.models))

    def frames(self) -> list[Request]:
        """What the map of each frame of a video is made of."""
        images, given = self.image.frames(), self.inputs.get("diffdiff_map")
        if not isinstance(given, editing.Clip):
            return [replace(self, image=image) for image in images]
        maps = given.frames() if len(given.video.frames) > 1 else given.frames() * len(images)
        return [
            replace(self, image=image, inputs=self.inputs | {"diffdiff_map": one})
            for image, one in zip(images, maps, strict=True)
        ]


def are_asked(params: dict[str, Any]) -> bool:
    """Whether a command's parameters say what changes, MAP aside."""
    return any(params[name] not in (None, (), []) for name in SOURCES)


def pictures_of(read: dict[str, editing.Picture | None]) -> dict[str, editing.Picture]:
    """Those of the pictures read that maps are made of, by input."""
    return {name: read[title] for title, name in PICTURES.items() if read.get(title) is not None}


def check_pictures(request: Request) -> None:
    """Refuses pictures that no map can be made of.

    Raises:
        UserError: Naming the picture.
    """
    from .blocks import diffdiff_map

    for name, picture in request.pictures().items():
        if name != "image":
            editing.check_picture(picture, deep=name in ("diffdiff_map", "mask_image"))
    if "diffdiff_map" in request.inputs:
        _check_count(request.image, request.inputs["diffdiff_map"])
        with editing.spoken(request.titles()):
            diffdiff_map.load_maps(request.inputs["diffdiff_map"].pixels)


def _check_count(image: editing.Picture, change_map: editing.Picture) -> None:
    """Refuses a map that is a video of another number of frames."""
    if isinstance(change_map, editing.Clip):
        frames, given = len(image.video.frames), len(change_map.video.frames)
        if given not in (1, frames):
            raise loading.UserError(
                f"{change_map.title} has {given} frames and {image.title} {frames}; MAP takes one for all of them, or "
                "one for each."
            )


def check_regions(request: Request) -> None:
    """Refuses pictures of regions that cannot be read as maps.

    Raises:
        UserError: Naming the option.
    """
    from .blocks import diffdiff_map

    for region in request.regions:
        if isinstance(region.where, editing.Picture):
            editing.check_picture(region.where, deep=True)
            (where,) = diffdiff_map.load_maps(region.where.pixels)
            if where.amax() == 0:
                raise loading.UserError(
                    f"{region.where.title} is black; it takes one that is white where PROMPT holds."
                )


def make_regions(
    request: Request, load: Callable | None = None, memory: Memory | None = None
) -> list[tuple[str, np.ndarray]]:
    """The prompt of each region, and (H, W) floats in [0, 1], 1 where it holds.

    Args:
        load: Loads the segmenter, as `loading.load_map_model` does.
        memory: As that of `make_map`.

    Raises:
        UserError: If it cannot be loaded, or finds nothing.
    """
    from .blocks.diffdiff_map import load_maps

    found, memory = [], {} if memory is None else memory
    for region in request.regions:
        if isinstance(region.where, editing.Picture):
            (where,) = load_maps(region.where.pixels)
        else:
            where = _find(region.where, request, memory, load or loading.load_map_model)
        found.append((region.prompt, where[0, 0].numpy()))
    return found


def _find(text: str, request: Request, memory: Memory, load: Callable) -> torch.Tensor:
    """(1, 1, H, W): where the words of a region are."""
    from .blocks.diffdiff_regions import DiffDiffRegionTextsStep

    model = request.models["region_texts"]
    made_of = "region_texts", model, request.image.sha256, text
    if made_of not in memory:
        finder = DiffDiffRegionTextsStep()
        pipe, kinds = finder.init_pipeline(), tuple((name, kind) for name, (kind, _) in finder.models.items())
        pipe.update_components(**load(model, OPTIONS["region_texts"], kinds))
        with editing.spoken({}):
            image = request.image.pixels.convert("RGB")
            ((memory[made_of],),) = pipe(image=image, region_texts=[text], output="region_maps")
    return memory[made_of]


def make_map(request: Request, memory: Memory | None = None, load: Callable | None = None) -> np.ndarray:
    """(H, W) floats in [0, 1], 1 where the original stays; of the image's size, if it is made or shaped.

    Where nothing says what changes, everything may.

    Args:
        memory: What sources made before, and do not make again; what they make now is added.
        load: Loads models, as `loading.load_map_model` does.

    Raises:
        UserError: If a model cannot be loaded, or a block refuses an input.
    """
    from .blocks.diffdiff_docs import DEFAULTS
    from .blocks.diffdiff_make_map import SOURCES
    from .blocks.diffdiff_map import read_maps
    from .blocks.diffdiff_shape import SHAPING, DiffDiffShapeMapStep
    from .blocks.diffdiff_sources import combine, join

    inputs, memory = request.inputs, {} if memory is None else memory
    how = inputs.get("map_combine", DEFAULTS["map_combine"])
    with editing.spoken(request.titles()):
        load = load or loading.load_map_model
        made = [_ask(source(), request, memory, load) for source in SOURCES if source.needs[0] in inputs]
        keep = functools.reduce(functools.partial(combine, how=how), made) if made else None
        if "diffdiff_map" in inputs:
            given = read_maps(inputs["diffdiff_map"].pixels, inputs.get("invert_diffdiff_map", False))
            keep = join(given, keep, how) if made else given
        elif not made:
            keep = np.zeros(request.image.pixels.size[::-1], np.float32)
        shaping = {name: value for name, value in inputs.items() if name in SHAPING}
        shape_map = DiffDiffShapeMapStep().init_pipeline()
        shaped = shape_map(image=request.image.pixels, diffdiff_map=keep, output="diffdiff_map", **shaping)
        return read_maps(shaped)[0][0, 0].numpy()


def make_maps(request: Request, load: Callable | None = None) -> np.ndarray:
    """The same; where it changes from frame to frame of a video, (F, H, W), a map for each."""
    if not request.changes():
        return make_map(request, load=load)
    load = functools.cache(load or loading.load_map_model)
    return np.stack([make_map(frame, load=load) for frame in request.frames()])


def _ask(source: Any, request: Request, memory: Memory, load: Callable) -> torch.Tensor:
    """(1, 1, H, W): the map of one source, a block."""
    (asks,) = source.needs
    names = {asks, *source.takes} - {"diffdiff_map", "invert_diffdiff_map", "map_combine"}
    asked = {name: value for name, value in request.inputs.items() if name in names}
    made_of = asks, request.models.get(asks), request.image.sha256, repr(asked)
    if made_of not in memory:
        pixels = {
            name: picture.pixels if name == "mask_image" else picture.pixels.convert("RGB")
            for name, picture in request.pictures().items()
            if name in names
        }
        pipe = source.init_pipeline()
        if asks in request.models:
            kinds = tuple((name, kind) for name, (kind, _) in source.models.items())
            pipe.update_components(**load(request.models[asks], OPTIONS[asks], kinds))
        memory[made_of] = pipe(**asked | pixels, output="diffdiff_map")
    return memory[made_of]


def as_png(values: np.ndarray) -> PIL.Image.Image:
    """A map in [0, 1] as a picture of 16 bits, which `edit` reads as it was to 1 / 131,070."""
    return PIL.Image.fromarray(np.rint(65_535 * values).astype(np.uint16))


def _told(value: Any) -> Any:
    return editing.describe_picture(value) if isinstance(value, editing.Picture) else value


def describe(request: Request) -> dict[str, Any]:
    """All that decides a map, as JSON takes it."""
    from .blocks.diffdiff_docs import DEFAULTS

    decided = {name: DEFAULTS[name] for name in INPUTS.values() if name in DEFAULTS} | request.inputs
    told = {name: _told(value) for name, value in {"image": request.image, **decided}.items()}
    given = request.inputs.get("diffdiff_map")
    if given is not None and (made := editing.settings_of(given)):
        told["diffdiff_map"]["made"] = made
    if request.regions:
        told["regions"] = [{"prompt": one.prompt, "where": _told(one.where)} for one in request.regions]
    versions = {name: editing.find_version(name) for name in editing.VERSIONS}
    return told | {"map_models": request.models, "inverted": request.inverted, "versions": versions}
