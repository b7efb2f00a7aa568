"""The pipelines: which blocks run, in which order. The entry module of the Hub repo."""

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

# The loader copies only the modules that are named here, so every one of `blocks/` is.
from .blocks.diffdiff_docs import DocumentedSequentialBlocks
from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_map import load_maps
from .blocks.diffdiff_pixels import DiffDiffCropStep
from .blocks.diffdiff_sdxl import (
    SDXLDiffDiffCheckInputsStep,
    SDXLDiffDiffDenoiseLoop,
    SDXLDiffDiffInputStep,
    SDXLDiffDiffPrepareLatentsStep,
    SDXLDiffDiffVaeEncoderStep,
)
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

# Differential diffusion is image-to-image with the whole schedule, a change map, and a loop that obeys it.
DIFFDIFF_BLOCKS = IMAGE2IMAGE_BLOCKS.copy()
DIFFDIFF_BLOCKS["set_timesteps"] = TEXT2IMAGE_BLOCKS["set_timesteps"]
DIFFDIFF_BLOCKS["prepare_latents"] = SDXLDiffDiffPrepareLatentsStep
DIFFDIFF_BLOCKS["denoise"] = SDXLDiffDiffDenoiseLoop
# Batches of several prompts: what belongs to a prompt stays with it.
DIFFDIFF_BLOCKS["input"] = SDXLDiffDiffInputStep
# Any size: padded before encoding, cropped after decoding.
DIFFDIFF_BLOCKS["image_encoder"] = SDXLDiffDiffVaeEncoderStep
DIFFDIFF_BLOCKS["crop"] = DiffDiffCropStep


class SDXLDiffDiffBlocks(DocumentedSequentialBlocks):
    """Differential diffusion with SDXL: `DIFFDIFF_BLOCKS`, with `check_inputs` in front."""

    block_classes = [SDXLDiffDiffCheckInputsStep, *DIFFDIFF_BLOCKS.values()]
    block_names = ["check_inputs", *DIFFDIFF_BLOCKS]
    _workflow_map = {"diffdiff": {"prompt": True, "image": True, "diffdiff_map": True}}

    @property
    def description(self) -> str:
        return (
            "Differential diffusion with SDXL (Levin and Fried, arXiv 2306.00950): every pixel of an edit has its own "
            "strength, given by a change map. White keeps the original, black lets everything change.\n"
            "\n"
            "Example:\n"
            "    import torch\n"
            "    from diffusers import ModularPipeline\n"
            "    from diffusers.utils import load_image\n"
            "\n"
            '    pipe = ModularPipeline.from_pretrained("modular-diffdiff/sdxl", trust_remote_code=True)\n'
            "    pipe.load_components(dtype=torch.float16)\n"
            '    pipe.to("cuda")\n'
            "    image = pipe(\n"
            '        prompt="a green pear",\n'
            '        image=load_image("photo.png"),\n'
            '        diffdiff_map="map.png",\n'
            "        num_inference_steps=25,\n"
            "        generator=torch.Generator().manual_seed(0),\n"
            '        output="images",\n'
            "    )[0]"
        )
