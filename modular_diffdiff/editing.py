"""Edits from files to files: what the commands of `cli` have in common.

Heavy libraries are imported where they are used: a mistake in a file's name is answered before they are loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
import PIL.ImageOps
from PIL.PngImagePlugin import PngInfo

from . import catalog
from .loading import Model, UserError, cached_commits


METADATA_KEY = "modular-diffdiff"
_VERSIONS = ("modular-diffdiff", "diffusers", "transformers", "peft", "torch")  # what decides pixels
_FETCH_TIMEOUT = 30  # seconds
# damaged files end in any of these, and so do URLs
_UNREADABLE = (OSError, ValueError, SyntaxError, HTTPException, PIL.Image.DecompressionBombError)


@dataclass(frozen=True)
class Picture:
    """An image or a map as it was read.

    Attributes:
        name: Of the file, as `file_name` gives it.
        sha256: Of the file's bytes, as a path holds them or a URL sends them.
        pixels: The picture, upright (its EXIF orientation applied), in the file's own mode.
    """

    name: str
    sha256: str
    pixels: PIL.Image.Image


@dataclass(frozen=True)
class Pictures:
    """What an edit starts from: an image and a change map, and what steers it, None for nothing."""

    image: Picture
    map: Picture
    control_image: Picture | None = None
    ip_adapter_image: Picture | None = None


@dataclass(frozen=True)
class Edit:
    """What is asked of a model, but for the seed.

    Attributes:
        guidance_scale: Of classifier-free guidance, 1 turns it off; or the one that a model is distilled with. None for
            the model's own.
        invert_map: Whether white marks what changes.
        strength: Turns the whole map down; 1 leaves it as it is.
        overlay: Whether the original's own pixels come back where the map keeps them whole.
        crop: Padding in pixels around the box that changes, to which the edit is cut; None for the whole picture.
        control_mode: What a ControlNet-Union takes the control image for, a number that the union knows.
        control_scale: How much the control image counts, 0 for nothing; None without one.
    """

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance_scale: float | None
    invert_map: bool
    strength: float = 1.0
    overlay: bool = False
    crop: int | None = None
    control_mode: int | None = None
    control_scale: float | None = None


def _is_url(location: str) -> bool:
    return location.startswith(("http://", "https://"))


def file_name(location: str) -> str:
    """The name of the file that a path or a URL leads to, without folders or query."""
    return Path(urlsplit(location).path if _is_url(location) else location).name


def read_picture(location: str, argument: str) -> Picture:
    """Reads a path or a URL (http, https) once, for its pixels and its hash alike.

    Args:
        location: The path or URL.
        argument: What the command line calls it, for the error's message.

    Raises:
        UserError: If it cannot be read as an image.
    """
    try:
        if _is_url(location):
            request = urllib.request.Request(location, headers={"User-Agent": METADATA_KEY})
            with urllib.request.urlopen(request, timeout=_FETCH_TIMEOUT) as response:
                data = response.read()
        else:
            data = Path(location).read_bytes()
        pixels = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    except PIL.UnidentifiedImageError as error:
        raise UserError(f"{argument} {location!r} is no image that can be read.") from error
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{argument} {location!r} cannot be read: {reason}") from error
    return Picture(file_name(location), hashlib.sha256(data).hexdigest(), pixels)


def check_outputs(paths: list[Path], overwrite: bool) -> None:
    """Refuses what cannot be written.

    Raises:
        UserError: If a path is no .png file, its folder cannot be written to, or it exists and `overwrite` is off.
    """
    for path in paths:
        if path.suffix.lower() != ".png" or path.is_dir():
            raise UserError(f"--out takes the path of a .png file, not {str(path)!r}.")
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise UserError(f"--out: {str(path.parent)!r} is no folder that can be written to.")
        if path.exists() and not overwrite:
            raise UserError(f"{str(path)!r} exists; --overwrite replaces it.")


def write_png(image: PIL.Image.Image, path: Path, overwrite: bool, settings: dict[str, Any] | None = None) -> None:
    """Writes a PNG whole or not at all, its settings as JSON in the text chunk "modular-diffdiff".

    Raises:
        UserError: As `check_outputs`, which is asked again: the file may have come into being in the meantime.
    """
    check_outputs([path], overwrite)
    text = PngInfo()
    if settings is not None:
        text.add_text(METADATA_KEY, json.dumps(settings))
    partial = path.with_name(f".{METADATA_KEY}-{os.getpid()}.partial")
    try:
        image.save(partial, "png", pnginfo=text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leaves of the libraries' output the denoising bar and the Hub's downloads, and of warnings those about maps.

    Diffusers logs the traceback of every error that a block raises; here, who raises it tells it.
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
        warnings.filterwarnings("always", "`diffdiff_map`")
        warnings.showwarning = lambda message, *_: print(f"Warning: {message}", file=sys.stderr)
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


def check_pictures(pictures: Pictures, edit: Edit) -> None:
    """Lets the blocks refuse an image or a map before any model is loaded.

    Raises:
        UserError: With the block's message.
    """
    from .blocks import diffdiff_checks, diffdiff_map, diffdiff_refusals

    try:
        lays_over = edit.overlay or edit.crop is not None
        diffdiff_checks.image_geometry(pictures.image.pixels, transparent=lays_over)
        diffdiff_map.load_maps(pictures.map.pixels)
    except diffdiff_refusals.BadInputError as error:
        raise UserError(str(error)) from error


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


def run_edit(pipe, edit: Edit, pictures: Pictures, seed: int) -> PIL.Image.Image:
    """One edited picture, of the image's size or the model's own.

    Raises:
        UserError: If a block refuses an input, with the block's message.
        FloatingPointError: If the model answers with NaN or infinity.
    """
    import torch

    from .blocks import diffdiff_refusals

    steering = {}
    if edit.negative_prompt is not None:
        steering["negative_prompt"] = edit.negative_prompt
    if edit.guidance_scale is not None and "guider" not in pipe.component_names:
        steering["guidance_scale"] = edit.guidance_scale
    if pictures.ip_adapter_image is not None:
        steering["ip_adapter_image"] = pictures.ip_adapter_image.pixels.convert("RGB")
    if pictures.control_image is not None:
        control = pictures.control_image.pixels
        # a crop cuts it along, where it lies on the image
        steering["control_image"] = control if edit.crop is None else control.resize(pictures.image.pixels.size)
        steering["controlnet_conditioning_scale"] = edit.control_scale
        if edit.control_mode is not None:
            if "control_mode" not in pipe.blocks.input_names:
                raise UserError(f"`control_mode` is {edit.control_mode}, but only a ControlNet-Union has modes.")
            steering["control_mode"] = edit.control_mode
    try:
        return pipe(
            prompt=edit.prompt,
            image=pictures.image.pixels,
            diffdiff_map=pictures.map.pixels,
            invert_diffdiff_map=edit.invert_map,
            strength=edit.strength,
            overlay=edit.overlay,
            padding_map_crop=edit.crop,
            num_inference_steps=edit.steps,
            generator=torch.Generator().manual_seed(seed),
            output="images",
            **steering,
        )[0]
    except diffdiff_refusals.BadInputError as error:
        raise UserError(str(error)) from error


def describe_run(pipe, model: Model, edit: Edit, pictures: Pictures) -> dict[str, Any]:
    """All that decides an edit's pixels but the seed, as JSON takes it."""
    given = {field.name: getattr(pictures, field.name) for field in fields(pictures)}
    return {
        **asdict(edit),
        **{name: picture and {"name": picture.name, "sha256": picture.sha256} for name, picture in given.items()},
        **asdict(model),
        "commits": cached_commits(model),
        "scheduler": type(pipe.scheduler).__name__,
        "versions": {name: _version(name) for name in _VERSIONS},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
