"""What people read: `pipe.doc` and `print(pipe.blocks)`; `test_hub.py` has `diffusers-cli schema`."""

import functools
import inspect
import re
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
from diffusers import ModularPipeline
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

import modular_diffdiff
from modular_diffdiff import (
    DiffDiffCallbackStep,
    DiffDiffFanStep,
    SDXLDiffDiffAutoBlocks,
    SDXLDiffDiffBlocks,
    families,
    videos,
)
from modular_diffdiff.blocks import diffdiff_docs, diffdiff_loop

from .helpers import build, picture


PACKAGE = Path(modular_diffdiff.__file__).parent


ROOT = PACKAGE.parent
FOLDERS = (ROOT, ROOT / "docs", ROOT / "benchmarks", PACKAGE, PACKAGE / "still_life")
PAGES = [page for folder in FOLDERS for page in folder.glob("*.md") if not page.is_symlink()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost


class Brightness(ModularPipelineBlocks):
    """Somebody else's block."""

    @property
    def inputs(self):
        return [InputParam("brightness", type_hint=float, default=0.5, description="How bright it is.")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("glow", type_hint=float, description="What shines.")]

    def __call__(self, components, state):
        return components, state


def with_a_foreign_block() -> SDXLDiffDiffBlocks:
    blocks = SDXLDiffDiffBlocks()
    blocks.sub_blocks.insert("lamp", Brightness(), 0)
    return blocks


FAMILIES = [
    member
    for name, member in [*vars(families).items(), *vars(videos).items()]
    if name.endswith("DiffDiffAutoBlocks") and member is not families.FamilyDiffDiffAutoBlocks
]
BLOCKS = {
    "plain": SDXLDiffDiffBlocks,
    "automatic": SDXLDiffDiffAutoBlocks,
    "workflow": lambda: SDXLDiffDiffAutoBlocks().get_workflow("controlnet_union_diffdiff"),
    "execution": lambda: SDXLDiffDiffBlocks().get_execution_blocks(prompt="a pear"),
    "with a foreign block": with_a_foreign_block,
    **{family.__name__: family for family in FAMILIES},
    **{
        f"workflow of {family.__name__}": functools.partial(lambda own: own().get_workflow("diffdiff"), family)
        for family in FAMILIES
    },
}


@pytest.mark.parametrize("blocks", BLOCKS)
def test_every_input_and_output_has_a_type_and_a_sentence(blocks):
    blocks = BLOCKS[blocks]()
    for param in [*blocks.inputs, *blocks.outputs, *blocks.intermediate_outputs]:
        assert param.type_hint is not None, param
        assert len(param.description or "") > 10, param
        assert param.description.endswith("."), param
    for text in (blocks.doc, str(blocks)):
        assert "TODO" not in text
        assert "None\n" not in text
    assert blocks.description


def test_required_is_what_a_run_cannot_do_without():
    required = {param.name for param in SDXLDiffDiffBlocks().inputs if param.required}
    assert required == {"prompt", "image"}  # of the sources of maps, any
    assert set(SDXLDiffDiffBlocks().get_workflow("diffdiff").required_inputs) == {"prompt", "image", "diffdiff_map"}
    blocks = SDXLDiffDiffBlocks()
    blocks.sub_blocks.pop("text_encoder")
    blocks.sub_blocks.pop("image_encoder")
    required = {param.name for param in blocks.inputs if param.required}
    assert required == {"prompt_embeds", "pooled_prompt_embeds", "image_latents"}


@pytest.mark.parametrize("blocks", ["automatic", *(family.__name__ for family in FAMILIES)])
def test_with_a_map_required_is_a_prompt_an_image_and_the_map(blocks):
    blocks = BLOCKS[blocks]()
    required = set(blocks.get_workflow("diffdiff").required_inputs)
    assert required == ({"prompt", "video"} if "video" in blocks.input_names else {"prompt", "image", "diffdiff_map"})


def loops_of(block) -> list[diffdiff_loop.DiffDiffLoop]:
    inner = [loop for child in block.sub_blocks.values() for loop in loops_of(child)]
    return [block, *inner] if isinstance(block, diffdiff_loop.DiffDiffLoop) else inner


@pytest.mark.parametrize("blocks", ["automatic", *(family.__name__ for family in FAMILIES)])
def test_a_loop_takes_what_upstream_finds_that_its_blocks_take(blocks):
    loops = loops_of(BLOCKS[blocks]())
    assert loops
    for loop in loops:
        said, found = (
            [(param.name, param.kwargs_type, param.default, param.required) for param in params]
            for params in (loop.inputs, LoopSequentialPipelineBlocks.inputs.fget(loop))
        )
        assert said == found


def test_without_a_map_required_is_what_text_to_image_needs():
    assert SDXLDiffDiffAutoBlocks().required_inputs == ["prompt"]


@pytest.mark.parametrize("blocks", ["plain", "workflow"])
def test_defaults_are_those_that_a_run_takes(blocks):
    blocks = BLOCKS[blocks]()
    documented = {param.name: param.default for param in blocks.inputs if param.name}
    for block in blocks.sub_blocks.values():
        for param in block.inputs:
            if param.name and param.default is not None:
                assert documented[param.name] == param.default, param


def test_the_version_is_the_same_everywhere():
    (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == version("modular-diffdiff")
    released = re.findall(r"^## (\d.*?) ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert not released or released[0] == cited


def test_no_sentence_is_left_over():
    blocks = SDXLDiffDiffAutoBlocks()
    others = [*DiffDiffFanStep().inputs, *DiffDiffCallbackStep().inputs]
    used = {param.name for param in [*blocks.inputs, *blocks.intermediate_outputs, *others]}
    for family in FAMILIES:
        for branch in family().sub_blocks.values():
            used |= {param.name for param in [*branch.inputs, *branch.intermediate_outputs]}
    assert set(diffdiff_docs.INPUTS) | set(diffdiff_docs.OUTPUTS) <= used


def test_the_inputs_of_somebody_elses_block_keep_their_words():
    doc = with_a_foreign_block().doc
    assert "brightness (`float`, *optional*, defaults to 0.5)" in doc
    assert "How bright it is." in doc
    assert "What shines." in doc


def test_the_example_in_the_docs_runs(tiny, tmp_path, monkeypatch):
    lines = SDXLDiffDiffBlocks().description.split("Example:\n")[1]
    monkeypatch.chdir(tmp_path)
    picture().save("photo.png")
    picture(seed=1).convert("L").save("map.png")
    pipe = build(SDXLDiffDiffBlocks(), tiny)
    monkeypatch.setattr(
        pipe, "load_components", lambda workflow, dtype: None
    )  # fp16 on a GPU; the tiny parts are here already
    monkeypatch.setattr(pipe, "to", lambda device: pipe)
    monkeypatch.setattr(ModularPipeline, "from_pretrained", lambda repo, trust_remote_code: pipe)
    names = {}
    exec(textwrap.dedent(lines), names)
    assert names["image"].size == (32, 32)


@pytest.mark.parametrize("name", modular_diffdiff.__all__)
def test_public_names_are_documented(name):
    public = getattr(modular_diffdiff, name)
    if inspect.isclass(public):
        assert public.__doc__
        # objects of the two bases are made by `add_diffdiff`, and by a family's class
        if issubclass(public, ModularPipelineBlocks) and name not in ("DiffDiffAutoBlocks", "FamilyDiffDiffAutoBlocks"):
            assert public().description
            for param in [*public().inputs, *public().intermediate_outputs]:
                assert param.type_hint is not None, param
                assert param.description.endswith("."), param
