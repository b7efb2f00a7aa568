"""How the segmenter, the mask generator and the depth estimator of the still lifes are trained."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForMaskGeneration,
    AutoProcessor,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
)

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


@pytest.fixture(scope="module")
def objects():
    """(B, 2, 64, 64): where the objects of some scenes are; half of these show two."""
    seen = torch.from_numpy(np.stack([train_sources.see(seed, 64) for seed in range(8)])).permute(0, 3, 1, 2) / 255
    return seen[:, 3:5]


def test_things_are_objects_of_their_scene_or_its_background(objects):
    rng, counts = np.random.default_rng(0), np.zeros(3, int)
    for _ in range(20):
        for pair, prompts in zip(objects, train_sources.things(objects, rng), strict=True):
            assert len(prompts) == train_sources.PROMPTS
            for thing in prompts:
                named = [torch.equal(thing, wanted) for wanted in (*pair, 1 - pair.amax(0))]
                assert sum(named) == 1
                assert thing.max() > 0
                counts += named
    assert counts[2] / counts.sum() == pytest.approx(train_sources.BEHIND, abs=0.05)
    assert counts.min() > 0


def test_points_lie_on_the_thing_or_beside_it(objects):
    rng, asked = np.random.default_rng(0), set()
    for _ in range(20):
        wanted = train_sources.things(objects, rng)
        prompt = train_sources.point_at(wanted, rng)
        points, labels = prompt["input_points"], prompt["input_labels"]
        assert points.shape == (*labels.shape, 2)
        for things, *asked_here in zip(wanted.flatten(0, 1), points.flatten(0, 1), labels.flatten(0, 1), strict=True):
            for (x, y), label in zip(*asked_here, strict=True):
                assert bool(things[int(y), int(x)] > 0.5) == bool(label)
        asked.add((int((labels[0, 0] == 1).sum()), int((labels[0, 0] == 0).sum())))
    assert asked == {(on, beside) for on in range(1, train_sources.POINTS + 1) for beside in (0, 1)}


def test_boxes_are_off_by_no_more_than_their_share_of_a_side(objects):
    rng, furthest = np.random.default_rng(0), 0.0
    for _ in range(20):
        wanted = train_sources.things(objects, rng)
        boxes = train_sources.box_in(wanted, rng)["input_boxes"]
        assert boxes.shape == (*wanted.shape[:2], 4)
        for thing, box in zip(wanted.flatten(0, 1), boxes.flatten(0, 1), strict=True):
            inside = np.argwhere(thing.numpy() > 0.5)[:, ::-1]
            first, last = np.min(inside, 0), np.max(inside, 0) + 1
            off = (box.numpy() - [*first, *last]) / np.tile(last - first, 2)
            assert 0 <= box.min() <= box.max() <= 64
            furthest = max(furthest, abs(off).max())
    assert 0.9 * train_sources.OFF < furthest <= train_sources.OFF + 1e-6


def test_masks_are_wrong_by_cross_entropy_dice_loss_and_misjudged_overlap():
    torch.manual_seed(0)
    logits, wanted, judged = torch.randn(2, 3, 8, 8), (torch.rand(2, 3, 8, 8) > 0.5).float(), torch.rand(2, 3)
    losses = []
    for said, true, guess in zip(logits.flatten(0, 1), wanted.flatten(0, 1), judged.flatten(), strict=True):
        found = 1 / (1 + (-said).exp())
        entropy = -(true * found.log() + (1 - true) * (1 - found).log()).mean()
        dice = 1 - 2 * (found * true).sum() / (found.sum() + true.sum())
        overlap = (found * true).sum() / (found + true - found * true).sum()
        losses.append(entropy + train_sources.DICE * dice + (guess - overlap) ** 2)
    torch.testing.assert_close(train_sources.mismasked(logits, judged, wanted), torch.stack(losses).mean())


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
    steps = ["--segmenter-steps=1", "--mask-steps=1", "--depth-steps=1"]
    arguments = [str(tmp_path / "work"), "--scenes=4", "--batch=2", *steps, f"--out={tmp_path / 'out'}"]
    train_sources.main(arguments)
    for kind, name in (
        (CLIPSegForImageSegmentation, "text_segmenter"),
        (CLIPSegProcessor, "text_segmenter"),
        (AutoModelForMaskGeneration, "mask_generator"),
        (AutoProcessor, "mask_generator"),
        (AutoModelForDepthEstimation, "depth_estimator"),
    ):
        assert kind.from_pretrained(tmp_path / "out" / name)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    train_sources.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == trained  # nothing twice
