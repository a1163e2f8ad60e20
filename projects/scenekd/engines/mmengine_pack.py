"""The end of a pipeline: one SegDataSample with masks, boxes and the teacher's output on the moved image."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData, PixelData
from mmseg.datasets.transforms import PackSegInputs

from ..data.instance_masks import sample_masks
from ..data.soft import convert_soft, sample_soft
from .mmengine_teacher import FORM, SOFT, TARGET, WEIGHTS
from .mmengine_track import BOXES, MASKS, TRACK, check_witness

_FLAGS = (
    *("image_id", "has_boxes", "has_sem_seg", "has_instance_masks"),
    *("has_teacher_boxes", "has_teacher_masks", WEIGHTS),
)


class SceneKDPackInputs(PackSegInputs):
    """MMSegmentation's PackSegInputs, with what it drops.

    The data sample also gets ``gt_instances`` (bboxes, labels, scores, from_teacher, difficult; masks where they were
    loaded), ``gt_soft_seg`` (K, h, w) and ``gt_soft_valid`` (1, h, w): masks and the teacher's output, sampled once,
    where the moved image shows them; ``gt_shown`` (1, H, W): which pixels show the image and no padding; and in its
    meta information the image's id, which labels exist, the weights of the sources and the form of the teacher's
    output.

    Args:
        soft_size: (h, w) of the soft target and of the boxes' masks; by default the moved image's.
        options: of PackSegInputs.

    Raises:
        UserError: the image was moved outside SceneKDGeometry.
    """

    def __init__(self, soft_size: tuple[int, int] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.soft_size = None if soft_size is None else (int(soft_size[0]), int(soft_size[1]))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """{'inputs': (3, H, W), 'data_samples': SegDataSample}."""
        packed = super().transform(results)
        sample = packed["data_samples"]
        if TRACK in results:
            check_witness(results)
            sample.gt_shown = PixelData(data=torch.from_numpy(~results[TRACK].hidden)[None])
        sample.set_metainfo({key: results[key] for key in _FLAGS if key in results})
        if BOXES in results:
            sample.gt_instances = InstanceData(
                bboxes=torch.from_numpy(results[BOXES]).float(),
                **{
                    name: torch.from_numpy(results[f"{BOXES}_{name}"])
                    for name in ("labels", "scores", "from_teacher", "difficult")
                    if f"{BOXES}_{name}" in results
                },
            )
        if MASKS in results:
            masks = sample_masks(results[MASKS], results[TRACK].coordinates(), self.soft_size)
            sample.gt_instances.masks = torch.from_numpy(masks)
        if SOFT in results:
            self._pack_soft(results, sample)
        return packed

    def _pack_soft(self, results: dict[str, Any], sample: Any) -> None:
        target, background = results[TARGET]
        soft = results[SOFT]
        values, valid = sample_soft(soft, results[TRACK].coordinates(), self.soft_size, background)
        values = convert_soft(values, soft.form, target)
        sample.set_metainfo({FORM: target})
        sample.gt_soft_seg = PixelData(data=torch.from_numpy(values))
        sample.gt_soft_valid = PixelData(data=torch.from_numpy(valid)[None])
