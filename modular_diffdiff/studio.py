"""What the page does, without the page: pictures and the parameters of `edit` in, maps, edits and fans out."""

from __future__ import annotations

import functools
import hashlib
import io
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
import typer

from . import asking, cli, editing, encodings, fans, loading, maps, options
from .blocks.diffdiff_preview import OPACITY, draw_preview
from .still_life.scene import Item, Scene, masks, render


OPTIONS = {option.name: option for option in typer.main.get_command(cli.app).commands["edit"].params}
DEFAULTS = {name: option.default for name, option in OPTIONS.items()}
SHAPING = ("levels", "gamma", "grow", "feather", "seam", "limits")
LENGTHS = ("grow", "feather")  # of these, in pixels
# What means nothing without one of others.
NEEDS = {
    **dict.fromkeys(("segmenter", "threshold"), ("text",)),
    **dict.fromkeys(("mask_generator",), ("point", "box")),
    **dict.fromkeys(("depth_estimator",), ("depth",)),
    **dict.fromkeys(("controlnet", "control_mode", "control_scale"), ("control_image",)),
    **dict.fromkeys(("ip_adapter", "ip_adapter_scale"), ("ip_adapter_image",)),
}
OF_MAPS = (*maps.INPUTS, *maps.SOURCES, "segmenter", "mask_generator", "depth_estimator")
# The page's list of regions, and the colour of each in the preview.
REGIONS = {"blue": (31, 119, 180), "green": (44, 160, 44), "orange": (255, 127, 14), "purple": (148, 103, 189)}
REMEMBERED = 16  # maps of single sources: every letter of a text makes one
LOOKED_AT = 1024  # pixels, the longer side
OnStep = Callable[[int, int], Any] | None


class StoppedError(Exception):
    """Somebody has ended a run."""


@dataclass(frozen=True)
class Example:
    """A still life to begin with: a scene whose last object is painted over this strongly, and a prompt."""

    scene: Scene
    strength: float
    prompt: str

    @property
    def name(self) -> str:
        return f"{self.scene.items[-1].kind}.png"

    @property
    def painting(self) -> PIL.Image.Image:
        """The map, white where it is kept; what changes reaches a little beyond the object, as a brush does."""
        where = PIL.Image.fromarray(masks(self.scene)[self.scene.items[-1].kind])
        brushed = np.asarray(where.filter(PIL.ImageFilter.MaxFilter(17)))
        return PIL.Image.fromarray(255 - np.rint(self.strength * brushed).astype(np.uint8))

    def write(self, folder: str) -> Path:
        path = Path(folder, self.name)
        PIL.Image.fromarray(render(self.scene)).save(path)
        return path


EXAMPLES = (
    Example(Scene("apple", "red", "striped", light=0.3), 1, "a green pear on a striped background"),
    Example(Scene("lemon", "yellow", "checked", light=0.4), 0.6, "a purple lemon on a checked background"),
    Example(
        Scene("apple", "red", "tabletop", (0.28, 0.56), light=0.3, seed=1, beside=Item("cup", "blue")),
        1,
        "a red apple and a yellow lemon on a tabletop",
    ),
)


def small_copy(picture: editing.Picture, side: int) -> editing.Picture:
    """A picture of at most this size, in RGB, on white where it is transparent."""
    pixels = picture.pixels.convert("RGBA")
    pixels.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    paper = PIL.Image.new("RGBA", pixels.size, "white")
    return replace(picture, pixels=PIL.Image.alpha_composite(paper, pixels).convert("RGB"))


def small_file(path: Path) -> PIL.Image.Image:
    """A picture as it is looked at."""
    with PIL.Image.open(path) as picture:
        picture.load()
        picture.thumbnail((LOOKED_AT, LOOKED_AT))
        return picture


def as_picture(pixels: PIL.Image.Image, title: str, name: str) -> editing.Picture:
    """Pixels as they would be read from a PNG."""
    data = io.BytesIO()
    pixels.save(data, "png")
    return editing.Picture(title, name, hashlib.sha256(data.getvalue()).hexdigest(), pixels)


def read_settings(picture: editing.Picture) -> dict[str, Any]:
    """What a PNG that we made says of itself, by the parameters of `edit`.

    Raises:
        UserError: If it says nothing.
    """
    told = editing.settings_of(picture)
    if told is None:
        raise loading.UserError(f"{picture.title} holds no settings; it takes a PNG that was made here.")
    made_of = [told]
    for name in ("diffdiff_map", "made"):  # a map that was made before it was given to an edit
        made_of.append(made_of[-1].get(name) if isinstance(made_of[-1], dict) else None)
    told |= made_of[-1] if isinstance(made_of[-1], dict) else {}
    names = {name: maps.INPUTS.get(name, name) for name in DEFAULTS} | {"negative": "negative_prompt"}
    names["regions"] = "regions"
    return {name: told[given] for name, given in {**names, "prompt": "prompt"}.items() if given in told}


def tint_regions(preview: PIL.Image.Image, regions: list[np.ndarray]) -> PIL.Image.Image:
    """A preview with the colour of each region, (H, W) in [0, 1], over its upper part."""
    pixels = np.asarray(preview).astype(np.float32)
    for region, colour in zip(regions, REGIONS.values(), strict=False):
        shown = pixels[: region.shape[0]]
        shown += OPACITY * region[..., None] * (np.array(colour) - shown)
    return PIL.Image.fromarray(np.rint(pixels).astype(np.uint8))


def command_line(params: dict[str, Any], photo: str, change_map: str, prompt: str, seed: int) -> str:
    """The `modular-diffdiff edit` that makes one picture again, in the folder where these files are."""
    files, asked = [photo, change_map, prompt], ["--seed", str(seed)]
    for name, value in params.items():
        if value == DEFAULTS.get(name) or name not in OPTIONS or name in (*OF_MAPS, "image", "seed", "count"):
            continue
        asked.append(OPTIONS[name].opts[0])
        if not OPTIONS[name].is_flag:
            asked.append(value.name if isinstance(value, editing.Picture) else str(value))
    for where, what in params.get("regions") or ():
        asked += ["--region", f"{where}={what}"] if where else []
    if any(argument.startswith("-") for argument in files):
        return shlex.join(["modular-diffdiff", "edit", *asked, "--", *files])
    return shlex.join(["modular-diffdiff", "edit", *files, *asked])


@dataclass(frozen=True)
class Studio:
    """Models, and what they do to pictures; what was loaded last stays loaded.

    Attributes:
        settings: The parameters of `edit` that say which models run, and how.
    """

    settings: dict[str, Any]
    load: Callable = field(default_factory=lambda: functools.lru_cache(maxsize=1)(loading.load_pipeline))
    load_map_model: Callable = field(default_factory=lambda: functools.lru_cache(maxsize=3)(loading.load_map_model))

    def find_model(self) -> loading.Model:
        """The model, its family and device; all are looked for, as far as can be seen without loading them.

        Raises:
            UserError: If there is no such model, or no such device.
        """
        params = DEFAULTS | self.settings
        names = [field.name for field in fields(loading.Model) if field.name in params]
        model = loading.Model(**{name: params[name] for name in names})
        loading.check_names(model)
        return loading.choose_device(loading.find_family(model))

    def steered_by(self) -> list[str]:
        """The pictures that can steer the model, by the parameter."""
        embedded = self.settings.get("model", loading.EMBEDDED) == loading.EMBEDDED
        adapters = {"control_image": "controlnet", "ip_adapter_image": "ip_adapter"}
        return [name for name, adapter in adapters.items() if embedded or self.settings.get(adapter)]

    def complete(self, params: dict[str, Any]) -> dict[str, Any]:
        """All parameters of `edit`, pictures as `editing.Picture`s, less those that mean nothing beside the others."""
        params = DEFAULTS | self.settings | {name: value for name, value in params.items() if value is not None}
        useless = [name for name, needs in NEEDS.items() if not any(params[need] for need in needs)]
        return params | {name: DEFAULTS[name] for name in useless}

    def find(
        self, small: editing.Picture, painting: editing.Picture | None, params: dict[str, Any], memory: maps.Memory
    ) -> tuple[maps.Request, editing.Picture]:
        """All that says what changes in a picture, and the map that it makes, before it is shaped.

        Raises:
            UserError: If nothing does, or something cannot be used.
        """
        params = self.complete(params | {"image": small} | {name: DEFAULTS[name] for name in SHAPING})
        if painting is None and not maps.are_asked(params):
            raise loading.UserError("Nothing says what may change: paint over it, or name it.")
        _, request = asking.ask_pictures(painting, params)
        maps.check_pictures(request)
        found = maps.make_map(request, memory, self.load_map_model)
        for made_of in list(memory)[:-REMEMBERED]:
            memory.pop(made_of, None)
        return request, as_picture(maps.as_png(found), "MAP", "map.png")

    def shape(self, photo: editing.Picture, found: editing.Picture, params: dict[str, Any]) -> maps.Request:
        """A map as it is asked for, at a photo's size."""
        inputs, _ = asking.ask_map(DEFAULTS | {name: params[name] for name in SHAPING if params.get(name) is not None})
        return maps.Request(photo, inputs | {"diffdiff_map": found})

    def with_regions(self, request: maps.Request, named: list[tuple[str, str]] | None) -> maps.Request:
        """A map's request with regions, pairs of a place and a prompt; what strangers name is words, and never a path.

        Raises:
            UserError: If one is named like a picture, or nothing can find it.
        """
        regions = tuple(maps.Region(prompt, where) for where, prompt in named or () if where)
        for region in regions:
            if asking.names_picture(region.where):
                raise loading.UserError(f"A place is named in words here, not by a picture as {region.where!r}.")
        models = {"region_texts": asking.map_model("--segmenter", self.settings)} if regions else {}
        return replace(request, regions=regions, models=request.models | models)

    def preview(self, photo, small, painting, params: dict[str, Any], memory: maps.Memory) -> PIL.Image.Image:
        """The map over the small picture, shaped as it will be on the photo."""
        _, found = self.find(small, painting, params, memory)
        scale = small.pixels.width / photo.pixels.width
        lengths = {name: scale * params[name] for name in LENGTHS if params.get(name)}
        keep = maps.make_map(self.shape(small, found, params | lengths))
        preview = draw_preview(small.pixels, params.get("strength", 1) * (1 - keep))
        request = self.with_regions(maps.Request(small, {}), params.get("regions"))
        regions = maps.make_regions(request, self.load_map_model, memory)
        return tint_regions(preview, [region for _, region in regions])

    def make_map(self, photo, small, painting, params: dict[str, Any], memory: maps.Memory, folder: Path) -> Path:
        """The map as a PNG of 16 bits, at the photo's size."""
        request, found = self.find(small, painting, params, memory)
        shaped = self.shape(photo, found, params)
        made_of = {name: value for name, value in shaped.inputs.items() if name != "diffdiff_map"} | request.inputs
        path = folder / f"{Path(photo.name).stem}-map.png"
        settings = maps.describe(replace(request, image=photo, inputs=made_of))
        editing.write_png(maps.as_png(maps.make_map(shaped)), path, False, settings)
        return path

    def edit(
        self, photo: editing.Picture, change_map: Path, prompt: str, params: dict[str, Any], on_step: OnStep = None
    ) -> Iterator[tuple[Path, str]]:
        """Edits of a photo under a map, each as a PNG beside the map and the command line that makes it again.

        Those of a video are .mp4 files.

        Raises:
            UserError: If something cannot be used.
        """
        pipe, inputs, settings, pictures, params = self._ready(photo, change_map, prompt, params, on_step)
        seeds = range(params["seed"], params["seed"] + params["count"])
        if seeds[-1] > options.MAX_SEED:
            raise loading.UserError(f"The largest seed is {options.MAX_SEED:,}; use a smaller one.")
        with encodings.encode_once(pipe):
            for seed in seeds:
                with editing.spoken(pictures.titles()):
                    result = pipe(**inputs(seed), output=photo.outputs)[0]
                path = change_map.with_name(f"{Path(photo.name).stem}-edit-{seed}{photo.suffixes[0]}")
                data = photo.encode(result, settings | {"seed": seed}, path.suffix)
                editing.write_file(data, path, False, photo.suffixes)
                yield path, command_line(params, photo.name, change_map.name, prompt, seed)

    def fan(
        self, photo: editing.Picture, change_map: Path, prompt: str, params: dict[str, Any], on_step: OnStep = None
    ) -> Path:
        """The same edit at several strengths, as a sheet."""
        pipe, inputs, settings, pictures, params = self._ready(photo, change_map, prompt, params, on_step)
        given = inputs(params["seed"])
        given.pop("strength")
        with editing.spoken(pictures.titles()):
            fan = fans.fan(pipe, **given)
        path = change_map.with_name(f"{Path(photo.name).stem}-fan.png")
        settings |= {"strengths": fan.strengths, "seed": params["seed"]}
        editing.write_png(fans.draw_fan(fan), path, False, settings, editing.kept_of(photo.pixels))
        return path

    def _ready(self, photo, change_map: Path, prompt: str, params: dict[str, Any], on_step: OnStep):
        """The pipeline; its inputs, by the seed; what is told of a run; its pictures; and all parameters."""
        asked_of_maps = {name: DEFAULTS[name] for name in OF_MAPS if name in DEFAULTS}
        params = self.complete(params | {"image": photo}) | asked_of_maps
        asking.check_words(prompt, params)
        photo.check_output(photo.suffixes[0], f"The result, {photo.suffixes[0]},")
        model, asked = asking.ask_edit(prompt, params)
        read = replace(editing.read_picture(str(change_map), "MAP"), title="MAP")
        pictures, request = asking.ask_pictures(read, params)
        if any(bool(where) != bool(what) for where, what in params.get("regions") or ()):
            raise loading.UserError("A place needs both its name and what to show there.")
        request = self.with_regions(request, params.get("regions"))
        model, asked = asking.settle(model, asked, pictures, request)
        keep, regions = maps.make_map(request), maps.make_regions(request, self.load_map_model)
        pipe = self.load(model, None)
        loading.set_guidance(pipe, asked.guidance_scale)
        editing.warn_of_long_texts(pipe, asked)
        settings = maps.describe(request) | editing.describe_run(pipe, model, asked, pictures)

        def inputs(seed: int) -> dict[str, Any]:
            told = {"callback_on_step_end": on_step and (lambda _, step, *__: on_step(step + 1, asked.steps))}
            return editing.inputs_of(pipe, asked, pictures, keep, seed, regions) | told

        return pipe, inputs, settings, pictures, params
