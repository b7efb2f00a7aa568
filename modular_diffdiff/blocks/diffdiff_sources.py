"""Front: makes change maps of what is at hand: a gradient, a mask of inpainting, a second picture.

The functions are pure; they give `keep`, (B, 1, H, W) float32 in [0, 1], 1 where the original stays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import PIL.Image
import torch

from . import diffdiff_block, diffdiff_docs, diffdiff_map, diffdiff_pixels, diffdiff_placement, diffdiff_refusals


# What every source takes, to join its map with one that is there already.
JOINING = ("image", "diffdiff_map", "invert_diffdiff_map", "map_combine", "allow_paths")
BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


def linear_gradient(angle: float, height: int, width: int) -> torch.Tensor:
    """(1, 1, H, W): fully kept where the picture begins and free where it ends, as one goes in this direction.

    Args:
        angle: In degrees: 0 goes to the right, 90 upwards.
    """
    rows, columns = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    way = columns * math.cos(math.radians(angle)) - rows * math.sin(math.radians(angle))
    low, high = way.aminmax()
    return (1 - (way - low) / (high - low).clamp(min=1e-6)).float()[None, None]


def radial_gradient(height: int, width: int) -> torch.Tensor:
    """(1, 1, H, W): free in the middle, and fully kept from the ellipse on that touches the picture's sides."""
    rows, columns = (2 * (torch.arange(side, dtype=torch.float64) + 0.5) / side - 1 for side in (height, width))
    return torch.hypot(rows[:, None], columns).clamp(max=1).float()[None, None]


def keep_where_alike(picture: Any, other: Any) -> torch.Tensor:
    """(1, 1, H, W): 1 less the largest difference of the three colours, each in [0, 1]."""
    first, second = (
        diffdiff_pixels.to_dtype(diffdiff_pixels.as_array(one), np.dtype(np.float32)) for one in (picture, other)
    )
    return torch.from_numpy(1 - abs(first - second).max(-1))[None, None].float().clamp(0, 1)


def combine(first: torch.Tensor, second: torch.Tensor, how: str) -> torch.Tensor:
    """Of two maps for the same pictures one: "keep" keeps what either keeps, "change" changes what either changes."""
    counts = len(first), len(second)
    if 1 not in counts and counts[0] != counts[1]:
        raise BadInputError(f"`diffdiff_map` and what joins it are for {counts[0]} and {counts[1]} images.")
    return torch.maximum(first, second) if how == "keep" else torch.minimum(first, second)


def join(given: list[torch.Tensor], made: torch.Tensor, how: str) -> torch.Tensor:
    """Given maps of any size and one that was made, (B, 1, H, W), as one of its size."""
    size = made.shape[-2:]
    diffdiff_map.warn_of_stretching(given, *size)
    return combine(torch.cat([diffdiff_map.resize_map(keep, *size) for keep in given]), made, how)


class DiffDiffMapSource(diffdiff_block.DiffDiffBlock):
    """A block that makes a change map at the size of the image, and joins it with one that is there already.

    Subclasses define `make(components, block_state, size)`, which gives `keep`, (B, 1, height, width), of as many
    pictures as it knows of. The input that they need is the one that asks for them.
    """

    takes = JOINING
    gives = ("image", "diffdiff_map", "invert_diffdiff_map")  # the image as it is

    def run(self, components, block_state, state) -> None:
        size = diffdiff_placement.size_of_picture(components, state, self.family)
        keep = self.make(components, block_state, size)
        if block_state.diffdiff_map is not None:
            keeps = diffdiff_map.read_maps(
                block_state.diffdiff_map, block_state.invert_diffdiff_map, allow_paths=block_state.allow_paths
            )
            keep = join(keeps, keep, block_state.map_combine)
        block_state.diffdiff_map, block_state.invert_diffdiff_map = keep, False

    def pictures(self, block_state) -> list[Any]:
        """The images; without one there is nothing to look at."""
        if block_state.image is None:
            takes = diffdiff_docs.KINDS["image"].takes
            raise BadInputError(f"`image` is missing, which `{self.needs[0]}` looks at; it takes {takes}.")
        return diffdiff_pixels.in_unit_range(diffdiff_pixels.split_images(block_state.image))


class DiffDiffMapGradientStep(DiffDiffMapSource):
    """Makes a change map that falls evenly across the picture, in a direction or from the edge to the middle."""

    needs = ("map_gradient",)

    def make(self, components, block_state, size: tuple[int, int]) -> torch.Tensor:
        if block_state.map_gradient == "radial":
            return radial_gradient(*size)
        return linear_gradient(block_state.map_gradient, *size)


class DiffDiffMapMaskStep(DiffDiffMapSource):
    """Makes a change map from an inpainting mask, white where the picture changes; greys change in part."""

    needs = ("mask_image",)

    def make(self, components, block_state, size: tuple[int, int]) -> torch.Tensor:
        masks = diffdiff_map.load_maps(block_state.mask_image, allow_paths=False, name="mask_image")
        diffdiff_map.warn_of_stretching(masks, *size, name="mask_image")
        return 1 - torch.cat([diffdiff_map.resize_map(mask, *size) for mask in masks])


class DiffDiffMapDifferenceStep(DiffDiffMapSource):
    """Makes a change map from a paint-over: the more a pixel differs from the photo, the more it may change."""

    needs = ("map_difference",)

    def make(self, components, block_state, size: tuple[int, int]) -> torch.Tensor:
        painted, photos = self.pictures(block_state), diffdiff_pixels.split_images(block_state.map_difference)
        if len(photos) not in (1, len(painted)):
            raise BadInputError(f"`map_difference` holds {len(photos)}, and `image` {len(painted)}.")
        for photo in photos:
            if diffdiff_pixels.size_of(photo) != size:
                refuse("map_difference", photo, f"a picture of the image's size, {size[1]} x {size[0]} pixels")
        photos = photos * (len(painted) // len(photos))
        return torch.cat([keep_where_alike(*pair) for pair in zip(painted, photos, strict=True)])


class DiffDiffMapToMaskStep(diffdiff_block.DiffDiffBlock):
    """Makes an inpainting mask from a change map: white where it changes, and as soft as the map."""

    needs, takes, gives = ("diffdiff_map",), ("invert_diffdiff_map", "allow_paths"), ("mask_image",)

    def run(self, components, block_state, state) -> None:
        keeps = diffdiff_map.read_maps(
            block_state.diffdiff_map, block_state.invert_diffdiff_map, allow_paths=block_state.allow_paths
        )
        changes = [np.rint(255 * (1 - keep[0, 0].numpy())).astype(np.uint8) for keep in keeps]
        masks = [PIL.Image.fromarray(change) for change in changes]
        block_state.mask_image = masks[0] if len(masks) == 1 else masks
