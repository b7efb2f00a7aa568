"""Back: the result's colours, fitted to the original's where the map keeps it."""

from __future__ import annotations

import numpy as np

from . import diffdiff_block, diffdiff_map, diffdiff_overlay, diffdiff_pixels, diffdiff_trajectory


# How much the identity counts in the fit's slopes, against a variance of 1 of colours: a ground of one colour says
# nothing about how others are shifted.
RIDGE = 1e-4


def to_linear(values: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] as linear RGB (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(values: np.ndarray) -> np.ndarray:
    """Linear RGB as sRGB; what lies outside [0, 1] is brought to its ends."""
    values = values.clip(0, 1)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def fit_colors(edited: np.ndarray, original: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine map of colours that brings `edited` nearest to `original`, by weighted least squares.

    Args:
        edited, original: (N, 3) colours.
        weights: (N,), of which one at least is above 0.

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
    """A result whose linear colours are fitted to the original's, all of it by what is weighted.

    Args:
        edited, original: (H, W, 3) in sRGB, uint8 or floats in [0, 1].
        weights: (H, W), above 0 somewhere.
    """
    linear, wanted = (to_linear(diffdiff_pixels.to_dtype(image, np.float64)) for image in (edited, original))
    slopes, offset = fit_colors(linear[weights > 0], wanted[weights > 0], weights[weights > 0])
    return diffdiff_pixels.to_dtype(to_srgb(linear @ slopes + offset), edited.dtype)


class DiffDiffMatchColorsStep(diffdiff_block.DiffDiffBlock):
    """With `match_colors`, fits the colours of the results to the original's on what the map keeps whole.

    The latents are the original's there: what differs is the shift of the autoencoder and the model, and it is undone
    in all of the picture. The fit is affine, in linear RGB, and weighted by the map.
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
