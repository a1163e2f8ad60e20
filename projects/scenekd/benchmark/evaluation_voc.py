"""VOC AP against detectron2's evaluator: a made-up data set in VOC's layout, with its detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..data.voc import VOC_CLASSES, load_voc
from ..evaluation.detection import IOU_THRESHOLDS, voc_ap
from .measure import Row, interleave, milliseconds
from .options import Options

_XML = "<annotation><size><width>500</width><height>375</height><depth>3</depth></size>{objects}</annotation>"
_OBJECT = (
    "<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{difficult}"
    "</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


@dataclass
class VocCase:
    """Detections for a folder in VOC's layout, in memory for us and as text for detectron2."""

    folder: Path
    predictions: list[dict[str, np.ndarray]]


def make_case(folder: Path, images: int, boxes: int, seed: int = 0) -> VocCase:
    """``boxes`` detections an image: for each of one to five objects some near it, the others anywhere."""
    rng = np.random.default_rng(seed)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "JPEGImages").mkdir()
    text: dict[str, list[str]] = {name: [] for name in VOC_CLASSES}
    predictions = []
    for i in range(images):
        image_id = f"{i:06d}"
        count = int(rng.integers(1, 6))
        truth, labels = _random_boxes(rng, count), rng.integers(0, len(VOC_CLASSES), count)
        objects = "".join(
            _OBJECT.format(*box.astype(int), name=VOC_CLASSES[label], difficult=int(rng.random() < 0.1))
            for box, label in zip(truth, labels)
        )
        (folder / "Annotations" / f"{image_id}.xml").write_text(_XML.format(objects=objects))
        (folder / "JPEGImages" / f"{image_id}.jpg").touch()  # its size is in the annotation
        predictions.append(_detections(rng, truth, labels, boxes))
        _write_detections(text, image_id, predictions[-1])
    ids = "".join(f"{i:06d}\n" for i in range(images))
    for path in (folder / "list.txt", folder / "ImageSets" / "Main" / "test.txt"):
        path.write_text(ids)
    for name, lines in text.items():
        (folder / f"det_{name}.txt").write_text("\n".join(lines))
    return VocCase(folder, predictions)


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Whole numbers, 1-based, within 500 × 375."""
    low = np.stack([rng.integers(1, 400, count), rng.integers(1, 300, count)], 1)
    high = np.minimum(low + rng.integers(20, 300, (count, 2)), (500, 375))
    return np.concatenate([low, high], 1).astype(float)


def _detections(
    rng: np.random.Generator, truth: np.ndarray, labels: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    near = rng.integers(0, len(truth), count // 3)
    jittered = truth[near] + rng.normal(scale=8, size=(len(near), 4))
    jittered[:, 2:] = np.maximum(jittered[:, 2:], jittered[:, :2] + 1)
    rest = count - len(near)
    return {
        "boxes": np.concatenate([jittered, _random_boxes(rng, rest)]),
        "labels": np.concatenate([labels[near], rng.integers(0, len(VOC_CLASSES), rest)]),
        "scores": rng.random(count),
    }


def _write_detections(text: dict[str, list[str]], image_id: str, found: dict[str, np.ndarray]) -> None:
    """detectron2's lines, in full precision; it adds 1 to both corners' meaning itself, as VOC does."""
    for box, label, score in zip(*(found[key].tolist() for key in ("boxes", "labels", "scores"))):
        line = " ".join([image_id, repr(score), *map(repr, box)])
        text[VOC_CLASSES[label]].append(line)


def our_ap(case: VocCase, thresholds: Sequence[float] = (0.5,)) -> np.ndarray:
    """Load the data set as for any evaluation, then (T, C) AP at every threshold."""
    dataset = load_voc("voc_main_test", str(case.folder))
    # The detections are in VOC's 1-based pixels; loading subtracts 1 from two of the corners.
    shift = np.array([1.0, 1.0, 0.0, 0.0])
    targets = [{"boxes": r.boxes, "labels": r.labels, "difficult": r.difficult} for r in dataset.records]
    found = [p | {"boxes": p["boxes"] - shift} for p in case.predictions]
    return voc_ap(found, targets, num_classes=len(VOC_CLASSES), iou_threshold=thresholds)


def voc_rows(options: Options, suite: str) -> Iterator[Row]:
    """Difference and speed; without detectron2 the row says so.

    One threshold on the whole case; all ten, which we match in one pass, on a tenth of it.
    """
    from ..engines.benchmark_peers import detectron2_voc_ap, has_detectron2

    images = options.pick(4952, 1000, 20)
    for name, count, thresholds in (
        ("one IoU threshold", images, IOU_THRESHOLDS[:1]),
        ("ten IoU thresholds", images // 10, IOU_THRESHOLDS),
    ):
        case = make_case(options.workdir / f"voc{count}", count, 100)
        what = f"{count} images, {100 * count} boxes, {name}, annotations parsed by both"
        name = f"speed of VOC AP against detectron2, {name}"
        ours = partial(our_ap, case, thresholds)
        if not has_detectron2():
            times = interleave(ours, ours, repeats=options.repeats(3))
            alone = f"detectron2 is not installed; {what}: ours {milliseconds(min(times.ours))}"
            yield Row(suite, name, detail=alone)
            continue
        peer = partial(detectron2_voc_ap, case.folder, VOC_CLASSES, thresholds)
        worst = float(np.nanmax(abs(ours() - peer())))
        title = f"difference of VOC AP from detectron2, {len(thresholds)} IoU thresholds"
        yield Row(suite, title, worst, unit="", target=("<=", 1e-6), detail=what)
        times = interleave(ours, peer, repeats=options.repeats(3), warm=False)
        detail = f"{what}: {times.describe('detectron2')} (it reads its detections from text, by design)"
        yield Row(suite, name, *times.speedup, target=(">=", 10.0), detail=detail)
