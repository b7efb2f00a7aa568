import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    WanPipeline,
)
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modular_diffdiff import publishing
from modular_diffdiff.publishing import BLOCKS_REPO, CHECKPOINT_REPO
from modular_diffdiff.still_life.models import build_tokenizer

from .clients import add_models, files_in
from .families import WIDTH, WORDS
from .helpers import let_it_speak, widen
from .hub import Hub
from .videos import wan


gc.freeze()  # what has been imported stays: garbage is found faster without it
LICENSE = Path(publishing.__file__).parent.parent / "LICENSE"


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def _text_config(tokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_unet(in_channels: int = 4, cross_attention_dim: int = 32, time_ids: int = 6) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        cross_attention_dim=cross_attention_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=time_ids * 8 + 16,
    ).eval()


@pytest.fixture(scope="session")
def tiny(tokenizer) -> dict:
    """SDXL's components, tiny and random; the autoencoder has the factor 8."""
    torch.manual_seed(0)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        "unet": tiny_unet(),
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.13025,
            force_upcast=False,
        ).eval(),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
    }


@pytest.fixture(scope="session")
def controlnet(tiny):
    torch.manual_seed(1)
    return let_it_speak(ControlNetModel.from_unet(tiny["unet"], conditioning_embedding_out_channels=(4, 4, 8, 8)))


@pytest.fixture(scope="session")
def union(tiny):
    torch.manual_seed(2)
    unet = tiny["unet"].config
    names = (
        "down_block_types",
        "block_out_channels",
        "layers_per_block",
        "attention_head_dim",
        "norm_num_groups",
        "cross_attention_dim",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    )
    return let_it_speak(
        ControlNetUnionModel(
            **{name: unet[name] for name in names},
            conditioning_embedding_out_channels=(4, 4, 8, 8),
            num_trans_channel=16,
            num_proj_channel=16,
            num_trans_head=2,
            num_control_type=4,
        )
    )


@pytest.fixture(scope="session")
def image_encoder():
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    return CLIPVisionModelWithProjection(config).eval()


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A Hub with stand-ins for all weights, and with the collection and the checkpoint as they are published."""
    with Hub() as hub:
        add_models(hub, tmp_path_factory.mktemp("models"))
        for repo, content in (
            (BLOCKS_REPO, publishing.blocks_of("sdxl")),
            (CHECKPOINT_REPO, publishing.still_life()),
        ):
            folder = tmp_path_factory.mktemp("published")
            content.assemble(folder)
            hub.add(repo, {".gitattributes": b"", "LICENSE": LICENSE.read_bytes(), **files_in(folder)})
        yield hub


@pytest.fixture(scope="session")
def segmenter(tokenizer) -> dict:
    """CLIPSeg, as small as it goes."""
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2}
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config=layers | text | {"num_hidden_layers": 1, "eos_token_id": tokenizer.eos_token_id},
        vision_config=layers | vision,
        projection_dim=8,
        extract_layers=[1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    images = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return {
        "text_segmenter": widen(CLIPSegForImageSegmentation(config)),
        "text_segmenter_processor": CLIPSegProcessor(images, tokenizer),
    }


@pytest.fixture(scope="session")
def estimator() -> dict:
    """DPT, as small as it goes."""
    config = DPTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    images = DPTImageProcessorPil(size={"height": 32, "width": 32})
    return {"depth_estimator": widen(DPTForDepthEstimation(config)), "depth_estimator_processor": images}


@pytest.fixture(scope="session")
def wan_checkpoint(tmp_path_factory) -> Path:
    """A tiny Wan checkpoint in a folder, as diffusers saves them."""
    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=len(WORDS) + 8, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    WanPipeline(**wan() | {"text_encoder": UMT5EncoderModel(config)}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder_in_memory(monkeypatch):
    """The current folder, in memory where there is such a place, for tests that wait for the disk a lot."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        monkeypatch.chdir(name)
        Path("photo.png").touch()
        yield Path(name)
