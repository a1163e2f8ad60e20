"""What a cheap student in front of a dear teacher saves."""

from __future__ import annotations

import math


def gain_in_efficiency(student_flops: float, teacher_flops: float, n_total: int, n_teacher: int) -> float:
    """Relative saving against asking the teacher about every sample, after the student has converged.

    The student looks at all ``n_total`` samples and hands ``n_teacher`` of them on to the teacher:
    GiE = 1 − (F_student · N + F_teacher · N_teacher) / (F_teacher · N). The student's training is not in it.
    At most 1; negative where the pair costs more than the teacher alone.

    Args:
        student_flops, teacher_flops: cost of one sample, in the same unit; finite, student ≥ 0, teacher > 0.
        n_total: samples seen, > 0.
        n_teacher: samples handed on, 0…n_total.

    Raises:
        ValueError: an argument outside its range.
    """
    if not (math.isfinite(student_flops) and student_flops >= 0):
        raise ValueError(f"student_flops must be finite and not negative, got {student_flops}")
    if not (math.isfinite(teacher_flops) and teacher_flops > 0):
        raise ValueError(f"teacher_flops must be finite and positive, got {teacher_flops}")
    if not (math.isfinite(n_total) and n_total > 0):
        raise ValueError(f"n_total must be positive, got {n_total}")
    if not 0 <= n_teacher <= n_total:
        raise ValueError(f"n_teacher must lie in 0…n_total = {n_total}, got {n_teacher}")
    cost = student_flops * n_total + teacher_flops * n_teacher
    return 1 - cost / (teacher_flops * n_total)
