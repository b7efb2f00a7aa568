"""Back: the result's colours, fitted to the original's where the map keeps it."""

from __future__ import annotations

import warnings

import numpy as np

from . import diffdiff_block, diffdiff_map, diffdiff_overlay, diffdiff_pixels, diffdiff_trajectory


# How much the identity counts in the fit's slopes, against a variance of 1 of colours: a ground of one colour says
# nothing about how others are shifted.
RIDGE = 1e-4


# Linear sRGB to XYZ (IEC 61966-2-1), and CIELAB's line below which its cube root ends (CIE 15).
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
KNEE = 6 / 29
# From the cube roots of X, Y and Z, against white's, to L, a and b, which are 0 for black.
LAB, BLACK = np.array([[0, 1.16, 0], [5, -5, 0], [0, 2, -2]]), np.array([0.16, 0, 0])


def to_lab(values: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in [0, 1] as CIELAB (D65), in hundredths: L lies in [0, 1]."""
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (XYZ / XYZ.sum(1, keepdims=True)).T
    roots = np.where(xyz > KNEE**3, np.cbrt(xyz), xyz / (3 * KNEE**2) + 4 / 29)
    return roots @ LAB.T - BLACK


def from_lab(values: np.ndarray) -> np.ndarray:
    """The way back; what sRGB cannot show is brought to its ends."""
    roots = (values + BLACK) @ np.linalg.inv(LAB).T
    xyz = np.where(roots > KNEE, roots**3, 3 * KNEE**2 * (roots - 4 / 29))
    linear = (xyz @ np.linalg.inv(XYZ / XYZ.sum(1, keepdims=True)).T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def fit_colors(edited: np.ndarray, original: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine map of colours that brings `edited` nearest to `original`, by weighted least squares.

    Args:
        edited, original: (N, 3) colours.
        weights: (N,), at least one above 0.

    Returns:
        Slopes (3, 3) and offset (3,): a colour c becomes c @ slopes + offset.
    """
    weights = weights[:, None] / weights.sum()
    centre, target = (weights * edited).sum(0), (weights * original).sum(0)
    around = edited - centre
    prior = RIDGE * np.eye(3)
    slopes = np.linalg.solve(around.T @ (weights * around) + prior, around.T @ (weights * (original - target)) + prior)
    return slopes, target - centre @ slopes


def match_colors(edited: np.ndarray, original: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A result whose colours are fitted to the original's in CIELAB, all of it by what is weighted.

    Args:
        edited, original: (H, W, 3) in sRGB, uint8 or floats in [0, 1].
        weights: (H, W). Where all are 0, as a model that shrinks pictures can make them, a warning says so, and the
            result is as it was.
    """
    if not weights.any():
        warnings.warn("`diffdiff_map` keeps nothing fully at the result's size: no colours are matched.", stacklevel=2)
        return edited
    colors, wanted = (to_lab(diffdiff_pixels.to_dtype(image, np.float64)) for image in (edited, original))
    slopes, offset = fit_colors(colors[weights > 0], wanted[weights > 0], weights[weights > 0])
    return diffdiff_pixels.to_dtype(from_lab(colors @ slopes + offset), edited.dtype)


class DiffDiffMatchColorsStep(diffdiff_block.DiffDiffBlock):
    """With `match_colors`, fits the colours of the results to the original's on what the map fully keeps.

    The latents are the original's there: what differs is the shift of the autoencoder and the model, and it is undone
    in all of the picture. The fit is affine, in CIELAB, and weighted by the map.
    """

    needs, takes = ("images", "placement"), ("match_colors", "diffdiff_schedule", "output_type")
    gives = ("images",)

    def run(self, components, block_state, state) -> None:
        if block_state.match_colors:
            outputs = diffdiff_pixels.output_arrays(block_state.images, block_state.output_type)
            placement, size = block_state.placement, outputs[0].shape[:2]
            originals = [as_original(original, placement.box, size) for original in placement.originals]
            weights = [diffdiff_map.resize_map(keep, *size)[0, 0] for keep in placement.keeps_in_box()]
            kept = [diffdiff_overlay.never_released(components, block_state, keep) for keep in weights]
            weights = [(keep * whole).numpy() for keep, whole in zip(weights, kept, strict=True)]
            originals, weights = (
                diffdiff_trajectory.for_each_output(each, len(outputs)) for each in (originals, weights)
            )
            matched = [match_colors(*each) for each in zip(outputs, originals, weights, strict=True)]
            block_state.images = diffdiff_pixels.as_outputs(matched, block_state.images, block_state.output_type)


def as_original(original, box: diffdiff_pixels.Box, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3): the part of an original that was edited, at the size of the result."""
    part = diffdiff_pixels.as_array(diffdiff_pixels.cut(original, box))
    return part if part.shape[:2] == size else diffdiff_pixels.resize_array(part, *size)
