"""Pictures in any form that people bring: sizes, boxes, padding, and laying one over another.

Pure functions; nothing here knows of pipelines. A picture is a PIL image, an array (H, W, 3) or a tensor (3, H, W).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor

from . import diffdiff_map


Box = tuple[int, int, int, int]  # left, top, right, bottom


def split_images(images: Any) -> list[Any]:
    """Each picture of a batch."""
    if isinstance(images, list):
        return [image for item in images for image in split_images(item)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def size_of(picture: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(picture, PIL.Image.Image):
        return picture.height, picture.width
    return tuple(picture.shape[:2] if isinstance(picture, np.ndarray) else picture.shape[1:])


def cut(picture: Any, box: Box) -> Any:
    """The part of a picture within a box, in the picture's own form."""
    left, top, right, bottom = box
    if isinstance(picture, PIL.Image.Image):
        return picture.crop(box)
    return picture[top:bottom, left:right] if isinstance(picture, np.ndarray) else picture[:, top:bottom, left:right]


def in_unit_range(pictures: list[Any], name: str = "image") -> list[Any]:
    """A batch of pictures in [0, 1]; floats in [-1, 1], which upstream takes with a warning, are brought there."""
    least = min((float(picture.min()) for picture in pictures if not isinstance(picture, PIL.Image.Image)), default=0)
    if least >= 0:
        return pictures
    warnings.warn(
        f"`{name}` has values down to {least:g}, and is read as one in [-1, 1]; it takes floats in [0, 1].",
        stacklevel=2,
    )
    return [picture if isinstance(picture, PIL.Image.Image) else picture / 2 + 0.5 for picture in pictures]


def as_tensor(picture: np.ndarray | torch.Tensor) -> torch.Tensor:
    """An array or tensor as a tensor, in the machine's byte order."""
    if isinstance(picture, torch.Tensor):
        return picture
    return torch.from_numpy(np.ascontiguousarray(picture, picture.dtype.newbyteorder("=")))


def as_array(picture: Any) -> np.ndarray:
    """An array (H, W, 3): uint8 of PIL images, floats of the others."""
    if isinstance(picture, PIL.Image.Image):
        return np.asarray(picture.convert("RGB"))
    return picture if isinstance(picture, np.ndarray) else picture.permute(1, 2, 0).float().cpu().numpy()


def to_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Colours, uint8 or floats in [0, 1], as the other or the same."""
    if dtype == np.uint8:
        return array if array.dtype == np.uint8 else np.rint(255 * array.clip(0, 1)).astype(np.uint8)
    return array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(dtype)


def output_arrays(images: Any, output_type: str) -> list[np.ndarray]:
    """Each output as an array (H, W, 3): uint8 of PIL images, floats in [0, 1] of the others."""
    if output_type == "pt":
        images = images.permute(0, 2, 3, 1).float().cpu().numpy()
    return [np.asarray(image)[..., :3] for image in images]  # without the alpha that some autoencoders make


def as_outputs(arrays: list[np.ndarray], images: Any, output_type: str) -> Any:
    """Arrays (H, W, 3) in the form of the outputs `images`."""
    if output_type == "np":
        return np.stack(arrays)
    if output_type == "pt":
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(images.device, images.dtype)
    return [PIL.Image.fromarray(array) for array in arrays]


def size_and_canvas(
    height: int, width: int, multiple: int, least_side: int, largest_area: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of an image, smaller where its canvas would exceed the largest area, and that of its canvas.

    A canvas has sides that are multiples of `multiple`, and at least `least_side`; all are (height, width) in pixels.
    """
    scale = 1.0
    while True:
        size = tuple(max(round(scale * side), 1) for side in (height, width))
        canvas = tuple(-(-max(side, least_side) // multiple) * multiple for side in size)
        if math.prod(canvas) <= largest_area:
            return size, canvas
        scale *= min(0.99, math.sqrt(largest_area / math.prod(canvas)))


def bring_to(picture: Any, size: tuple[int, int], canvas: tuple[int, int]) -> Any:
    """Resizes a picture to a size (height, width), and pads it to a canvas on the right and below, by reflection.

    Returns:
        A PIL image in RGB of a PIL image, a float32 tensor (3, H, W) of the others.
    """
    whole = isinstance(picture, PIL.Image.Image)
    picture = picture.convert("RGB") if whole else torch.from_numpy(as_array(picture).transpose(2, 0, 1).astype("f4"))
    if size_of(picture) != size:
        processor = VaeImageProcessor(vae_scale_factor=1)
        picture = processor.resize(picture if whole else picture[None], *size)
        picture = picture if whole else picture[0]
    if size == canvas:
        return picture
    edges = ((0, canvas[0] - size[0]), (0, canvas[1] - size[1]), (0, 0))
    padded = np.pad(as_array(picture), edges, mode="reflect")
    return PIL.Image.fromarray(padded) if whole else torch.from_numpy(padded).permute(2, 0, 1).contiguous()


def box_around(changed: torch.Tensor, padding: int, cell: int) -> Box:
    """The box of all that changes in (H, W), and `padding` pixels around it.

    It stays within the picture. Its sides are multiples of `cell`, and at least one, where the picture has the room.
    """
    sides = []
    for axis, size in ((0, changed.shape[1]), (1, changed.shape[0])):
        places = changed.any(axis).nonzero()[:, 0]
        low, high = (places[0].item() - padding, places[-1].item() + 1 + padding) if len(places) else (0, 0)
        low, high = max(low, 0), min(high, size)
        side = min(max(-(-(high - low) // cell), 1) * cell, size)
        low = min(low, size - side)
        sides.append((low, low + side))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def original_weights(keep: torch.Tensor, kept: torch.Tensor, feather: int) -> torch.Tensor:
    """How much of the original comes back in each pixel, (H, W) in [0, 1]: all of it where it is `kept` whole.

    Beside that it falls to 0 within `feather` pixels, in what changes freely. What is kept in part has its share of the
    original already, and gets no more.
    """
    total = grown = kept[None, None].float()
    for _ in range(feather):
        grown = F.max_pool2d(grown, 3, stride=1, padding=1)
        total = total + grown
    seam = torch.where(keep <= diffdiff_map.KEEP_TOLERANCE, total[0, 0] / (feather + 1), 0)
    return torch.where(kept, 1.0, seam)


def lay_over(original: np.ndarray, edited: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The original where its weight, (H, W), is 1, to the last bit, and a blend elsewhere; both are (H, W, 3)."""
    w = weights[..., None]
    blend = w * original.astype(np.float32) + (1 - w) * edited.astype(np.float32)
    if original.dtype == np.uint8:
        blend = np.rint(blend)
    return np.where(w == 1, original, blend.astype(original.dtype))


def resize_array(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes (H, W, 3), uint8 or float in [0, 1], to (height, width, 3)."""
    if array.dtype == np.uint8:
        return np.asarray(PIL.Image.fromarray(array).resize((width, height), PIL.Image.Resampling.LANCZOS))
    resized = F.interpolate(
        torch.from_numpy(array).permute(2, 0, 1)[None], (height, width), mode="bicubic", antialias=True
    )
    return resized.clamp(0, 1)[0].permute(1, 2, 0).numpy()
