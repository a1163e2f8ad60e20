"""The doctor's look at the Python environment. Needs nothing but ``packaging``, for the rest may be broken.

``installed`` is name → version of the installed distributions, names as PyPI normalises them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .doctor_findings import Finding, error, ok, run_checks, warning

PIP = "python -m pip"
INSTALL = f"{PIP} install -e ."

# The maintained line, and the original packages that own the same module folders.
ONEDL = ("onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation")
ORIGINAL = ("mmengine", "mmengine-lite", "mmcv", "mmcv-lite", "mmcv-full", "mmsegmentation")
OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)

Installed = Mapping[str, str]


def installed_packages() -> dict[str, str]:
    """Of the running interpreter."""
    found = importlib.metadata.distributions()
    return {canonicalize_name(d.metadata["Name"]): d.version for d in found if d.metadata["Name"]}


def scenekd_requirements() -> list[str]:
    """What ``setup.py`` asks for, extras with their markers; empty where SceneKD is not installed."""
    try:
        return importlib.metadata.requires("scenekd") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def check_environment() -> list[Finding]:
    """All checks of the environment."""
    installed, requirements = installed_packages(), scenekd_requirements()
    findings = check_required(installed, requirements) + check_extras(installed, requirements)
    return findings + run_checks(
        [
            ("OpenMMLab packages are of one family", lambda: check_openmmlab(installed)),
            ("one OpenCV", lambda: check_opencv(installed)),
            ("torch and torchvision fit together", lambda: check_torch_pair(installed)),
            ("detectron2 and setuptools fit together", lambda: check_detectron2(installed)),
            ("CUDA", check_cuda),
        ]
    )


def check_required(installed: Installed, requirements: Sequence[str]) -> list[Finding]:
    """Missing packages, and versions outside the supported range."""
    if not requirements:
        return [error("scenekd is not installed in this Python", f"make test, or {INSTALL}")]
    findings = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(canonicalize_name(requirement.name))
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            findings.append(error(f"{requirement.name} is missing", f'{PIP} install "{wanted}"'))
        elif not requirement.specifier.contains(version, prereleases=True):
            what = f"{requirement.name} {version} is outside the supported range {requirement.specifier}"
            findings.append(error(what, f'{PIP} install "{wanted}"'))
        else:
            supported = f" (supported: {requirement.specifier})" if requirement.specifier else ""
            findings.append(ok(f"{requirement.name} {version}{supported}"))
    return findings


def check_extras(installed: Installed, requirements: Sequence[str]) -> list[Finding]:
    """One line for each extra: there, or how to get it."""
    extras: dict[str, list[str]] = {}
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        text = str(requirement.marker or "")
        if "extra ==" in text and name != "setuptools":
            extras.setdefault(text.split("extra ==")[1].split('"')[1], []).append(name)
    findings = []
    for extra, names in extras.items():
        missing = [name for name in names if name not in installed]
        if not missing:
            findings.append(ok(f"optional {extra}: {', '.join(f'{n} {installed[n]}' for n in names)}"))
            continue
        how = "see its INSTALL.md, or " if extra == "detectron2" else ""
        what = f'optional {extra}: {", ".join(missing)} not installed; {how}{PIP} install -e ".[{extra}]"'
        findings.append(ok(what))
    return findings


def check_openmmlab(installed: Installed) -> list[Finding]:
    """Original and onedl packages overwrite each other's files."""
    old, new = ([n for n in names if n in installed] for names in (ORIGINAL, ONEDL))
    if not old:
        return []
    fix = f"{PIP} uninstall -y {' '.join(old + new)} && {INSTALL}"
    if new:
        return [error(f"original and onedl packages are mixed: {', '.join(old)} with {', '.join(new)}", fix)]
    return [error(f"{', '.join(old)}: the original OpenMMLab packages are not supported", fix)]


def check_opencv(installed: Installed) -> list[Finding]:
    """Several OpenCV packages share the folder ``cv2``."""
    found = [name for name in OPENCV if name in installed]
    if len(found) < 2:
        return []
    fix = f"{PIP} uninstall -y {' '.join(found)} && {PIP} install opencv-python"
    return [error(f"{' and '.join(found)} overwrite each other's files", fix)]


def check_torch_pair(installed: Installed, probe: Callable[[], str | None] | None = None) -> list[Finding]:
    """torch and torchvision must come from one build; ``probe`` says why torchvision does not import."""
    torch, vision = installed.get("torch"), installed.get("torchvision")
    if torch is None or vision is None:
        return []  # the requirements say so
    fix = f"{PIP} uninstall -y torch torchvision && {INSTALL}"
    builds = {Version(version).local or "" for version in (torch, vision)}
    if len(builds) > 1:
        return [error(f"torch {torch} and torchvision {vision} come from different builds", fix)]
    reason = (probe or _import_torchvision)()
    if reason is not None:
        return [error(f"torch {torch} and torchvision {vision} do not fit together: {reason}", fix)]
    return []


def _import_torchvision() -> str | None:
    try:
        importlib.import_module("torchvision.ops")
    except Exception as reason:  # a broken pair fails in many ways, RuntimeError and OSError among them
        return " ".join(str(reason).split())[:160]
    return None


def check_detectron2(installed: Installed) -> list[Finding]:
    """detectron2's model zoo imports ``pkg_resources``."""
    version = installed.get("setuptools")
    if "detectron2" not in installed or (version is not None and Version(version) < Version("82")):
        return []
    what = (
        f"detectron2's model_zoo needs pkg_resources, which setuptools {version or '(missing)'} does not have"
    )
    return [warning(what, f'{PIP} install "setuptools>=77.0.3,<82"')]


def check_cuda() -> list[Finding]:
    """Whether torch sees a GPU; training on CPU is no error."""
    try:
        torch = importlib.import_module("torch")
    except Exception as reason:
        return [error(f"torch cannot be imported: {reason}", INSTALL)]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [ok(f"CUDA {torch.version.cuda}: {', '.join(names)}")]
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return [ok(f"no GPU in sight (torch is {built}); everything runs on the CPU")]
