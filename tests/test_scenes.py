"""The scenes data set: exact labels, reproducible bytes, no colour test, a calibrated posterior."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scenekd.data import scenes
from scenekd.data.catalog import load_dataset
from scenekd.data.scenes import SCENES_CLASSES, generate_scenes, read_class_probabilities
from scenekd.data.scenes_draw import draw_scene
from scenekd.data.scenes_layout import draw_layout
from scenekd.data.scenes_model import (
    SCENES,
    SceneObject,
    class_frequencies,
    class_probabilities,
    draw_classes,
)
from scenekd.errors import UserError
from scenekd.xml_files import read_xml


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    assert generate_scenes(folder, splits={"train": 400, "val": 150}, seed=3, progress=False)
    return folder


def read_objects(root: Path, image_id: str) -> list[tuple[str, list[int], bool, bool]]:
    """(class, 0-based box, difficult, truncated) straight from the XML."""
    found = []
    for item in read_xml(root / "Annotations" / f"{image_id}.xml").iterfind("object"):
        box = [int(item.find("bndbox").findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")]
        box = [box[0] - 1, box[1] - 1, *box[2:]]
        flags = [item.findtext(tag) == "1" for tag in ("difficult", "truncated")]
        found.append((item.findtext("name"), box, *flags))
    return found


def read_mask(root: Path, folder: str, image_id: str) -> np.ndarray:
    return np.array(Image.open(root / folder / f"{image_id}.png"))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_boxes_are_tight_bounds_and_masks_agree(root):
    for image_id in read_class_probabilities(root, "val"):
        instances = read_mask(root, "SegmentationObject", image_id)
        objects = read_objects(root, image_id)
        assert sorted(set(instances.ravel())) == list(range(len(objects) + 1))
        expected = np.zeros_like(instances)
        for i, (name, box, _, _) in enumerate(objects):
            rows, columns = np.nonzero(instances == i + 1)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            expected[instances == i + 1] = SCENES_CLASSES.index(name) + 1
        np.testing.assert_array_equal(read_mask(root, "SegmentationClass", image_id), expected)


def test_it_loads_as_a_voc_folder(root):
    for name in ("voc_seg_val", "voc_main_val"):
        dataset = load_dataset(name, root=str(root), classes=SCENES_CLASSES)
        assert len(dataset) == 150
        assert dataset.clipped == 0
        record = dataset.records[7]
        objects = read_objects(root, record.image_id)
        np.testing.assert_array_equal(record.boxes, [box for _, box, _, _ in objects])
        assert [SCENES_CLASSES[label] for label in record.labels] == [name for name, *_ in objects]
        assert dataset.read_sem_seg(record).shape == (128, 160)


def test_difficult_and_truncated_follow_their_rules(root):
    records = read_class_probabilities(root, "train")
    seen = [
        (thing["visible"], thing["whole_box"], difficult, truncated)
        for image_id, record in records.items()
        for thing, (_, _, difficult, truncated) in zip(record["objects"], read_objects(root, image_id))
    ]
    assert all(difficult == (visible < 0.25) for visible, _, difficult, _ in seen)
    assert any(difficult for *_, difficult, _ in seen)
    outside = [box[0] < 0 or box[1] < 0 or box[2] > 160 or box[3] > 128 for _, box, _, _ in seen]
    assert outside == [truncated for *_, truncated in seen]
    assert 0.05 < np.mean(outside) < 0.5


def test_hidden_pixels_go_to_the_object_in_front():
    label = SCENES_CLASSES.index("house")
    far = SceneObject(label, 0, 40.0, (50, 40, 100, 90))
    near = SceneObject(label, 0, 40.0, (75, 60, 125, 110))
    # The far object is painted first, so the same random numbers paint it alone.
    alone = draw_scene(np.random.default_rng(1), 0, [far], (128, 160)).instances == 1
    both = draw_scene(np.random.default_rng(1), 0, [far, near], (128, 160))
    lost = alone & (both.instances != 1)
    assert lost.sum() > 200
    assert (both.instances[lost] == 2).all()
    assert not (~alone & (both.instances == 1)).any()
    assert both.covered[0] == alone.sum()


@pytest.mark.parametrize("label", range(len(SCENES_CLASSES)))
def test_a_lone_object_fills_the_box_that_was_drawn(label):
    for seed in range(5):
        thing = SceneObject(label, 0, 40.0, (60.3, 30.6, 102.7, 88.2))
        mask = draw_scene(np.random.default_rng(seed), 1, [thing], (128, 160)).instances > 0
        rows, columns = np.nonzero(mask)
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # Thin tips (a mast, a horn) cover less than half of their last pixels.
        np.testing.assert_allclose(drawn, thing.box, atol=4)
        assert drawn[0] >= 60 and drawn[1] >= 30 and drawn[2] <= 103 and drawn[3] <= 89


def test_bytes_depend_on_the_arguments_alone(tmp_path):
    first, again, longer, other = (tmp_path / name for name in ("first", "again", "longer", "other"))
    generate_scenes(first, splits={"a": 8, "b": 4}, seed=5, progress=False)
    generate_scenes(again, splits={"a": 8, "b": 4}, seed=5, progress=False)
    generate_scenes(longer, splits={"a": 12}, seed=5, progress=False)
    generate_scenes(other, splits={"a": 8}, seed=6, progress=False)
    assert hashes(first) == hashes(again)
    pictures = {name: value for name, value in hashes(first).items() if name.startswith("JPEGImages/a")}
    assert len(pictures) == 8
    assert pictures.items() <= hashes(longer).items()
    assert not set(pictures.values()) & set(hashes(other).values())
    assert not set(pictures.values()) & {hashes(first)[f"JPEGImages/b_{i:06d}.jpg"] for i in range(4)}


def test_a_repeated_call_does_nothing_and_another_one_is_refused(tmp_path):
    target = tmp_path / "set"
    assert generate_scenes(target, splits={"train": 3}, progress=False)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert not generate_scenes(target, splits={"train": 3}, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    with pytest.raises(UserError, match="other seed, size"):
        generate_scenes(target, splits={"train": 3}, seed=1, size=(96, 96), progress=False)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("dear to somebody")
    with pytest.raises(UserError, match="no scenes data set"):
        generate_scenes(tmp_path / "foreign", splits={"train": 3}, progress=False)
    assert (tmp_path / "foreign" / "thesis.txt").exists()


@pytest.mark.parametrize(
    "arguments",
    [{"splits": {}}, {"splits": {"../x": 3}}, {"splits": {"a": 0}}, {"splits": {"a": 1}, "size": (20, 160)}],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(UserError):
        generate_scenes(tmp_path / "set", progress=False, **arguments)
    assert not any(tmp_path.iterdir())


def _die_at_the_third_image(target: Path) -> None:
    write = scenes.write_voc_image
    calls = itertools.count()

    def dying(*args):
        if next(calls) == 3:
            os._exit(9)
        write(*args)

    scenes.write_voc_image = dying
    generate_scenes(target, splits={"train": 5}, progress=False)


def test_a_killed_run_leaves_nothing_and_the_next_one_completes(tmp_path):
    child = multiprocessing.get_context("fork").Process(
        target=_die_at_the_third_image, args=(tmp_path / "set",)
    )
    child.start()
    child.join()
    assert child.exitcode == 9
    assert not (tmp_path / "set").exists()
    assert generate_scenes(tmp_path / "set", splits={"train": 5}, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenes, "write_voc_image", fail)
    with pytest.raises(OSError):
        generate_scenes(tmp_path / "set", splits={"train": 5}, progress=False)
    assert not any(tmp_path.iterdir())


def test_a_border_is_void_in_the_masks_and_leaves_the_boxes(tmp_path):
    plain, rimmed = tmp_path / "plain", tmp_path / "rimmed"
    generate_scenes(plain, splits={"a": 6}, progress=False)
    generate_scenes(rimmed, splits={"a": 6}, border=1, progress=False)
    for image_id in read_class_probabilities(plain, "a"):
        assert read_objects(plain, image_id) == read_objects(rimmed, image_id)
        whole, cut = (read_mask(folder, "SegmentationObject", image_id) for folder in (plain, rimmed))
        # Oracle: a pixel is void where its 3×3 neighbourhood holds two values.
        padded = np.pad(whole, 1, mode="edge")
        window = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        edge = window.min(axis=(2, 3)) != window.max(axis=(2, 3))
        np.testing.assert_array_equal(cut, np.where(edge, 255, whole))
        assert ((read_mask(rimmed, "SegmentationClass", image_id) == 255) == edge).all()


def read_crops(root: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour histograms (8 bins a channel) and 16×16 silhouettes of the boxes, and their classes."""
    colours, shapes, labels = [], [], []
    for image_id in read_class_probabilities(root, split):
        image = np.array(Image.open(root / "JPEGImages" / f"{image_id}.jpg"))
        instances = read_mask(root, "SegmentationObject", image_id)
        for i, (name, (x1, y1, x2, y2), _, _) in enumerate(read_objects(root, image_id)):
            codes = image[y1:y2, x1:x2].reshape(-1, 3) // 32 @ np.array([64, 8, 1])
            colours.append(np.bincount(codes, minlength=512) / len(codes))
            mask = (instances[y1:y2, x1:x2] == i + 1).astype(np.float32)
            shapes.append(cv2.resize(mask, (16, 16), interpolation=cv2.INTER_AREA).ravel())
            labels.append(SCENES_CLASSES.index(name))
    return np.array(colours), np.array(shapes), np.array(labels)


def test_colours_do_not_tell_the_class_but_shapes_do(root):
    colours, shapes, labels = read_crops(root, "train")
    val_colours, val_shapes, val_labels = read_crops(root, "val")
    forest = RandomForestClassifier(100, min_samples_leaf=2, random_state=0).fit(colours, labels)
    linear = LogisticRegression(C=10, max_iter=300).fit(np.sqrt(colours), labels)
    assert forest.score(val_colours, val_labels) < 0.6
    assert linear.score(np.sqrt(val_colours), val_labels) < 0.6
    neighbours = KNeighborsClassifier(5).fit(shapes, labels)
    assert neighbours.score(val_shapes, val_labels) > 0.8


def test_given_scene_equals_enumeration():
    rng = np.random.default_rng(0)
    for scene, kind in enumerate(SCENES):
        # p(c1, c2, c3 | z) for all 1,000 triples, by summing over the themes.
        joint = np.einsum("t,ta,tb,tc->abc", kind.theme_weights, *[kind.class_weights] * 3)
        assert joint.sum() == pytest.approx(1)
        possible = np.argwhere(joint > 0)
        for triple in possible[rng.choice(len(possible), 10)]:
            objects = [SceneObject(int(label), 0, 40.0, (10, 10, 50, 50)) for label in triple]
            column = joint[triple[0], :, triple[2]]
            found = class_probabilities(scene, objects, 1)["given_scene"]
            np.testing.assert_allclose(found, column / column.sum(), atol=1e-12)


def test_given_objects_equals_enumeration_over_the_scenes():
    tables = [
        kind.prior * np.einsum("t,ta,tb->ab", kind.theme_weights, *[kind.class_weights] * 2)
        for kind in SCENES
    ]
    joint = np.sum(tables, axis=0)
    boat = SCENES_CLASSES.index("boat")
    objects = [SceneObject(boat, 0, 40.0, (10, 10, 50, 50))] * 2
    # Which scene the picture shows must not matter here.
    for scene in (2, 4):
        found = class_probabilities(scene, objects, 0)["given_objects"]
        np.testing.assert_allclose(found, joint[:, boat] / joint[:, boat].sum(), atol=1e-12)


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Posteriors (N, C) by kind and true classes (N,) of 4,000 layouts."""
    rng = np.random.default_rng(11)
    tables: dict[str, list[np.ndarray]] = {}
    labels: list[int] = []
    for _ in range(4000):
        scene, classes, zones = draw_classes(rng)
        objects = draw_layout(rng, scene, classes, zones, (128, 160))
        # One object of each picture, so that the rows are independent.
        index = int(rng.integers(len(objects)))
        labels.append(objects[index].label)
        for kind, values in class_probabilities(scene, objects, index).items():
            tables.setdefault(kind, []).append(values)
    return {kind: np.array(rows) for kind, rows in tables.items()}, np.array(labels)


def surprise(posterior: np.ndarray, labels: np.ndarray) -> float:
    """Mean of −log p(true) − entropy(p) in standard errors: about N(0, 1) under a true posterior."""
    safe = np.where(posterior > 0, posterior, 1)
    excess = -np.log(posterior[np.arange(len(labels)), labels]) + (safe * np.log(safe)).sum(axis=1)
    return float(excess.mean() / (excess.std(ddof=1) / np.sqrt(len(excess))))


def test_posteriors_are_calibrated(drawn):
    tables, labels = drawn
    truth = np.eye(len(SCENES_CLASSES))[labels]
    for posterior in tables.values():
        np.testing.assert_allclose(posterior.sum(axis=1), 1, atol=1e-9)
        # Of all objects to which a class is given a probability in a bin, that share belongs to it.
        for low in (0.0, 0.1, 0.3, 0.6, 0.9):
            rows, columns = np.nonzero((posterior >= low) & (posterior < low + 0.3))
            p, hit = posterior[rows, columns], truth[rows, columns]
            error = np.sqrt((p * (1 - p)).sum()) + 1e-9
            assert abs((hit - p).sum()) / error < 4
        assert abs(surprise(posterior, labels)) < 4
    # The check has power: a slightly too sharp posterior fails it.
    sharp = tables["given_scene_and_box"] ** 1.25
    assert surprise(sharp / sharp.sum(axis=1, keepdims=True), labels) > 4


def test_the_surroundings_tell_something_and_more_of_them_tell_more(drawn):
    tables, labels = drawn
    hits = {kind: float((p.argmax(axis=1) == labels).mean()) for kind, p in tables.items()}
    prior = class_frequencies().max()
    assert prior + 0.2 < hits["given_objects"] < hits["given_scene"] < hits["given_scene_and_zone"]
    assert hits["given_scene_and_zone"] < hits["given_scene_and_box"] < 0.95


def test_some_classes_are_frequent_and_some_rare(drawn):
    _, labels = drawn
    expected = class_frequencies()
    assert expected.sum() == pytest.approx(1)
    assert expected.max() > 10 * expected.min()
    # A random object of a picture follows p(c) whatever the number of objects: binomial counts.
    counts = np.bincount(labels, minlength=len(SCENES_CLASSES))
    error = np.sqrt(len(labels) * expected * (1 - expected))
    assert (abs(counts - len(labels) * expected) < 4 * error).all()
