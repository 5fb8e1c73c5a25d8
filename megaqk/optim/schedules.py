"""The learning-rate schedule as a pure function of the step."""

import math

from megaqk.config.optimization import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor on the peak learning rate.

    With t the step, W the warm-up steps, T the total and r = min_lr_ratio:

    - t < W: (t + 1) / W, so that the first step moves and step W - 1 is the first at the peak.
    - constant: 1.
    - linear: r + (1 - r) (1 - x), with x = (t - W) / (T - W).
    - cosine: r + (1 - r) (1 + cos(pi x)) / 2, same x (Loshchilov and Hutter, arXiv 1608.03983, without restarts).
    - wsd: 1 until T - D, then r + (1 - r) f(x) with x = (t - T + D) / D and f(x) = 1 - x for linear,
      (1 + cos(pi x)) / 2 for cosine, 1 - sqrt(x) for sqrt (Haegele et al., arXiv 2405.18392); D is decay_steps, by
      default a tenth of the run, at least 1 and at most T - W.

    x reaches 1, and the factor r, at t = T, the step after the last: no step is wasted at r = 0. From there on the
    factor stays r.

    Args:
        schedule: Its shape.
        step: Steps already taken, that is the 0-based number of the step about to be taken.
        total_steps: Steps that it counts over.

    Returns:
        The factor, in [0, 1].
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        length = schedule.decay_steps or min(max(1, total_steps // 10), total_steps - warmup)
        shape = schedule.decay_shape
    else:
        length = total_steps - warmup
        shape = schedule.kind
    # An empty decay has no step to act on before the end of the run.
    progress = (step - (total_steps - length)) / length if length else float(step >= total_steps)
    remaining = _remaining(shape, min(1.0, max(0.0, progress)))
    # In this form both ends are exact.
    return remaining + schedule.min_lr_ratio * (1.0 - remaining)


def _remaining(shape: str, progress: float) -> float:
    """What is left of the way down, from exactly 1 at progress 0 to exactly 0 at progress 1."""
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if shape == "sqrt":
        return 1.0 - math.sqrt(progress)
    return 1.0 - progress
