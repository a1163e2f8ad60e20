"""Teachers: frozen, equal to the network they wrap, and built from a configuration."""

import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import models
from torchvision.transforms.functional import normalize, to_tensor

from scenekd import checkpoint
from scenekd.data.catalog import load_datasets
from scenekd.data.transforms import build_transforms
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.sample import Sample, SoftSegmentation
from scenekd.teachers.build import (
    build_manifest,
    build_teacher,
    check_teacher_overlap,
    open_store,
    teacher_class_map,
)
from scenekd.teachers.cache_builder import write_cache
from scenekd.teachers.frozen import weights_sha256
from scenekd.teachers.options import cache_folder
from scenekd.teachers.protocol import Teacher
from scenekd.teachers.scenekd_teacher import SceneKDTeacher
from scenekd.teachers.thesis_files import write_scores
from scenekd.teachers.zoo_torchvision import build_torchvision

LRASPP, FASTER = "lraspp_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector():
    return build_torchvision(FASTER, "random", max_boxes=20)


def state_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_teacher_is_frozen_and_its_statistics_are_untouched(image):
    """Even where somebody put it into training mode."""
    teacher = build_torchvision(LRASPP, "random", resize=0)
    assert isinstance(teacher, Teacher)
    assert not any(p.requires_grad for p in teacher.net.parameters())
    before = state_of(teacher.net)
    first = teacher.predict([image])[0].segmentation.values
    teacher.net.train()
    second = teacher.predict([image])[0].segmentation.values
    np.testing.assert_array_equal(first, second)
    assert not any(module.training for module in teacher.net.modules())
    for name, value in teacher.net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", LRASPP])
def test_logits_before_the_last_interpolation(name, image):
    """Enlarged with half-pixel centres they are the network's own output."""
    teacher = build_torchvision(name, "random", resize=0)
    soft = teacher.predict([image])[0].segmentation
    assert soft.form == "logits" and len(teacher.classes) == 20 and teacher.tasks == ("segmentation",)
    assert soft.values.shape[1] < 48
    pixels = normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = teacher.net(pixels[None])["out"]
    enlarged = F.interpolate(
        torch.from_numpy(soft.values)[None], (48, 64), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(enlarged, expected, rtol=1e-4, atol=1e-5)


def test_shorter_side_is_brought_to_the_size_of_training(image):
    """96 pixels for the shorter side 48: twice the size, so twice the grid of stride 8."""
    soft = build_torchvision(LRASPP, "random", resize=96).predict([image])[0].segmentation
    assert soft.values.shape == (21, 12, 16)


def test_boxes_are_torchvision_s(detector, image):
    output = detector.predict([image])[0]
    with torch.no_grad():
        expected = detector.net([to_tensor(image)])[0]
    categories = models.get_model_weights(FASTER).DEFAULT.meta["categories"]
    named = [categories[int(i)] for i in expected["labels"]]
    keep = [name != "N/A" for name in named]
    assert len(detector.classes) == 80 and detector.tasks == ("detection",) and sum(keep) > 3
    assert [detector.classes[i] for i in output.labels] == [n for n, k in zip(named, keep) if k]
    np.testing.assert_allclose(output.boxes, expected["boxes"].numpy()[keep], atol=1e-4)
    np.testing.assert_allclose(output.scores, expected["scores"].numpy()[keep], atol=1e-6)
    assert output.segmentation is None


def test_mask_rcnn_fills_its_masks_with_the_confidence(monkeypatch):
    """A mask of probability 0.6 counts, one of 0.4 does not; labels 1 and 3 are classes 0 and 2."""
    teacher = build_torchvision("maskrcnn_resnet50_fpn", "random", classes=("a", "b", "c"))
    masks = torch.full((2, 1, 4, 5), 0.4)
    masks[0, 0, 1, :3] = masks[1, 0, :, 2] = 0.6
    found = {
        "boxes": torch.tensor([[0.0, 1, 3, 2], [2, 0, 3, 4]]),
        "labels": torch.tensor([1, 3]),
        "scores": torch.tensor([0.9, 0.7]),
        "masks": masks,
    }
    monkeypatch.setattr(teacher.net, "forward", lambda images: [found])
    output = teacher.predict([np.zeros((4, 5, 3), np.uint8)])[0]
    expected = np.zeros((4, 4, 5), np.float32)
    expected[1, 1, :3], expected[3, :, 2] = 0.9, 0.7
    assert output.segmentation.form == "scores" and output.labels.tolist() == [0, 2]
    np.testing.assert_array_equal(output.segmentation.values, expected)


def test_random_weights_follow_the_seed(detector):
    again, other = (build_torchvision(FASTER, "random", seed=seed, max_boxes=20) for seed in (0, 1))
    hashes = [teacher.info()["weights_sha256"] for teacher in (detector, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_local_weights(tmp_path, image):
    """As torchvision ships them, with the auxiliary head that only training needs."""
    net = models.get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    teacher = build_torchvision("fcn_resnet50", str(tmp_path / "w.pth"), resize=0)
    net.eval()
    pixels = normalize(to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
    with torch.no_grad():
        expected = net.classifier(net.backbone(pixels)["out"])[0]
    np.testing.assert_allclose(
        teacher.predict([image])[0].segmentation.values, expected.numpy(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UserError, match="w.pth: weights of another network"):
        build_torchvision(LRASPP, str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="no such checkpoint"):
        build_torchvision(LRASPP, str(tmp_path / "x.pth"))


def test_offline_message_names_the_file(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nonexistent/hub")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(
        UserError, match=r"lraspp.*: its weights cannot be downloaded.*place lraspp_.*\.pth in"
    ):
        build_torchvision(LRASPP)


def test_unknown_name():
    with pytest.raises(
        UserError, match="torchvision has no teacher 'resnet18'; choose one of .*fcn_resnet101"
    ):
        build_torchvision("resnet18")


@pytest.fixture
def student_file(tiny_config, tmp_path):
    """A checkpoint of ours and its configuration."""
    cfg = tiny_config("teacher")
    net = build_model(cfg, pretrained=False)
    checkpoint.save_model(net, cfg.dump(), tmp_path / "teacher.pth")
    return cfg, net.eval(), str(tmp_path / "teacher.pth")


def test_scenekd_checkpoint_answers_as_its_network(student_file, image):
    cfg, net, path = student_file
    teacher = SceneKDTeacher(path)
    assert isinstance(teacher, Teacher)
    assert teacher.tasks == ("detection", "segmentation") and teacher.classes == tuple(cfg.DATASETS.CLASSES)
    assert teacher.info()["trained_on"] == ["voc_seg_train"]
    assert teacher.info()["weights_sha256"] == weights_sha256(net)
    before = state_of(teacher.net)
    output = teacher.predict([image])[0]
    sample = build_transforms(cfg, train=False)(Sample(image=image, image_id="x"), np.random.default_rng(0))
    with torch.no_grad():
        expected = net(torch.from_numpy(sample.image.transpose(2, 0, 1).copy())[None].float(), None)[0]
    np.testing.assert_allclose(output.segmentation.values, expected.sem_seg.numpy(), rtol=1e-5)
    # The network saw 64 × 64; the image is 48 high and 64 wide.
    np.testing.assert_allclose(output.boxes, expected.boxes.numpy() * [1, 0.75, 1, 0.75], atol=1e-3)
    for name, value in teacher.net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_checkpoint_without_configuration(student_file, tmp_path):
    _, net, _ = student_file
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match="holds no configuration; set TEACHER.<TASK>.CONFIG"):
        SceneKDTeacher(tmp_path / "bare.pth")


def test_configured_teacher_fills_a_store_that_opens(student_file, tiny_config):
    _, _, path = student_file
    cfg = tiny_config("run", "TEACHER.SEGMENTATION.TYPE", "scenekd", "TEACHER.SEGMENTATION.WEIGHTS", path)
    teacher = build_teacher(cfg, "segmentation")
    manifest = build_manifest(
        cfg, "segmentation", teacher, teacher_class_map(cfg, "segmentation", teacher.classes)
    )
    records = load_datasets(cfg.DATASETS.TRAIN, cfg, train=False).records[:2]
    from scenekd.data.images import read_image

    triples = [(r.image_id, r.file_name, teacher.predict([read_image(r)])[0]) for r in records]
    write_cache(cache_folder(cfg, "segmentation"), manifest, triples)
    store = open_store(cfg, "segmentation", records)
    soft = store.get_segmentation(records[0].image_id)
    exact = triples[0][2].segmentation.values
    np.testing.assert_array_equal(soft.values.argmax(0), exact.argmax(0))

    other = tiny_config(
        "run", "TEACHER.SEGMENTATION.TYPE", "torchvision", "TEACHER.SEGMENTATION.NAME", LRASPP
    )
    with pytest.raises(UserError, match=r"another teacher's \(type 'scenekd'.*--rebuild"):
        open_store(other, "segmentation")
    fewer = tiny_config(
        "run", "DATASETS.CLASSES", "('person', 'tree')", "TEACHER.SEGMENTATION.TYPE", "scenekd"
    )
    with pytest.raises(UserError, match="other classes"):
        open_store(fewer, "segmentation")


@pytest.mark.parametrize(
    "pairs, message",
    [
        ((), "TEACHER.DETECTION.TYPE: set it to one of torchvision, scenekd"),
        (("TEACHER.DETECTION.TYPE", "zoo"), "'zoo' is no teacher; choose torchvision"),
        (("TEACHER.DETECTION.TYPE", "thesis"), "holds saved outputs; there is nothing to ask"),
        (
            ("TEACHER.DETECTION.TYPE", "torchvision", "TEACHER.DETECTION.NAME", LRASPP)
            + ("TEACHER.DETECTION.WEIGHTS", "random"),
            "does segmentation, not detection",
        ),
    ],
)
def test_bad_configurations(tiny_config, pairs, message):
    with pytest.raises(UserError, match=message):
        build_teacher(tiny_config("run", *pairs), "detection")


def test_thesis_folder_from_a_configuration(tiny_config, tmp_path):
    cfg = tiny_config(
        "run", "TEACHER.SEGMENTATION.TYPE", "thesis", "TEACHER.SEGMENTATION.WEIGHTS", tmp_path / "t"
    )
    with pytest.raises(UserError, match="no such folder; set TEACHER.SEGMENTATION.WEIGHTS"):
        open_store(cfg, "segmentation")
    (tmp_path / "t").mkdir()
    write_scores(tmp_path / "t" / "im.npy", SoftSegmentation(np.zeros((11, 4, 5), np.float32), "scores"))
    store = open_store(cfg, "segmentation")
    assert store.info["name"] == "t" and store.get_segmentation("im").values.shape == (11, 4, 5)


def test_overlap_with_the_test_set_is_refused(tiny_config):
    """The scenes have 12 training and 6 validation images."""
    kind = ("TEACHER.DETECTION.TYPE", "thesis")
    seen = (*kind, "TEACHER.DETECTION.TRAINED_ON")
    assert check_teacher_overlap(tiny_config("run")) == []
    assert check_teacher_overlap(tiny_config("run", *seen, "('voc_seg_train',)")) == [
        "detection teacher, trained on voc_seg_train: "
        "shares 0 images of DATASETS.TEST and 12 images of DATASETS.TRAIN"
    ]
    line = "trained on voc_seg_val.* shares 6 images of DATASETS.TEST and 0 images of DATASETS.TRAIN"
    with pytest.raises(UserError, match=line):
        check_teacher_overlap(tiny_config("run", *seen, "('voc_seg_val',)"))
    allowed = tiny_config("run", *seen, "('voc_main_val',)", "DATASETS.ALLOW_OVERLAP", "True")
    assert "shares 6 images" in check_teacher_overlap(allowed)[0]
    unknown = check_teacher_overlap(tiny_config("run", *seen, "('COCO train2017',)"))
    assert "an unknown number of images of DATASETS.TEST" in unknown[0]
