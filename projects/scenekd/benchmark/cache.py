"""The teacher cache: bytes, what is lost, and the time to read and warp a record.

The bytes are held against a dense float32 array of VOC's usual size (375 × 500, 21 classes: 15.75 MB).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import get_cfg
from ..data.catalog import load_dataset
from ..data.mapper import Mapper
from ..data.records import Dataset
from ..data.soft import convert_soft, sample_soft
from ..data.voc import VOC_CLASSES
from ..losses.soft_label import soft_label_cross_entropy
from ..registry import register
from ..sample import SoftSegmentation
from ..sampling import record_index
from ..teachers.cache import CacheStore
from ..teachers.cache_builder import write_cache
from ..teachers.codec import fidelity
from ..teachers.protocol import TeacherOutput
from .cache_error import warped_error
from .material import Example, finer_outputs, manifest, saved_outputs, synthetic_outputs, voc_images
from .measure import Row, interleave
from .options import VOC_SIZE, Options, worker_threads

NAME = "cache"
DENSE_BYTES = 4 * (len(VOC_CLASSES) + 1) * VOC_SIZE[0] * VOC_SIZE[1]


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """Each material's size and fidelity; then the time; then the error of warping."""
    dataset = voc_images(options)
    count = options.pick(60, 8, 2)
    materials = {
        f"synthetic, stride {s}": synthetic_outputs(dataset.records[:count], s)
        for s in options.pick((4, 8), (4,), (8,))
    }
    name = next(iter(materials))
    if options.data is None:
        yield Row(
            NAME, "size and fidelity, real teacher", detail="SCENEKD_TEST_DATA names no folder of real data"
        )
    else:
        pool = options.data / "voc_pool_320"
        saved = load_dataset("voc_seg_train", root=str(pool)).records[:: max(1, 2900 // count)][:count]
        materials["real teacher as saved, 64 × 64"] = saved_outputs(pool, saved)
        name = "real teacher, stride 4"
        materials[name] = finer_outputs(pool, dataset.records[:count], 4)
    stores = {}
    for i, (material, examples) in enumerate(materials.items()):
        stores[material], rows = build(options.workdir / f"cache{i}", material, examples)
        yield from rows
    yield from _reading(options, dataset, stores[name], name)
    yield from warped_error(options, NAME)


def build(folder: Path, name: str, examples: Iterable[Example]) -> tuple[CacheStore, list[Row]]:
    """A cache of the examples, and the rows about it."""
    kept = list(examples)
    outputs = ((e.image_id, e.file_name, TeacherOutput(segmentation=e.soft)) for e in kept)
    store = write_cache(folder, manifest("segmentation", VOC_CLASSES, name), outputs)
    sizes = [100 * entry.location.length / DENSE_BYTES for entry in store.manifest.records.values()]
    worst: dict[str, list[tuple[float, str]]] = {"kl_t1": [], "kl_t4": [], "argmax": [], "cosine": []}
    for e in kept:
        stored = store.get_segmentation(e.image_id)
        measured = fidelity(e.soft, stored) | {"cosine": gradient_cosine(e.soft, stored)}
        for key, values in worst.items():
            values.append((measured[key], e.image_id))
    detail = f"{len(kept)} records, headers included, of {DENSE_BYTES / 1e6:.2f} MB"
    rows = [_row(f"{name}: bytes of a record", sizes, "%", ("<=", 0.5), detail)]
    for key, text, target in (
        ("kl_t1", "mean KL, T = 1", ("<=", 1e-3)),
        ("kl_t4", "mean KL, T = 4", ("<=", 1e-3)),
        ("argmax", "argmax agreement", (">=", 0.999)),
        ("cosine", "gradient cosine (worse of T = 1, 4)", (">=", 0.999)),
    ):
        bad = max(worst[key]) if target[0] == "<=" else min(worst[key])
        detail = f"worst image {bad[1]}: {bad[0]:.3g}"
        unit = "nats" if key.startswith("kl") else ""
        rows.append(_row(f"{name}: {text}", [v for v, _ in worst[key]], unit, target, detail))
    return store, rows


def _row(name: str, values: list[float], unit: str, target: tuple[str, float], detail: str) -> Row:
    return Row(NAME, name, statistics.fmean(values), min(values), max(values), unit, target, detail)


def gradient_cosine(exact: SoftSegmentation, stored: SoftSegmentation) -> float:
    """Cosine between the gradients that a random student gets from either target, the worse of T = 1, 4."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, *exact.values.shape, generator=generator, requires_grad=True)
    cosines = []
    for temperature in (1.0, 4.0):
        gradients = []
        for soft in (exact, stored):
            target = torch.from_numpy(np.ascontiguousarray(soft.values))[None]
            loss = soft_label_cross_entropy(student, target, temperature=temperature, target_is="logits")
            gradients.append(torch.autograd.grad(loss, student)[0].flatten().double())
        cosines.append(float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)))
    return min(cosines)


def _reading(options: Options, dataset: Dataset, store: CacheStore, name: str) -> Iterator[Row]:
    cfg: Any = get_cfg()
    dataset.records = [record for record in dataset.records if record.image_id in store]
    mapper = Mapper(dataset, cfg, train=True)
    draws = range(options.pick(60, 12, 2))
    fields = [mapper.sample(draw).coordinates for draw in draws]
    ids = [dataset.records[record_index(cfg.SEED, draw, len(dataset))].image_id for draw in draws]
    for side in (38, 75):

        def read_and_warp(side: int = side) -> None:
            for image_id, field in zip(ids, fields):
                assert field is not None
                soft = store.get_segmentation(image_id)
                values, _ = sample_soft(soft, field, (side, side))
                convert_soft(values, soft.form, "probabilities")

        def augment() -> None:
            for draw in draws:
                mapper(draw)

        with worker_threads():
            times = interleave(read_and_warp, augment, repeats=options.repeats(), min_seconds=0)
        median, low, high = times.cost
        detail = f"{name}; {len(draws)} images, one thread, JPEG and mask decoding in the full augmentation: "
        yield Row(
            NAME,
            f"reading and warping to {side} × {side} / full augmentation",
            100 * median,
            100 * low,
            100 * high,
            unit="%",
            target=("<=", 25.0),
            detail=detail + times.describe("augmentation"),
        )
