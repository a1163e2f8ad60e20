"""How the weight of a loss changes over a run."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "cosine")


def weight_at(
    iteration: int, max_iter: int, *, weight: float = 1.0, schedule: str = "constant", warmup: int = 0
) -> float:
    """The weight of a loss in one iteration.

    It rises on a line from weight / (warmup + 1) in iteration 0 to ``weight`` in iteration ``warmup``. From there
    ``constant`` keeps it; ``cosine`` lets it fall on half a cosine, to 0 at ``max_iter``.

    Args:
        iteration: 0…max_iter; later ones are like the last. max_iter: > 0. weight: ≥ 0. warmup: iterations, ≥ 0.

    Raises:
        ValueError: an argument is outside its range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
    if iteration < 0 or max_iter <= 0 or warmup < 0 or not weight >= 0:
        raise ValueError(
            "iteration, warmup and weight must not be negative, max_iter positive; "
            f"got {iteration}, {warmup}, {weight}, {max_iter}"
        )
    if iteration < warmup:
        return weight * (iteration + 1) / (warmup + 1)
    if schedule == "constant":
        return weight
    progress = min(1.0, (iteration - warmup) / max(1, max_iter - warmup))
    return weight * 0.5 * (1 + math.cos(math.pi * progress))
