"""Front: whatever says what changes becomes the change map."""

from __future__ import annotations

from diffusers.modular_pipelines import AutoPipelineBlocks, SequentialPipelineBlocks

from . import diffdiff_block, diffdiff_docs, diffdiff_model_sources, diffdiff_sources


# In this order, each where its input is given.
SOURCES = (
    diffdiff_sources.DiffDiffMapGradientStep,
    diffdiff_sources.DiffDiffMapDifferenceStep,
    diffdiff_sources.DiffDiffMapMaskStep,
    diffdiff_model_sources.DiffDiffMapTextStep,
    diffdiff_model_sources.DiffDiffMapPointsStep,
    diffdiff_model_sources.DiffDiffMapBoxesStep,
    diffdiff_model_sources.DiffDiffMapDepthStep,
)


class DiffDiffOptionalSource(diffdiff_docs.Documented, AutoPipelineBlocks):
    """A source of change maps that runs where its input is given."""

    def __init__(self, source: diffdiff_sources.DiffDiffMapSource):
        (asked_by,) = source.needs
        self.block_classes, self.block_names, self.block_trigger_inputs = [source], [asked_by], [asked_by]
        super().__init__()

    @property
    def description(self) -> str:
        (source,) = self.sub_blocks.values()
        return source.description


class DiffDiffMakeMapStep(diffdiff_docs.Documented, SequentialPipelineBlocks):
    """Makes the change map from words, clicks and the other sources, and joins several, the `diffdiff_map` included.

    Attributes:
        sources: The sources' classes, in the order in which they run.
    """

    sources = SOURCES

    def __init__(self, family: diffdiff_block.FamilyTraits | None = None):
        self.block_classes = [DiffDiffOptionalSource(source(family)) for source in self.sources]
        self.block_names = [source.needs[0] for source in self.sources]
        super().__init__()


class DiffDiffMakeMapBesideInpaintingStep(DiffDiffMakeMapStep):
    """`DiffDiffMakeMapStep` where `mask_image` goes to inpainting."""

    sources = tuple(source for source in SOURCES if source is not diffdiff_sources.DiffDiffMapMaskStep)


def step_for(blocks, family: diffdiff_block.FamilyTraits) -> DiffDiffMakeMapStep:
    """The step for blocks, which may inpaint themselves."""
    kind = DiffDiffMakeMapBesideInpaintingStep if "mask_image" in blocks.input_names else DiffDiffMakeMapStep
    return kind(family)
