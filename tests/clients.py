"""Fresh processes that know the loopback Hub and nothing else, and what that Hub holds."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from modular_diffdiff.still_life import CHECKPOINT, COMPANIONS, FLOW_CHECKPOINT, IP_ADAPTER_NAME

from . import fresh
from .hub import TOKEN, Hub


BIN = Path(sys.executable).parent


def environment(hub: Hub | None, home: Path, **more: str) -> dict[str, str]:
    """Of a process with its caches in `home`; without a Hub it is offline."""
    network = {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    return {
        "PATH": f"{BIN}{os.pathsep}/usr/bin:/bin",
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **network,
        **more,
    }


def run_python(code: str, hub: Hub | None, home: Path, folder: Path | None = None, **more: str) -> str:
    """What the code prints; it must not fail."""
    return _run(("-c", textwrap.dedent(code)), hub, home, folder, **more)


def run_command(command: list[str], hub: Hub | None, home: Path) -> str:
    """What one of the environment's commands prints; it must not fail."""
    program, *arguments = command
    return _run((shutil.which(program, path=BIN), *arguments), hub, home)


def _run(arguments: Sequence[str], hub: Hub | None, home: Path, folder: Path | None = None, **more: str) -> str:
    result = fresh.run(*arguments, folder=folder or home, environment=environment(hub, home, **more))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files_in(folder: str | Path) -> dict[str, Path]:
    """Every file in a folder, by its name there."""
    return {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}


def _with_fp16_variant(files: dict[str, Path]) -> dict[str, Path]:
    """Weights under the names of both: the embedded ones are float16."""
    weights = {name: path for name, path in files.items() if name.endswith(".safetensors")}
    return files | {name.replace(".safetensors", ".fp16.safetensors"): path for name, path in weights.items()}


def add_models(hub: Hub, folder: Path) -> None:
    """Stand-ins for the weights that `modular_model_index.json` and the documents name: the embedded model's."""
    checkpoint, companions = _with_fp16_variant(files_in(CHECKPOINT)), _with_fp16_variant(files_in(COMPANIONS))

    def under(part: str, files: dict[str, Path]) -> dict[str, Path]:
        return {name.removeprefix(f"{part}/"): path for name, path in files.items() if name.startswith(f"{part}/")}

    hub.add("stabilityai/stable-diffusion-xl-base-1.0", checkpoint)
    hub.add("madebyollin/sdxl-vae-fp16-fix", under("vae", checkpoint))
    hub.add("diffusers/controlnet-canny-sdxl-1.0", under("controlnet", companions))
    hub.add("xinsir/controlnet-union-sdxl-1.0", under("controlnet_union", companions))
    hub.add("Tongyi-MAI/Z-Image-Turbo", files_in(FLOW_CHECKPOINT))
    torch.manual_seed(0)
    # the pipeline's feature extractor makes pictures of 224 pixels
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    adapter = {f"sdxl_models/{name}": path for name, path in files_in(folder).items()}
    adapter["sdxl_models/ip-adapter_sdxl.safetensors"] = Path(COMPANIONS, "ip_adapter", IP_ADAPTER_NAME)
    hub.add("h94/IP-Adapter", adapter)
