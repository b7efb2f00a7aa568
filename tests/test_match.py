"""Matching colours: laws of the fit, and results whose colours are the original's where the map keeps it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kornia.color import rgb_to_lab

from modular_diffdiff.blocks.diffdiff_match import fit_colors, from_lab, match_colors, to_lab

from .helpers import diffdiff, picture, seeded


KEEP = np.ones((40, 48), np.float32)
KEEP[:, 24:] = 0


def colours(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3))


@given(arrays.arrays(np.float64, (3, 3), elements=st.floats(-0.2, 0.2)), st.tuples(*[st.floats(-0.1, 0.1)] * 3))
def test_the_fit_undoes_an_affine_shift(slopes, offset):
    shown = colours(200)
    shifted = shown @ (np.eye(3) + slopes) + offset
    found, moved = fit_colors(shifted, shown, np.ones(200))
    np.testing.assert_allclose(shifted @ found + moved, shown, atol=0.01)


def test_the_fit_is_that_of_weighted_least_squares():
    edited, original, weights = colours(300), colours(300, 1), np.random.default_rng(2).random(300)
    slopes, offset = fit_colors(edited, original, weights)
    root = np.sqrt(weights)[:, None]
    expected, *_ = np.linalg.lstsq(root * np.c_[edited, np.ones(300)], root * original, rcond=None)
    np.testing.assert_allclose([*slopes, offset], expected, atol=2e-3)


def test_a_ground_of_one_colour_moves_all_colours_alike():
    ground, shift = np.tile([0.3, 0.5, 0.2], (100, 1)), np.array([0.02, 0.0, -0.01])
    slopes, offset = fit_colors(ground, ground + shift, np.ones(100))
    np.testing.assert_allclose(slopes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(offset, shift, atol=1e-9)


@given(arrays.arrays(np.float64, (5, 3), elements=st.floats(0, 1)))
def test_lab_is_kornias_and_leads_back(values):
    expected = rgb_to_lab(torch.from_numpy(values.T[None, :, :, None]))[0, :, :, 0].T / 100
    np.testing.assert_allclose(to_lab(values), expected, atol=2e-4)
    np.testing.assert_allclose(from_lab(to_lab(values)), values, atol=1e-6)


def test_what_has_no_weight_does_not_count_and_is_changed_too():
    original, other = colours(64).reshape(8, 8, 3) * 0.5 + 0.2, colours(64, 1).reshape(8, 8, 3)
    weights = np.zeros((8, 8))
    weights[:, :4] = 1
    edited = np.where(weights[..., None], from_lab(0.9 * to_lab(original) + 0.02), other)
    first, second = (match_colors(edited, np.where(weights[..., None], original, x), weights) for x in (0.0, 1.0))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[:, :4], original[:, :4], atol=0.01)
    np.testing.assert_allclose(first[:, 4:], from_lab((to_lab(other) - 0.02) / 0.9)[:, 4:], atol=0.02)


def test_without_weights_a_warning_says_so():
    edited = colours(4).reshape(2, 2, 3)
    with pytest.warns(UserWarning, match="keeps nothing fully at the result's size"):
        np.testing.assert_array_equal(match_colors(edited, edited / 2, np.zeros((2, 2))), edited)


# In a pipeline


class Shifted(torch.nn.Module):
    """An autoencoder whose pictures are darker and redder than they should be."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("vae", "_modules") else getattr(self.vae, name)

    def decode(self, *arguments, **options):
        (decoded,) = self.vae.decode(*arguments, **options | {"return_dict": False})
        return (0.3 * decoded + torch.tensor([0.1, -0.2, -0.2]).view(3, 1, 1),)


def run(pipe, **options):
    asked = {
        "prompt": "a green pear",
        "image": picture(40, 48),
        "diffdiff_map": KEEP,
        "num_inference_steps": 2,
        "generator": seeded(),
        "output": "images",
    }
    return pipe(**asked | options)


def in_lab(image) -> np.ndarray:
    image = np.asarray(image.permute(1, 2, 0) if isinstance(image, torch.Tensor) else image)
    return to_lab(image / 255 if image.dtype == np.uint8 else image)


@pytest.mark.parametrize("form", ["pil", "np", "pt"])
def test_the_colours_of_what_is_kept_are_the_originals_on_average(tiny, form):
    pipe = diffdiff(tiny | {"vae": Shifted(tiny["vae"])})
    (plain,), (matched,) = (run(pipe, output_type=form, match_colors=match) for match in (False, True))
    original = in_lab(picture(40, 48))[:, :24].mean((0, 1))
    off, still_off = (np.abs(in_lab(each)[:, :24].mean((0, 1)) - original).max() for each in (plain, matched))
    assert still_off < 0.01 < 0.05 < off
    assert not np.allclose(in_lab(plain)[:, 24:], in_lab(matched)[:, 24:], atol=0.02)


def test_each_of_a_batch_is_matched_to_its_own_original(tiny):
    pipe = diffdiff(tiny)
    images, generators = [picture(40, 48), picture(40, 48, seed=1)], [seeded(0), seeded(1)]
    both = run(pipe, prompt=["a pear"] * 2, image=images, generator=generators, match_colors=True, output_type="np")
    for index, image in enumerate(images):
        alone = run(pipe, prompt="a pear", image=image, generator=seeded(index), match_colors=True, output_type="np")
        np.testing.assert_allclose(both[index], alone[0], atol=1e-3)
