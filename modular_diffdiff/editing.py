"""Edits from files to files: what the commands of `cli` have in common.

Heavy libraries are imported where they are used: a mistake in a file's name is answered before they are loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
import PIL.ImageOps
from PIL.PngImagePlugin import PngInfo

from .still_life import CHECKPOINT


EMBEDDED = "still-life"
METADATA_KEY = "modular-diffdiff"
_MODEL_INDEXES = ("modular_model_index.json", "model_index.json")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FETCH_TIMEOUT = 30  # seconds
# damaged files end in any of these, and so do URLs
_UNREADABLE = (OSError, ValueError, SyntaxError, HTTPException, PIL.Image.DecompressionBombError)


class UserError(Exception):
    """A mistake of the user's; the message names the input."""


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
class Edit:
    """What is asked of a model, but for the seed.

    Attributes:
        guidance_scale: Of classifier-free guidance; 1 turns it off.
        invert_map: Whether white marks what changes.
    """

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance_scale: float
    invert_map: bool


@dataclass(frozen=True)
class Model:
    """An SDXL checkpoint and how it runs.

    Attributes:
        model: "still-life" (the embedded one), a folder with a model_index.json, or a Hub repository "owner/name".
        device: Where it runs, a name that torch has.
        dtype: Of its weights, a name that torch has.
        offload: Whether its parts wait in main memory until they run.
    """

    model: str
    device: str
    dtype: str
    offload: bool = False


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


def find_model(model: str) -> str:
    """What diffusers calls a `Model.model`: a folder, or a repository's name.

    Raises:
        UserError: If it can be neither.
    """
    if model == EMBEDDED:
        return CHECKPOINT
    if Path(model).is_dir():
        if not any(Path(model, index).is_file() for index in _MODEL_INDEXES):
            raise UserError(f"--model {model!r} is a folder without a model_index.json.")
    elif Path(model).exists() or not _HUB_NAME.fullmatch(model):
        raise UserError(f"--model {model!r} is no folder, and no repository's name on the Hub (owner/name).")
    return model


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leaves of the libraries' output the denoising bar and the Hub's downloads, and of warnings those about maps.

    Diffusers logs the traceback of every error that a block raises; here, who raises it tells it.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    show_downloads = not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "`diffdiff_map`")
        warnings.showwarning = lambda message, *_: print(f"Warning: {message}", file=sys.stderr)
        for library in libraries:
            library.set_verbosity(logging.CRITICAL)
            library.disable_progress_bar()
        if show_downloads:  # transformers has switched them off
            enable_progress_bars()
        try:
            yield
        finally:
            for library, (verbosity, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()


def check_pictures(image: Picture, change_map: Picture) -> None:
    """Lets the blocks refuse an image or a map before any model is loaded.

    Raises:
        UserError: With the block's message.
    """
    from .blocks import diffdiff_map, diffdiff_sdxl_checks

    try:
        diffdiff_sdxl_checks.image_geometry(image.pixels)
        diffdiff_map.load_maps(change_map.pixels)
    except ValueError as error:
        raise UserError(str(error)) from error


def choose_model(model: str, device: str | None, dtype: str | None, offload: bool) -> Model:
    """Fills in what was left open: this machine's accelerator or its CPU, in float16 and float32.

    Raises:
        UserError: If there is no such device, or no accelerator to offload from.
    """
    import torch
    from diffusers.utils.torch_utils import get_device

    accelerator = get_device()
    try:
        found = torch.device(device or accelerator)
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device!r} cannot be used here: {error}") from error
    if offload and found.type == "cpu":
        lack = "this machine has none" if accelerator == "cpu" else f"--device is {device}"
        raise UserError(f"--offload needs an accelerator to move the model's parts to while they run, and {lack}.")
    return Model(model, str(found), dtype or ("float32" if found.type == "cpu" else "float16"), offload)


def load_pipeline(model: Model, guidance_scale: float):
    """The differential diffusion pipeline of a checkpoint, ready to run.

    Raises:
        UserError: If there is no such checkpoint, or one of its components cannot be loaded.
    """
    import torch
    from diffusers import ClassifierFreeGuidance, ComponentsManager

    from .presets import SDXLDiffDiffBlocks

    manager = ComponentsManager() if model.offload else None
    try:
        pipe = SDXLDiffDiffBlocks().init_pipeline(find_model(model.model), components_manager=manager)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model.model!r} cannot be loaded: {error.__cause__ or error}") from error
    pipe.load_components(dtype=getattr(torch, model.dtype))
    for name in pipe.null_component_names:
        try:
            pipe.update_components(**{name: pipe.get_component_spec(name).load()})  # now it says why it fails
        except Exception as error:
            raise UserError(f"--model {model.model!r} gives no `{name}`: {error}") from error
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
    if model.offload:
        manager.enable_auto_cpu_offload(device=model.device)
    else:
        pipe.to(model.device)
    return pipe


def run_edit(pipe, edit: Edit, image: PIL.Image.Image, change_map: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """One edited picture, of the image's size.

    Raises:
        UserError: If a block refuses an input, with the block's message.
    """
    import torch

    try:
        return pipe(
            prompt=edit.prompt,
            negative_prompt=edit.negative_prompt,
            image=image,
            diffdiff_map=change_map,
            invert_diffdiff_map=edit.invert_map,
            num_inference_steps=edit.steps,
            generator=torch.Generator().manual_seed(seed),
            output="images",
        )[0]
    except ValueError as error:
        raise UserError(str(error)) from error


def describe_run(pipe, model: Model, edit: Edit, image: Picture, change_map: Picture) -> dict[str, Any]:
    """All that decides an edit's pixels but the seed, as JSON takes it."""
    return {
        **asdict(edit),
        "image": {"name": image.name, "sha256": image.sha256},
        "map": {"name": change_map.name, "sha256": change_map.sha256},
        **asdict(model),
        "commit": _hub_commit(model.model),
        "scheduler": type(pipe.scheduler).__name__,
        "versions": {name: _version(name) for name in ("modular-diffdiff", "diffusers", "transformers", "torch")},
    }


def _hub_commit(model: str) -> str | None:
    """The commit that the Hub's cache holds of this model, None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if model == EMBEDDED or Path(model).is_dir():
        return None
    cached = [try_to_load_from_cache(model, index) for index in _MODEL_INDEXES]
    return next((Path(path).parent.name for path in cached if isinstance(path, str)), None)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return None
