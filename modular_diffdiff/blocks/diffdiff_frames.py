"""Videos as lists of frames, and which frames a latent frame stands for.

Pure functions; nothing here knows of pipelines. A frame is a picture as `diffdiff_pixels` has it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import PIL.Image
import torch

from . import diffdiff_kinds, diffdiff_pixels, diffdiff_refusals


BadInputError = diffdiff_refusals.BadInputError
TAKES = diffdiff_kinds.videos().takes


def split_frames(video: Any) -> list[Any]:
    """The frames of a video in any accepted form, of one size, floats in [0, 1] or [-1, 1].

    Args:
        video: A list of PIL images, arrays or tensors, an array (F, H, W, 3) or a tensor (F, 3, H, W).

    Raises:
        BadInputError: If it is not a video, holds no frame, frames of several sizes, or values out of range.
    """
    if isinstance(video, (str, os.PathLike)):
        raise BadInputError(
            f"`video` is {os.fspath(video)!r}; blocks open no files. Pass the frames that "
            "`modular_diffdiff.read_video` or `diffusers.utils.load_video` reads."
        )
    if isinstance(video, (np.ndarray, torch.Tensor)) and video.ndim != 4:
        raise BadInputError(f"`video` has the shape {tuple(video.shape)}; it takes {TAKES}.")
    if not isinstance(video, (list, np.ndarray, torch.Tensor)):
        raise BadInputError(f"`video` is {diffdiff_refusals.describe(video)}; it takes {TAKES}.")
    frames = [_read_frame(frame, index) for index, frame in enumerate(video)]
    if not frames:
        raise BadInputError(f"`video` is empty; it takes {TAKES}.")
    sizes = {diffdiff_pixels.size_of(frame) for frame in frames}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise BadInputError(f"`video` holds frames of different sizes ({listed}); it takes one size.")
    return frames


def _read_frame(frame: Any, index: int) -> Any:
    """A frame, 8-bit arrays as PIL images."""
    described = f"`video[{index}]` is {diffdiff_refusals.describe(frame)}"
    if not diffdiff_kinds.is_picture(frame):
        raise BadInputError(f"{described}; `video` takes {TAKES}.")
    if isinstance(frame, PIL.Image.Image):
        if frame.mode.startswith(diffdiff_kinds.DEEP_MODES):  # a conversion to RGB would clip them
            raise BadInputError(f"{described}; it takes 8-bit images, not mode {frame.mode!r}; scale it to one first.")
        return frame.convert("RGB")
    if frame.ndim != 3 or frame.shape[-1 if isinstance(frame, np.ndarray) else 0] != 3:
        raise BadInputError(f"{described}; `video` takes {TAKES}.")
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8:
        return PIL.Image.fromarray(frame)
    values = diffdiff_pixels.as_tensor(frame)
    low, high = float(values.min()), float(values.max())
    if not values.is_floating_point() or not (low >= -1 and high <= 1):  # NaN compares false
        raise BadInputError(f"{described} with values from {low:g} to {high:g}; `video` takes {TAKES}.")
    return frame


def split_maps(maps: Any) -> list[Any]:
    """Each change map of a video, in a form that `diffdiff_map.load_maps` takes.

    Args:
        maps: Whatever `load_maps` takes, an array (F, H, W) or (F, H, W, C), a tensor (F, H, W), or a list of these.
    """
    if isinstance(maps, (list, tuple)):
        return [one for item in maps for one in split_maps(item)]
    if isinstance(maps, np.ndarray) and (maps.ndim == 4 or (maps.ndim == 3 and maps.shape[-1] > 4)):
        return list(maps)
    if isinstance(maps, torch.Tensor) and maps.ndim in (3, 4):
        return list(maps)
    return [maps]


def padded_count(count: int, every: int) -> int:
    """The number of frames that an autoencoder takes for so many: 1, 1 + `every`, 1 + 2 * `every`, ..."""
    return -(-(count - 1) // every) * every + 1


def average_over_frames(keeps: torch.Tensor, latent_frames: int, every: int) -> torch.Tensor:
    """The map of each latent frame: the mean over the frames that it stands for.

    The first latent frame stands for the first frame, each other one for the next `every` frames; of these, only those
    count that there are.

    Args:
        keeps: (F, C, h, w), a map for each frame, or (1, C, h, w), one for all of them.

    Returns:
        (1, C, latent frames, h, w).
    """
    if len(keeps) == 1:
        return keeps[:, :, None].expand(-1, -1, latent_frames, -1, -1)
    groups = [keeps[:1], *keeps[1:].split(every)]
    return torch.stack([group.mean(0) for group in groups], 1)[None]
