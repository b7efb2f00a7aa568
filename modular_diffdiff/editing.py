"""Edits from files to files: what the commands of `cli` have in common.

Heavy libraries are imported where they are used: a mistake in a file's name is answered before they are loaded.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from . import catalog, clips
from .blocks import diffdiff_files
from .loading import Model, UserError, cached_commits


METADATA_KEY = "modular-diffdiff"
STDIN = "-"
VERSIONS = ("modular-diffdiff", "diffusers", "transformers", "peft", "torch")  # what decides pixels
# What the command line calls the inputs of the blocks; other names are left as they are.
_ARGUMENTS = {
    "image": "IMAGE",
    "video": "IMAGE",
    "diffdiff_map": "MAP",
    "prompt": "PROMPT",
    "negative_prompt": "--negative",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "invert_diffdiff_map": "--invert-map",
    "map_levels": "--levels",
    "map_gamma": "--gamma",
    "map_grow": "--grow",
    "map_feather": "--feather",
    "map_seam": "--seam",
    "map_limits": "--limits",
    "map_text": "--text",
    "map_text_threshold": "--threshold",
    "map_points": "--point",
    "map_boxes": "--box",
    "map_depth": "--depth",
    "map_gradient": "--gradient",
    "mask_image": "--mask",
    "map_difference": "--difference",
    "map_combine": "--combine",
    "diffdiff_softness": "--softness",
    "strength": "--strength",
    "match_colors": "--match-colors",
    "batch_guidance": "--batch-guidance",
    "fan_strengths": "--strengths",
    "map_fill": "--fill",
    "region_prompts": "--region",
    "region_maps": "--region",
    "region_texts": "--region",
    "overlay": "--overlay",
    "padding_map_crop": "--crop",
    "control_image": "--control-image",
    "control_mode": "--control-mode",
    "controlnet": "--controlnet",
    "controlnet_conditioning_scale": "--control-scale",
    "ip_adapter_image": "--ip-adapter-image",
}
_MOST_DPI = 100_000  # PNG stores dots a metre in 32 bits; a broken header can say anything


class Notice(UserWarning):
    """What somebody who edits should know, in the command line's words."""


@dataclass(frozen=True)
class Picture:
    """A picture as it was read.

    Attributes:
        title: What messages call it: the command line's argument and the location.
        name: Of the file, as `file_name` gives it.
        sha256: Of the file's bytes, as a path holds them or a URL sends them.
        pixels: The picture, upright (its EXIF orientation applied), in the file's own mode.
    """

    title: str
    name: str
    sha256: str
    pixels: PIL.Image.Image

    outputs = "images"  # of a pipeline
    suffixes = (".png",)  # of the files of its results

    def count_pixels(self) -> int:
        return self.pixels.width * self.pixels.height

    def inputs(self, pipe) -> dict[str, Any]:
        """What it is for a pipeline's call."""
        return {"image": self.pixels}

    def encode(self, result: PIL.Image.Image, settings: dict[str, Any], suffix: str) -> bytes:
        """The file of what was made of it, which holds the settings as JSON.

        Args:
            suffix: One of `suffixes`.
        """
        return encode_png(result, settings, kept_of(self.pixels))

    def check_output(self, suffix: str, title: str) -> None:
        """Refuses what the file of a result cannot hold.

        Args:
            suffix: One of `suffixes`.
            title: Of that file, in the error's message.
        """


@dataclass(frozen=True)
class Clip(Picture):
    """A video as it was read; what is a picture's is its first frame's.

    Attributes:
        video: All of it.
    """

    video: clips.Video

    outputs = "videos"
    suffixes = tuple(clips.WRITERS)

    def count_pixels(self) -> int:
        """Of all frames."""
        return len(self.video.frames) * super().count_pixels()

    def inputs(self, pipe) -> dict[str, Any]:
        given = {"video": self.video.frames, "output_type": "pil"}
        if "frame_rate" in pipe.blocks.input_names:
            given["frame_rate"] = float(self.video.frame_rate)
        return given

    def encode(self, result: list[PIL.Image.Image], settings: dict[str, Any], suffix: str) -> bytes:
        """The same, with the video's frame rate and sound."""
        settings = settings | {"versions": settings["versions"] | {"av": find_version("av")}}
        return clips.encode_video(result, self.video.frame_rate, suffix, self.video.sound, json.dumps(settings))

    def check_output(self, suffix: str, title: str) -> None:
        """The same: files that cannot hold the video's sound.

        Raises:
            UserError: Naming those that can.
        """
        clips.check_sound(self.video.sound, suffix, title)

    def frames(self) -> list[Picture]:
        return [
            Picture(f"{self.title}, frame {number}", self.name, f"{self.sha256}-{number}", pixels)
            for number, pixels in enumerate(self.video.frames, 1)
        ]


@dataclass(frozen=True)
class Pictures:
    """What an edit starts from, and what steers it, None for nothing."""

    image: Picture
    control_image: Picture | None = None
    ip_adapter_image: Picture | None = None

    def given(self) -> dict[str, Picture]:
        """Those that are not None, by attribute."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: picture for name, picture in named.items() if picture is not None}

    def titles(self) -> dict[str, str]:
        """What messages call them, by the block's input."""
        return {name: picture.title for name, picture in self.given().items()} | {"video": self.image.title}


@dataclass(frozen=True)
class Edit:
    """What is asked of a model, but for the seed.

    Attributes:
        steps: Of denoising. None for what suits the model, which `asking.settle` fills in.
        guidance_scale: Of classifier-free guidance, 1 turns it off; or the one that a model is distilled with. None for
            the same, or the model's own.
        softness: How much of the original stays in what the map releases.
        strength: Turns the whole map down; 1 leaves it as it is.
        overlay: Whether the original's own pixels come back where the map fully keeps them.
        match_colors: Whether the result's colours are fitted to the original's there.
        crop: Padding in pixels around the box that changes, to which the edit is cut; None for the whole picture.
        control_mode: What a ControlNet-Union takes the control image for, a number that the union knows.
        control_scale: How much the control image counts, 0 for nothing; None without one.
        batch_guidance: Whether the model is called once a step, with prompt and negative prompt as one batch.
        fill: What changed parts start from, as `map_fill` takes it.
    """

    prompt: str
    negative_prompt: str | None
    steps: int | None
    guidance_scale: float | None
    softness: float = 0.0
    strength: float = 1.0
    overlay: bool = False
    match_colors: bool = False
    crop: int | None = None
    control_mode: int | None = None
    control_scale: float | None = None
    batch_guidance: bool = False
    fill: str = "original"


def file_name(location: str) -> str:
    """The name of the file that a path or a URL leads to, without folders or query; "stdin" for standard input.

    Of a URL's, what is percent-encoded is decoded, and whatever could be taken for an option or a folder is left out.
    """
    if location == STDIN:
        return "stdin"
    if not diffdiff_files.is_url(location):
        return Path(location).name
    path = unquote(re.split(r"[?#]", location)[0])
    return "".join(filter(str.isprintable, re.split(r"[/\\]", path)[-1])).lstrip("-") or "picture"


def read_picture(location: str, argument: str) -> Picture:
    """Reads a path, a URL (http, https) or standard input once, for its pixels and its hash alike.

    Args:
        location: The path or URL, or `STDIN`.
        argument: What the command line calls it, for the error's message.

    Raises:
        UserError: If it cannot be read as an image.
    """
    title = f"{argument} {location!r}"
    if clips.is_named_video(file_name(location)):
        raise UserError(f"{title} is a video; it takes a picture here.")
    return open_picture(_read(location, title), title, file_name(location))


def read_clip(location: str, argument: str) -> Clip:
    """Reads a video once, as `read_picture` reads a picture.

    Raises:
        UserError: If it cannot be read as a video.
    """
    title = f"{argument} {location!r}"
    return open_clip(_read(location, title), title, file_name(location))


def _read(location: str, title: str) -> bytes:
    try:
        return _read_stdin() if location == STDIN else diffdiff_files.read(location)
    except diffdiff_files.UnreadableError as error:
        raise UserError(f"{title} cannot be read: {error}.") from error


def open_picture(data: bytes, title: str, name: str) -> Picture:
    """A picture of a file's bytes.

    Raises:
        UserError: If they cannot be read as an image.
    """
    try:
        pixels = diffdiff_files.open_image(data)
    except diffdiff_files.UnreadableError as error:
        raise UserError(f"{title} cannot be read: {error}.") from error
    return Picture(title, name, hashlib.sha256(data).hexdigest(), pixels)


def open_clip(data: bytes, title: str, name: str, most_pixels: int | None = None) -> Clip:
    """A video of a file's bytes.

    Args:
        most_pixels: As that of `clips.open_video`.

    Raises:
        UserError: If they cannot be read as a video.
    """
    try:
        video = clips.open_video(data, most_pixels)
    except diffdiff_files.UnreadableError as error:
        raise UserError(f"{title} cannot be read: {error}.") from error
    return Clip(title, name, hashlib.sha256(data).hexdigest(), video.frames[0], video)


def _read_stdin() -> bytes:
    if sys.stdin is None:  # closed by who started this process
        raise diffdiff_files.UnreadableError("standard input is closed")
    try:
        return diffdiff_files.read_all(sys.stdin.buffer)
    except OSError as error:
        raise diffdiff_files.UnreadableError(error.strerror) from error


def name_output(image: str, kind: type[Picture]) -> Path:
    """Where an edit's result goes by default: in the current folder, with the image's suffix where that is written."""
    name = Path(file_name(image))
    suffix = name.suffix.lower() if name.suffix.lower() in kind.suffixes else kind.suffixes[0]
    return Path(f"{name.stem}-edit{suffix}")


def check_outputs(paths: list[Path], overwrite: bool, suffixes: Sequence[str] = Picture.suffixes) -> None:
    """Refuses what cannot be written.

    Raises:
        UserError: If a path ends in none of the suffixes, its folder cannot be written to, or it exists and `overwrite`
            is off.
    """
    for path in paths:
        target = Path(os.path.realpath(path))  # a link is written through
        try:
            exists, is_file = os.path.lexists(target), target.is_file()
        except OSError as error:  # e.g. a name that is too long
            raise UserError(f"--out {str(path)!r} cannot be written: {error.strerror}.") from error
        if path.suffix.lower() not in suffixes or exists != is_file:
            raise UserError(f"--out takes the path of a {clips.listed(suffixes)} file, not {str(path)!r}.")
        if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
            raise UserError(f"--out {str(path)!r}: {str(target.parent)!r} is not a folder that can be written to.")
        if exists and not overwrite:
            raise _taken(path)


def _taken(path: Path) -> UserError:
    return UserError(f"--out {str(path)!r} exists; --overwrite replaces it.")


def kept_of(image: PIL.Image.Image) -> dict[str, Any]:
    """What the PNG of an edit keeps of the image's file beside its pixels: its colour profile and its DPI.

    Results are RGB: the profile of another colour space does not describe them.
    """
    kept = {}
    if _profile_space(image) == "RGB":
        kept["icc_profile"] = image.info["icc_profile"]
    dpi = image.info.get("dpi", (0, 0))
    if all(0 < value < _MOST_DPI for value in dpi):
        kept["dpi"] = dpi
    return kept


def _profile_space(image: PIL.Image.Image) -> str | None:
    """The colour space that an image's profile is of, e.g. RGB, GRAY or CMYK; None without one."""
    profile = image.info.get("icc_profile")
    return profile and profile[16:20].decode("latin-1").strip()  # ICC.1, 7.2.6


def encode_png(
    image: PIL.Image.Image, settings: dict[str, Any] | None = None, kept: dict[str, Any] | None = None
) -> bytes:
    """A PNG, its settings as JSON in the text chunk "modular-diffdiff".

    Args:
        kept: Of the original's file, as `kept_of` gives it.
    """
    text, data = PngInfo(), io.BytesIO()
    if settings is not None:
        text.add_text(METADATA_KEY, json.dumps(settings))
    # PIL would write the profile that it finds at the image, whatever its colour space
    image.save(data, "png", pnginfo=text, **{"icc_profile": None} | (kept or {}))
    return data.getvalue()


def write_png(
    image: PIL.Image.Image,
    path: Path,
    overwrite: bool,
    settings: dict[str, Any] | None = None,
    kept: dict[str, Any] | None = None,
) -> None:
    """Writes a PNG, as `encode_png` makes it and `write_file` writes it."""
    write_file(encode_png(image, settings, kept), path, overwrite)


def write_file(data: bytes, path: Path, overwrite: bool, suffixes: Sequence[str] = Picture.suffixes) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: As `check_outputs`, which is asked again: the file may have come into being in the meantime.
        OSError: If it cannot be written; what was there is as it was.
    """
    check_outputs([path], overwrite, suffixes)
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{METADATA_KEY}-{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        if not overwrite:
            _reserve(partial, target)
        os.replace(partial, target)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise OSError(f"--out {str(path)!r} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _reserve(partial: Path, target: Path) -> None:
    """Takes a name that no file has yet, or fails with FileExistsError: of several processes one gets it."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        target.touch(exist_ok=False)


def _print_warning(message: str) -> None:
    print(f"Warning: {message}", file=sys.stderr)


@contextmanager
def quiet_libraries(warn: Callable[[str], Any] = _print_warning) -> Iterator[None]:
    """Leaves of the libraries' output the denoising bar and the Hub's downloads, and of warnings ours.

    Diffusers logs the traceback of every error that a block raises; here, whoever raises it reports it.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    show_downloads, hub_verbosity = not are_progress_bars_disabled(), hub_logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "`(diffdiff_map|map_\\w+|mask_image)`")
        warnings.filterwarnings("always", category=Notice)
        warnings.showwarning = lambda message, kind, *_: warn(
            str(message) if kind is Notice else _speak(str(message), _ARGUMENTS)
        )
        for library in libraries:
            library.set_verbosity(logging.CRITICAL)
            library.disable_progress_bar()
        hub_logging.set_verbosity(logging.CRITICAL)
        if show_downloads:  # transformers has switched them off
            enable_progress_bars()
        try:
            yield
        finally:
            hub_logging.set_verbosity(hub_verbosity)
            for library, (verbosity, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()


def check_inputs(inputs: dict[str, Any]) -> None:
    """Refuses values that the blocks do not take, by the inputs' names.

    Raises:
        UserError: Naming the option.
    """
    from .blocks.diffdiff_docs import KINDS

    for name, value in inputs.items():
        if not KINDS[name].accepts(value):
            raise UserError(f"{_ARGUMENTS[name]} is {value!r}; it takes {KINDS[name].takes}.")


def check_picture(picture: Picture, deep: bool = False, transparent: bool = False, instead: str = "") -> None:
    """Refuses a picture that would lose what matters, and warns where only the first of several counts.

    Args:
        deep: Whether it may have more than 8 bits a pixel.
        transparent: Whether it may be transparent.
        instead: What else than flattening it helps.

    Raises:
        UserError: Naming the picture.
    """
    frames = diffdiff_files.count_frames(picture.pixels)
    if frames > 1:
        _warn(f"{picture.title} holds {frames} pictures; only the first is used.")
    if not deep and picture.pixels.mode.startswith(("I", "F")):  # a conversion to RGB would clip them
        raise UserError(f"{picture.title} has more than 8 bits per pixel; save it as an 8-bit picture.")
    if not transparent and _is_transparent(picture.pixels):
        raise UserError(f"{picture.title} is transparent in places; flatten it{instead}.")


def check_pictures(pictures: Pictures, edit: Edit) -> None:
    """Refuses pictures that would lose what matters, and warns of what is changed about them, before a model is loaded.

    Raises:
        UserError: Naming the picture.
    """
    lays_over = edit.overlay or edit.crop is not None
    for name, picture in pictures.given().items():
        instead = ", or keep it with --overlay or --crop" if name == "image" else ""
        check_picture(picture, transparent=name == "image" and lays_over, instead=instead)
    image, space = pictures.image.pixels, _profile_space(pictures.image.pixels)
    if space not in (None, "RGB"):
        _warn(f"{pictures.image.title} has a colour profile for {space}, which the RGB result cannot keep.")
    if pictures.control_image is not None:
        (width, height), control = image.size, pictures.control_image
        # half a pixel of rounding is no other ratio
        if abs(control.pixels.width * height - control.pixels.height * width) > 0.5 * max(width, height):
            sizes = f"is {control.pixels.width} x {control.pixels.height} pixels and IMAGE {width} x {height}"
            _warn(f"{control.title} {sizes}: it is stretched.")


def _speak(message: str, names: dict[str, str]) -> str:
    """A message of the blocks', which names their inputs `like_this`, or with a value, in the command line's words."""
    return re.sub(r"`(\w+)(=[^`]*)?`", lambda named: names.get(named[1], named[0].strip("`")), message)


@contextmanager
def spoken(titles: dict[str, str]) -> Iterator[None]:
    """Turns what the blocks refuse into a UserError in the command line's words.

    Args:
        titles: What pictures are called, by the name of the input that they are given as.
    """
    from .blocks.diffdiff_refusals import BadInputError

    try:
        yield
    except BadInputError as error:
        raise UserError(_speak(str(error), _ARGUMENTS | titles)) from error


def _warn(message: str) -> None:
    warnings.warn(message, Notice, stacklevel=2)


def _is_transparent(image: PIL.Image.Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getextrema()[-1][0] < 255


def check_kind(model: Model, title: str, kind: type[Picture]) -> None:
    """Refuses a picture where the model edits videos, and a video where it edits pictures.

    Raises:
        UserError: Naming it.
    """
    if catalog.FAMILIES[model.family].makes_videos != (kind is Clip):
        given, edited = ("video", "pictures") if kind is Clip else ("picture", "videos")
        raise UserError(f"{title} is a {given}, and {model.title} edits {edited}; choose another --model.")


def check_family(model: Model, edit: Edit) -> None:
    """Refuses what the model's blocks do not take.

    Raises:
        UserError: Naming the option.
    """
    blocks = catalog.FAMILIES[model.family].blocks_class()
    given = {"--negative": edit.negative_prompt, "--control-mode": edit.control_mode}
    names = {"--negative": "negative_prompt", "--control-mode": "control_mode", "--guidance-scale": "guidance_scale"}
    if "guider" not in blocks.component_names:
        given["--guidance-scale"] = edit.guidance_scale
    for option, value in given.items():
        if value is not None and names[option] not in blocks.input_names:
            raise UserError(f"{option} {value!r}: {model.title} takes none.")
    if edit.batch_guidance and "batch_guidance" not in blocks.input_names:
        raise UserError(f"--batch-guidance: {model.title} is called once a step anyway.")
    if edit.fill != "original" and "map_fill" not in blocks.input_names:
        raise UserError(f"--fill {edit.fill!r}: {model.title} starts from noise, and never from the picture.")


def warn_of_long_texts(pipe, edit: Edit) -> None:
    """Says so where the model's tokenizers read only the beginning of a text."""
    longest = next((param.default for param in pipe.blocks.inputs if param.name == "max_sequence_length"), math.inf)
    tokenizers = [tokenizer for name, tokenizer in pipe.components.items() if name.startswith("tokenizer")]
    limits = [min(tokenizer.model_max_length, longest) for tokenizer in tokenizers]
    if not tokenizers:
        return
    limit = max(limits)
    tokenizer = tokenizers[limits.index(limit)]
    for argument, text in (("PROMPT", edit.prompt), ("--negative", edit.negative_prompt or "")):
        tokens = tokenizer(text).input_ids
        if len(tokens) > limit:
            lost = textwrap.shorten(tokenizer.decode(tokens[limit - 1 :], skip_special_tokens=True), 60)
            _warn(f"{argument} has {len(tokens)} tokens, and the model reads {limit}: it does not see {lost!r}.")


def run_edits(
    pipe,
    edit: Edit,
    pictures: Pictures,
    keep: np.ndarray,
    seeds: Sequence[int],
    regions: Sequence[tuple[str, np.ndarray]] = (),
) -> list[PIL.Image.Image] | list[list[PIL.Image.Image]]:
    """An edited picture for each seed, of the image's size or the model's own, all from one call of the pipeline.

    Of a video, the frames of each.

    Args:
        keep: (H, W) floats in [0, 1], the change map; (F, H, W), one for each frame of a video.
        regions: The prompt of each, and where it holds, as `maps.make_regions` gives them.

    Raises:
        UserError: If a block refuses an input, with the block's message.
        FloatingPointError: If the model answers with NaN or infinity.
    """
    import torch

    inputs = inputs_of(pipe, edit, pictures, keep, seeds[0], regions)
    if len(seeds) > 1:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        inputs |= {"generator": generators, "num_images_per_prompt": len(seeds)}
    with spoken(pictures.titles()):
        return pipe(**inputs, output=pictures.image.outputs)


def inputs_of(
    pipe,
    edit: Edit,
    pictures: Pictures,
    keep: np.ndarray,
    seed: int,
    regions: Sequence[tuple[str, np.ndarray]] = (),
) -> dict[str, Any]:
    """All that the pipeline's call takes."""
    import torch

    steering = {}
    if edit.negative_prompt is not None:
        steering["negative_prompt"] = edit.negative_prompt
    if edit.guidance_scale is not None and "guider" not in pipe.component_names:
        steering["guidance_scale"] = edit.guidance_scale
    if edit.batch_guidance:
        steering["batch_guidance"] = True
    if edit.match_colors:
        steering["match_colors"] = True
    if edit.fill != "original":
        steering["map_fill"] = edit.fill
    if regions:
        prompts, places = zip(*regions, strict=True)
        steering |= {"region_prompts": list(prompts), "region_maps": list(places)}
    if pictures.ip_adapter_image is not None:
        steering["ip_adapter_image"] = pictures.ip_adapter_image.pixels.convert("RGB")
    if pictures.control_image is not None:
        control = pictures.control_image.pixels
        # a crop cuts it along, where it lies on the image
        steering["control_image"] = control if edit.crop is None else control.resize(pictures.image.pixels.size)
        steering["controlnet_conditioning_scale"] = edit.control_scale
        if edit.control_mode is not None:
            steering["control_mode"] = edit.control_mode
    return {
        "prompt": edit.prompt,
        **pictures.image.inputs(pipe),
        "diffdiff_map": list(keep) if keep.ndim == 3 else keep,
        "diffdiff_softness": edit.softness,
        "strength": edit.strength,
        "overlay": edit.overlay,
        "padding_map_crop": edit.crop,
        "num_inference_steps": edit.steps,
        "generator": torch.Generator().manual_seed(seed),
        **steering,
    }


def describe_picture(picture: Picture) -> dict[str, str]:
    """What identifies a picture, as JSON takes it."""
    return {"name": picture.name, "sha256": picture.sha256}


def settings_of(picture: Picture) -> dict[str, Any] | None:
    """What a PNG of ours says of itself; None where it says nothing."""
    try:
        told = json.loads(picture.pixels.info[METADATA_KEY])
    except (KeyError, ValueError, TypeError):
        return None
    return told if isinstance(told, dict) else None


def describe_run(pipe, model: Model, edit: Edit, pictures: Pictures) -> dict[str, Any]:
    """All that decides an edit's pixels but the map and the seed, as JSON takes it."""
    return describe_edit(edit, pictures) | describe_model(pipe, model)


def describe_edit(edit: Edit, pictures: Pictures) -> dict[str, Any]:
    """The part of it that is asked of a model."""
    given = pictures.given()
    return {
        **asdict(edit),
        **{field.name: None for field in fields(pictures)},
        **{name: describe_picture(picture) for name, picture in given.items()},
    }


def describe_place(size: int, place: int) -> dict[str, Any]:
    """That an edit shared a call with others, which decides bits; nothing of one alone.

    Args:
        size: How many edits shared it.
        place: Of this one, from 0.
    """
    return {"batch": {"size": size, "place": place}} if size > 1 else {}


def describe_model(pipe, model: Model) -> dict[str, Any]:
    """The part of it that is the same for every edit of a model."""
    return {
        **asdict(model),
        "commits": cached_commits(model),
        "scheduler": type(pipe.scheduler).__name__,
        "versions": {name: find_version(name) for name in VERSIONS},
    }


@functools.cache
def find_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
