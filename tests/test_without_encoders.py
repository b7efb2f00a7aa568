"""Embeddings and latents in the place of the encoders that make them, for every family that takes batches."""

import numpy as np
import pytest
import torch

from modular_diffdiff import BadInputError, SDXLDiffDiffAutoBlocks, SDXLDiffDiffBlocks, without_encoders

from .families import FAMILIES
from .helpers import picture, relative, seeded
from .test_families import HALF, MAPS, PROMPTS, build, encoded, grid_of, ours, run, theirs, undecoded, workflow


NAMES = [name for name, family in FAMILIES.items() if family.strength]


def embeddings_of(name: str, prompts: list[str]) -> dict:
    """What upstream's text encoder makes of these prompts."""
    pipe = theirs(name)
    keys = list(pipe.blocks.sub_blocks)
    maker = next(key for key in keys if key.split(".")[-1] == "text_encoder")
    made = pipe.blocks.sub_blocks[maker].intermediate_output_names
    for key in keys:
        if key != maker:
            pipe._blocks.sub_blocks.pop(key)
    state = pipe(prompt=[*prompts], **FAMILIES[name].inputs)  # Z-Image's text encoder writes into the list
    return {entry: state.get(entry) for entry in made if state.get(entry) is not None}


def without_text_encoder(name: str):
    # Anima's text goes through a second model, which stays
    taken = "qwen_prompt_embeds" if name == "anima" else "prompt_embeds"
    return build(without_encoders(workflow(name), taken), name)


@pytest.mark.parametrize("per_prompt", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_embeddings_draw_what_their_prompts_draw(name, per_prompt):
    options = {"image": [picture(64, 64, seed) for seed in range(2)], "diffdiff_map": MAPS}
    options |= {"num_images_per_prompt": per_prompt}
    generators = [[seeded(k) for k in range(2 * per_prompt)] for _ in range(2)]
    expected = run(undecoded(ours(name)), name, prompt=PROMPTS, generator=generators[0], **options)
    given = embeddings_of(name, PROMPTS)
    state = run(undecoded(without_text_encoder(name)), name, prompt=None, generator=generators[1], **given, **options)
    assert len(state.latents) == 2 * per_prompt
    assert relative(state.latents, expected.latents) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_what_is_kept_and_pictures_come_back_at_their_size(name):
    pipe = build(without_encoders(workflow(name), "image_latents"), name)
    original = encoded(name) if name not in ("qwen", "anima") else encoded(name)[:, :, None]
    generators = [seeded(k) for k in range(4)]
    more = {"prompt": PROMPTS, "num_images_per_prompt": 2, "generator": generators, "height": 61, "width": 58}
    more["diffdiff_map"] = HALF[:61, :58]
    state = run(pipe, name, image=None, image_latents=original, **more)
    assert state.images.shape[-2:] == (61, 58)
    latents = grid_of(run(undecoded(pipe), name, image=None, image_latents=original, **more).latents)
    kept = latents.shape[-1] // 2
    assert torch.equal(latents[..., :kept], grid_of(original)[..., :kept].expand(4, -1, -1, -1))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_pixels_come_back_with_latents_too(name):
    pipe = build(without_encoders(workflow(name), "image_latents"), name)
    state = run(pipe, name, image_latents=encoded(name), overlay=True, output_type="pil")
    np.testing.assert_array_equal(np.asarray(state.images[0])[:, :32], np.asarray(picture(64, 64))[:, :32])


BAD = {
    "two maps": ({"diffdiff_map": MAPS}, "`diffdiff_map` holds 2; it takes 1"),
    "two images": ({"image": [picture(64, 64)] * 2}, "`image` holds 2; it takes 1"),
    "generators": ({"generator": [seeded(), seeded()]}, "`generator` is a list of 2; it takes one generator, or 1"),
    "a prompt": ({"prompt": "a pear"}, "`prompt` is 'a pear'; it takes nothing, as no block encodes it"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_counted_as_prompts_are(name, bad, monkeypatch):
    options, says = BAD[bad]
    pipe, given = without_text_encoder(name), embeddings_of(name, PROMPTS[:1])
    monkeypatch.setattr(pipe.vae, "encode", None)  # nothing has run
    with pytest.raises(BadInputError, match=says):
        run(pipe, name, **{"prompt": None} | given | options)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_that_are_missing_are_named(name):
    with pytest.raises(BadInputError, match=r"`(qwen_)?prompt_embeds` is None; it takes"):
        run(without_text_encoder(name), name, prompt=None)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"image_latents": torch.zeros(1, 4, 8, 8), "image": picture(64, 64)}, "`image` is .*; it takes nothing"),
        ({"image_latents": torch.zeros(1, 4, 8, 8), "height": 80}, "The picture is 80 x 64 pixels .* of 64 x 64"),
        ({"image_latents": torch.zeros(3, 4, 8, 8)}, "`image_latents` holds 3; it takes 1"),
        (
            {"image_latents": torch.zeros(4, 64)},
            r"`image_latents` is a Tensor of shape \(4, 64\) .*; it takes finite floats",
        ),
        ({}, "`image_latents` is None"),
    ],
)
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_latents_that_cannot_be_those_of_the_picture_are_refused(name, bad, says):
    pipe = build(without_encoders(workflow(name), "image_latents"), name)
    with pytest.raises(BadInputError, match=says):
        run(pipe, name, **{"image": None} | bad)


def test_encoders_go_from_both_branches_and_the_given_blocks_stay():
    blocks = SDXLDiffDiffAutoBlocks()
    trimmed = without_encoders(blocks, "prompt_embeds", "image_latents")
    for branch in trimmed.sub_blocks.values():
        assert not {"text_encoder", "image_encoder", "vae_encoder"} & set(branch.sub_blocks)
    assert "text_encoder" in blocks.sub_blocks["diffdiff"].sub_blocks
    required = {"prompt_embeds", "pooled_prompt_embeds", "image_latents"}
    assert set(without_encoders(SDXLDiffDiffBlocks(), "prompt_embeds", "image_latents").required_inputs) == required


def test_what_no_block_makes_cannot_be_taken_from_one():
    with pytest.raises(ValueError, match="No block of SDXLDiffDiffBlocks makes `image_latent` before the denoising"):
        without_encoders(SDXLDiffDiffBlocks(), "image_latent")
