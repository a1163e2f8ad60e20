"""Images held out of a COCO-layout set: a view of its folder with two instances files more."""

from __future__ import annotations

import json
from pathlib import Path

from ..data.subset import stable_subset
from ..errors import UserError
from ..files import write_text
from .lists import link

_FOLDER = "annotations"


def split_coco(source: Path, folder: Path, *, part: str, share: float) -> None:
    """Make ``folder``: links to all that ``source`` holds, and beside ``instances_<part>.json`` the files
    ``instances_fit_<part>.json`` and ``instances_hold_<part>.json``, so that ``coco_fit_<part>`` and
    ``coco_hold_<part>`` are data sets without a common image. Nothing is written where they are there.

    Args:
        source: with ``annotations/instances_<part>.json``. part: as ``train2017``. share: of the images, held out,
            those whose ids hash lowest.

    Raises:
        UserError: no such file, no such json, or ``folder`` shows another source.
    """
    json_file = source.resolve() / _FOLDER / f"instances_{part}.json"
    if not json_file.is_file():
        raise UserError(f"{json_file}: no such file; --data names the folder that holds it")
    for entry in sorted(source.resolve().iterdir()):
        if entry.name != _FOLDER:
            link(entry, folder / entry.name)
    for entry in sorted(json_file.parent.glob("instances_*.json")):
        link(entry, folder / _FOLDER / entry.name)
    files = {side: folder / _FOLDER / f"instances_{side}_{part}.json" for side in ("fit", "hold")}
    if all(file.is_file() for file in files.values()):
        return
    try:
        content = json.loads(json_file.read_bytes())
        ids = [str(image["id"]) for image in content["images"]]
        owners = [str(annotation["image_id"]) for annotation in content["annotations"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{json_file}: not COCO's instances json") from None
    held = stable_subset(ids, share, 0, salt="study")
    for side, file in files.items():
        images = [one for one, name in zip(content["images"], ids) if (name in held) == (side == "hold")]
        if not images:
            raise UserError(f"{file}: would be empty")
        objects = [
            one for one, name in zip(content["annotations"], owners) if (name in held) == (side == "hold")
        ]
        write_text(file, json.dumps({**content, "images": images, "annotations": objects}))
