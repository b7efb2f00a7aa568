"""The options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


MAX_SEED = 2**32 - 1
MAX_STEPS = 10_000

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files; otherwise they are refused.")]
ImageToEdit = Annotated[str, typer.Argument(metavar="IMAGE", help="Path or URL of the image, of any size; - is stdin.")]
ImageOrVideo = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="Path or URL of the image, of any size, or of the video (.mp4, .mov, .mkv, .webm, .gif, ...) for a "
        "--model that edits videos; - is stdin.",
    ),
]
# What is asked of a model, in every command that has one.
Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="What not to draw in the changed regions.")]
ModelName = Annotated[
    str,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A checkpoint of a known family: a name on the Hub, a folder with a model_index.json, or a small one that "
        "comes with this package, an SDXL (still-life) or a Z-Image (still-life-flow).",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_STEPS,
        metavar="N",
        help="Number of denoising steps: by default 25, or as many as suit a model that is distilled to few.",
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="How closely to follow the prompt; 1 turns guidance off. By default 7.5 for SDXL, 2 for the embedded "
        "models, 1 for models that are distilled to few steps, and the model's own for the others.",
    ),
]
ControlImage = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_URL", help="What a ControlNet follows in the changed regions, e.g. edges; scaled to IMAGE."
    ),
]
ControlMode = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="The kind of --control-image for a ControlNet-Union, a number from its model card; with the embedded one "
        "0 is edges, 1 is depth.",
    ),
]
ControlNet = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A ControlNet or ControlNet-Union for --model; by default the embedded model's.",
    ),
]
ControlScale = Annotated[float | None, typer.Option(metavar="X", help="How much --control-image counts, 1 by default.")]
IPAdapterImage = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_URL", help="An image prompt, for what PROMPT leaves open; only its middle square is used."
    ),
]
IPAdapter = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The weights of an IP-Adapter for --model, a path or a file on the Hub (owner/name/folder/file), with "
        "a folder image_encoder beside them; by default the embedded model's.",
    ),
]
IPAdapterScale = Annotated[
    float | None, typer.Option(metavar="X", help="How much --ip-adapter-image counts, 1 by default.")
]
LoRA = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_FILE",
        help="A LoRA for --model: a path, a name on the Hub, or a file there (owner/name/file); still-life is one that "
        "makes the embedded model draw in 4 steps. It needs `pip install peft`.",
    ),
]
Region = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MAP_OR_TEXT=PROMPT",
        help="What to draw in a part of IMAGE, and where: a picture that is white there, or words (--segmenter finds "
        "them). PROMPT is for the rest. Repeatable.",
    ),
]
Fill = Annotated[
    Literal["original", "blur", "noise", "color"],
    typer.Option(
        help="What changed parts start from at strengths below 1: IMAGE as it is, what surrounds them, noise, or the "
        "mean colour of the rest."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the noise; drawn at random by default."),
]
InvertMap = Annotated[bool, typer.Option("--invert-map", help="Invert MAP: white changes, as in inpainting masks.")]
Overlay = Annotated[
    bool,
    typer.Option(
        "--overlay",
        help="Bring IMAGE's own pixels back where the map is white: without it they go through the model's "
        "autoencoder and change a little. IMAGE's transparency comes along.",
    ),
]
Softness = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="How much of IMAGE to keep in what the map releases, in proportion to its greys.",
    ),
]
MatchColors = Annotated[
    bool,
    typer.Option(
        "--match-colors",
        help="Undo the model's colour shift: fit the whole result's colours to IMAGE's, judging by where the map is "
        "white.",
    ),
]
BatchGuidance = Annotated[
    bool,
    typer.Option(
        "--batch-guidance",
        help="Call the model once a step, with PROMPT and --negative as one batch: faster where one picture does not "
        "fill the accelerator, with more memory.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="D", help="Where to run, e.g. cuda, mps or cpu; by default an accelerator, if any."),
]
DType = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(
        help="Type of the weights; by default float32 on a CPU, elsewhere float16 for SDXL, bfloat16 for others."
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep the model in main memory and move each part to the accelerator only while it runs: slower, but fits "
        "a smaller accelerator.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        max=1000,
        metavar="N",
        help="How many pictures of --count may share a call of the model. That is faster, and changes pixels by 1/255 "
        "at most.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many CPU threads torch uses, which decides the last bits of pixels; by default torch's own number, "
        "in `batch` 1.",
    ),
]
# Where a map comes from and how it is shaped, in every command that has one; `asking.ask_map` reads them.
Text = Annotated[str | None, typer.Option(metavar="TEXT", help="What may change, in words.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Cut what --text finds at this probability, 0 to 1; without it, the probability is the strength.",
    ),
]
Point = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y", help="A pixel on the object that may change; X,Y,0 is one that is not on it. Repeatable."
    ),
]
Box = Annotated[
    list[str] | None,
    typer.Option(metavar="L,T,R,B", help="A box in pixels around an object that may change. Repeatable."),
]
Depth = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="KEPT FREE",
        help="More and more may change from the first depth to the second; 0 is the nearest in IMAGE, 1 the farthest.",
    ),
]
Gradient = Annotated[
    str | None,
    typer.Option(
        metavar="ANGLE",
        help="More and more may change in this direction, in degrees: 0 is right, 90 is up; or radial, from the edge "
        "to the middle.",
    ),
]
Mask = Annotated[str | None, typer.Option(metavar="PATH_OR_URL", help="An inpainting mask: what is white may change.")]
Difference = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_URL", help="The photo before IMAGE was painted over: where they differ may change."),
]
Combine = Annotated[
    Literal["keep", "change"] | None,
    typer.Option(help="With several maps, keep what any of them keeps (the default), or change what any changes."),
]
Segmenter = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A CLIPSeg for --text, e.g. CIDAS/clipseg-rd64-refined; the default knows only the embedded still lifes.",
    ),
]
MaskGenerator = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A SAM for --point and --box, e.g. facebook/sam-vit-base; the default knows only the embedded still "
        "lifes.",
    ),
]
DepthEstimator = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A depth estimator for --depth, e.g. depth-anything/Depth-Anything-V2-Small-hf; the default knows only "
        "the embedded still lifes.",
    ),
]
Grow = Annotated[
    float | None,
    typer.Option(metavar="PX", help="Grow what changes by this many pixels of IMAGE; below 0 it shrinks."),
]
Feather = Annotated[
    float | None,
    typer.Option(metavar="PX", help="Soften the map's edges with a Gaussian of this standard deviation, in pixels."),
]
Seam = Annotated[
    Literal["across", "inside", "outside"] | None,
    typer.Option(
        help="Where --feather puts the soft edge: across the map's edge (the default), inside what changes, or outside."
    ),
]
Levels = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="BLACK WHITE", help="The greys of the map, 0 to 1, that become black and white."),
]
Gamma = Annotated[
    float | None, typer.Option(metavar="X", help="Gamma of the map's greys: above 1 they get brighter and keep more.")
]
Limits = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LEAST MOST", help="The least and the most strength, 0 to 1, of anything that changes at all."
    ),
]
