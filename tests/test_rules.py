"""The design's rules about imports, unsafe loading, size and docstrings, read from the source itself."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = sorted(ROOT.glob("projects/**/*.py"))
FILES = PROJECTS + sorted(ROOT.glob("tools/**/*.py"))
SYSTEMS = ("kd_mtl", "fcn_kd", "blindnet", "envise")
FRAMEWORKS = ("detectron2", "mmengine", "mmcv", "mmseg")
LAZY = ("scenekd/teachers/zoo_detectron2.py", "scenekd/teachers/zoo_mmseg.py")
UNSAFE_MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
UNSAFE_YAML = ("load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all")
XML_PARSERS = (
    "parse",
    "iterparse",
    "fromstring",
    "fromstringlist",
    "XML",
    "XMLID",
    "XMLParser",
    "XMLPullParser",
)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST, package: str, lazy: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Every imported name in full (``a.b.c``), whether it stands inside a function, and its line.

    ``package`` resolves relative imports. A plain string given to ``import_module`` or ``__import__`` counts.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            module = node.args[0].value
            if _called(node) in ("import_module", "__import__"):
                yield str(module).lstrip("."), lazy, node.lineno
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, package, inside)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _imports_of(path: Path) -> list[tuple[str, bool, int]]:
    below = path.relative_to(ROOT / "projects") if path in PROJECTS else Path(path.name)
    return list(imports(_tree(path), ".".join(below.parent.parts)))


def import_faults(path: Path, found: list[tuple[str, bool, int]]) -> list[str]:
    """Rule 1: what ``path`` imports that it must not."""
    parts = path.relative_to(ROOT / "projects").parts
    own, faults = parts[0], []
    for name, lazy, line in found:
        top = name.split(".")[0]
        if top in SYSTEMS and top != own:
            faults.append(f"{_name(path)}:{line} imports the system {top}")
        if top in FRAMEWORKS:
            engine = parts[:2] == ("scenekd", "engines")
            if not engine and not ("/".join(parts) in LAZY and lazy):
                faults.append(f"{_name(path)}:{line} imports {top}")
    return faults


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"  # a call's result, an item of a list …


def unsafe_calls(tree: ast.Module) -> list[tuple[str, int]]:
    """Calls by which a stranger's file could run code, and their lines."""
    # Local name → full name, so that aliases and `from x import y` are seen through.
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, rest = _dotted(node.func).partition(".")
        full = ".".join(filter(None, (known.get(head, head), rest)))
        options = {k.arg: k.value for k in node.keywords}

        def is_set(name: str, value: bool, options: dict = options) -> bool:
            return isinstance(options.get(name), ast.Constant) and options[name].value is value

        top, last = full.split(".")[0], full.split(".")[-1]
        bad = (
            (
                top in ("torch", "mmengine")
                and last in ("load", "load_checkpoint")
                and not is_set("weights_only", True)
            )
            or (last == "load_state_dict_from_url" and not is_set("weights_only", True))
            or (top in UNSAFE_MODULES and last in ("load", "loads", "Unpickler", "open"))
            or (top == "yaml" and last in UNSAFE_YAML)
            or (full == "numpy.load" and not is_set("allow_pickle", False))
            or is_set("allow_pickle", True)
            or is_set("allow_unsafe", True)
            or (top in ("xml", "lxml") and last in XML_PARSERS)
            or full in ("eval", "exec", "os.system")
            or is_set("shell", True)
        )
        if bad:
            found.append((full, node.lineno))
    return found


def unsafe_imports(found: list[tuple[str, bool, int]]) -> list[tuple[str, int]]:
    """Parsers and unpicklers that must not be imported by name; XML's data classes and exceptions may be."""
    bad = []
    for name, _, line in found:
        parts = name.split(".")
        parser = parts[0] == "xml" and (parts[-1] in XML_PARSERS or parts[1:2] in (["dom"], ["sax"]))
        unpickler = parts[0] in UNSAFE_MODULES and parts[0] != "pickle"
        if name != "xml.sax.saxutils.escape" and (
            parser or unpickler or name in ("pickle.load", "pickle.loads")
        ):
            bad.append((name, line))
    return bad


def test_the_repository_is_seen():
    """The walk below finds the files it is meant for."""
    names = {_name(path) for path in FILES}
    assert {"projects/scenekd/sample.py", "projects/kd_mtl/blitznet.py", "tools/train_net.py"} <= names
    assert len(PROJECTS) > 60


@pytest.mark.parametrize("path", PROJECTS, ids=_name)
def test_imports(path):
    """Rule 1: the library knows no system, systems know no other, frameworks stay in engines/."""
    assert import_faults(path, _imports_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_loads_code(path):
    """Rule 5: no pickle that a stranger could have written, no unhardened XML or YAML, no eval."""
    found = unsafe_calls(_tree(path))
    allowed = {
        # The one hardened reader; tests/test_xml_files.py attacks it.
        "projects/scenekd/xml_files.py": ["lxml.etree.XMLParser", "lxml.etree.fromstring"],
        # It reads back what it has written itself, under a temporary name, a moment before.
        "projects/scenekd/export.py": ["torch.jit.load", "torch.export.load"],
        # It compiles the package's own source, csrc/packed_conv.cpp, under a name that holds the source's hash.
        "projects/scenekd/nets/packed_native.py": ["torch.utils.cpp_extension.load"],
    }
    assert [name for name, _ in found] == allowed.get(_name(path), [])
    assert unsafe_imports(_imports_of(path)) == []


def test_unpicklers_are_restricted():
    """Each subclass of Unpickler decides by itself which classes it finds."""
    for path in FILES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef) and any("Unpickler" in _dotted(base) for base in node.bases):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                assert "find_class" in methods, f"{_name(path)}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_stay_short(path):
    """A file has at most 300 lines and says at its top what it is."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(_tree(path))


def _documented(item: ast.FunctionDef | ast.ClassDef) -> bool:
    # A class may also build its text from its base's.
    built = any(isinstance(n, ast.Assign) and _dotted(n.targets[0]) == "__doc__" for n in item.body)
    return built or bool(ast.get_docstring(item))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_public_things_have_docstrings(path):
    """Every function and class without an underscore at the top of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [item for item in _tree(path).body if isinstance(item, kinds) and not item.name.startswith("_")]
    assert [f"{item.name} (line {item.lineno})" for item in public if not _documented(item)] == []


# The checks themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "source", "faults"),
    [
        ("scenekd/x.py", "import kd_mtl", 1),
        ("scenekd/data/x.py", "from kd_mtl.blitznet import BlitzNet", 1),
        ("scenekd/x.py", "def f():\n    import mmseg.apis", 1),
        ("scenekd/x.py", "import importlib\nimportlib.import_module('detectron2.config')", 1),
        ("scenekd/engines/x.py", "import mmseg", 0),
        ("scenekd/engines/x.py", "import fcn_kd", 1),
        ("scenekd/engines/mmengine_x.py", "from .mmengine import y", 0),
        ("scenekd/teachers/zoo_mmseg.py", "import mmseg", 1),
        ("scenekd/teachers/zoo_mmseg.py", "def f():\n    from mmseg.apis import init_model", 0),
        ("scenekd/teachers/other.py", "def f():\n    import mmseg", 1),
        ("kd_mtl/x.py", "import scenekd.boxes\nfrom . import anchors\nfrom kd_mtl import heads", 0),
        ("kd_mtl/x.py", "import envise", 1),
        ("kd_mtl/x.py", "def f():\n    import mmcv", 1),
        ("kd_mtl/x.py", "from .mmseg import y", 0),
    ],
)
def test_import_faults_are_found(where, source, faults):
    """What the first rule forbids and allows, in small."""
    package = ".".join(Path(where).parent.parts)
    found = list(imports(ast.parse(source), package))
    assert len(import_faults(ROOT / "projects" / where, found)) == faults


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f)",
        "import torch as t\nt.load(f, weights_only=False)",
        "from torch import load\nload(f)",
        "import torch\ntorch.hub.load_state_dict_from_url(u)",
        "import pickle\npickle.loads(b)",
        "import pickle\npickle.Unpickler(f).load()",
        "from pickle import load as read\nread(f)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(f)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import xml.etree.ElementTree as ET\nET.parse(f)",
        "from xml.etree import ElementTree\nElementTree.fromstring(f)",
        "from fvcore.common.config import CfgNode as CN\nCN.load_yaml_with_base(f, allow_unsafe=True)",
        "import os\nos.system(c)",
        "import subprocess\nsubprocess.run(c, shell=True)",
        "eval(text)",
    ],
)
def test_unsafe_calls_are_found(source):
    """What the fifth rule forbids, in small, under whatever name it was imported."""
    assert len(unsafe_calls(ast.parse(source))) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
        "import yaml\nyaml.safe_load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "from defusedxml.ElementTree import parse\nparse(f)",
        "from xml.etree.ElementTree import Element, SubElement\nElement('a')",
        "import ast\nast.literal_eval(t)",
        "import json\njson.load(f)",
    ],
)
def test_safe_calls_pass(source):
    """What it allows."""
    tree = ast.parse(source)
    assert unsafe_calls(tree) == []
    assert unsafe_imports(list(imports(tree, ""))) == []
