"""Class probabilities of boxes: from the teachers' own heads, through class maps and the cache."""

import dataclasses

import numpy as np
import pytest
import torch
from test_cache import make_images, make_manifest
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.transforms.functional import to_tensor

from scenekd.data.transforms import build_transforms
from scenekd.models import build_model
from scenekd.sample import Sample
from scenekd.teachers.cache import CacheStore
from scenekd.teachers.cache_builder import write_cache
from scenekd.teachers.caching import cache_teacher
from scenekd.teachers.codec import decode_detections, encode_detections
from scenekd.teachers.codec_vectors import pack_vectors, unpack_vectors, vectors_size
from scenekd.teachers.label_map import ClassMap
from scenekd.teachers.protocol import Detections, TeacherOutput
from scenekd.teachers.torchvision_vectors import HeadProbabilities
from scenekd.teachers.zoo_torchvision import build_torchvision

FASTER, SSD = "fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def some_vectors(count, classes, peak=4.0):
    values = np.exp(peak * np.random.default_rng(1).normal(size=(count, classes)))
    return (values / values.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", [FASTER, SSD])
def test_torchvision_boxes_carry_their_heads_probabilities(name, image):
    """Against the head's output, taken here: each box's row holds its score at its label, and sums to 1."""
    teacher = build_torchvision(name, "random", classes=("a", "b", "c"), max_boxes=20)
    seen = []
    head = teacher.net.roi_heads.box_predictor if name == FASTER else teacher.net.head
    head.register_forward_hook(lambda m, i, out: seen.append(out["cls_logits"][0] if name == SSD else out[0]))
    output = teacher.predict([image])[0]
    vectors = output.class_probabilities
    assert vectors.shape == (len(output.boxes), 4) and len(vectors) > 3
    rows = np.arange(len(vectors))
    np.testing.assert_allclose(vectors[rows, output.labels], output.scores, rtol=1e-6)
    np.testing.assert_allclose(vectors.sum(1), 1, rtol=1e-5)
    # background stands first in the head, last in the vector
    expected = seen[0].softmax(-1).roll(-1, dims=1).numpy()
    for vector in vectors:
        assert (np.abs(expected - vector).max(1) < 1e-6).any()
    sorted_too = output.detections.class_probabilities
    np.testing.assert_array_equal(sorted_too, vectors[np.argsort(-output.scores, kind="stable")])


@pytest.mark.parametrize("name", [FASTER, SSD])
def test_each_image_of_a_batch_has_its_own_rows(name, image):
    teacher = build_torchvision(name, "random", classes=("a", "b", "c"), max_boxes=20)
    images = [image, image[::-1].copy()]
    for one, output in zip(images, teacher.predict(images)):
        alone = teacher.predict([one])[0]
        np.testing.assert_allclose(output.class_probabilities, alone.class_probabilities, atol=1e-5)


def test_sigmoid_detectors_have_none():
    """And a head that was not used for an image says nothing of it; a score that is none of its own is noticed."""
    backbone = nn.Conv2d(3, 32, 3)
    backbone.out_channels = 32
    assert HeadProbabilities.of(FCOS(backbone, 3)) is None
    head = nn.Identity()
    listener = HeadProbabilities(head)
    label = torch.tensor([1])
    assert listener.rows(label, torch.tensor([0.5])) is None
    head((torch.zeros(3, 2), None))
    with pytest.raises(ValueError, match="none of the probabilities"):
        listener.rows(label, torch.tensor([0.4]))
    head((torch.zeros(3, 2), None))
    assert listener.rows(label, torch.tensor([0.5])).tolist() == [[0.5, 0.5]]
    assert listener.rows(label, torch.tensor([0.5])) is None


def test_other_suppression_keeps_duplicates(image):
    teacher = build_torchvision(FASTER, "random", classes=("a", "b", "c"), max_boxes=20)
    few = len(teacher.predict([image])[0].boxes)
    teacher.set_nms(1.0, 500)
    with torch.no_grad():
        expected = teacher.net([to_tensor(image)])[0]
    assert len(teacher.predict([image])[0].boxes) == len(expected["boxes"]) > few
    assert teacher.info()["nms_threshold"] == 1.0


def test_network_of_ours_gives_the_softmax_row(tiny_config, image):
    cfg = tiny_config("net")
    torch.manual_seed(0)
    net = build_model(cfg, pretrained=False).eval()
    sample = build_transforms(cfg, train=False)(Sample(image=image, image_id="x"), np.random.default_rng(0))
    pixels = torch.from_numpy(sample.image.transpose(2, 0, 1).copy())[None].float()
    with torch.no_grad():
        prediction, logits = net(pixels, None)[0], net.outputs(pixels)["class_logits"][0]
    rows = prediction.class_probabilities
    assert len(rows) > 10
    picked = rows.gather(1, prediction.labels[:, None])[:, 0]
    assert torch.equal(picked, prediction.scores)
    every = logits.softmax(-1)
    assert all((every == row).all(1).any() for row in rows)


def test_class_map_joins_columns():
    class_map = ClassMap(("cat", "lion", "dog", "tree"), ("dog", "cat"), (1, 1, 0, -1))
    vectors = np.float32([[0.4, 0.3, 0.1, 0.05, 0.15], [0, 0, 0, 1, 0]])
    given = Detections.build(np.zeros((2, 4)), [0, 3], [0.4, 1.0], vectors[[0, 1]])
    mapped = class_map.detections(given)
    # cat and lion are one, a tree is background, and the box of a tree is dropped.
    np.testing.assert_allclose(mapped.class_probabilities, [[0.1, 0.7, 0.2]], rtol=1e-6)
    assert mapped.labels.tolist() == [1]
    same = dataclasses.replace(given, class_probabilities=vectors[:, :4])
    with pytest.raises(ValueError, match="4 class probabilities do not fit 4 classes"):
        class_map.detections(same)


def test_five_likeliest_classes_are_kept():
    vectors = some_vectors(40, 21)
    shape, data = pack_vectors(vectors)
    assert shape == [5, 21] and len(data) == vectors_size(shape, 40) == 40 * 20
    back = unpack_vectors(data, shape, 40)
    np.testing.assert_allclose(back.sum(1), 1, rtol=1e-6)
    top = np.argsort(-vectors, axis=1)[:, :5]
    kept = np.take_along_axis(vectors, top, 1)
    np.testing.assert_allclose(np.take_along_axis(back, top, 1), kept, rtol=1e-3)
    # what is left is spread evenly over the other 16
    others = np.sort(back, axis=1)[:, :16]
    np.testing.assert_allclose(others, np.repeat((1 - kept.sum(1))[:, None] / 16, 16, 1), atol=1e-4)


def test_few_classes_are_kept_whole():
    vectors = some_vectors(7, 3)
    back = unpack_vectors(pack_vectors(vectors)[1], [3, 3], 7)
    np.testing.assert_allclose(back, vectors, rtol=1e-3)


@pytest.mark.parametrize(
    "bad", [np.full((2, 3), 0.5), np.float32([[np.nan, 1, 0]]), np.float32([[-0.5, 1, 0.5]])]
)
def test_what_is_no_distribution_is_not_stored(bad):
    with pytest.raises(ValueError, match="must lie in 0…1 and sum to 1"):
        pack_vectors(bad)


def test_records_with_and_without_vectors():
    rng = np.random.default_rng(2)
    plain = Detections.build(rng.uniform(0, 9, (6, 4)), [0, 1, 2, 0, 1, 2], rng.uniform(0, 1, 6))
    full = dataclasses.replace(plain, class_probabilities=some_vectors(6, 4))
    assert decode_detections(*encode_detections(plain)).class_probabilities is None
    meta, payload = encode_detections(full)
    back = decode_detections(meta, payload)
    for got, want in zip(back, full):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(back.class_probabilities, full.class_probabilities, atol=1e-3)
    for shape in ([5, 4], [0, 4], [4, 1 << 17]):
        with pytest.raises(ValueError, match="bad shape"):
            decode_detections(meta | {"vectors": shape}, payload)
    with pytest.raises(ValueError, match="another size"):
        decode_detections({"boxes": 6}, payload)


def test_cache_holds_them_beside_the_boxes_it_keeps(tmp_path):
    record = make_images(tmp_path, 1)[0]
    vectors = some_vectors(3, 4)
    output = TeacherOutput(np.zeros((3, 4)), [0, 1, 2], [0.2, 0.9, 0.5], class_probabilities=vectors)
    store = write_cache(tmp_path / "c", make_manifest(min_score=0.3), [("im0", record.file_name, output)])
    np.testing.assert_allclose(store.get_detections("im0").class_probabilities, vectors[[1, 2]], atol=1e-3)


def test_cached_teacher_of_ours(tiny_config, tmp_path):
    """Through tools' own path: asked, mapped, stored; the row holds the score, and background's share is last."""
    from scenekd import checkpoint

    cfg = tiny_config("teacher")
    checkpoint.save_model(build_model(cfg, pretrained=False), cfg.dump(), tmp_path / "teacher.pth")
    kind = ("TEACHER.DETECTION.TYPE", "scenekd", "TEACHER.DETECTION.WEIGHTS", tmp_path / "teacher.pth")
    run = tiny_config("run", *kind)
    found = CacheStore(cache_teacher(run, "detection").folder)
    detections = found.get_detections(found.image_ids[0])
    vectors = detections.class_probabilities
    assert vectors.shape == (len(detections.boxes), 11)
    picked = vectors[np.arange(len(vectors)), detections.labels]
    among_the_first = np.sort(vectors, axis=1)[:, -5] <= detections.scores
    np.testing.assert_allclose(picked[among_the_first], detections.scores[among_the_first], rtol=2e-3)
    assert among_the_first.mean() > 0.3

    duplicates = tiny_config(
        "dup", *kind, "TEACHER.DETECTION.NMS_THRESHOLD", "1", "OUTPUT_DIR", tmp_path / "d"
    )
    more = CacheStore(cache_teacher(duplicates, "detection").folder)
    assert more.info["nms_threshold"] == 1.0 and more.manifest.identity != found.manifest.identity
