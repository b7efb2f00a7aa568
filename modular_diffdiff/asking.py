"""What is asked for by the options of `edit`, `fan` and `map`, or on the page: a model, an edit, and its map.

Options come as a dictionary, by the names of the commands' parameters.
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image

from . import catalog, clips, editing, few_steps, loading, maps
from .blocks import diffdiff_files


# The options that are for pictures, and what they are where they are not used.
OF_PICTURES = {
    **{"region": (), "fill": "original", "match_colors": False, "control_image": None, "ip_adapter_image": None},
    **{"difference": None, "count": 1, "batch_size": 1},
}
MAX_SCALE = 1000  # far beyond what models are used with
# The parameters that are pictures, and what messages call them.
PICTURES = {
    "image": "IMAGE",
    "mask": "--mask",
    "difference": "--difference",
    "control_image": "--control-image",
    "ip_adapter_image": "--ip-adapter-image",
}


def check_words(prompt: str, params: dict[str, Any]) -> None:
    if not prompt:
        raise loading.UserError("PROMPT is empty.")
    check_texts({"PROMPT": prompt, "--negative": params["negative"], "--text": params["text"]})


def ask_edit(prompt: str, params: dict[str, Any]) -> tuple[loading.Model, editing.Edit]:
    """The model, whose names are checked, and what is asked of it."""
    scales = {"guidance": "guidance_scale", "control": "control_scale", "ip-adapter": "ip_adapter_scale"}
    _check_scales({option: params[name] for option, name in scales.items()})
    controlnet, control_scale = _choose_controlnet(params)
    ip_adapter, ip_adapter_scale = _choose_ip_adapter(params)
    run = {name: params[name] for name in ("model", "device", "dtype", "offload", "threads", "lora")}
    model = loading.Model(**run, controlnet=controlnet, ip_adapter=ip_adapter, ip_adapter_scale=ip_adapter_scale)
    loading.check_names(model)
    names = ("steps", "guidance_scale", "softness", "strength", "overlay", "match_colors", "crop", "control_mode")
    names += ("batch_guidance", "fill")
    asked = {name: params[name] for name in names if name in params}
    return model, editing.Edit(prompt, params["negative"], control_scale=control_scale, **asked)


def _choose_controlnet(params: dict[str, Any]) -> tuple[str | None, float | None]:
    """The ControlNet and its weight, with what is left open filled in; None both without an image."""
    mode, controlnet, scale = params["control_mode"], params["controlnet"], params["control_scale"]
    steering = {"--control-mode": mode, "--controlnet": controlnet, "--control-scale": scale}
    if not _is_used("--control-image", params["control_image"], steering):
        return None, None
    if controlnet is None:
        controlnet = loading.default_for(params["model"], "--controlnet", union=mode is not None)
    return controlnet, 1.0 if scale is None else scale


def _choose_ip_adapter(params: dict[str, Any]) -> tuple[str | None, float | None]:
    """The same for an IP-Adapter."""
    ip_adapter, scale = params["ip_adapter"], params["ip_adapter_scale"]
    steering = {"--ip-adapter": ip_adapter, "--ip-adapter-scale": scale}
    if not _is_used("--ip-adapter-image", params["ip_adapter_image"], steering):
        return None, None
    if ip_adapter is None:
        ip_adapter = loading.default_for(params["model"], "--ip-adapter")
    return ip_adapter, 1.0 if scale is None else scale


def kind_of(name: str, params: dict[str, Any]) -> type[editing.Picture]:
    """What a file called so is edited as: by its name, and where that leaves it open, by what the model edits.

    Raises:
        UserError: If it is a video, and an option is for pictures; or as `loading.find_family`.
    """
    suffix = Path(name).suffix.lower()
    is_open = suffix in ("", ".gif") and params["model"] not in (loading.EMBEDDED, loading.EMBEDDED_FLOW)
    if not clips.is_named_video(name) and not (is_open and _makes_videos(params["model"])):
        return editing.Picture
    for option, unused in OF_PICTURES.items():
        if params.get(option) not in (unused, None, []):
            raise loading.UserError(f"--{option.replace('_', '-')} is for pictures, and IMAGE {name!r} is a video.")
    return editing.Clip


@functools.lru_cache
def _makes_videos(model: str) -> bool:
    with editing.quiet_libraries():
        return catalog.FAMILIES[loading.find_family(loading.Model(model, None, None)).family].makes_videos


def check_inverted(change_map: Any, params: dict[str, Any]) -> None:
    if change_map is None and params["invert_map"]:
        raise loading.UserError("--invert-map needs MAP, which it inverts.")


def ask_pictures(
    change_map: str | editing.Picture | None, params: dict[str, Any], kind: type[editing.Picture] = editing.Picture
) -> tuple[editing.Pictures, maps.Request]:
    """What an edit starts from, and its map; all that is asked of the map is checked before a picture is read.

    Args:
        kind: What IMAGE is.
    """
    check_inverted(change_map, params)
    inputs, models = ask_map(params)
    regions = split_regions(params)
    given = {title: params[name] for name, title in PICTURES.items()}
    read = read_pictures({"IMAGE": params["image"], "MAP": change_map} | given, kind)
    pictures = editing.Pictures(*(read[name] for name in ("IMAGE", "--control-image", "--ip-adapter-image")))
    regions = tuple(
        maps.Region(prompt, editing.read_picture(where, "--region") if is_picture(where) else where)
        for where, prompt in regions
    )
    return pictures, maps.Request(read["IMAGE"], inputs | maps.pictures_of(read), models, regions=regions)


def split_regions(params: dict[str, Any]) -> list[tuple[str, str]]:
    """Where each --region is, and its prompt."""
    regions = []
    for given in params.get("region") or ():
        where, _, prompt = given.rpartition("=")  # addresses have one too
        if not where.strip() or not prompt.strip():
            raise loading.UserError(f"--region is {given!r}; it takes MAP_OR_TEXT=PROMPT.")
        check_texts({"--region": given})
        regions.append((where, prompt))
    return regions


def names_picture(where: str) -> bool:
    """Whether this looks like a picture's name or address, whether or not there is one."""
    return diffdiff_files.is_url(where) or Path(where).suffix.lower() in PIL.Image.registered_extensions()


def is_picture(where: str) -> bool:
    """Whether this names a picture, which may be missing, rather than a place in words."""
    return names_picture(where) or os.path.isfile(where)


def settle(
    model: loading.Model, asked: editing.Edit, pictures: editing.Pictures, request: maps.Request
) -> tuple[loading.Model, editing.Edit]:
    """The model and the edit with what was left open filled in; all is checked that can be before a model is loaded."""
    editing.check_pictures(pictures, asked)
    maps.check_pictures(request)
    maps.check_regions(request)
    model, asked = settle_model(model, asked)
    editing.check_kind(model, pictures.image.title, type(pictures.image))
    return model, asked


def settle_model(model: loading.Model, asked: editing.Edit) -> tuple[loading.Model, editing.Edit]:
    """The same, pictures aside."""
    model = loading.choose_device(loading.find_family(model))
    if asked.steps is None or asked.guidance_scale is None:
        steps, guidance_scale = loading.suggest(model)
        asked = replace(asked, steps=steps if asked.steps is None else asked.steps)
        asked = replace(asked, guidance_scale=guidance_scale if asked.guidance_scale is None else asked.guidance_scale)
    editing.check_family(model, asked)
    loading.check_steering(model, asked.control_mode)
    return model, asked


def tell_recipe(model: loading.Model, asked: editing.Edit, settled: editing.Edit) -> str | None:
    """What was filled in because a model is distilled to few steps, and why; None if nothing was."""
    recipe = few_steps.find(model)
    if recipe is None:
        return None
    taken = [] if asked.steps else [f"{settled.steps} steps"]
    taken += ["no guidance"] if asked.guidance_scale is None and settled.guidance_scale == 1 else []
    taken += [recipe.scheduler] if recipe.scheduler else []
    return f"Takes {', '.join(taken)}: {recipe.known_by}." if taken else None


def strengths(given: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, given.split(",")))
    except ValueError as error:
        raise loading.UserError(f"--strengths is {given!r}; it takes numbers separated by commas.") from error


def ask_map(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the options of a command ask of a map, pictures aside: the blocks' inputs, and the models for some of them.

    Args:
        params: The command's, by their names here; None means not asked for.
    """
    given = {key: value for key, value in params.items() if value not in (None, (), []) and value is not False}
    named = any(not is_picture(where) for where, _ in split_regions(params))
    _is_used("--text", given.get("text"), {"--threshold": params["threshold"]})
    _is_used("--text or --region", given.get("text") or named or None, {"--segmenter": params["segmenter"]})
    _is_used("--point or --box", given.get("point") or given.get("box"), {"--mask-generator": params["mask_generator"]})
    _is_used("--depth", given.get("depth"), {"--depth-estimator": params["depth_estimator"]})
    inputs = {name: given[key] for key, name in maps.INPUTS.items() if key in given}
    if "map_points" in inputs:
        inputs["map_points"] = [_numbers("--point", given, (2, 3)) for given in inputs["map_points"]]
    if "map_boxes" in inputs:
        inputs["map_boxes"] = [_numbers("--box", given, (4,)) for given in inputs["map_boxes"]]
    if "map_gradient" in inputs:
        inputs["map_gradient"] = _angle(inputs["map_gradient"])
    editing.check_inputs(inputs)
    asking = {*inputs, "region_texts"} if named else inputs
    return inputs, {name: map_model(option, given) for name, option in maps.OPTIONS.items() if name in asking}


def map_model(option: str, given: dict[str, Any]) -> str:
    """The model that this option names; the embedded one by default, where it knows what is edited."""
    is_embedded = given.get("model", loading.EMBEDDED) in (loading.EMBEDDED, loading.EMBEDDED_FLOW)
    default = loading.EMBEDDED if is_embedded else None
    location = given.get(option.removeprefix("--").replace("-", "_"), default)
    if location is None:
        raise loading.UserError(f"{option} is needed: it names the model that makes the map.")
    return location


def _numbers(option: str, given: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    parts = given.split(",")
    if len(parts) not in counts or not all(part.strip().isdecimal() for part in parts):
        wanted = " or ".join(map(str, counts))
        raise loading.UserError(f"{option} is {given!r}; it takes {wanted} whole numbers separated by commas.")
    return tuple(map(int, parts))


def _angle(given: str) -> float | str:
    try:
        return given if given == "radial" else float(given)
    except ValueError as error:
        raise loading.UserError(f"--gradient is {given!r}; it takes an angle in degrees, or radial.") from error


def read_pictures(
    locations: dict[str, str | editing.Picture | None], kind: type[editing.Picture] = editing.Picture
) -> dict[str, editing.Picture | None]:
    """The pictures of these arguments, None where nothing is given; what has been read is as it is.

    Args:
        kind: What IMAGE is; the map of a video can be a video too.
    """
    piped = [argument for argument, location in locations.items() if location == editing.STDIN]
    if len(piped) > 1:
        raise loading.UserError(f"{' and '.join(piped)} are both -, and stdin can be read once.")
    return {
        argument: _read(location, argument, kind) if isinstance(location, str) else location
        for argument, location in locations.items()
    }


def _read(location: str, argument: str, kind: type[editing.Picture]) -> editing.Picture:
    read = editing.read_clip if is_clip(argument, location, kind) else editing.read_picture
    return read(location, argument)


def is_clip(argument: str, location: str, kind: type[editing.Picture]) -> bool:
    """Whether an argument is read as a video, where IMAGE is of this kind."""
    return kind is editing.Clip and (argument == "IMAGE" or (argument == "MAP" and can_be_video(location)))


def can_be_video(location: str) -> bool:
    """Whether this looks like the name of a video, or a GIF."""
    name = editing.file_name(location)
    return clips.is_named_video(name) or name.lower().endswith(".gif")


def check_texts(texts: dict[str, str | None]) -> None:
    for name, text in texts.items():
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise loading.UserError(f"{name} is not UTF-8: {text[error.start : error.end]!r}.") from error


def _check_scales(scales: dict[str, float | None]) -> None:
    for name, scale in scales.items():
        if scale is not None and not 0 <= scale <= MAX_SCALE:
            raise loading.UserError(f"--{name}-scale is {scale}; it takes a number from 0 to {MAX_SCALE}.")


def _is_used(option: str, value: str | None, others: dict[str, Any]) -> bool:
    """Whether an option is given; the others mean nothing without it."""
    lost = [name for name, other in others.items() if other is not None]
    if value is None and lost:
        raise loading.UserError(f"{lost[0]} needs {option}.")
    return value is not None
