"""Helpers of the doctor's tests: reading its findings, and values to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scenekd.doctor_findings import Finding


def told(findings: Sequence[Finding], level: str) -> list[str]:
    return [f"{finding.what} → {finding.fix}" for finding in findings if finding.level == level]


def only(findings: Sequence[Finding], level: str, *words: str) -> None:
    """Exactly one finding that is not ok: of this level, with these words."""
    rest = [finding for finding in findings if finding.level != "ok"]
    assert [finding.level for finding in rest] == [level], list(map(str, rest))
    for word in words:
        assert word in told(rest, level)[0]


def worse(findings: Sequence[Finding]) -> list[str]:
    return told(findings, "error") + told(findings, "warning")


def logits(seed: int = 0, classes: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (classes, 6, 8)).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(0))
    return exponents / exponents.sum(0)
