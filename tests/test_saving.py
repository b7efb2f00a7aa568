"""Saved pipelines: what `from_pretrained` makes of them in a fresh process."""

import filecmp
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import modular_diffdiff
from modular_diffdiff import (
    DiffDiffSequentialBlocks,
    SDXLDiffDiffAutoBlocks,
    SDXLDiffDiffBlocks,
    ZImageDiffDiffAutoBlocks,
)
from modular_diffdiff.still_life import CHECKPOINT, FLOW_CHECKPOINT

from .clients import run_python


PACKAGE = Path(modular_diffdiff.__file__).parent


def draw(pipe):
    """A small edit; a fresh process gets the source of this function."""
    import numpy
    import torch
    from PIL import Image

    return pipe(
        prompt="a green pear",
        image=Image.linear_gradient("L").convert("RGB").resize((64, 64)),
        diffdiff_map=numpy.linspace(0, 1, 64)[None].repeat(64, 0),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output="images",
    )[0]


LOAD = """
import torch
from diffusers import ModularPipeline
for name in {names}:
    pipe = ModularPipeline.from_pretrained(f"{{name}}/moved", trust_remote_code=True)
    pipe.load_components(dtype=torch.float32)
    draw(pipe).save(f"{{name}}/loaded.png")
    pipe.blocks.save_pretrained(f"{{name}}/again")
    print(type(pipe.blocks).__module__.split(".")[0], type(pipe.blocks).__name__)
"""
SAVED = {SDXLDiffDiffAutoBlocks: CHECKPOINT, SDXLDiffDiffBlocks: CHECKPOINT, ZImageDiffDiffAutoBlocks: FLOW_CHECKPOINT}


def test_components_and_blocks_in_one_folder_load_as_the_same_pipeline(tmp_path):
    pictures = {}
    for blocks, checkpoint in SAVED.items():
        folder, pipe = tmp_path / blocks.__name__, blocks().init_pipeline(checkpoint)
        pipe.load_components(dtype=torch.float32)
        pipe.vae.post_quant_conv.bias.data += 0.5  # weights that are nowhere else
        pipe.save_pretrained(str(folder / "saved"), overwrite_modular_index=True)
        pipe.blocks.save_pretrained(folder / "saved")
        (folder / "saved").rename(folder / "moved")  # nothing in it names where it was
        pictures[folder] = draw(pipe)
    names = [folder.name for folder in pictures]
    said = run_python(inspect.getsource(draw) + LOAD.format(names=names), None, tmp_path)
    assert said == "".join(f"diffusers_modules {name}\n" for name in names)
    for folder, picture in pictures.items():
        np.testing.assert_array_equal(Image.open(folder / "loaded.png"), picture)
        # and what was loaded as remote code is saved with its code too
        entry = "families.py" if folder.name == "ZImageDiffDiffAutoBlocks" else "presets.py"
        named = re.findall(r"^from \.blocks\.(\w+) import", (PACKAGE / entry).read_text(), re.MULTILINE)
        assert {path.stem for path in (folder / "again/blocks").iterdir()} == set(named)


def test_the_code_that_is_saved_is_the_package(tmp_path):
    SDXLDiffDiffAutoBlocks().save_pretrained(tmp_path)
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")]
    assert names
    assert filecmp.cmpfiles(tmp_path, PACKAGE, names, shallow=False)[0] == names

    def without_version(path: Path) -> str:
        return re.sub(r'"_diffusers_version": ".*"', "", path.read_text())

    config = "modular_config.json"
    assert without_version(tmp_path / config) == without_version(PACKAGE / config)


def without_restore():
    blocks = SDXLDiffDiffBlocks()
    blocks.sub_blocks["denoise"].sub_blocks.pop("restore")
    return blocks


class MyBlocks(SDXLDiffDiffBlocks):
    """Somebody's own pipeline, in a module of their own."""


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (without_restore, "these differ from `SDXLDiffDiffBlocks()`"),
        (lambda: SDXLDiffDiffAutoBlocks().get_workflow("diffdiff"), "DiffDiffSequentialBlocks is not one of"),
        (lambda: DiffDiffSequentialBlocks.from_blocks_dict({}), "is not one of the pipelines"),
        (MyBlocks, "MyBlocks is not one of the pipelines"),
    ],
)
def test_what_would_load_as_something_else_is_not_saved(tmp_path, blocks, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        blocks().save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
