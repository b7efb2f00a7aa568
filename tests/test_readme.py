"""The README's Python runs as it stands, on the embedded checkpoint instead of SDXL."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import ModularPipeline

from modular_diffdiff import SDXLDiffDiffAutoBlocks
from modular_diffdiff.still_life import CHECKPOINT

from .helpers import picture, seeded


README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def run(code: str) -> dict:
    names = {}
    exec(code.replace(f'"{SDXL}"', repr(str(CHECKPOINT))), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(64, 48).save("photo.png")
    picture(64, 48, seed=1).convert("L").save("map.png")


@pytest.mark.usefixtures("folder")
def test_the_whole_pipeline(monkeypatch, capsys):
    pipe = SDXLDiffDiffAutoBlocks().init_pipeline(CHECKPOINT)
    pipe.load_components(dtype=torch.float32)
    monkeypatch.setattr(ModularPipeline, "from_pretrained", lambda repo, trust_remote_code: pipe)
    monkeypatch.setattr(pipe, "load_components", lambda **options: None)
    monkeypatch.setattr(pipe, "to", lambda device: pipe)  # the README's GPU
    assert run(BLOCKS[0])["image"].size == (48, 64)
    assert "diffdiff_map" in capsys.readouterr().out


@pytest.mark.parametrize("block", [1, 2])
def test_blocks_and_models_of_ones_own(block):
    pipe = run(BLOCKS[block])["pipe"]
    pipe.load_components(dtype=torch.float32)
    images = pipe(
        prompt="a pear",
        image=picture(64, 64),
        diffdiff_map=torch.zeros(64, 64),
        num_inference_steps=2,
        generator=seeded(),
        output="images",
    )
    assert images[0].size == (64, 64)


def test_there_are_three_ways():
    assert len(BLOCKS) == 3
