"""`ComponentsManager`: components shared between pipelines, and offload to the CPU, on a pretended accelerator."""

import copy

import pytest
import torch
from diffusers import ComponentsManager, StableDiffusionXLPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.utils.torch_utils import TorchDeviceBackend

from modular_diffdiff import TEXT2IMAGE_BLOCKS, SDXLDiffDiffAutoBlocks, encode_once, loading

from .helpers import diffdiff, picture, seeded


def managed(manager, tiny, collection: str, blocks=None):
    pipe = (blocks or SDXLDiffDiffAutoBlocks()).init_pipeline(components_manager=manager, collection=collection)
    pipe.update_components(**{name: part for name, part in tiny.items() if name in pipe.component_names})
    return pipe


def run(pipe, **options):
    defaults = {
        "prompt": "a green pear",
        "image": picture(),
        "diffdiff_map": torch.zeros(32, 32),
        "num_inference_steps": 2,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**(defaults | options))


def text_to_image():
    return SequentialPipelineBlocks.from_blocks_dict(TEXT2IMAGE_BLOCKS)


def test_a_second_pipeline_takes_the_same_objects(tiny):
    manager = ComponentsManager()
    ours = managed(manager, tiny, "sdxl")
    theirs = text_to_image().init_pipeline(components_manager=manager, collection="sdxl")
    shared = manager.get_components_by_names(["unet", "vae", "text_encoder", "text_encoder_2"], collection="sdxl")
    theirs.update_components(**shared, **{name: tiny[name] for name in ("tokenizer", "tokenizer_2", "scheduler")})
    for name in shared:
        assert getattr(ours, name) is getattr(theirs, name)
    images = theirs(prompt="a cup", height=32, width=32, num_inference_steps=2, generator=seeded(), output="images")
    assert images[0].size == (32, 32)
    assert run(ours).latents.isfinite().all()
    assert len([name for name in manager.components if name.startswith("unet")]) == 1


def test_two_collections_keep_two_unets_apart(tiny):
    manager = ComponentsManager()
    other_unet = copy.deepcopy(tiny["unet"])
    with torch.no_grad():
        other_unet.conv_out.bias += 1
    first = managed(manager, tiny, "first")
    second = managed(manager, tiny | {"unet": other_unet}, "second")
    assert first.unet is tiny["unet"]
    assert second.unet is other_unet
    assert not torch.equal(run(first).latents, run(second).latents)


def test_an_updated_component_reaches_the_pipeline(tiny):
    manager = ComponentsManager()
    pipe = managed(manager, tiny, "sdxl")
    before = run(pipe).latents
    other_unet = copy.deepcopy(tiny["unet"])
    with torch.no_grad():
        other_unet.conv_out.bias += 1
    pipe.update_components(unet=other_unet)
    assert manager.get_one(name="unet", collection="sdxl") is other_unet
    assert not torch.equal(run(pipe).latents, before)


class PretendedAccelerator:
    """Notes where models are said to be, and how much free memory that leaves; everything stays on the CPU."""

    device = torch.device("cpu:0")

    def __init__(self, models: dict, capacity: int):
        self.names = {id(model): name for name, model in models.items()}
        self.models = models
        self.capacity = capacity
        self.resident: set[str] = set()
        self.moves: list[tuple[str, str]] = []
        self.fullest = 0

    def used(self) -> int:
        return sum(self.models[name].get_memory_footprint() for name in self.resident)

    def move(self, model, device) -> None:
        name = self.names[id(model)]
        arrives = torch.device(device) == self.device
        if arrives != (name in self.resident):
            self.moves.append(("in" if arrives else "out", name))
        (self.resident.add if arrives else self.resident.discard)(name)
        self.fullest = max(self.fullest, self.used())


@pytest.fixture
def accelerator(tiny, segmenter, monkeypatch):
    models = {name: tiny[name] for name in ("text_encoder", "text_encoder_2", "unet", "vae")}
    models["text_segmenter"] = segmenter["text_segmenter"]
    sizes = {name: model.get_memory_footprint() for name, model in models.items()}
    accelerator = PretendedAccelerator(models, capacity=max(sizes.values()) + min(sizes.values()) + 1)
    assert accelerator.capacity < sum(sizes.values())
    for model_class in {type(model) for model in models.values()}:
        where = property(
            lambda model: (
                accelerator.device if accelerator.names.get(id(model)) in accelerator.resident else torch.device("cpu")
            )
        )
        monkeypatch.setattr(model_class, "device", where)

        def to(model, device, *args, **kwargs):
            accelerator.move(model, device)
            return model

        monkeypatch.setattr(model_class, "to", to)
    free = lambda backend: (accelerator.capacity - accelerator.used(), accelerator.capacity)  # noqa: E731
    monkeypatch.setattr(TorchDeviceBackend, "mem_get_info", free)
    return accelerator


def test_an_edit_runs_whose_models_do_not_fit_together(tiny, accelerator):
    expected = run(diffdiff(tiny, guidance_scale=7.5), output_type="pt")
    manager = ComponentsManager()
    pipe = managed(manager, tiny, "sdxl")
    manager.enable_auto_cpu_offload(device=accelerator.device, memory_reserve_margin="0MB")
    try:
        state = run(pipe, output_type="pt")
    finally:
        manager.disable_auto_cpu_offload()
    assert torch.equal(state.latents, expected.latents)
    assert torch.equal(state.images, expected.images)
    # each model comes in when it is needed, in this order, and what is in the way goes out before
    arrivals = [name for way, name in accelerator.moves if way == "in"]
    assert list(dict.fromkeys(arrivals)) == ["text_encoder", "text_encoder_2", "vae", "unet"]
    assert any(way == "out" for way, _ in accelerator.moves[: accelerator.moves.index(("in", "unet"))])
    assert accelerator.fullest <= accelerator.capacity


def test_a_segmenter_comes_in_for_the_words_and_makes_room_for_the_rest(tiny, segmenter, accelerator):
    manager = ComponentsManager()
    pipe = managed(manager, tiny | segmenter, "sdxl")
    asked = {"diffdiff_map": None, "map_text": "the apple", "map_text_threshold": 0.5}
    expected = run(pipe, **asked)
    manager.enable_auto_cpu_offload(device=accelerator.device, memory_reserve_margin="0MB")
    try:
        state = run(pipe, **asked)
    finally:
        manager.disable_auto_cpu_offload()
    assert torch.equal(state.latents, expected.latents)
    arrivals = [name for way, name in accelerator.moves if way == "in"]
    assert list(dict.fromkeys(arrivals)) == ["text_segmenter", "text_encoder", "text_encoder_2", "vae", "unet"]
    assert ("out", "text_segmenter") in accelerator.moves
    assert accelerator.fullest <= accelerator.capacity


def test_an_encoder_that_remembers_stays_away(tiny, accelerator):
    manager = ComponentsManager()
    pipe = managed(manager, tiny, "sdxl")
    manager.enable_auto_cpu_offload(device=accelerator.device, memory_reserve_margin="0MB")
    try:
        with encode_once(pipe):
            run(pipe)
            accelerator.moves.clear()
            run(pipe)
    finally:
        manager.disable_auto_cpu_offload()
    assert {name for way, name in accelerator.moves if way == "in"} <= {"unet", "vae"}


def test_our_blocks_move_no_model(tiny, accelerator):
    """Without offload nothing is said to move: the blocks ask `_execution_device` where to be."""
    run(managed(ComponentsManager(), tiny, "sdxl"))
    assert accelerator.moves == []


def test_the_command_line_offloads_through_the_manager(tiny, tmp_path, monkeypatch):
    """All models are the manager's before it takes over, on the device that was asked for."""
    StableDiffusionXLPipeline(**tiny).save_pretrained(tmp_path)
    taken_over = []

    def enable(manager, device):
        taken_over.append((device, {name.rsplit("_", 1)[0] for name in manager.components}))

    monkeypatch.setattr(ComponentsManager, "enable_auto_cpu_offload", enable)
    pipe = loading.load_pipeline(loading.Model(str(tmp_path), "cpu", "float32", offload=True), guidance_scale=2.0)
    ((device, names),) = taken_over
    assert device == "cpu"
    assert {"unet", "vae", "text_encoder", "text_encoder_2"} <= names
    assert run(pipe).latents.isfinite().all()
