"""Every configuration key is read somewhere: none is accepted and ignored."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scenekd.config import get_cfg

ROOT = Path(__file__).parents[1]
SOURCE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("projects", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "config.py"
)
# detectron2 reads its configs' version; ours has one so that the files are alike.
UNREAD = {"VERSION"}


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, type(node)):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


KEYS = {
    *_leaves(get_cfg()),
    *_leaves(get_cfg("fcn_kd").MODEL.FCN_KD, "MODEL.FCN_KD."),
    *_leaves(get_cfg("blindnet").MODEL.BLINDNET, "MODEL.BLINDNET."),
    *_leaves(get_cfg("envise").MODEL.ENVISE, "MODEL.ENVISE."),
    *_leaves(get_cfg("envise").STREAM, "STREAM."),
    *_leaves(get_cfg("envise").ONLINE, "ONLINE."),
}


@pytest.mark.parametrize("key", sorted(KEYS))
def test_key_is_read(key):
    """Its last part is used as an attribute or an index of some node."""
    name = key.rsplit(".", 1)[-1]
    assert key in UNREAD or re.search(rf"""\.{name}\b|["']{name}["']""", SOURCE), f"{key} is never read"
