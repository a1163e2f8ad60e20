"""Class maps by name, and what they do to boxes and to dense outputs; instance masks to dense vectors."""

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from scenekd.data.voc import VOC_CLASSES
from scenekd.errors import UserError
from scenekd.sample import SoftSegmentation
from scenekd.teachers.dense import dense_places
from scenekd.teachers.label_map import build_class_map, canonical
from scenekd.teachers.masks import masks_to_scores
from scenekd.teachers.protocol import Detections

COCO = [
    name
    for name in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if name not in ("__background__", "N/A")
]


def test_every_voc_class_has_a_coco_class():
    class_map = build_class_map(COCO, VOC_CLASSES, allow_unmapped=True)
    assert sorted(i for i in class_map.index if i >= 0) == list(range(20))
    names = class_map.as_dict()
    expected = {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "dining table": "diningtable",
        "potted plant": "pottedplant",
        "couch": "sofa",
        "tv": "tvmonitor",
        "sheep": "sheep",
        "zebra": "background",
    }
    assert {name: names[name] for name in expected} == expected


def test_spelling_does_not_matter():
    assert canonical("Dining_Table") == canonical("diningtable") == canonical("dining table")
    assert canonical("TV Monitor") == canonical("tv")
    assert canonical("cat") != canonical("dog")


def test_incomplete_maps_are_refused_unless_allowed():
    with pytest.raises(
        UserError, match=r"60 classes of the teacher have no counterpart \(truck, .*CLASS_MAP"
    ):
        build_class_map(COCO, VOC_CLASSES)
    with pytest.raises(UserError, match="1 classes of the student have no teacher class .boat"):
        build_class_map(["cat"], ["cat", "boat"])
    assert build_class_map(["cat"], ["cat", "boat"], allow_unmapped=True).index == (0,)
    with pytest.raises(UserError, match="none of the teacher's classes"):
        build_class_map(["cat"], ["boat"], allow_unmapped=True)


def test_equal_names_go_before_synonyms():
    """COCO-Stuff has both a table and a dining table."""
    names = ("dining table", "table")
    assert build_class_map(names, names).index == (0, 1)
    assert build_class_map(["diningtable"], ["table"]).index == (0,)


@pytest.mark.parametrize(
    ("source", "target", "places"),
    [
        (("background", "cat"), ("background", "cat"), [0, 1]),
        (("airplane", "Background", "tv_monitor"), ("tvmonitor", "background", "aeroplane"), [2, 1, 0]),
        (("road", "car"), ("car", "road"), [1, 0]),  # neither has a background
    ],
)
def test_dense_places_by_name(source, target, places):
    assert dense_places(source, target) == places


def test_a_background_that_one_side_lacks():
    """Refused, unless a class is mapped to it or all is allowed; then nothing, or no plane, stands for it."""
    with pytest.raises(
        UserError, match="^TEACHER.CLASS_MAP: the teacher has no background; add pairs .*ALLOW_UNMAPPED"
    ):
        dense_places(("cat", "sky"), ("background", "cat", "sky"))
    with pytest.raises(
        UserError, match="^teacher.classes: the teacher has a background, and the student has none"
    ):
        dense_places(("background", "cat"), ("cat",), key="teacher")
    pair = [("sky", "background")]
    assert dense_places(("cat", "sky"), ("cat", "background"), pair) == [0, 1]
    assert dense_places(("cat", "sky"), ("background", "cat"), allow_unmapped=True) == [1, 0]
    assert dense_places(("background", "cat"), ("cat",), allow_unmapped=True) == [-1, 0]


def test_pairs_go_first_and_many_may_be_background():
    source, pairs = ["truck", "car", "bus"], [("truck", "car"), ("bus", "background")]
    class_map = build_class_map(source, ["car"], pairs)
    assert class_map.index == (0, 0, -1)
    for bad, message in (
        ([("lorry", "car")], "the teacher has no class 'lorry'"),
        ([("truck", "van")], "'van' is neither a class of the student nor background"),
        (["truck"], "is no pair"),
    ):
        with pytest.raises(UserError, match=message):
            build_class_map(source, ["car"], bad)


def test_boxes_take_our_labels_and_background_is_dropped():
    class_map = build_class_map(["truck", "car", "bus"], ["bus", "car"], [("truck", "background")])
    detections = Detections.build(np.arange(12).reshape(3, 4), [0, 1, 2], [0.9, 0.8, 0.7])
    mapped = class_map.detections(detections)
    assert mapped.labels.tolist() == [1, 0]
    assert mapped.scores.tolist() == np.float32([0.8, 0.7]).tolist()
    with pytest.raises(ValueError, match="outside the teacher's 3 classes"):
        class_map.detections(Detections.build(np.zeros((1, 4)), [3], [0.5]))


@pytest.fixture
def joined():
    """truck and car → car; bus → background; the order of the others is turned round."""
    return build_class_map(
        ["truck", "car", "bus", "cat"], ["cat", "car"], [("truck", "car"), ("bus", "background")]
    )


def test_joined_logits_have_the_summed_probability(joined):
    logits = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    p = softmax(logits, 0)
    mapped = joined.segmentation(SoftSegmentation(logits, "logits"))
    expected = np.stack([p[0] + p[3], p[4], p[1] + p[2]])
    np.testing.assert_allclose(softmax(mapped.values, 0), expected, rtol=1e-5)
    np.testing.assert_allclose(mapped.values[2], logsumexp(logits[1:3], axis=0), rtol=1e-5)
    mapped = joined.segmentation(SoftSegmentation(p, "probabilities"))
    np.testing.assert_allclose(mapped.values, expected, rtol=1e-5)


def test_joined_scores_take_the_maximum_and_background_stays_empty(joined):
    scores = np.zeros((5, 1, 3), np.float32)
    scores[1, 0, :] = [0.2, 0.9, 0]
    scores[2, 0, :] = [0.5, 0.3, 0]
    scores[3, 0, 2] = 0.8  # a bus, which stands for background
    mapped = joined.segmentation(SoftSegmentation(scores, "scores")).values
    np.testing.assert_array_equal(mapped[:, 0], np.float32([[0, 0, 0], [0, 0, 0], [0.5, 0.9, 0]]))


def test_class_that_the_teacher_does_not_know_is_improbable():
    class_map = build_class_map(["cat"], ["cat", "boat"], allow_unmapped=True)
    logits = np.float32([100, 103]).reshape(2, 1, 1)
    p = softmax(class_map.segmentation(SoftSegmentation(logits, "logits")).values[:, 0, 0].astype(np.float64))
    # e³ / (1 + e³) for the cat, e^−30 for the boat.
    np.testing.assert_allclose(p[1], np.exp(3) / (1 + np.exp(3)), rtol=1e-6)
    np.testing.assert_allclose(p[2], np.exp(-30), rtol=1e-3)


def test_overlapping_masks_keep_the_highest_confidence_of_a_class():
    masks = np.zeros((3, 2, 3), bool)
    masks[0, 0, :2] = masks[1, 0, 1:] = masks[2, :, 1] = True
    soft = masks_to_scores(masks, np.array([0, 0, 1]), np.array([0.9, 0.4, 0.6]), 2)
    assert soft.form == "scores"
    expected = np.zeros((3, 2, 3), np.float32)
    expected[1, 0] = [0.9, 0.9, 0.4]  # both masks of class 0 cover the middle
    expected[2, :, 1] = 0.6  # another class fills its own slot
    np.testing.assert_array_equal(soft.values, expected)


def test_no_mask_gives_an_empty_array_and_bad_labels_are_refused():
    empty = masks_to_scores(np.zeros((0, 4, 5), bool), np.zeros(0, int), np.zeros(0), 3)
    assert empty.values.shape == (4, 4, 5) and not empty.values.any()
    with pytest.raises(ValueError, match="labels must lie in"):
        masks_to_scores(np.zeros((1, 2, 2), bool), np.array([3]), np.array([0.5]), 3)
    with pytest.raises(ValueError, match="do not match"):
        masks_to_scores(np.zeros((1, 2, 2), bool), np.array([0, 1]), np.array([0.5]), 3)
