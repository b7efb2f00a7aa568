"""How the segmenter and the depth estimator of the still lifes are trained."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForDepthEstimation, CLIPSegForImageSegmentation, CLIPSegProcessor

from modular_diffdiff.still_life import train_sources
from modular_diffdiff.still_life.models import build_text_segmenter, build_tokenizer
from modular_diffdiff.still_life.scene import COLOURS, KINDS, masks, render


def test_words_name_the_objects_that_they_fit():
    rng, backgrounds, absent = np.random.default_rng(0), 0, 0
    for seed in range(400):
        scene = train_sources.scene_of(seed)
        words, named = train_sources.ask(scene, rng)
        said = set(words.split()) & {*KINDS, *COLOURS}
        if named is None:
            backgrounds += 1
            assert not said
            continue
        assert said
        assert named == [said <= {item.kind, item.colour} for item in scene.items]
        absent += not any(named)
    assert backgrounds > 10 < absent


def test_the_truth_is_where_each_object_is():
    for seed in range(12):
        scene = train_sources.scene_of(seed)
        where = masks(scene, 64)
        seen = train_sources.see(seed, 64)
        first, second, nearness = np.moveaxis(seen[..., 3:], 2, 0)
        np.testing.assert_array_equal(seen[..., :3], render(scene, 64))
        assert (second.max() > 0) == (scene.beside is not None)
        np.testing.assert_array_equal(first, np.minimum(where[scene.kind], where[scene.colour]))
        assert (nearness[np.maximum(first, second) == 0] == 0).all()
        assert (nearness[np.maximum(first, second) == 255] > 0).all()


def test_a_scene_is_mirrored_with_its_truth():
    seen = torch.from_numpy(np.stack([train_sources.see(seed, 64) for seed in range(4)]))
    seeds, pixels, truth = train_sources.draw(seen, 16, torch.Generator().manual_seed(0))
    mirrored = 0
    for seed, drawn in zip(seeds, torch.cat([(pixels + 1) / 2, truth], 1), strict=True):
        stored = seen[seed].permute(2, 0, 1) / 255
        mirrored += torch.allclose(drawn, stored.flip(2), atol=1e-6)
        assert torch.allclose(drawn, stored, atol=1e-6) or torch.allclose(drawn, stored.flip(2), atol=1e-6)
    assert 0 < mirrored < 16


def test_patches_are_named_by_what_they_show_most_of():
    scenes = [train_sources.scene_of(seed) for seed in range(8)]
    seen = torch.from_numpy(np.stack([train_sources.see(seed, 64) for seed in range(8)])).permute(0, 3, 1, 2) / 255
    kinds, colours = (names.view(8, 4, 4) for names in train_sources.names_of(scenes, seen[:, 3:5], 16))
    for scene, objects, *named in zip(scenes, seen[:, 3:5], kinds, colours, strict=True):
        for row in range(4):
            for column in range(4):
                patch = objects[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean((1, 2)).tolist()
                most = int(np.argmax([1 - sum(patch), *patch]))
                item = scene.items[most - 1] if most else None
                for names, label, what in zip((KINDS, list(COLOURS)), named, ("kind", "colour"), strict=True):
                    expected = 1 + names.index(getattr(item, what)) if item else 0
                    assert label[row, column] == expected


def test_training_sees_what_upstreams_forward_gives():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_text_segmenter(tokenizer).eval()
    pixels = torch.randn(3, 3, 256, 256)
    tokens = tokenizer(["the red apple", "a cup", "the background"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokens).logits
        logits, _ = train_sources.segment(model, pixels, tokens)
    torch.testing.assert_close(logits, expected)


@pytest.mark.usefixtures("here")
def test_the_script_makes_models_that_load(tmp_path):
    arguments = [str(tmp_path / "work"), "--scenes=4", "--segmenter-steps=1", "--depth-steps=1", "--batch=2"]
    arguments += [f"--out={tmp_path / 'out'}"]
    train_sources.main(arguments)
    for kind, name in (
        (CLIPSegForImageSegmentation, "text_segmenter"),
        (CLIPSegProcessor, "text_segmenter"),
        (AutoModelForDepthEstimation, "depth_estimator"),
    ):
        assert kind.from_pretrained(tmp_path / "out" / name)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    train_sources.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == trained  # nothing twice
