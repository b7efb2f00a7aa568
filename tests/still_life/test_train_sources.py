"""How the segmenter and the depth estimator of the still lifes are trained."""

import numpy as np
import torch
from transformers import AutoModelForDepthEstimation, CLIPSegForImageSegmentation, CLIPSegProcessor

from modular_diffdiff.still_life import train_sources
from modular_diffdiff.still_life.models import build_text_segmenter, build_tokenizer
from modular_diffdiff.still_life.scene import COLOURS, KINDS, masks
from modular_diffdiff.still_life.train import training_scene


def test_words_name_the_objects_that_they_fit():
    rng, backgrounds, absent = np.random.default_rng(0), 0, 0
    for seed in range(400):
        scene = training_scene(seed)
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


def test_the_truth_is_where_each_object_is(tmp_path):
    truth = train_sources.render_truth(tmp_path, 12, 64)
    for seed, (first, second, nearness) in enumerate(truth):
        scene, where = training_scene(seed), masks(training_scene(seed), 64)
        assert (second.max() > 0) == (scene.beside is not None)
        np.testing.assert_array_equal(first, np.minimum(where[scene.kind], where[scene.colour]))
        assert (nearness[np.maximum(first, second) == 0] == 0).all()
        assert (nearness[np.maximum(first, second) == 255] > 0).all()


def test_training_sees_what_upstreams_forward_gives():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_text_segmenter(tokenizer).eval()
    pixels = torch.randn(3, 3, 256, 256)
    tokens = tokenizer(["the red apple", "a cup", "the background"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokens).logits
    torch.testing.assert_close(train_sources.segment(model, pixels, tokens), expected)


def test_the_script_makes_models_that_load(tmp_path):
    arguments = [str(tmp_path / "work"), "--scenes=8", "--segmenter-steps=1", "--depth-steps=1", "--batch=2"]
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
