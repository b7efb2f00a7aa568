"""The pipelines: which blocks run, in which order. The entry module of the Hub repo."""

from .blocks.diffdiff_versions import NEEDED


# isort: split

from diffusers.modular_pipelines.modular_pipeline_utils import InsertableDict
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import (
    StableDiffusionXLImg2ImgPrepareAdditionalConditioningStep,
    StableDiffusionXLImg2ImgPrepareLatentsStep,
    StableDiffusionXLImg2ImgSetTimestepsStep,
    StableDiffusionXLInputStep,
    StableDiffusionXLPrepareAdditionalConditioningStep,
    StableDiffusionXLPrepareLatentsStep,
    StableDiffusionXLSetTimestepsStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.decoders import StableDiffusionXLDecodeStep
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import (
    StableDiffusionXLTextEncoderStep,
    StableDiffusionXLVaeEncoderStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLAutoControlNetInputStep,
    StableDiffusionXLAutoIPAdapterStep,
)

# The loader copies only the modules that are named here, so every one of `blocks/` is.
from .blocks.diffdiff_checks import check_count
from .blocks.diffdiff_docs import DocumentedSequentialBlocks
from .blocks.diffdiff_family import add_diffdiff
from .blocks.diffdiff_fit import DiffDiffFitStep
from .blocks.diffdiff_flux_kontext import FluxKontextDiffDiffSetResolutionStep
from .blocks.diffdiff_layout import in_loop_form
from .blocks.diffdiff_loop import DiffDiffRestoreStep, DiffDiffSkipFrozenStep
from .blocks.diffdiff_map import load_maps
from .blocks.diffdiff_mellon import WIDGETS
from .blocks.diffdiff_pixels import DiffDiffCropStep, DiffDiffCropToChangeStep, DiffDiffOverlayStep
from .blocks.diffdiff_prepare import DiffDiffPrepareStep
from .blocks.diffdiff_saving import save_code
from .blocks.diffdiff_sdxl import (
    SDXLDiffDiffAutoDenoiseStep,
    SDXLDiffDiffControlNetDenoiseLoop,
    SDXLDiffDiffDenoiseLoop,
    SDXLDiffDiffInputStep,
    SDXLDiffDiffPrepareLatentsStep,
    SDXLDiffDiffSetTimestepsStep,
    SDXLDiffDiffVaeEncoderStep,
)
from .blocks.diffdiff_sdxl_checks import SDXLDiffDiffAutoCheckInputsStep, SDXLDiffDiffCheckInputsStep
from .blocks.diffdiff_trajectory import noise_levels


TEXT2IMAGE_BLOCKS = InsertableDict(
    [
        ("text_encoder", StableDiffusionXLTextEncoderStep),
        ("input", StableDiffusionXLInputStep),
        ("set_timesteps", StableDiffusionXLSetTimestepsStep),
        ("prepare_latents", StableDiffusionXLPrepareLatentsStep),
        ("prepare_add_cond", StableDiffusionXLPrepareAdditionalConditioningStep),
        ("denoise", StableDiffusionXLDenoiseStep),
        ("decode", StableDiffusionXLDecodeStep),
    ]
)
IMAGE2IMAGE_BLOCKS = InsertableDict(
    [
        ("text_encoder", StableDiffusionXLTextEncoderStep),
        ("image_encoder", StableDiffusionXLVaeEncoderStep),
        ("input", StableDiffusionXLInputStep),
        ("set_timesteps", StableDiffusionXLImg2ImgSetTimestepsStep),
        ("prepare_latents", StableDiffusionXLImg2ImgPrepareLatentsStep),
        ("prepare_add_cond", StableDiffusionXLImg2ImgPrepareAdditionalConditioningStep),
        ("denoise", StableDiffusionXLDenoiseStep),
        ("decode", StableDiffusionXLDecodeStep),
    ]
)


def insert_before(blocks: InsertableDict, place: str, name: str, block: type) -> None:
    """Inserts a block right before the one named `place`."""
    blocks.insert(name, block, list(blocks).index(place))


# Differential diffusion is image-to-image with the whole schedule, a change map, and a loop that obeys it.
DIFFDIFF_BLOCKS = IMAGE2IMAGE_BLOCKS.copy()
DIFFDIFF_BLOCKS["set_timesteps"] = SDXLDiffDiffSetTimestepsStep
DIFFDIFF_BLOCKS["prepare_latents"] = SDXLDiffDiffPrepareLatentsStep
DIFFDIFF_BLOCKS["denoise"] = SDXLDiffDiffDenoiseLoop
# Batches of several prompts: what belongs to a prompt stays with it.
DIFFDIFF_BLOCKS["input"] = SDXLDiffDiffInputStep
# Any size: padded before encoding, cropped after decoding.
DIFFDIFF_BLOCKS["image_encoder"] = SDXLDiffDiffVaeEncoderStep
DIFFDIFF_BLOCKS["crop"] = DiffDiffCropStep
# Nothing computed in vain: the run starts where the map first releases something.
insert_before(DIFFDIFF_BLOCKS, "prepare_add_cond", "skip_frozen", DiffDiffSkipFrozenStep)
# Pixels that are kept come back as they were; a large picture is cut to what changes.
insert_before(DIFFDIFF_BLOCKS, "image_encoder", "crop_to_change", DiffDiffCropToChangeStep)
DIFFDIFF_BLOCKS["overlay"] = DiffDiffOverlayStep


DIFFDIFF_CONTROLNET_BLOCKS = DIFFDIFF_BLOCKS.copy()
insert_before(DIFFDIFF_CONTROLNET_BLOCKS, "denoise", "controlnet_input", StableDiffusionXLAutoControlNetInputStep)
DIFFDIFF_CONTROLNET_BLOCKS["denoise"] = SDXLDiffDiffControlNetDenoiseLoop

# Whatever is given decides what runs: ControlNet with a control image, IP-Adapter with an image prompt.
DIFFDIFF_AUTO_BLOCKS = DIFFDIFF_CONTROLNET_BLOCKS.copy()
insert_before(DIFFDIFF_AUTO_BLOCKS, "text_encoder", "ip_adapter", StableDiffusionXLAutoIPAdapterStep)
DIFFDIFF_AUTO_BLOCKS["denoise"] = SDXLDiffDiffAutoDenoiseStep


_METHOD = """\
Differential diffusion with SDXL (Levin and Fried, arXiv 2306.00950): every pixel of an edit has its own strength, given
by a change map. White keeps the original, black lets everything change."""
_EXAMPLE = """

Example:
    import torch
    from diffusers import ModularPipeline
    from diffusers.utils import load_image

    pipe = ModularPipeline.from_pretrained("modular-diffdiff/sdxl", trust_remote_code=True)
    pipe.load_components(workflow="diffdiff", dtype=torch.float16)
    pipe.to("cuda")
    image = pipe(
        prompt="a green pear",
        image=load_image("photo.png"),
        diffdiff_map="map.png",
        num_inference_steps=25,
        generator=torch.Generator().manual_seed(0),
        output="images",
    )[0]"""


class SDXLDiffDiffBlocks(DocumentedSequentialBlocks):
    """Differential diffusion with SDXL: `DIFFDIFF_BLOCKS`, with `check_inputs` in front."""

    block_classes = [SDXLDiffDiffCheckInputsStep, *DIFFDIFF_BLOCKS.values()]
    block_names = ["check_inputs", *DIFFDIFF_BLOCKS]
    _workflow_map = {"diffdiff": {"prompt": True, "image": True, "diffdiff_map": True}}

    @property
    def description(self) -> str:
        return _METHOD + _EXAMPLE


class SDXLDiffDiffAutoBlocks(DocumentedSequentialBlocks):
    """Differential diffusion with SDXL, ControlNet and IP-Adapter: `DIFFDIFF_AUTO_BLOCKS` behind `check_inputs`."""

    upstream = StableDiffusionXLAutoBlocks  # of the same checkpoints
    block_classes = [SDXLDiffDiffAutoCheckInputsStep, *DIFFDIFF_AUTO_BLOCKS.values()]
    block_names = ["check_inputs", *DIFFDIFF_AUTO_BLOCKS]
    _workflow_map = {
        f"{adapter}{control}diffdiff": dict.fromkeys((*images, *controls, "prompt", "image", "diffdiff_map"), True)
        for adapter, images in {"": (), "ip_adapter_": ("ip_adapter_image",)}.items()
        for control, controls in {
            "": (),
            "controlnet_": ("control_image",),
            "controlnet_union_": ("control_image", "control_mode"),
        }.items()
    }

    @property
    def description(self) -> str:
        return (
            f"{_METHOD}\nWith a `control_image` (and a `control_mode`, for a union) a ControlNet steers what changes, "
            "with an `ip_adapter_image`\nan IP-Adapter does; the map decides how much of it shows where."
            f"{_EXAMPLE}"
        )
