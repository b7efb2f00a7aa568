"""The untrained components of the still-life checkpoint and its companions: a small SDXL, part for part."""

from __future__ import annotations

import inspect
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    SamConfig,
    SamModel,
    SamProcessor,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from . import CHECKPOINT, INPAINTING
from .controls import CONTROL_TYPES
from .scene import BACKGROUNDS, COLOURS, KINDS


MAX_TOKENS = 32
# What people write around a subject; every other word is spelled in smaller tokens.
_WORDS = (
    "a an the of on in with and something still life object background photo picture painting drawing render image "
    "fruit blurry sharp bright dark soft light shadow left right small large high low quality detailed realistic studio"
)
WORDS = " ".join([_WORDS, *KINDS, *COLOURS, *BACKGROUNDS.values()]).split()


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE): each word of the captions is one token, and any text can be written."""
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=10_000, min_frequency=1, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(sorted(set(WORDS)), trainer)
    with tempfile.TemporaryDirectory() as folder:
        _, merges_file = bpe.model.save(folder)
        merges = [
            tuple(line.split()) for line in Path(merges_file).read_text().splitlines() if not line.startswith("#")
        ]
        learned = json.loads(Path(folder, "vocab.json").read_text())
    tokens = sorted(learned, key=learned.get)
    tokens += [token for letter in letters if (token := f"{letter}</w>") not in learned]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's pair: hidden states of both are concatenated (48 + 80), the second one also gives the pooled (80)."""

    def config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return CLIPTextModel(config(48)), CLIPTextModelWithProjection(config(80))


def build_vae() -> AutoencoderKL:
    """SDXL's autoencoder (factor 8, 4 channels), narrow where the picture is large.

    Without attention in its middle, so that a part of a picture takes less from what stands beside it.
    """
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=0.13025,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """SDXL's denoiser: text cross-attention, and added conditioning of pooled text and six time ids."""
    return UNet2DConditionModel(
        sample_size=32,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4, 6),  # SDXL's field of this name counts heads
        norm_num_groups=16,
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + 80,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule, with velocity prediction and trailing timesteps: made for few steps as well as many."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


# What `train_inpainting` trains: all that the UNet has before its way up.
INPAINTING_PARTS = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")


def build_inpainting_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of the UNet that is given a mask and a masked picture beside its latents, and starts out blind to them.

    Its 9 channels are those of `stable-diffusion-xl-1.0-inpainting`: latents (4), mask (1), masked latents (4).
    """
    inpainting = UNet2DConditionModel.from_config(unet.config, in_channels=9)
    weights = unet.state_dict()
    weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, 5))
    inpainting.load_state_dict(weights)
    return inpainting


def load_inpainting_unet() -> UNet2DConditionModel:
    """The embedded inpainting UNet, in float32."""
    base = UNet2DConditionModel.from_pretrained(CHECKPOINT, subfolder="unet", torch_dtype=torch.float32)
    unet = build_inpainting_unet(base)
    unet.load_state_dict(load_file(INPAINTING), strict=False)
    return unet.eval()


# Of the convolutions that bring a control image from pixels to latents, an eighth of their side.
_CONTROL_WIDTHS = (8, 16, 32, 64)


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet that starts as a copy of the UNet's encoder (Zhang et al., arXiv 2302.05543)."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_CONTROL_WIDTHS)


def build_controlnet_union(controlnet: ControlNetModel) -> ControlNetUnionModel:
    """A union of `CONTROL_TYPES` that starts as the ControlNet: what it has besides adds nothing yet."""
    shared = {name: value for name, value in controlnet.config.items() if not name.startswith("_")}
    width = controlnet.config.block_out_channels[0]
    known = inspect.signature(ControlNetUnionModel).parameters
    union = ControlNetUnionModel(
        **{name: value for name, value in shared.items() if name in known},
        num_control_type=len(CONTROL_TYPES),
        num_trans_channel=width,
        num_trans_head=4,
        num_proj_channel=width,
    )
    union.load_state_dict(controlnet.state_dict(), strict=False)
    nn.init.zeros_(union.control_add_embedding.linear_2.weight)
    nn.init.zeros_(union.control_add_embedding.linear_2.bias)
    return union


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's vision transformer, on 8 x 8 patches of 64 x 64 pixels; its embeddings have 128 values."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
        )
    )


def build_feature_extractor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def add_ip_adapter(unet: UNet2DConditionModel, image_dim: int) -> nn.ModuleDict:
    """Puts an IP-Adapter (Ye et al., arXiv 2308.06721) into a UNet: four tokens of an image embedding (`image_dim`).

    Its attention starts as a copy of the text's.

    Returns:
        What is to be trained: `image_proj`, and `ip_adapter`, a module an attention processor of the UNet.
    """
    text_dim = unet.config.cross_attention_dim
    projection = ImageProjection(image_dim, text_dim, num_image_text_embeds=4)
    processors = {}
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if "attn1" in name:  # self-attention
            processors[name] = AttnProcessor()
            continue
        processors[name] = processor = IPAdapterAttnProcessor(attention.inner_dim, text_dim)
        processor.to_k_ip[0].load_state_dict(attention.to_k.state_dict())
        processor.to_v_ip[0].load_state_dict(attention.to_v.state_dict())
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    attention = {
        str(index): processor
        for index, processor in enumerate(unet.attn_processors.values())
        if isinstance(processor, IPAdapterAttnProcessor)
    }
    return nn.ModuleDict({"image_proj": projection, "ip_adapter": nn.ModuleDict(attention)})


def ip_adapter_weights(adapter: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """What `add_ip_adapter` returned, in the file form that `load_ip_adapter` reads."""
    names = {"image_embeds.": "proj.", "to_k_ip.0.": "to_k_ip.", "to_v_ip.0.": "to_v_ip."}
    weights = {}
    for name, weight in adapter.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    return weights


# Both see values from -1 to 1.
_PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def build_text_segmenter(tokenizer: CLIPTokenizer) -> CLIPSegForImageSegmentation:
    """CLIPSeg, on 16 x 16 patches of 256 x 256 pixels, with the decoder that draws finer than its patches."""
    config = CLIPSegConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 320,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": 256,
            "patch_size": 16,
        },
        projection_dim=64,
        extract_layers=[0, 2, 4],
        reduce_dim=64,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    decoder = model.decoder
    # upstream leaves these at a standard deviation of 1, as it only ever loads them
    for module in (decoder.film_mul, decoder.film_add, *decoder.reduces, *decoder.transposed_convolution):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def build_text_segmenter_processor(tokenizer: CLIPTokenizer) -> CLIPSegProcessor:
    return CLIPSegProcessor(ViTImageProcessorPil(size={"height": 256, "width": 256}, **_PIXELS), tokenizer)


def build_mask_generator() -> SamModel:
    """SAM (Kirillov et al., arXiv 2304.02643), on 16 x 16 patches of 256 x 256 pixels; its masks have 64 x 64.

    It is trained and used with `multimask_output=False`; the three masks of `multimask_output=True` stay untrained.
    """
    config = SamConfig(
        vision_config={
            "hidden_size": 96,
            "output_channels": 64,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "mlp_dim": 192,
            "image_size": 256,
            "patch_size": 16,
            "num_pos_feats": 32,
            "use_rel_pos": False,
            "window_size": 0,
        },
        prompt_encoder_config={"hidden_size": 64, "image_size": 256, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 64},
    )
    model = SamModel(config)
    # upstream draws the frequencies of places with a deviation of half the encoder's width: too fine to learn from
    nn.init.normal_(model.shared_image_embedding.positional_embedding.requires_grad_(False))
    return model


def build_mask_generator_processor() -> SamProcessor:
    side = {"height": 256, "width": 256}
    return SamProcessor(SamImageProcessorPil(size={"longest_edge": 256}, pad_size=side, **_PIXELS))


def build_depth_estimator() -> DPTForDepthEstimation:
    """DPT (Ranftl et al., arXiv 2103.13413), on 8 x 8 patches of 128 x 128 pixels; its depth is twice as fine."""
    config = DPTConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=128,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[24, 32, 48, 64],
        fusion_hidden_size=32,
    )
    model = DPTForDepthEstimation(config)
    # upstream's head ends in a ReLU: it would never learn where it began below 0
    nn.init.constant_(model.head.head[-2].bias, 0.5)
    return model


def build_depth_estimator_processor() -> DPTImageProcessorPil:
    return DPTImageProcessorPil(size={"height": 128, "width": 128}, **_PIXELS)
