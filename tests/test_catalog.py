"""Which family a checkpoint is of, by the index that it has."""

import json
import re

import diffusers
import pytest

from modular_diffdiff import catalog


def write_index(folder, name: str, content: dict) -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder)


# The classes that these families' repositories name in their model_index.json, and what else it says there.
STANDARD = {
    "StableDiffusionXLPipeline": ("sdxl", {}),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", {}),
    "StableDiffusion3Pipeline": ("sd3", {}),
    "FluxPipeline": ("flux", {}),
    "FluxKontextPipeline": ("flux-kontext", {}),
    "Flux2Pipeline": ("flux2", {}),
    "Flux2KleinPipeline": ("flux2-klein", {"is_distilled": True}),
    "QwenImagePipeline": ("qwen-image", {}),
    "QwenImageEditPipeline": ("qwen-image-edit", {}),
    "QwenImageEditPlusPipeline": ("qwen-image-edit-plus", {}),
    "ZImagePipeline": ("z-image", {}),
    "WanPipeline": ("wan", {"boundary_ratio": None}),
    "LTXPipeline": ("ltx", {}),
    "LTX2Pipeline": ("ltx-2", {}),
    "HunyuanVideo15Pipeline": ("hunyuan-video-1.5", {}),
}


@pytest.mark.parametrize("pipeline", STANDARD)
def test_a_standard_checkpoint_is_recognized(tmp_path, pipeline):
    family, said = STANDARD[pipeline]
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **said}
    assert catalog.recognize(write_index(tmp_path, "model_index.json", index)) == family


def test_a_model_in_two_stages_is_told_from_one(tmp_path):
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.875}
    assert catalog.recognize(write_index(tmp_path, "model_index.json", index)) == "wan-2.2"


def test_distilled_and_not_are_told_apart(tmp_path):
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": False}
    assert catalog.recognize(write_index(tmp_path, "model_index.json", index)) == "flux2-klein-base"


@pytest.mark.parametrize("family", catalog.FAMILIES)
def test_a_modular_checkpoint_is_recognized(tmp_path, family):
    """As upstream's own pipeline saves it."""
    upstream = catalog.FAMILIES[family].blocks_class.upstream
    pipe = upstream().init_pipeline()
    pipe.save_config(str(tmp_path))
    assert catalog.recognize(str(tmp_path)) == family


@pytest.mark.parametrize("pipeline", ["CogVideoXPipeline", "StableDiffusionPipeline", "NoSuchPipeline"])
def test_what_is_of_no_family_says_which_there_are(tmp_path, pipeline):
    location = write_index(tmp_path, "model_index.json", {"_class_name": pipeline})
    with pytest.raises(catalog.UnknownFamilyError, match=re.escape(pipeline)) as refusal:
        catalog.recognize(location)
    for family in catalog.FAMILIES:
        assert family in str(refusal.value)


def test_every_family_of_ours_is_in_the_catalog():
    from modular_diffdiff import families, videos

    made = families.FamilyDiffDiffAutoBlocks
    for module in (families, videos):
        classes = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, made) and value is not made
        }
        entry = module.__name__.rpartition(".")[2]
        assert classes == {family.blocks for family in catalog.FAMILIES.values() if family.module == entry}
    for family in catalog.FAMILIES.values():
        assert hasattr(diffusers, family.blocks_class.upstream.__name__)
