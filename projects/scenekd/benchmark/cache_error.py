"""What the one sampling of a canonical output differs by from asking the teacher about the warped image."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import numpy as np

from ..data.images import read_image
from ..data.soft import sample_soft
from ..data.transforms import Flip, IoUCrop, Photometric, Resize, Rotate, Transform, ZoomOut
from ..sample import Sample, SoftSegmentation
from ..teachers.codec import log_probabilities
from ..teachers.scenekd_teacher import SceneKDTeacher
from .material import voc_images
from .measure import Row
from .options import Options

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "flip": lambda: Flip(1.0),
    "crop": lambda: IoUCrop(1.0),
    "zoom-out": lambda: ZoomOut(1.0),
    "resize": lambda: Resize(300, 300),
    "rotation": lambda: Rotate(15),
    "colours": lambda: Photometric(),
}


def warped_error(options: Options, suite: str) -> Iterator[Row]:
    """For each transform the mean KL from the teacher on the warped image, and the argmax agreement."""
    if options.checkpoint is None:
        yield Row(
            suite,
            "error against the teacher on the warped image",
            detail="needs a SceneKD checkpoint with a segmentation task: --checkpoint FILE",
        )
        return
    teacher = SceneKDTeacher(options.checkpoint)
    records = voc_images(options).records[: options.pick(60, 8, 2)]
    images = [read_image(record) for record in records]
    canonical = [teacher.predict([image])[0].segmentation for image in images]
    for name, build in TRANSFORMS.items():
        measured = []
        for i, (image, soft) in enumerate(zip(images, canonical)):
            assert soft is not None
            sample = Sample(image=image, image_id=str(i))
            moved = build()(sample, np.random.default_rng(i))
            measured.append(difference(teacher, soft, moved))
        for k, (text, unit) in enumerate((("KL", "nats"), ("argmax agreement", ""))):
            values = [m[k] for m in measured]
            detail = f"{len(images)} images, mean [smallest … largest] over the pixels that show the image"
            yield Row(
                suite,
                f"warping, {name}: {text} to the teacher on the warped image",
                statistics.fmean(values),
                min(values),
                max(values),
                unit,
                detail=detail,
            )


def difference(teacher: SceneKDTeacher, canonical: SoftSegmentation, moved: Sample) -> tuple[float, float]:
    """(KL in nats, argmax agreement) at the teacher's own grid, where the moved image shows the image."""
    asked = teacher.predict([moved.image])[0].segmentation
    assert asked is not None
    if moved.coordinates is None:
        values, valid = canonical.values, np.ones(canonical.values.shape[1:], bool)
    else:
        grid = (asked.values.shape[1], asked.values.shape[2])
        values, valid = sample_soft(canonical, moved.coordinates, grid)
    p, q = log_probabilities(asked), log_probabilities(SoftSegmentation(values, canonical.form))
    kl = (np.exp(p) * (p - q)).sum(0)
    same = p.argmax(0) == q.argmax(0)
    return float(kl[valid].mean()), float(same[valid].mean())
