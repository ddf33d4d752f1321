"""The stages of the recipe, in their order. A fifth is one new file and one name here."""

from algorist.stage import Stage
from algorist.stages import dpo, midtrain, rlvr, sft

STAGES: tuple[Stage, ...] = (midtrain.STAGE, sft.STAGE, dpo.STAGE, rlvr.STAGE)
