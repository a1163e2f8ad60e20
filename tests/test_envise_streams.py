"""envise's streams: pairs, priors and their shifts, sources, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from class_data import write_images
from envise_parts import NAMES, PAIRS, colour_dataset, envise_config

from envise.pairs import SHIPPED, read_pair
from envise.prior import draw_plan, read_priors
from envise.sources import object_crops
from envise.stream import build_stream, stream_dataset
from envise.teachers import check_teacher_knows
from envise.write_crops import write_crops
from scenekd.config import load_config, read_config
from scenekd.data.catalog import load_dataset
from scenekd.data.images import read_image
from scenekd.errors import UserError


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text(PAIRS)
    return {"PAIRS": str(path), "PAIR": "warm"}


def _refused(match, **stream):
    with pytest.raises(UserError, match=match) as caught:
        build_stream(envise_config(STREAM=stream), colour_dataset())
    assert "\n" not in str(caught.value)


def _drain(stream, size=16):
    batches = []
    while (batch := stream.next_batch(size)) is not None:
        batches.append(batch)
    return batches


def test_probabilities_of_a_pair(pairs):
    """Three inliers and two outliers at 90:10, Zipf s = 1: inliers .9 · (1, 1/2, 1/3) / (11/6), outliers
    .1 · (1, 1/2) / (3/2)."""
    node = envise_config(STREAM={**pairs, "OUTLIER_SHARE": 0.1, "FREQUENCIES": "zipf"}).STREAM
    prior = read_priors(node, colour_dataset())[0]
    expected = [0.9 * 6 / 11, 0.9 * 3 / 11, 0.9 * 2 / 11, 0.1 * 2 / 3, 0.1 / 3]
    assert prior.probabilities == pytest.approx(expected)
    # At s = 0 all are alike.
    node = envise_config(STREAM={**pairs, "FREQUENCIES": "zipf", "ZIPF_EXPONENT": 0.0}).STREAM
    assert read_priors(node, colour_dataset())[0].probabilities == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_given_frequencies_and_shifts(pairs):
    """Given weights are normalised within inliers and within outliers; a shift changes what it names and no more."""
    stream = {
        **pairs,
        "FREQUENCIES": "given",
        "GIVEN": (("red", 3), ("blue", 1), ("cyan", 5)),
        "SHIFTS": ({"AT": 50, "OUTLIER_SHARE": 0.25}, {"AT": 90, "FREQUENCIES": "uniform"}),
    }
    first, second, third = read_priors(envise_config(STREAM=stream).STREAM, colour_dataset())
    assert first.probabilities == pytest.approx([0.75, 0, 0.25, 0, 0])
    assert second.probabilities == pytest.approx([0.75 * 0.75, 0, 0.75 * 0.25, 0, 0.25])
    assert third.probabilities == pytest.approx([0.25, 0.25, 0.25, 0.125, 0.125])
    assert [p.start for p in (first, second, third)] == [0, 50, 90]


def test_rank_seed_shuffles_the_ranks():
    """Another order of the same frequencies; 0 keeps the order in which the classes are named."""
    plain, shuffled, again = (
        read_priors(
            envise_config(STREAM={"FREQUENCIES": "zipf", "RANK_SEED": seed}).STREAM, colour_dataset()
        )[0].probabilities
        for seed in (0, 3, 3)
    )
    assert (np.diff(plain) < 0).all()
    assert sorted(plain) == pytest.approx(sorted(shuffled))
    assert list(plain) != list(shuffled)
    assert list(shuffled) == list(again)


def test_plan_is_repeatable_and_grows(pairs):
    """A longer stream begins like a shorter one; another seed is another stream; shares are those of the prior."""
    shift = ({"AT": 3000, "OUTLIER_SHARE": 0.3},)
    node = envise_config(STREAM={**pairs, "SHIFTS": shift}).STREAM
    dataset = colour_dataset()
    labels = np.array([r.class_label for r in dataset.records])
    priors = read_priors(node, dataset)
    plan = draw_plan(priors, labels, 5, 9000)
    assert (draw_plan(priors, labels, 5, 4000) == plan[:4000]).all()
    assert (draw_plan(priors, labels, 6, 9000) != plan).any()
    assert (labels[plan[:3000]] < 3).all()
    # 6000 draws at .3: the standard deviation is sqrt(.3 · .7 / 6000) = .006; four of them
    assert abs((labels[plan[3000:]] >= 3).mean() - 0.3) < 0.024


def test_images_come_once_before_they_come_again():
    """The k-th 40 samples of a class are a permutation of its 40 images."""
    dataset = colour_dataset()
    labels = np.array([r.class_label for r in dataset.records])
    plan = draw_plan(read_priors(envise_config().STREAM, dataset), labels, 0, 1000)
    reds = plan[labels[plan] == 0]
    assert len(reds) > 80
    first, second = reds[:40], reds[40:80]
    assert sorted(first) == sorted(second) == sorted(np.flatnonzero(labels == 0))
    assert list(first) != list(second)


def test_batches_and_truth(pairs):
    """All samples in order, the last batch shorter; the truth of each position is its image's class."""
    cfg = envise_config(STREAM={**pairs, "OUTLIER_SHARE": 0.4, "SAMPLES": 50})
    dataset = colour_dataset()
    stream = build_stream(cfg, dataset)
    batches = _drain(stream)
    assert [len(b) for b in batches] == [16, 16, 16, 2]
    assert np.concatenate([b.positions for b in batches]).tolist() == list(range(50))
    of_id = {r.image_id: r for r in dataset.records}
    for batch in batches:
        for at, name, image in zip(batch.positions, batch.image_ids, batch.images):
            assert stream.truth.labels[at] == of_id[name].class_label
            assert stream.truth.outlier[at] == (of_id[name].class_label >= 3)
            assert (image.permute(1, 2, 0).numpy() == of_id[name].pixels).all()


def test_refused_priors(pairs, tmp_path):
    """Each in one line that names the key."""
    _refused("STREAM.OUTLIER_SHARE: 0.1 without outliers", OUTLIER_SHARE=0.1)
    _refused("STREAM.OUTLIER_SHARE: 1.0 is no share", OUTLIER_SHARE=1.0, **pairs)
    _refused("STREAM.PAIR: PAIRS and PAIR belong together", PAIRS=pairs["PAIRS"])
    _refused("STREAM.PAIR: .* has no pair 'cold'; choose one of warm", **{**pairs, "PAIR": "cold"})
    _refused(
        "STREAM.PAIRS: nope.yaml: no such file; .*cifar100, scenes, tiny_imagenet",
        PAIRS="nope.yaml",
        PAIR="x",
    )
    _refused("STREAM.FREQUENCIES: 'even'; choose one of uniform, zipf, given", FREQUENCIES="even")
    _refused("STREAM.GIVEN: no weight for any class", FREQUENCIES="given")
    _refused(r"STREAM.GIVEN: \('pink', 1\) is no pair", FREQUENCIES="given", GIVEN=(("pink", 1),))
    # One class only
    _refused(
        "only the class red is to come; there is nothing to learn", FREQUENCIES="given", GIVEN=(("red", 1),)
    )
    _refused(r"STREAM.SHIFTS\[0\]: write {AT: position", SHIFTS=({"OUTLIER_SHARE": 0.1},))
    _refused(r"STREAM.SHIFTS\[0\]: SAMPLES cannot shift", SHIFTS=({"AT": 5, "SAMPLES": 1},))
    _refused(
        r"STREAM.SHIFTS\[1\]: AT 5 must lie after 5",
        SHIFTS=({"AT": 5, "RANK_SEED": 1}, {"AT": 5, "RANK_SEED": 2}),
    )
    bad = tmp_path / "bad.yaml"
    bad.write_text("pairs: {p: {inliers: [red, blu], outliers: [cyan]}}")
    _refused("pair p: colours has no group or class 'blu'; nearest: blue", PAIRS=str(bad), PAIR="p")
    bad.write_text("pairs: {p: {inliers: [red, blue], outliers: [blue]}}")
    _refused("pair p: blue among inliers and outliers", PAIRS=str(bad), PAIR="p")
    bad.write_text("pairs: {p: {inliers: [red]}}")
    _refused("pair p names no outliers", PAIRS=str(bad), PAIR="p")
    bad.write_text("- 1")
    _refused("holds no pairs", PAIRS=str(bad), PAIR="p")


def test_teacher_with_fewer_classes(pairs):
    """A pair that names what the teacher cannot answer is refused."""
    stream = build_stream(envise_config(STREAM=pairs), colour_dataset())
    check_teacher_knows(range(5), stream.priors, NAMES)
    with pytest.raises(UserError, match=r"the teacher lacks 2 classes that pair warm names \(blue, cyan\)"):
        check_teacher_knows((0, 1, 3), stream.priors, NAMES)


def test_unreadable_images(tmp_path):
    """They are passed over and counted, up to MAX_UNREADABLE; the next one ends the run, naming its file."""
    write_images(tmp_path, tuple(f"{i}.png" for i in range(6)))
    for name in ("1.png", "4.png"):
        (tmp_path / name).write_bytes(b"no picture")
    stream = build_stream(envise_config(STREAM={"SOURCE": str(tmp_path), "MAX_UNREADABLE": 2, "SAMPLES": 0}))
    batch = stream.next_batch(10)
    assert batch.image_ids == ("0.png", "2.png", "3.png", "5.png")
    assert batch.positions.tolist() == [0, 2, 3, 5]
    assert len(stream.unreadable) == 2
    assert stream.next_batch(10) is None
    with pytest.raises(UserError, match=r"4.png: cannot be read .*MAX_UNREADABLE 1 allows no more"):
        _drain(build_stream(envise_config(STREAM={"SOURCE": str(tmp_path), "MAX_UNREADABLE": 1})))


def test_empty_streams(tmp_path):
    """A folder without an image, nothing but broken ones, no such file, a file that is no video, no such camera."""
    for name, match in (
        ("empty", "holds no image"),
        ("nope.mp4", "nope.mp4: no such file; name a folder, a video, or camera:N"),
        ("text.mp4", "OpenCV cannot read it as a video"),
    ):
        if name == "empty":
            (tmp_path / name).mkdir()
        if name == "text.mp4":
            (tmp_path / name).write_text("no video")
        with pytest.raises(UserError, match=match):
            build_stream(envise_config(STREAM={"SOURCE": str(tmp_path / name)}))
    (tmp_path / "empty" / "a.png").write_bytes(b"x")
    stream = build_stream(envise_config(STREAM={"SOURCE": str(tmp_path / "empty")}))
    with pytest.raises(UserError, match="STREAM: holds no image that can be read"):
        stream.next_batch(4)
    with pytest.raises(UserError, match="STREAM.PAIRS: the images of .* have no classes"):
        build_stream(envise_config(STREAM={"SOURCE": str(tmp_path / "empty"), "PAIRS": "cifar100"}))


def test_video(tmp_path):
    """Frames come in order as RGB, at most SAMPLES of them; a run that goes on begins at its frame."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    for number in range(12):
        writer.write(np.full((24, 32, 3), (0, 0, 20 * number), np.uint8))  # BGR: ever more red
    writer.release()
    stream = build_stream(envise_config(STREAM={"SOURCE": str(path), "SAMPLES": 10}))
    batches = _drain(stream, 4)
    assert [len(b) for b in batches] == [4, 4, 2]
    assert batches[1].image_ids[0] == "film_00000004"
    reds = np.concatenate([b.images[:, 0].float().mean((1, 2)).numpy() for b in batches])
    assert reds == pytest.approx(20 * np.arange(10), abs=4)  # JPEG rounds
    again = build_stream(envise_config(STREAM={"SOURCE": str(path), "SAMPLES": 10}))
    again.load_state_dict({"position": 8, "unreadable": []})
    assert (again.next_batch(4).images == batches[2].images).all()


def test_shipped_pairs_fit_their_data(test_data):
    """Every shipped pair of CIFAR-100 names groups that are there, with the number of classes they should have: five a
    superclass; those of tiny-imagenet's topics on its twenty classes of the test data."""
    cifar = load_dataset("cifar100_test", root=str(test_data / "cifar100"))
    for name, sides in read_config(SHIPPED / "cifar100.yaml")["pairs"].items():
        pair = read_pair("cifar100", name, cifar)
        assert len(pair.inliers) == 5 * len(sides["inliers"])
        assert len(pair.outliers) == 5 * len(sides["outliers"])
    tiny = load_dataset("tiny_imagenet_val", root=str(test_data / "tiny_imagenet"))
    # scorpion … lesser panda are animals; bow tie, broom, cardigan, hourglass, lawn mower, teapot artifacts
    assert tiny.groups.count("animal") == 10
    assert tiny.groups.count("artifact") == 6
    assert tiny.groups.count("food") == 3
    assert tiny.groups[-1] == "object"  # seashore
    for name in read_config(SHIPPED / "tiny_imagenet.yaml")["pairs"]:
        read_pair("tiny_imagenet", name, tiny)


def test_halves_of_a_split(test_data):
    """A teacher's half and a stream's half share no image, and are half of each class."""
    root = str(test_data / "cifar100")
    first, second = (load_dataset(f"cifar100_test_half{k}", root=root) for k in (1, 2))
    assert not set(first.image_ids) & set(second.image_ids)
    for half in (first, second):  # 20 test images a class in the test data
        assert np.bincount([r.class_label for r in half.records], minlength=100).tolist() == [10] * 100


def test_object_crops(scenes):
    """One sample an object with its class, cut out with a margin, at the network's size."""
    tree = {"DATASETS": {"ROOT": str(scenes), "TRAIN": ("voc_seg_train",), "CLASSES": SCENE_CLASSES}}
    cfg = envise_config(
        **tree, STREAM={"OBJECT_CROPS": True, "SAMPLES": 0, "CROP_MIN_SIDE": 10.0}, INPUT={"SIZE": 16}
    )
    crops, scene_data = stream_dataset(cfg), load_dataset("voc_seg_train", cfg)
    expected = [
        f"{r.image_id}_{n}"
        for r in scene_data.records
        for n, box in enumerate(r.boxes)
        if max(box[2] - box[0], box[3] - box[1]) >= 10 and not r.difficult[n]
    ]
    assert crops.image_ids == expected
    assert all(r.pixels.shape == (16, 16, 3) for r in crops.records)
    first = scene_data.records[0]
    assert crops.records[0].class_label == first.labels[int(expected[0].rsplit("_", 1)[1])]
    with pytest.raises(UserError, match="have no class each; set STREAM.OBJECT_CROPS True"):
        stream_dataset(envise_config(**tree))
    with pytest.raises(UserError, match="has no object of 9000 pixels or more"):
        stream_dataset(envise_config(**tree, STREAM={"OBJECT_CROPS": True, "CROP_MIN_SIDE": 9000.0}))


ROOT = Path(__file__).parents[1]
SCENE_CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")


def test_shipped_configs_describe_streams(test_data):
    """The default's pair and shift fit CIFAR-100, of which the test data have a part."""
    cfg = load_config(
        ROOT / "projects/envise/envise.yaml",
        ["DATASETS.ROOT", str(test_data / "cifar100"), "STREAM.SAMPLES", "40000"],
    )
    stream = build_stream(cfg)
    outlier = stream.truth.outlier
    assert not outlier[:30000].any()
    assert abs(outlier[30000:].mean() - 0.1) < 0.012  # four standard deviations of sqrt(.09 / 10000)


def test_objects_as_folders(scenes, tmp_path):
    """What a teacher is trained on: the same crops, read back by ``folder_train`` with their classes."""
    root = {"ROOT": str(scenes), "TEST": ("voc_seg_val",), "CLASSES": SCENE_CLASSES}
    cfg = envise_config(DATASETS=root, INPUT={"SIZE": 16})
    crops = object_crops(load_dataset("voc_seg_val", cfg), cfg)
    assert write_crops(cfg, tmp_path) == len(crops)
    folders = load_dataset("folder_train", root=str(tmp_path))
    read = {r.image_id: read_image(r) for r in folders.records}
    for record in crops.records:
        name = crops.classes[record.class_label]
        assert (read[f"train_{name}_{record.image_id}"] == record.pixels).all()
    with pytest.raises(UserError, match="is there already; delete it or choose another --root"):
        write_crops(cfg, tmp_path)
