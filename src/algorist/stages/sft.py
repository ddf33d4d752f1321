"""Stage 2: supervised fine-tuning on the compact subset, one example per row.

The paper trains without packing here, so that the model learns when to stop. Against stage 1 two things change and
nothing else: which samples are kept ([curate.sft]), and how many make up an optimizer step (examples, not full rows).
"""

from __future__ import annotations

from dataclasses import dataclass

from algorist.stage import Stage, Training
from algorist.stages import midtrain


@dataclass(frozen=True)
class Settings:
    """[sft], beside the loop's keys"""

    sequence_length: int = 20_480  # tokens; longer samples are left out, with a count
    packing: bool = False  # one sample per row
    epochs: int = 5  # times that the data is read

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.sequence_length < 2:
            raise ValueError("epochs must be at least 1 and sequence_length at least 2.")


curate, plan, steps, loss = midtrain.curate, midtrain.plan, midtrain.steps, midtrain.loss
STAGE = Stage("sft", Settings, Training(batch_size=128), (), curate, plan, steps, loss)
