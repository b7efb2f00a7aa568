"""The options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


MAX_SEED = 2**32 - 1
MAX_STEPS = 10_000

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist; they are refused otherwise.")]
ImageToEdit = Annotated[str, typer.Argument(metavar="IMAGE", help="Path or URL of the image, of any size; - is stdin.")]
# What is asked of a model, in every command that has one.
Negative = Annotated[str | None, typer.Option(metavar="TEXT", help="What the changed regions do not show.")]
ModelName = Annotated[
    str,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A checkpoint of a family that is known: a name on the Hub, a folder with a model_index.json, or a "
        "small one that this package embeds: an SDXL (still-life) or a Z-Image (still-life-flow).",
    ),
]
Steps = Annotated[int, typer.Option(min=1, max=MAX_STEPS, metavar="N", help="Number of denoising steps.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="How closely to follow the prompt; 1 turns guidance off. By default 7.5 for SDXL, 2 for the embedded "
        "models, and the model's own for the others.",
    ),
]
ControlImage = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_URL", help="What a ControlNet follows where the map lets it, e.g. edges; scaled to IMAGE."
    ),
]
ControlMode = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="What a ControlNet-Union takes --control-image for, a number that its model card lists; with the "
        "embedded one 0 for edges, 1 for depth.",
    ),
]
ControlNet = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A ControlNet or ControlNet-Union for --model; by default the one that goes with the embedded model.",
    ),
]
ControlScale = Annotated[float | None, typer.Option(metavar="X", help="How much --control-image counts, 1 by default.")]
IPAdapterImage = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_URL", help="An image prompt: shows what PROMPT leaves open; its middle square counts."
    ),
]
IPAdapter = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The weights of an IP-Adapter for --model, a path or a file on the Hub (owner/name/folder/file), with "
        "a folder image_encoder beside them; by default those that go with the embedded model.",
    ),
]
IPAdapterScale = Annotated[
    float | None, typer.Option(metavar="X", help="How much --ip-adapter-image counts, 1 by default.")
]
LoRA = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_FILE",
        help="A LoRA for --model: a path, a name on the Hub, or a file there (owner/name/file). It needs "
        "`pip install modular-diffdiff[lora]`.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_SEED, metavar="N", help="Seed of the noise; drawn at random by default."),
]
InvertMap = Annotated[bool, typer.Option("--invert-map", help="Read MAP the other way round.")]
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
        help="How much of IMAGE stays in what the map releases, more where it is lighter.",
    ),
]
MatchColors = Annotated[
    bool,
    typer.Option(
        "--match-colors",
        help="Fit the result's colours to IMAGE's where the map is white, and change all of it so: what the model "
        "has shifted comes back.",
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
    str | None, typer.Option(metavar="D", help="Where to run, e.g. cuda, mps or cpu; an accelerator by default.")
]
DType = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(help="Of the weights; by default float32 on a CPU, elsewhere float16 for SDXL, bfloat16 for others."),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep the model in main memory and move each part to the accelerator when it runs: slower, for "
        "accelerators too small for the whole model; refused without one.",
    ),
]
# Where a map comes from and how it is shaped, in every command that has one; `asking.ask_map` reads them.
Text = Annotated[str | None, typer.Option(metavar="TEXT", help="What may change, in words.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Probability, 0 to 1, from which on what --text finds may change wholly; soft without."
    ),
]
Point = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y", help="A pixel on the object that may change; X,Y,0 is one on what is not meant. Repeatable."
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
        help="Two depths, 0 being the nearest in IMAGE and 1 the farthest: from the first to the second, more and more "
        "may change.",
    ),
]
Gradient = Annotated[
    str | None,
    typer.Option(
        metavar="ANGLE",
        help="In this direction, more and more may change: 0 is to the right, 90 upwards; or radial, from the edge to "
        "the middle.",
    ),
]
Mask = Annotated[
    str | None, typer.Option(metavar="PATH_OR_URL", help="A mask as inpainting has it: what is white may change.")
]
Difference = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_URL", help="The photo that IMAGE was painted over: what differs may change."),
]
Combine = Annotated[
    Literal["keep", "change"] | None,
    typer.Option(help="Of several maps, whether to keep (the default) or to change what any of them does."),
]
Segmenter = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A CLIPSeg for --text, e.g. CIDAS/clipseg-rd64-refined; by default the embedded one, which knows only its "
        "own still lifes.",
    ),
]
MaskGenerator = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="A SAM for --point and --box, e.g. facebook/sam-vit-base; by default the embedded one, which knows only "
        "its own still lifes.",
    ),
]
DepthEstimator = Annotated[
    str | None,
    typer.Option(
        metavar="REPO_OR_DIR",
        help="For --depth, e.g. depth-anything/Depth-Anything-V2-Small-hf; by default the embedded one, which knows "
        "only its own still lifes.",
    ),
]
Grow = Annotated[
    float | None,
    typer.Option(metavar="PX", help="By how many pixels of IMAGE what changes grows; below 0 it shrinks."),
]
Feather = Annotated[
    float | None,
    typer.Option(metavar="PX", help="Soften the map's edges by a Gaussian of this standard deviation, in pixels."),
]
Seam = Annotated[
    Literal["across", "inside", "outside"] | None,
    typer.Option(
        help="Where --feather puts the soft edge: across the map's own (the default), inside what changes, or outside."
    ),
]
Levels = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="BLACK WHITE", help="Greys of the map from 0 to 1 that become black, and white."),
]
Gamma = Annotated[
    float | None, typer.Option(metavar="X", help="Gamma of the map's greys: above 1 they are brighter and keep more.")
]
Limits = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LEAST MOST", help="How strongly, from 0 to 1, anything that changes at all may change."),
]
