"""`map_fill`: what changed parts start from."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import fills
from benchmarks.still_life import HELD_OUT
from modular_diffdiff import BadInputError, without_encoders
from modular_diffdiff.blocks.diffdiff_fill import FILLS, fill, share_of
from modular_diffdiff.still_life.scene import Scene

from .helpers import diffdiff, picture, relative, seeded
from .test_auto import automatic
from .test_auto import run as run_automatic
from .test_families import (  # noqa: F401
    EDITS,
    HALF,
    MAPS,
    STRENGTH,
    grid_of,
    ours,
    run,
    small_edits,
    undecoded,
)


# Pictures


@pytest.mark.parametrize("how", FILLS)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_what_is_kept_is_not_touched_and_colours_stay_in_range(how, height, width, seed):
    keep = torch.rand(1, 1, height, width, generator=seeded(seed)).round(decimals=1)
    image = picture(height, width, seed)
    filled = np.asarray(fill(image, share_of(keep), how, seeded()))
    kept = keep[0, 0].numpy() == 1
    assert (filled[kept] == np.asarray(image)[kept]).all()
    tensor = torch.rand(3, height, width, generator=seeded(seed))
    filled = fill(tensor, share_of(keep), how, seeded())
    assert torch.equal(filled[:, keep[0, 0] == 1], tensor[:, keep[0, 0] == 1])
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_where_the_map_is_darkest_all_is_filled_and_elsewhere_its_share():
    """A strength below 1 turns a map down; what it frees most is filled as if it had not."""
    keep = torch.tensor([[0.4, 0.7, 1.0]])[None, None]
    torch.testing.assert_close(share_of(keep), torch.tensor([[1.0, 0.5, 0.0]])[None, None])
    assert share_of(torch.ones(1, 1, 2, 2)).max() == 0


def test_a_blurred_fill_is_the_surroundings_colour():
    """Of one colour around a hole nothing else can come; between two colours, what lies nearer counts more."""
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 16:48, 16:48] = 1
    plain = torch.tensor([0.2, 0.5, 0.8]).view(3, 1, 1).expand(3, 64, 64)
    torch.testing.assert_close(fill(plain, hole, "blur", seeded()), plain.contiguous())
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    filled = fill(torch.where(hole[0] == 1, 7 * ramp % 1, ramp), hole, "blur", seeded())[0, 32, 16:48]
    assert filled.diff().min() > -0.01
    assert filled[:8].mean() < 0.45 < 0.55 < filled[-8:].mean()
    assert abs(filled - ramp[0, 32, 16:48]).max() < 0.2


def test_a_colour_is_the_mean_of_what_is_kept():
    image = torch.rand(3, 8, 8, generator=seeded())
    share = torch.zeros(1, 1, 8, 8)
    share[..., :3] = 1
    filled = fill(image, share, "color", seeded())
    torch.testing.assert_close(filled[:, 0, 0], image[:, :, 3:].mean((1, 2)))
    assert fill(image, torch.ones(1, 1, 8, 8), "color", seeded()).unique() == 0.5


def test_noise_is_noise():
    filled = fill(Image.new("RGB", (64, 64)), torch.ones(1, 1, 64, 64), "noise", seeded())
    values = np.asarray(filled) / 255
    assert abs(values.mean() - 0.5) < 0.02
    assert abs(values.std() - 12**-0.5) < 0.02


# Every family whose model starts from the image


@pytest.mark.parametrize("name", STRENGTH)
def test_what_is_released_starts_from_the_filled_picture(name):
    """What stood there leaves no trace in it, and what is kept ends as the original, bit for bit."""
    pipe = undecoded(ours(name))
    keep = torch.cat([torch.ones(64, 32), torch.full((64, 32), 0.5)], 1)
    first, second = picture(64, 64), picture(64, 64)
    second.paste(picture(64, 32, 1), (32, 0))  # on the half that is free
    states = [run(pipe, name, image=image, diffdiff_map=keep, map_fill="color") for image in (first, second)]
    free = states[0].release_steps.expand_as(states[0].image_latents) < len(states[0].timesteps)
    assert torch.equal(*(state.image_latents[free] for state in states))

    plain = run(pipe, name, image=first, diffdiff_map=keep)
    assert relative(plain.image_latents[free], states[0].image_latents[free]) > 1e-2
    half = grid_of(plain.latents).shape[-1] // 2
    assert torch.equal(grid_of(states[0].latents)[..., :half], grid_of(plain.latents)[..., :half])
    assert relative(grid_of(states[0].latents)[..., half:], grid_of(plain.latents)[..., half:]) > 1e-2


@pytest.mark.parametrize("name", STRENGTH)
def test_a_fill_leaves_the_noise_of_a_run_as_it_is(name):
    """The second encoding draws from a generator of its own."""
    pipe = undecoded(ours(name))
    edits = [run(pipe, name, diffdiff_map=HALF, map_fill=how) for how in ("original", "noise")]
    assert relative(edits[1].noise, edits[0].noise) < 1e-5


@pytest.mark.parametrize("name", STRENGTH)
def test_each_output_of_a_batch_has_its_own_fill(name):
    pipe, prompts = undecoded(ours(name)), ["a green pear", "a blue cup"]
    pictures, keeps = [picture(64, 64, seed) for seed in range(2)], [0.5 + 0.5 * keep for keep in MAPS]
    options = {"map_fill": "blur"}
    generators = [seeded(k) for k in range(2)]
    both = run(pipe, name, prompt=prompts, image=pictures, diffdiff_map=keeps, generator=generators, **options)
    for k in range(2):
        own = {"prompt": prompts[k], "image": pictures[k], "diffdiff_map": keeps[k]}
        alone = run(pipe, name, generator=seeded(k), **own, **options)
        assert relative(both.latents[k : k + 1], alone.latents) < 1e-4


@pytest.mark.parametrize("name", EDITS)
def test_edit_models_start_from_noise_and_take_none(name):
    assert "map_fill" not in ours(name).blocks.input_names


# All else, on SDXL


@pytest.mark.parametrize(
    "options",
    [
        {
            "image": picture(37, 61),
            "diffdiff_map": np.pad(np.full((20, 30), 0.4), ((8, 9), (15, 16)), constant_values=1),
        },
        {"image": picture(96, 96), "diffdiff_map": np.pad(np.full((40, 40), 0.4), 28, constant_values=1)}
        | {"padding_map_crop": 4, "output_type": "pt"},
        {"region_prompts": ["a cup"] * 2, "region_maps": [HALF, 1 - HALF]},
    ],
    ids=["any size", "a box", "regions"],
)
def test_it_goes_with_everything_else(tiny, options):
    pipe = automatic(tiny)
    filled, plain = (run_automatic(pipe, map_fill=how, **options) for how in ("blur", "original"))
    kept = filled.release_steps.expand_as(filled.latents) >= len(filled.timesteps)
    assert torch.equal(filled.latents[kept], plain.latents[kept])
    assert relative(filled.latents[~kept], plain.latents[~kept]) > 1e-3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"map_fill": "white"}, "`map_fill` is 'white'; it takes one of original, blur, noise, color"),
        ({"map_fill": "blur", "image": None}, "`map_fill` is given, but there is no `image` for it"),
    ],
)
def test_bad_fills_are_refused(tiny, given, says):
    with pytest.raises(BadInputError, match=says):
        run_automatic(automatic(tiny), **given)


def test_without_an_encoder_it_is_refused(tiny):
    blocks = without_encoders(diffdiff(tiny).blocks, "image_latents")
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in tiny.items() if name in pipe.component_names})
    pipe.update_components(scheduler=EulerDiscreteScheduler())
    with pytest.raises(BadInputError, match="`map_fill` is 'blur', but no block encodes an image"):
        run_automatic(
            pipe,
            image_latents=torch.zeros(1, 4, 4, 4),
            map_fill="blur",
            image=picture(),
            overlay=True,
            output_type="pt",
        )


# Meaning


def test_an_object_that_is_removed_is_not_found():
    """A small sample of what `benchmarks.fills` measures."""
    scenes = [Scene.random(HELD_OUT + k) for k in range(3)]
    assert fills.count_found(scenes, "original") == 3
    assert fills.count_found(scenes, "blur") == 0
