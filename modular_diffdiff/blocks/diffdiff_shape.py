"""Front: shapes change maps as asked, growing or shrinking, softening and limiting what changes.

The functions are pure, of `keep`, (B, 1, H, W) float32 in [0, 1], 1 where the original stays; lengths are in pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from . import diffdiff_block, diffdiff_docs, diffdiff_map, diffdiff_placement


SHAPING = ("map_levels", "map_gamma", "map_grow", "map_feather", "map_seam", "map_limits")
# The Gaussian ends at so many standard deviations, as scipy's does.
REACH = 4
# A seam that stays on one side of an edge begins so many standard deviations from it: 97.7 % of the step lie beyond.
SEAM = 2


def _running_maxima(values: torch.Tensor, longest: int) -> list[torch.Tensor]:
    """Of each window of 1, 2, 4, ... columns, up to `longest`, its maximum: (..., W - length + 1)."""
    maxima = [values]
    while 2 ** len(maxima) <= longest:
        shift = 2 ** (len(maxima) - 1)
        maxima.append(torch.maximum(maxima[-1][..., :-shift], maxima[-1][..., shift:]))
    return maxima


def dilate(values: torch.Tensor, radius: float) -> torch.Tensor:
    """The maximum over the disc of all pixels whose centres lie within `radius` of a pixel's; the outside is nothing.

    Each row of the disc is the larger of two windows whose length is a power of two.
    """
    height, width = values.shape[-2:]
    reach = min(math.floor(radius), width - 1)  # beyond, a row of the disc sees nothing more
    maxima = _running_maxima(F.pad(values, (reach, reach), value=-math.inf), 2 * reach + 1)
    result = torch.full_like(values, -math.inf)
    for rows in range(min(math.floor(radius), height - 1) + 1):
        half = min(math.isqrt(math.floor(radius**2 - rows**2)), reach)
        first, length = reach - half, 2 * half + 1
        windows = maxima[length.bit_length() - 1]
        last = first + length - 2 ** (length.bit_length() - 1)
        row = torch.maximum(windows[..., first : first + width], windows[..., last : last + width])
        for here, there in ((0, rows), (rows, 0)):
            part = result.narrow(-2, here, height - rows)
            torch.maximum(part, row.narrow(-2, there, height - rows), out=part)
    return result


def grow(keep: torch.Tensor, pixels: float) -> torch.Tensor:
    """What changes, grown by so many pixels in every direction, or shrunk if the number is negative."""
    return -dilate(-keep, pixels) if pixels >= 0 else dilate(keep, -pixels)


def blur(keep: torch.Tensor, sigma: float) -> torch.Tensor:
    """A Gaussian of this standard deviation; beyond the picture, its border goes on.

    It spreads what changes, 1 - `keep`: sums of zeros are exact, so that what is fully kept beyond its reach stays so.
    """
    if sigma == 0:
        return keep
    reach = math.ceil(REACH * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(keep.dtype)
    change = F.pad(1 - keep, [reach] * 4, mode="replicate")
    change = F.conv2d(F.conv2d(change, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return 1 - change.clamp(0, 1)


def feather(keep: torch.Tensor, sigma: float, seam: str = "across") -> torch.Tensor:
    """Softens edges by a Gaussian of `sigma` pixels; with the seam on one side, the other side stays as it is."""
    if seam == "inside":
        return torch.maximum(keep, blur(grow(keep, -SEAM * sigma), sigma))
    if seam == "outside":
        return torch.minimum(keep, blur(grow(keep, SEAM * sigma), sigma))
    return blur(keep, sigma)


def adjust_levels(keep: torch.Tensor, black: float, white: float, gamma: float) -> torch.Tensor:
    """As an image editor's levels: `black` and below become 0, `white` and above 1; `gamma` above 1 brightens."""
    return ((keep - black) / (white - black)).clamp(0, 1) ** (1 / gamma)


def limit(keep: torch.Tensor, least: float, most: float) -> torch.Tensor:
    """Where anything changes, at least and at most so strongly; what is fully kept stays so."""
    return torch.where(keep < 1, 1 - (1 - keep).clamp(least, most), keep)


def shape(
    keep: torch.Tensor,
    *,
    map_levels: tuple[float, float] = diffdiff_docs.DEFAULTS["map_levels"],
    map_gamma: float = diffdiff_docs.DEFAULTS["map_gamma"],
    map_grow: float = diffdiff_docs.DEFAULTS["map_grow"],
    map_feather: float = diffdiff_docs.DEFAULTS["map_feather"],
    map_seam: str = diffdiff_docs.DEFAULTS["map_seam"],
    map_limits: tuple[float, float] = diffdiff_docs.DEFAULTS["map_limits"],
) -> torch.Tensor:
    """All of it, in this order: first greys, then edges, and the limits last, so that they hold."""
    keep = adjust_levels(keep, *map_levels, map_gamma)
    return limit(feather(grow(keep, map_grow), map_feather, map_seam), *map_limits)


class DiffDiffShapeMapStep(diffdiff_block.DiffDiffBlock):
    """Shapes the change maps, at the size of the image, as `map_levels`, `map_gamma`, `map_grow`, `map_feather` and
    `map_limits` say, in this order; by default they stay as they are.
    """

    needs, takes = ("diffdiff_map",), ("image", "invert_diffdiff_map", "allow_paths", *SHAPING)
    gives = ("image", "diffdiff_map", "invert_diffdiff_map")  # the image as it is

    def run(self, components, block_state, state) -> None:
        asked = {name: getattr(block_state, name) for name in SHAPING}
        if all(value == diffdiff_docs.DEFAULTS[name] for name, value in asked.items()):
            return
        keeps = diffdiff_map.read_maps(
            block_state.diffdiff_map, block_state.invert_diffdiff_map, allow_paths=block_state.allow_paths
        )
        size = diffdiff_placement.size_of_picture(components, state, self.family)
        diffdiff_map.warn_of_stretching(keeps, *size)
        block_state.diffdiff_map = torch.cat([shape(diffdiff_map.resize_map(keep, *size), **asked) for keep in keeps])
        block_state.invert_diffdiff_map = False
