"""The training script: the real one, with few steps."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import nn

from modular_diffdiff.still_life import train
from modular_diffdiff.still_life.models import build_tokenizer, build_vae
from modular_diffdiff.still_life.scene import SIZE, Item, Scene, render


def fit(work, steps: int, lose_power_at: int | None = None) -> nn.ModuleDict:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 8), nn.Conv1d(8, 4, 1)), "last": nn.Linear(4, 4)})
    calls = 0

    def loss(generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == lose_power_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=generator)
        return (answer(model, x) - x.flip(1)).square().mean()

    train.fit("toy", nn.ModuleDict({"model": model}), loss, steps, 0.1, work, ema_decay=0.9)
    return model


def answer(model: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    linear, convolution = model["blocks"]
    return model["last"](convolution(linear(x)[..., None])[..., 0])


@pytest.mark.parametrize("lose_power_at", [2, 5, 6, 9])
def test_a_killed_stage_goes_on_to_where_an_unbroken_one_ends(tmp_path, monkeypatch, lose_power_at):
    monkeypatch.setattr(train, "SAVE_EVERY", 4)
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = fit(tmp_path / "whole", 10)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", 10, lose_power_at)
    resumed = fit(tmp_path / "broken", 10)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["toy.safetensors"]


def test_a_stage_learns(tmp_path):
    model = fit(tmp_path, 400)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(answer(model, x), x.flip(1), rtol=0, atol=0.1)


def test_a_step_of_muon_moves_blocks_alike_in_all_directions_and_adamw_the_rest():
    """Muon's update of a matrix has singular values of one size; a convolution's rows are its output channels."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"blocks": nn.Conv2d(3, 8, 3), "last": nn.Linear(5, 8)})
    before = {name: weight.detach().clone() for name, weight in modules.named_parameters()}
    optimizer = train.muon_and_adamw(modules, 0.1)
    loss = modules["blocks"](torch.randn(2, 3, 5, 5)).square().sum() + modules["last"](torch.randn(6, 5)).square().sum()
    loss.backward()
    optimizer.step()
    moved = {name: weight.detach() - 0.99 * before[name] for name, weight in modules.named_parameters()}
    values = torch.linalg.svdvals(moved["blocks.weight"].flatten(1))
    assert values.max() < 2 * values.min()
    # AdamW's first step is the learning rate in every element, but for the decay
    torch.testing.assert_close(moved["last.weight"].abs(), torch.full((8, 5), 0.05), rtol=0.2, atol=0)
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in modules.parameters())


def test_normalizing_changes_the_latents_scale_and_no_picture():
    torch.manual_seed(0)
    vae = build_vae().eval()
    pixels = torch.rand(6, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist.mean
        pictures = vae.decode(before).sample
        normalized = train.normalize_latents(vae, before)
        after = vae.encode(pixels).latent_dist.mean
        torch.testing.assert_close(after * vae.config.scaling_factor, normalized, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(vae.decode(after).sample, pictures, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalized.std((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-4)


def test_an_original_has_another_object_on_the_same_ground():
    for seed in range(20):
        scene, original = train.training_scene(seed), train.original_of(seed)
        assert scene.kind != original.kind
        assert scene.colour != original.colour
        assert (scene.background, scene.beside) == (original.background, original.beside)
        corners = [render(one, 64)[:6, [0, 1, 2, -3, -2, -1]] for one in (scene, original)]
        np.testing.assert_array_equal(*corners)


def test_captions_leave_things_open_and_say_nothing_wrong():
    rng = np.random.default_rng(0)
    scene = Scene("apple", "orange", "striped")
    captions = [train.caption(scene, rng) for _ in range(2000)]
    assert 0.01 < captions.count("") / len(captions) < 0.06
    assert scene.caption in captions
    assert any("apple" not in caption for caption in captions if caption)
    assert any("orange" not in caption for caption in captions if caption)
    assert not any(other in caption for other in ("pear", "checked", "green") for caption in captions)
    assert not any(f"a {vowel}" in caption for vowel in ("apple", "orange", "object") for caption in captions)


def test_captions_name_both_objects_in_their_order():
    rng = np.random.default_rng(0)
    scene = Scene("apple", "red", "tabletop", beside=Item("cup", "orange"))
    captions = [train.caption(scene, rng, left_open=0) for _ in range(100)]
    assert all("a red apple and an orange cup" in caption for caption in captions if caption)


def test_the_words_of_a_caption_are_one_token_each_and_any_text_can_be_written():
    tokenizer = build_tokenizer()
    for seed in range(50):
        words = Scene.random(seed).caption.split()
        assert tokenizer.tokenize(" ".join(words)) == [f"{word}</w>" for word in words]
    assert tokenizer.decode(tokenizer("Zürich, 東京 42", add_special_tokens=False).input_ids).replace(" ", "") == (
        "zürich,東京42"
    )


def test_what_other_processes_compute_comes_in_order():
    assert list(train.in_parallel(str, 40)) == [str(seed) for seed in range(40)]


@pytest.mark.usefixtures("here")
def test_the_script_makes_a_checkpoint_that_loads(tmp_path):
    steps = [f"--{stage}-steps=1" for stage in ("vae", "judge", "unet")]
    outputs = [f"--out={tmp_path / 'checkpoint'}", f"--judge-out={tmp_path / 'judge.safetensors'}"]
    arguments = [str(tmp_path / "work"), "--scenes=4", "--unet-batch=2", *steps, *outputs]
    train.main(arguments)
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "checkpoint", torch_dtype=torch.float32)
    assert pipe("an apple", num_inference_steps=1).images[0].size == (SIZE, SIZE)
    assert load_file(tmp_path / "judge.safetensors")
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    train.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == trained  # nothing twice
