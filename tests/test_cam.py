"""The benchmark of adherence to the map: its metrics, its three methods, and its table."""

import copy
import re
import sys

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from scipy.stats import pearsonr

from benchmarks import cam as benchmark
from benchmarks.cam import (
    MAPS,
    Edit,
    Score,
    as_given_to,
    blend,
    cam,
    dam,
    draw_map,
    ideal_cam,
    judge,
    local,
    main,
    measure,
    resampled_cam,
    still_life_edits,
)
from benchmarks.exactness import take_out
from modular_diffdiff import SDXLDiffDiffBlocks
from modular_diffdiff.still_life import CHECKPOINT
from modular_diffdiff.still_life.scene import SIZE

from .helpers import SDXL_BETAS, build, picture, relative, seeded
from .test_families import build as build_of_family
from .test_families import grid_of, run, undecoded, unpacked, workflow


STEPS = 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noisy(strength: np.ndarray, rng: np.random.Generator, slope: float = 0.5, edits: int = 1) -> np.ndarray:
    """(edits, H, W) that follow the strength, with as much noise again."""
    return slope * strength - 0.7 + rng.normal(0, 0.2, (edits, *strength.shape))


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A metric of somebody's own."""
    return (a - b).abs().mean(1)


# Metrics


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("slope", [0.5, 0.0, -0.5])
def test_cam_is_scipys_correlation_and_dam_what_numpys_least_squares_leave(name, slope, rng):
    strength = 1 - draw_map(name, 20, 30)
    edit_map = noisy(strength, rng, slope)[0]
    assert cam(strength, edit_map) == pytest.approx(pearsonr(strength.ravel(), edit_map.ravel()).statistic)
    columns = np.stack([edit_map.ravel(), np.ones(edit_map.size)], 1)
    (fitted, _), (left,), *_ = np.linalg.lstsq(columns, strength.ravel())
    expected = left if fitted > 0 else np.square(strength - strength.mean()).sum()
    assert dam(strength, cam(strength, edit_map)) == pytest.approx(np.sqrt(expected))


@pytest.mark.parametrize(("scale", "offset"), [(3.0, 0.0), (0.01, -5.0)])
def test_scale_and_offset_of_the_edit_map_do_not_count(scale, offset, rng):
    strength = 1 - draw_map("disc", 20, 20)
    changes = noisy(strength, rng, edits=5)
    first, second = Score.of(strength, changes), Score.of(strength, scale * changes + offset)
    assert (second.cam, second.dam) == pytest.approx((first.cam, first.dam))
    assert second.cams == pytest.approx(first.cams)


@pytest.mark.parametrize("name", MAPS)
def test_a_perfect_edit_map_has_cam_1_and_dam_0(name):
    strength = 1 - draw_map(name, 20, 20)
    score = Score.of(strength, np.stack([0.3 * strength - 0.1] * 3))
    assert score.cam == pytest.approx(1)
    assert score.dam == pytest.approx(0, abs=1e-5)
    assert ideal_cam(strength, np.full_like(strength, 0.6)) == pytest.approx(1)


def test_edits_that_change_nothing_anywhere_have_cam_0():
    strength = 1 - draw_map("disc", 20, 20)
    score = Score.of(strength, np.zeros((3, 20, 20)))
    assert score.cam == 0
    assert not score.cams.any()
    assert score.dam == pytest.approx(np.linalg.norm(strength - strength.mean()))


def test_bootstrap_samples_are_those_of_edits_drawn_again(rng):
    strength = 1 - draw_map("triangle", 12, 12)
    changes = noisy(strength, rng, edits=4)
    drawn = np.random.default_rng(0).multinomial(4, [1 / 4] * 4, benchmark.RESAMPLES)[:5]
    expected = [cam(strength, np.repeat(changes, times, axis=0).mean(0)) for times in drawn]
    assert resampled_cam(strength, changes)[:5] == pytest.approx(expected)


def test_intervals_hold_the_spread_of_fresh_edits(rng):
    """Each edit changes more towards a side of its own, as edits do whose objects stand elsewhere."""
    strength, (y, x) = 1 - draw_map("disc", 16, 16), np.mgrid[-1:1:16j, -1:1:16j]

    def fresh() -> np.ndarray:
        right, down = rng.normal(0, 1.5, (2, 30, 1, 1))
        return strength + right * x + down * y

    spread = np.std([cam(strength, fresh().mean(0)) for _ in range(300)])
    halves = [benchmark.half_interval(resampled_cam(strength, fresh())) for _ in range(30)]
    assert np.mean(halves) == pytest.approx(1.96 * spread, rel=0.3)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([(0.2, 0.1), (0.3, 0.1)], "best"),
        ([(0.2, 0.1), (-0.05, 0.1)], "equal"),
        ([(0.2, 0.1), (-0.2, 0.1)], "**behind**"),
        ([(0.05, 0.1), (-0.2, 0.1)], "**behind**"),
    ],
)
def test_equal_means_that_a_paired_interval_holds_0(differences, verdict):
    assert judge(differences) == verdict


def test_the_local_metric_is_0_for_no_change_and_1_at_most_where_it_changes():
    a = torch.rand(2, 3, 32, 32, generator=seeded())
    b = a.clone()
    b[0, :, :, 16:] = 1 - b[0, :, :, 16:].round()
    seen = local(a, b)
    assert seen.shape == (2, 32, 32)
    assert not seen[1].any()
    assert not seen[0, :, : 16 - benchmark.WINDOW // 2].any()
    assert 0.5 < seen[0, :, 16 + benchmark.WINDOW :].mean() < 1


# Maps and edits


@pytest.mark.parametrize("name", MAPS)
def test_maps_have_several_greys_from_black_to_white_at_any_size(name):
    values = draw_map(name, 256, 192)
    assert values.shape == (256, 192)
    assert len(np.unique(values)) >= 4
    assert (values.min(), values.max()) == pytest.approx((0, 1), abs=0.01)
    coarse = draw_map(name, 64, 48)
    assert np.abs(values.reshape(64, 4, 48, 4).mean((1, 3)) - coarse).mean() < 0.03
    assert set(np.unique(as_given_to("blended", values))) == {0, 1}
    assert as_given_to("paper's", values) is values


def test_scenes_become_other_scenes():
    edits = still_life_edits(3)
    assert [edit.seed for edit in edits] == [0, 1, 2]
    assert {edit.image.size for edit in edits} == {(SIZE, SIZE)}
    assert len({edit.prompt for edit in edits}) > 1


# Methods


def edit_latents(pipe, change_map, **options):
    return pipe(
        prompt="a pear",
        image=picture(),
        diffdiff_map=change_map,
        num_inference_steps=STEPS,
        generator=seeded(),
        output_type="latent",
        **options,
    )


@torch.no_grad()
def blended_latent_diffusion(components, scheduler, state, kept, generator):
    """Avrahami et al., algorithm 1: denoise everything, then lay the noised original over what is kept."""
    x0, unet = state.image_latents, components["unet"]
    scheduler.set_timesteps(STEPS)
    latents = scheduler.add_noise(x0, state.noise, scheduler.timesteps[:1])
    for t, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        added = {"text_embeds": state.pooled_prompt_embeds, "time_ids": state.add_time_ids}
        scaled = scheduler.scale_model_input(latents, t)
        predicted = unet(scaled, t, encoder_hidden_states=state.prompt_embeds, added_cond_kwargs=added).sample
        foreground = scheduler.step(predicted, t, latents).prev_sample
        noise = torch.randn(x0.shape, generator=generator)
        background = x0 if following is None else scheduler.add_noise(x0, noise, following[None])
        latents = kept * background + ~kept * foreground
    return latents


def test_blended_is_blended_latent_diffusion_written_plainly(tiny):
    scheduler = EulerDiscreteScheduler(**SDXL_BETAS, timestep_spacing="trailing")
    pipe = build(blend(SDXLDiffDiffBlocks().get_workflow("diffdiff")), tiny, 1.0, scheduler=scheduler)
    change_map = torch.cat([torch.ones(32, 17), torch.zeros(32, 15)], 1)  # the third cell is kept by an eighth
    state = edit_latents(pipe, change_map)
    replay = seeded()
    for _ in range(2):  # for the autoencoder, and the noise
        torch.randn(state.noise.shape, generator=replay)
    kept = (torch.arange(4) < 2).expand(1, 1, 4, 4)
    expected = blended_latent_diffusion(tiny, EulerDiscreteScheduler.from_config(scheduler.config), state, kept, replay)
    assert relative(state.latents, expected) < 1e-5
    assert torch.equal(state.latents[..., :2], state.image_latents[..., :2])


def test_under_a_black_map_all_methods_are_one(tiny):
    changes = (lambda blocks: blocks, blend, lambda blocks: take_out(blocks, ("restore", "skip_frozen")))
    pipes = [build(change(SDXLDiffDiffBlocks().get_workflow("diffdiff")), tiny, 1.0) for change in changes]
    ours, *others = (edit_latents(pipe, np.zeros((1, 1))).latents for pipe in pipes)
    for other in others:
        assert torch.equal(other, ours)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen", "z-image", "anima"])
def test_any_family_blends(name):
    pipe = undecoded(build_of_family(blend(copy.deepcopy(workflow(name))), name))
    state = run(pipe, name)
    latents, original = grid_of(state.latents), unpacked(pipe, state, state.image_latents)
    kept = original.shape[-1] // 2
    assert torch.equal(latents[..., :kept], original[..., :kept])
    assert not torch.isclose(latents[..., kept:], original[..., kept:]).all(-1).any()


def test_each_edit_is_measured_by_itself_in_batches_of_any_size(tiny):
    pipe = build(SDXLDiffDiffBlocks().get_workflow("diffdiff"), tiny, 1.0)
    edits = [Edit(picture(seed=seed), prompt, seed) for seed, prompt in enumerate(["a pear", "a cup", "a red apple"])]
    change_map = draw_map("gradient", 32, 32)
    one, two = (measure(pipe, edits, change_map, 2, batch, difference) for batch in (1, 2))
    assert one.shape == (3, 32, 32)
    assert np.abs(one - two).max() < 0.01  # 8 bits
    for edit, seen in zip(edits, one, strict=True):
        (result,) = pipe(
            prompt=edit.prompt,
            image=edit.image,
            diffdiff_map=change_map,
            num_inference_steps=2,
            generator=seeded(edit.seed),
            output="images",
        )
        expected = np.abs(np.asarray(edit.image, float) - np.asarray(result, float)).mean(2) / 255
        assert seen == pytest.approx(expected, abs=1e-6)


# The command


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_table_has_a_row_for_each_number_of_steps_and_map(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    picture(32, 48).save(photo)
    arguments = ["--model", CHECKPOINT, "--image", str(photo), "--prompts", "a pear", "a red cup"]
    main([*arguments, "--edits", "2", "--steps", "1", "2", "--metric", "tests.test_cam:difference"])
    written = capsys.readouterr().out
    assert "2 edits under each map" in written
    head, _, *rows = rows_of(written)
    assert [tuple(row[:2]) for row in rows] == [(steps, name) for steps in "12" for name in MAPS]
    assert head[:3] == ["steps", "map", "ideal CAM"]
    assert {len(row) for row in rows} == {len(head)} == {12}
    for row in rows:
        assert all(re.fullmatch(r"[+-]?\d+\.\d+ ± \d+\.\d+", cell) for cell in row[3:11])
        assert row[11] in ("best", "equal", "**behind**")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", CHECKPOINT], "--image and --prompts are both needed"),
        (["--prompts", "a pear"], "--image and --prompts are both needed"),
        (["--image", "nowhere.png", "--prompts", "a pear"], "nowhere.png"),
        (["--model", "no model", "--image", "{photo}", "--prompts", "a pear"], "--model 'no model'"),
        (["--image", "{photo}", "{small}", "--prompts", "a pear"], "all images must have the same size"),
        (["--metric", "ssim"], "--metric 'ssim'"),
        (["--metric", "nowhere:ssim"], "--metric 'nowhere:ssim'"),
        (["--metric", "tests.test_cam:nothing"], "--metric 'tests.test_cam:nothing'"),
        (["--metric", "lpips"], "pip install lpips"),
        (["--device", "nowhere"], "--device 'nowhere'"),
        (["--edits", "0"], "--edits"),
    ],
)
def test_what_is_missing_or_wrong_is_named(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    paths = {"photo": tmp_path / "photo.png", "small": tmp_path / "small.png"}
    picture(64, 64).save(paths["photo"])
    picture(32, 32).save(paths["small"])
    with pytest.raises(SystemExit) as ended:
        main([argument.format(**paths) for argument in arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
