"""What changes with the step: learning rate and sampling temperature, as functions of the step alone."""

import math


def learning_rate(step: int, num_steps: int, *, peak: float, warmup: float, end: float) -> float:
    """Linear warm-up over the first share of the steps, then a cosine down to a share of the peak.

        step < w:   peak * (step + 1) / w                                    w = ceil(warmup * num_steps)
        otherwise:  peak * (end + (1 - end) * (1 + cos(pi * (step - w) / (num_steps - w))) / 2)

    Args:
        step    0 .. num_steps - 1
        warmup  share of the steps, in [0, 1]
        end     share of the peak that is approached at the end; 1 keeps the rate constant after the warm-up

    >>> learning_rate(0, 100, peak=1.0, warmup=0.1, end=0.0)
    0.1
    """
    rising = math.ceil(warmup * num_steps)
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / (num_steps - rising)
    return peak * (end + (1 - end) * (1 + math.cos(math.pi * done)) / 2)


def temperature(step: int, num_steps: int, *, start: float, end: float, over: float) -> float:
    """Linear from `start` to `end` over the first share of the steps, then fixed.

        T(s) = start + (end - start) * min(1, s / (over * num_steps))

    Source: Phi-4-Mini-Reasoning: 1.0 to 0.6 over the first 50 % of the steps.

    >>> temperature(25, 100, start=1.0, end=0.6, over=0.5)
    0.8
    """
    share = 1.0 if over == 0 else min(1.0, step / (over * num_steps))
    return start + (end - start) * share
