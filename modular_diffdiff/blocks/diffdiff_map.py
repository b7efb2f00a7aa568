"""Change maps: from anything a user calls one, to `keep` at latent resolution, to release steps.

Pure functions; nothing here knows of pipelines. Notation: `keep`, in [0, 1], is 1 where the original stays and 0 where
everything may change; `timesteps`, (N,), are those of the whole schedule, one a step, falling; release steps are int32
of keep's shape, from 0 (free from the start) to N (never released).
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from . import diffdiff_files, diffdiff_kinds, diffdiff_refusals


# ITU-R BT.601, as PIL's conversion to greyscale
LUMA = (0.299, 0.587, 0.114)
# Averages of float32 are not exact: a map of constant 0.7 must be released at step 7 of 10, not at 8.
KEEP_TOLERANCE = 1e-6
# Greys as near to white as this pass for white: JPEG makes them of it.
NEARLY_WHITE = 0.05

BadInputError = diffdiff_refusals.BadInputError
ACCEPTED = (
    "a PIL image, a numpy array (H, W) or (H, W, C), a torch tensor (H, W), (1, H, W) or (B, 1, H, W), a path, a URL, "
    "or a list of these"
)


def load_maps(maps: Any, allow_paths: bool = True, name: str = "diffdiff_map") -> list[torch.Tensor]:
    """Reads change maps of any accepted kind.

    Args:
        maps: A PIL image, numpy array, torch tensor, path, URL, or a list of these. PIL images and arrays are read by
            their dtype: bool, uint8 and uint16 are divided by their maximum, floats are taken as they are. Colour is
            reduced to luma (BT.601). Tensors are bool or float.
        allow_paths: Whether paths are opened and URLs fetched; never where a stranger can choose them, as they reach
            whatever this machine reaches.
        name: What errors call them.

    Returns:
        One (1, 1, H, W) float32 tensor in [0, 1] for each map.

    Raises:
        BadInputError: If a map cannot be read, is empty, has a wrong shape, number of channels or dtype, is transparent
            anywhere, holds NaN or leaves [0, 1]. The message names the input.
    """
    if maps is None:
        raise BadInputError(f"`{name}` is missing; it takes {ACCEPTED}.")
    if isinstance(maps, (list, tuple)):
        if not maps:
            raise BadInputError(f"`{name}` is an empty list; it takes {ACCEPTED}.")
        return [
            tensor for index, item in enumerate(maps) for tensor in _load_one(item, f"`{name}[{index}]`", allow_paths)
        ]
    return _load_one(maps, f"`{name}`", allow_paths)


def _load_one(item: Any, name: str, allow_paths: bool) -> list[torch.Tensor]:
    if isinstance(item, (str, os.PathLike)):
        if not allow_paths:
            raise BadInputError(f"{name} is {item!r}, and `allow_paths` is False: it takes no path or URL then.")
        item = _open(os.fspath(item), name)
    if isinstance(item, PIL.Image.Image):
        if not diffdiff_kinds.is_picture(item):
            raise BadInputError(f"{name} is {diffdiff_refusals.describe(item)}, which cannot be read as greys.")
        item = _pil_to_numpy(item)
    if isinstance(item, np.ndarray):
        tensor = _numpy_to_tensor(item, name)
    elif isinstance(item, torch.Tensor):
        tensor = _check_tensor(item, name)
    else:
        raise BadInputError(f"{name} is of type {type(item).__name__}; it takes {ACCEPTED}.")
    if tensor.numel() == 0:
        raise BadInputError(f"{name} has the shape {tuple(item.shape)} and holds no values.")
    low, high = tensor.aminmax()
    if not (low >= 0 and high <= 1):  # NaN compares false
        raise BadInputError(
            f"{name} has values from {low.item():g} to {high.item():g}; they must be numbers in [0, 1]."
        )
    return list(tensor.split(1))


def _open(path: str, name: str) -> PIL.Image.Image:
    try:
        image = diffdiff_files.open_image(diffdiff_files.read(path))
    except diffdiff_files.UnreadableError as error:
        raise BadInputError(f"{name} is {path!r}, which cannot be read as an image: {error}.") from error
    if (frames := diffdiff_files.count_frames(image)) > 1:
        warnings.warn(f"{name} is {path!r}, which holds {frames} pictures: only the first is used.", stacklevel=2)
    return image


def _pil_to_numpy(image: PIL.Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("1", "L", "RGB", "F") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    return np.asarray(image)


def _numpy_to_tensor(array: np.ndarray, name: str) -> torch.Tensor:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)):
        raise BadInputError(
            f"{name} is an array of shape {array.shape}; it takes (H, W) or (H, W, C) of 1 to 4 channels."
        )
    if array.dtype == bool:
        values = array.astype(np.float64)
    elif array.dtype.kind == "u" and array.dtype.itemsize <= 2:  # of either byte order
        values = array / np.float64(np.iinfo(array.dtype).max)
    elif np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float64)
    else:
        raise BadInputError(f"{name} is of dtype {array.dtype}; it takes bool, uint8, uint16 or floats in [0, 1].")
    if values.ndim == 3:
        if values.shape[-1] in (2, 4):
            if (values[..., -1] != 1).any():
                raise BadInputError(f"{name} is transparent in places; it takes no alpha channel, or an opaque one.")
            values = values[..., :-1]
        values = values @ np.array(LUMA if values.shape[-1] == 3 else (1.0,))
    return torch.from_numpy(values.astype(np.float32))[None, None]


def _check_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    shape = tuple(tensor.shape)
    if tensor.layout != torch.strided or tensor.is_meta:
        raise BadInputError(f"{name} is a tensor whose values do not lie in memory; it takes a dense one.")
    if tensor.dtype != torch.bool and not tensor.is_floating_point():
        raise BadInputError(f"{name} is a tensor of dtype {tensor.dtype}; it takes bool, or floats in [0, 1].")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1) or (len(shape) == 4 and shape[1] == 1)):
        raise BadInputError(f"{name} is a tensor of shape {shape}; it takes (H, W), (1, H, W) or (B, 1, H, W).")
    return tensor.reshape(-1, 1, *shape[-2:]).float().cpu()


def _cell_weights(size: int, cells: int, side: float) -> torch.Tensor:
    """(cells, size): the share of pixel j, the interval [j, j + 1], in each of the equal cells that cover [0, side].

    A cell that lies beyond the pixels in part is filled by those in it; one that lies beyond all of them, by the last.
    """
    edges = torch.linspace(0, side, cells + 1, dtype=torch.float64)
    starts, ends = edges[:-1, None].clamp(max=size - 1), edges[1:, None].clamp(max=size)
    pixels = torch.arange(size, dtype=torch.float64)
    overlap = (torch.minimum(ends, pixels + 1) - torch.maximum(starts, pixels)).clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def average_over_grid(values: torch.Tensor, grid: tuple[int, int], canvas: tuple[int, int]) -> torch.Tensor:
    """Averages (B, 1, H, W), the upper left part of a canvas (height, width), over the (rows, columns) that cover it.

    The means, (B, 1, rows, columns), are over the pixels that there are; cells beyond them all have the last one's.
    """
    rows, columns = (
        _cell_weights(size, cells, side) for size, cells, side in zip(values.shape[-2:], grid, canvas, strict=True)
    )
    return (rows @ values.double() @ columns.T).float()


def resize_map(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes (B, 1, H, W) to (B, 1, height, width) by exact area averaging: values stay within their range."""
    if values.shape[-2:] == (height, width):
        return values
    return average_over_grid(values, (height, width), tuple(values.shape[-2:]))


def warn_of_stretching(maps: list[torch.Tensor], height: int, width: int, name: str = "diffdiff_map") -> None:
    """Says so where a map, (1, 1, H, W), has another ratio than the image."""
    for values in maps:
        map_height, map_width = values.shape[-2:]
        # half a pixel of rounding is no other ratio
        if abs(map_height * width - map_width * height) > 0.5 * max(height, width):
            warnings.warn(
                f"`{name}` is {map_width} x {map_height} pixels and the image {width} x {height}: it is stretched to "
                "the image.",
                stacklevel=2,
            )


def keep_on_grid(
    maps: list[torch.Tensor], size: tuple[int, int], grid: tuple[int, int], canvas: tuple[int, int]
) -> torch.Tensor:
    """`keep` of each latent, (B, 1, rows, columns), from maps (1, 1, H, W), each of its own size.

    The image has the size (height, width) in pixels; the canvas is what was encoded of it, padded right and below.
    """
    return torch.cat([average_over_grid(resize_map(values, *size), grid, canvas) for values in maps])


def read_maps(maps: Any, invert: bool = False, strength: float = 1.0, allow_paths: bool = True) -> list[torch.Tensor]:
    """`keep` of maps that `load_maps` reads: inverted where asked, then turned down to 1 - strength * (1 - keep)."""
    keeps = load_maps(maps, allow_paths)
    if invert:
        keeps = [1 - keep for keep in keeps]
    return [turn_down(keep, strength) for keep in keeps]


def turn_down(keep: torch.Tensor, strength: float) -> torch.Tensor:
    """`keep` at a strength in [0, 1]: at 1 as it is, at 0 everything is kept."""
    return keep if strength == 1 else 1 - strength * (1 - keep)


def turn_down_in_strips(keep: torch.Tensor, strengths: Sequence[float]) -> torch.Tensor:
    """`keep`, (..., W), cut into upright strips of equal width, each turned down to a strength, left to right."""
    count = len(strengths)
    edges = [-(-place * keep.shape[-1] // count) for place in range(count + 1)]
    parts = [
        turn_down(keep[..., left:right], strength)
        for strength, (left, right) in zip(strengths, itertools.pairwise(edges), strict=True)
    ]
    return torch.cat(parts, -1)


def release_by_step(keep: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The step from which each element is free: the first i with keep <= i / N (paper, section 3)."""
    return torch.ceil((keep.double() - KEEP_TOLERANCE) * len(timesteps)).clamp(min=0).to(torch.int32)


def release_by_timestep(keep: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The same by noise level: the first i with 1 - keep >= t_i / t_0 (ComfyUI's node `DifferentialDiffusion`).

    What is fully kept is never released; the node releases it where a schedule ends at timestep 0.
    """
    thresholds = (timesteps.double() / timesteps[0]).to(keep.device)
    released = 1 - keep.double()[..., None] + KEEP_TOLERANCE >= thresholds
    steps = len(timesteps) - released.sum(-1)
    return torch.where(keep >= 1 - KEEP_TOLERANCE, len(timesteps), steps).to(torch.int32)


# Of `diffdiff_schedule`: what a grey of the map is compared with.
SCHEDULES = {"step": release_by_step, "timestep": release_by_timestep}


def kept_whole(keep: torch.Tensor, schedule: str, timesteps: torch.Tensor) -> torch.Tensor:
    """Where a run on a schedule in `SCHEDULES` releases nothing: white, and the greys that come after its last step."""
    return SCHEDULES[schedule](keep, timesteps) >= len(timesteps)


def warn_of_lost_greys(keep: torch.Tensor, schedule: str, timesteps: torch.Tensor) -> None:
    """Names the greys that so few steps never release, if they could be told from white."""
    lost = keep[kept_whole(keep, schedule, timesteps) & (keep < 1 - NEARLY_WHITE)]
    if lost.numel():
        low, high = lost.aminmax()
        greys = f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"
        warnings.warn(
            f"`diffdiff_map` has greys of {greys} that {len(timesteps)} steps never release: what they cover stays as "
            "it is. More steps or darker greys let it change.",
            stacklevel=2,
        )
