"""A folder of saved outputs as a store, one file an image: <image_id>.npz, .npy or .xml.

npz: the four most likely classes of each cell: ``classes`` uint8 (n, h, w), ``logits`` (n, h, w),
``logsumexp`` (h, w) of all classes. p = exp(logits − logsumexp); what is left to 1 is spread evenly over the
other classes. npy and xml: see :mod:`~scenekd.teachers.thesis_files`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadRecordError, UserError
from ..sample import SoftSegmentation
from .label_map import ClassMap
from .protocol import Detections, TeacherInfo
from .thesis_files import read_detections, read_scores

MAX_MEMBER = 1 << 26  # bytes of one array of an npz once unpacked
_SUFFIXES = {"detection": (".xml",), "segmentation": (".npz", ".npy")}


class FolderStore:
    """Saved outputs by image id, brought to our classes by ``class_map``.

    Raises:
        UserError: no such folder, or no saved output of the task in it.
    """

    def __init__(
        self,
        folder: str | Path,
        task: str,
        class_map: ClassMap,
        info: TeacherInfo,
        suffixes: Sequence[str] = (),
    ):
        self.folder, self.task, self.class_map = Path(folder), task, class_map
        self.classes = class_map.target
        suffixes = suffixes or _SUFFIXES[task]
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder; set TEACHER.{task.upper()}.WEIGHTS")
        self._files = {path.stem: path for path in self.folder.iterdir() if path.suffix in suffixes}
        if not self._files:
            raise UserError(
                f"{folder}: holds no {' or '.join(suffixes)} file, one an image; see teachers/folder.py"
            )
        self._info = info
        if task == "segmentation":
            info.form = "logits" if next(iter(self._files.values())).suffix == ".npz" else "scores"

    @property
    def info(self) -> dict[str, Any]:
        """Fields of the teacher."""
        return self._info.as_dict()

    @property
    def image_ids(self) -> list[str]:
        """Of all files, sorted."""
        return sorted(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._files

    def get_detections(self, image_id: str) -> Detections:
        """The boxes of an image, in our classes."""
        if self.task != "detection":
            raise ValueError(f"{self.folder} holds dense outputs, no boxes")
        return self.class_map.detections(read_detections(self._path(image_id), self.class_map.source))

    def get_segmentation(self, image_id: str) -> SoftSegmentation:
        """The dense output of an image, in our classes, background first."""
        if self.task != "segmentation":
            raise ValueError(f"{self.folder} holds boxes, no dense outputs")
        path, classes = self._path(image_id), len(self.class_map.source)
        soft = read_scores(path, classes) if path.suffix == ".npy" else read_top_classes(path, classes)
        return self.class_map.segmentation(soft)

    def _path(self, image_id: str) -> Path:
        try:
            return self._files[image_id]
        except KeyError:
            raise UserError(f"{self.folder}: holds no saved output of image {image_id}") from None


def read_top_classes(path: str | Path, num_classes: int) -> SoftSegmentation:
    """An npz of the likeliest classes as (C + 1, h, w) log-probabilities (form logits).

    Raises:
        BadRecordError: missing, no such archive, or arrays that do not fit together.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            classes, logits, total = (_member(archive, name) for name in ("classes", "logits", "logsumexp"))
        return SoftSegmentation(_spread(classes, logits, total, num_classes + 1), "logits")
    except FileNotFoundError:
        raise BadRecordError(f"{path}: no such saved output") from None
    except (
        ValueError,
        KeyError,
        OSError,
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise BadRecordError(f"{path}: no valid saved output: {error}") from None


def _spread(classes: np.ndarray, logits: np.ndarray, total: np.ndarray, planes: int) -> np.ndarray:
    if classes.dtype != np.uint8 or classes.ndim != 3 or not classes.size or classes.max() >= planes:
        raise ValueError(f"classes must be uint8 (n, h, w) below {planes}")
    if logits.shape != classes.shape or total.shape != classes.shape[1:]:
        raise ValueError("classes, logits and logsumexp do not fit together")
    log_p = logits.astype(np.float32) - total.astype(np.float32)
    if not np.isfinite(log_p).all():
        raise ValueError("logits must be finite")
    others = max(planes - len(classes), 1)
    rest = np.log(np.maximum(1 - np.exp(log_p).sum(0), 1e-6) / others)
    values = np.broadcast_to(rest, (planes, *rest.shape)).copy()
    np.put_along_axis(values, classes.astype(np.int64), log_p, 0)
    return values


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an npz; never a pickle, never more than ``MAX_MEMBER`` bytes."""
    if archive.getinfo(f"{name}.npy").file_size > MAX_MEMBER:
        raise ValueError(f"{name} is too large")
    with archive.open(f"{name}.npy") as file:
        data = file.read(MAX_MEMBER + 1)
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} has an unknown version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or dtype.kind not in "fui" or fortran:
        raise ValueError(f"{name} is no plain array")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)
