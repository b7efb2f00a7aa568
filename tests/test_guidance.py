"""`batch_guidance`: the conditions of a step go through the model as one batch, and nothing else changes."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import ClassifierFreeGuidance, QwenImageTransformer2DModel, guiders
from diffusers.guiders import BaseGuidance, LTX2Guidance, MagnitudeAwareGuidance
from diffusers.models import CosmosTransformer3DModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.models.transformers import transformer_cosmos

from modular_diffdiff import BadInputError, without_encoders

from . import test_auto as sdxl
from .families import FAMILIES, parts_of
from .helpers import picture, relative, seeded
from .test_auto import parts  # noqa: F401
from .test_families import (  # noqa: F401
    BATCHES,
    GUIDED,
    MAPS,
    PROMPTS,
    Calls,
    build,
    denoiser_of,
    no_model_runs,
    ours,
    run,
    small_edits,
    tree,
    undecoded,
    workflow,
)


# of another length than the prompt, but where the model tells an image's place by its text's length
NEGATIVE = dict.fromkeys(GUIDED, "a blurry red apple with no cup") | {"qwen21": "a red apple"}
GUIDERS = sdxl.GUIDERS | {
    "APG with momentum": lambda: guiders.AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5),
    "APG mix with momentum": lambda: guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_momentum=-0.5),
    "MaG": MagnitudeAwareGuidance,
    "LTX-2": LTX2Guidance,
}
# They ask the model for something else than another prompt.
REFUSED = ("PAG", "SLG", "SEG", "AutoGuidance", "LTX-2")


def cfg(**window) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(guidance_scale=4.0, **window)


def both_ways(model, edit) -> list:
    """The latents of an edit without and with `batch_guidance`, and how often the model was called for each."""
    results = []
    for batched in (False, True):
        with Calls(model) as calls:
            results.append((edit(batched).latents, calls.made))
    return results


# Every family


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("name", GUIDED)
def test_one_call_a_step_gives_the_same_latents(name, outputs):
    """With guidance in the middle two of four steps, and that in every run of a pipeline."""
    options = {"negative_prompt": NEGATIVE[name], "num_images_per_prompt": outputs}
    if outputs == 2 and name in BATCHES:
        options = {"prompt": [PROMPTS[0], "a cup"], "negative_prompt": [NEGATIVE[name], "red"]}
        options |= {"image": [picture(64, 64, seed) for seed in range(2)], "diffdiff_map": MAPS}

    pipe = undecoded(ours(name, guider=cfg(start=0.25, stop=0.75)))

    def edit(batched: bool):
        generators = [seeded(k) for k in range(outputs)]
        return run(pipe, name, batch_guidance=batched, generator=generators, **options)

    (plain, calls), (batched, fewer) = both_ways(denoiser_of(name), edit)
    assert (calls, fewer) == (6, 4)
    assert len(plain) == outputs
    assert relative(batched, plain) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_a_guider_take_it(name):
    assert ("batch_guidance" in workflow(name).input_names) == FAMILIES[name].guided


def test_without_a_map_it_is_refused():
    with pytest.raises(BadInputError, match="`batch_guidance` is True; it only applies with a `diffdiff_map`"):
        run(build(tree("sd3"), "sd3"), "sd3", diffdiff_map=None, batch_guidance=True)


# Every guider


def test_the_table_knows_every_guider_of_the_installed_diffusers():
    kinds = [kind for kind in vars(guiders).values() if isinstance(kind, type) and issubclass(kind, BaseGuidance)]
    assert set(kinds) - {BaseGuidance} == {type(make()) for make in GUIDERS.values()}


@pytest.mark.parametrize("guider", sorted(GUIDERS.keys() - set(REFUSED)))
def test_guiders_that_combine_predictions_do_what_they_did(guider):
    name = "qwen" if guider == "MaG" else "sdxl"  # it fails where latents are a grid

    def edit(batched: bool):
        pipe = undecoded(ours(name, guider=GUIDERS[guider]()))
        return run(pipe, name, negative_prompt="blurry", batch_guidance=batched)

    (plain, calls), (batched, fewer) = both_ways(denoiser_of(name), edit)
    assert (calls, fewer) == (8, 4)
    assert relative(batched, plain) < 1e-4


@pytest.mark.usefixtures("no_model_runs")
@pytest.mark.parametrize("guider", REFUSED)
def test_other_guiders_are_refused_by_name(guider):
    guider = GUIDERS[guider]()
    with pytest.raises(BadInputError, match=f"`batch_guidance` is True, but the guider is a {type(guider).__name__}"):
        run(ours("sd3", guider=guider), "sd3", batch_guidance=True)


# Prompts of different lengths


def test_lengths_that_decide_where_the_image_lies_are_refused():
    with pytest.raises(BadInputError, match=r"`batch_guidance` is True, but .* do not fit in one batch"):
        run(ours("qwen21", guider=cfg()), "qwen21", negative_prompt="a red apple with no cup", batch_guidance=True)


@pytest.mark.usefixtures("no_model_runs")
def test_embeddings_of_different_lengths_are_refused_where_no_mask_is_taken():
    pipe = build(without_encoders(workflow("sd3"), "prompt_embeds"), "sd3")
    embeds = {"prompt_embeds": torch.zeros(1, 6, 32), "negative_prompt_embeds": torch.zeros(1, 4, 32)}
    embeds |= {f"{side}pooled_prompt_embeds": torch.zeros(1, 32) for side in ("", "negative_")}
    with pytest.raises(BadInputError, match=r"`prompt_embeds` is .*\(1, 6, 32\).* and .*\(1, 4, 32\)"):
        run(pipe, "sd3", prompt=None, batch_guidance=True, **embeds)


# ControlNet and IP-Adapter


@pytest.mark.parametrize("case", ["one", "guessing", "several", "union", "adapter", "adapters"])
def test_with_what_steers_sdxl(parts, controlnet, union, case):  # noqa: F811
    nets = {"several": MultiControlNetModel([controlnet, controlnet]), "union": union}
    options = {
        "one": {"control_image": picture(seed=5)},
        "guessing": {"control_image": picture(seed=5), "guess_mode": True},
        "several": {"control_image": [picture(seed=5), picture(seed=6)]},
        "union": {"control_image": [picture(seed=5)], "control_mode": [1]},
        "adapter": {"ip_adapter_image": picture(seed=6)},
        "adapters": {"ip_adapter_image": [picture(seed=6), picture(seed=7)]},
    }[case]
    if "control_image" in options:
        parts["controlnet"] = asked = nets.get(case, controlnet)
        pipe = sdxl.automatic(parts)
    else:
        pipe = sdxl.with_adapters(parts, count=1 + (case == "adapters"))
        mask = torch.zeros(1, 1 + (case == "adapters"), 32, 32)
        mask[..., 16:] = 1
        options["cross_attention_kwargs"] = {"ip_adapter_masks": list(mask.transpose(0, 1)[:, None])}
        asked = parts["unet"]
    for outputs in (1, 2):
        pair = {"num_images_per_prompt": outputs, "negative_prompt": "a cup"}

        def edit(batched: bool):
            return sdxl.run(pipe, batch_guidance=batched, **pair, **options)  # noqa: B023

        (plain, _), (batched, calls) = both_ways(asked, edit)
        assert calls == 3
        assert relative(batched, plain) < 1e-5


def test_with_qwens_controlnet():
    def edit(batched: bool):
        pipe = build(workflow("qwen", "controlnet_diffdiff"), "qwen", guider=cfg())
        return run(pipe, "qwen", control_image=picture(64, 64, 5), negative_prompt="red", batch_guidance=batched)

    (plain, calls), (batched, fewer) = both_ways(denoiser_of("qwen"), edit)
    assert (calls, fewer) == (8, 4)
    assert relative(batched, plain) < 1e-5


# What outputs share, and what each has


def test_each_output_has_its_grids():
    """Qwen-Image-Edit 2511 tells reference from picture by them, in every row."""
    config = dict(parts_of("qwen-edit")["transformer"].config)
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel.from_config(config, zero_cond_t=True).eval().requires_grad_(False)

    def edit(batched: bool):
        pipe = undecoded(ours("qwen-edit", guider=cfg(), transformer=model))
        return run(pipe, "qwen-edit", prompt=PROMPTS, negative_prompt=["red", "a cup"], batch_guidance=batched)

    (plain, _), (batched, calls) = both_ways(model, edit)
    assert calls == 4
    assert relative(batched, plain) < 1e-5


def test_what_animas_model_repeats_itself_is_given_once(monkeypatch):
    """Upstream resizes Anima's padding mask by torchvision, which these tests do without."""
    functional = SimpleNamespace(resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size))
    modes = SimpleNamespace(NEAREST="nearest")
    transforms = SimpleNamespace(functional=functional, InterpolationMode=modes)
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
    config = dict(parts_of("anima")["transformer"].config)
    torch.manual_seed(0)
    model = CosmosTransformer3DModel.from_config(config | {"concat_padding_mask": True}).eval().requires_grad_(False)

    def edit(batched: bool):
        return run(undecoded(ours("anima", guider=cfg(), transformer=model)), "anima", batch_guidance=batched)

    (plain, _), (batched, calls) = both_ways(model, edit)
    assert calls == 4
    assert relative(batched, plain) < 1e-5
