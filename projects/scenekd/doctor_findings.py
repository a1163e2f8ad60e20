"""What a check of the doctor says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """One line: its level, what was found, and what to do about it."""

    level: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"[{self.level}]".ljust(10) + self.what]
        if self.fix:
            lines.append(" " * 10 + f"→ {self.fix}")
        return "\n".join(lines)


def ok(what: str) -> Finding:
    """All is well with ``what``."""
    return Finding(OK, what)


def warning(what: str, fix: str = "") -> Finding:
    """It works, but differently from what may be expected."""
    return Finding(WARNING, what, fix)


def error(what: str, fix: str = "") -> Finding:
    """It does not work, or silently goes wrong."""
    return Finding(ERROR, what, fix)


def run_checks(checks: Iterable[tuple[str, Callable[[], list[Finding]]]]) -> list[Finding]:
    """Each check's findings; a check that finds nothing says that its subject is well."""
    findings: list[Finding] = []
    for subject, check in checks:
        findings += check() or [ok(subject)]
    return findings


def without_repeats(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, each once: two checks may stumble over one mistake."""
    return list(dict.fromkeys(findings))
