"""Stage 2: supervised fine-tuning on the hard and clean subset, one example per row.

The paper trains without packing here, so that the model learns when to stop. Against stage 1 two things change and
nothing else: which samples are kept, and how many make up an optimizer step (examples, not full rows). The paper
does not print its selection rule; ours is: hard levels and a share of the others, so that those are not forgotten,
and of each problem the right responses nearest to its median length: rambling and corrected slips make a chain
long, missing work makes it short.
"""

from __future__ import annotations

from dataclasses import dataclass

from algorist import store
from algorist.data import curate as curation
from algorist.records import LEVELS, Sample
from algorist.stage import Run, Stage, Training
from algorist.stages import midtrain


@dataclass(frozen=True)
class Settings:
    """[sft], beside the loop's keys"""

    sequence_length: int = 20_480  # tokens; longer samples are left out, with a count
    packing: bool = False  # one sample per row
    epochs: int = 5  # times that the data is read
    levels: tuple[str, ...] = ("college", "graduate")  # that count as hard; all where empty
    keep_easier: float = 0.1  # share of the other levels' problems that stay
    per_problem: int = 1  # right responses of one problem, nearest to its median length first

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.sequence_length < 2 or self.per_problem < 1:
            raise ValueError("epochs and per_problem must be at least 1 and sequence_length at least 2.")
        if unknown := set(self.levels) - set(LEVELS):
            raise ValueError(f"levels has {', '.join(sorted(unknown))}. Known here: {', '.join(LEVELS)}.")


def curate(run: Run) -> store.Manifest:
    """The hard and clean part of what stage 1 learned from."""
    settings = run.settings
    rollouts, verdicts, problems = run.taught()
    right, wrong = curation.accepted(rollouts, verdicts)
    chosen, easier = curation.hard_and_clean(
        right,
        problems,
        levels=settings.levels,
        keep_easier=settings.keep_easier,
        per_problem=settings.per_problem,
        seed=run.seed,
    )
    samples, too_long = curation.samples(chosen, problems, run.chat, sequence_length=settings.sequence_length)
    return store.write(run.data, Sample, samples, parents=run.taught_ids(), dropped=wrong + easier + too_long)


plan, steps, loss = midtrain.plan, midtrain.steps, midtrain.loss
STAGE = Stage("sft", Settings, Training(batch_size=128), (), curate, plan, steps, loss)
