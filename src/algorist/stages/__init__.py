"""The stages of the recipe, in their order. A fifth is one new file and one name here."""

from algorist.recipe import Recipe
from algorist.stage import Stage
from algorist.stages import dpo, midtrain, rlvr, sft

STAGES: tuple[Stage, ...] = (midtrain.STAGE, sft.STAGE, dpo.STAGE, rlvr.STAGE)


def chosen(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that a recipe runs, each on what the one before it made."""
    known = {stage.name: stage for stage in STAGES}
    return STAGES if recipe.stages is None else tuple(known[name] for name in recipe.stages)
