"""Classifiers as teachers of a stream: torchvision's, timm's, local files, checkpoints of ours; what they have seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from envise_parts import NAMES, envise_config
from torchvision import models

from envise.run import OnlineRun
from envise.stream import build_stream
from envise.teachers import build_stream_teacher
from scenekd.checkpoint import save_model
from scenekd.config import load_config
from scenekd.data.catalog import load_dataset
from scenekd.errors import UserError
from scenekd.models import build_model
from scenekd.teachers.build import build_teacher
from scenekd.teachers.uri import node_from_uri

ROOT = Path(__file__).parents[1]
MEAN, STD = (
    torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1),
    torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1),
)


def _teacher(classes=(), **node):
    return build_stream_teacher(
        envise_config(TEACHER={"CLASSIFICATION": node}, STREAM={"SOURCE": "x"}), classes
    )


def test_torchvision_file(tmp_path):
    """A local state dict of a torchvision network: its logits of the normalised images, at the size they have."""
    torch.manual_seed(0)
    net = models.resnet18(num_classes=5).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    teacher, classes = _teacher(NAMES, TYPE="torchvision", NAME="resnet18", WEIGHTS=str(tmp_path / "net.pth"))
    assert classes == NAMES
    images = torch.rand(3, 3, 40, 40) * 255
    with torch.no_grad():
        expected = net((images / 255 - MEAN) / STD)
    assert torch.allclose(teacher.logits(images), expected, atol=1e-5)
    # The last map before pooling is layer4's: 40 pixels over a stride of 32 make 2 × 2.
    features, logits = teacher.features_and_logits(images)
    assert features.shape == (3, 512, 2, 2)
    # The pool is a mean over 4 places and the head linear: ∂ logit_1 / ∂ feature = weight_1 / 4.
    gradient = torch.autograd.grad(logits[:, 1].sum(), features)[0]
    assert torch.allclose(
        gradient, (net.fc.weight[1] / 4)[None, :, None, None].expand_as(features), atol=1e-6
    )


def test_live_source_needs_no_data_set(tmp_path):
    """A teacher that tells what it was trained on is held against no data set, for the stream is none."""
    trained = load_config(
        ROOT / "projects/fcn_kd/cifar_resnet20.yaml", ["DATASETS.TRAIN", "('cifar100_train_half1',)"]
    )
    net = build_model(trained, pretrained=False)
    save_model(net, trained.dump(), tmp_path / "net.pth")
    absent = {"ROOT": str(tmp_path / "absent"), "TRAIN": ("voc_seg_train",), "TEST": ("voc_seg_val",)}
    cfg = envise_config(
        TEACHER={"CLASSIFICATION": {"TYPE": "scenekd", "WEIGHTS": str(tmp_path / "net.pth")}},
        STREAM={"SOURCE": "camera:0"},
        DATASETS=absent,
    )
    teacher, classes = build_stream_teacher(cfg)
    assert len(classes) == len(teacher.answered) > 0


def test_timm(tmp_path):
    """A network of timm by name, seeded or from a file, with its own statistics."""
    timm = pytest.importorskip("timm")
    images = torch.rand(2, 3, 32, 32) * 255
    random, classes = _teacher(TYPE="timm", NAME="resnet18", WEIGHTS="random", CLASSES=NAMES)
    assert classes == NAMES  # the stream tells none: its own
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=5).eval()
    with torch.no_grad():
        expected = net((images / 255 - MEAN) / STD)
    assert torch.allclose(random.logits(images), expected, atol=1e-5)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    from_file, _ = _teacher(NAMES, TYPE="timm", NAME="resnet18", WEIGHTS=str(tmp_path / "net.pth"))
    assert torch.allclose(from_file.logits(images), expected, atol=1e-5)
    assert node_from_uri("timm://resnet50.a1_in1k", "K") == {
        "TYPE": "timm",
        "NAME": "resnet50.a1_in1k",
        "WEIGHTS": "",
    }


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (
            {"TYPE": "torchvision", "NAME": "resnet19"},
            "torchvision has no classifier 'resnet19'; nearest: resnet",
        ),
        (
            {"TYPE": "torchvision", "NAME": "resnet18", "WEIGHTS": "random"},
            "random tells no class names; list them",
        ),
        (
            {"TYPE": "timm", "NAME": "resnet1x"},
            "TEACHER.CLASSIFICATION.NAME: timm has no model 'resnet1x'; nearest: ",
        ),
        (
            {"TYPE": "timm", "NAME": "resnet18", "WEIGHTS": "no.pth", "CLASSES": NAMES},
            "no.pth: no such checkpoint",
        ),
        ({"TYPE": "mmseg", "NAME": "x"}, "mmseg has no classifiers here"),
        ({}, "TEACHER.CLASSIFICATION.TYPE: '' is no online teacher; choose torchvision, timm, scenekd"),
    ],
)
def test_refused(node, match):
    with pytest.raises(UserError, match=match) as caught:
        _teacher(**node)
    assert "\n" not in str(caught.value)


def test_timm_is_only_asked_online():
    """It has no outputs to be cached, and no dense ones."""
    cfg = envise_config(TEACHER={"CLASSIFICATION": {"TYPE": "timm", "NAME": "resnet18"}})
    with pytest.raises(UserError, match="timm is asked while a student trains"):
        build_teacher(cfg, "classification")


def test_fewer_classes_than_the_pair(tmp_path):
    """A teacher of three of the five colours answers with these numbers alone; which they are is known."""
    some = ("blue", "red", "cyan")
    node = {"TYPE": "torchvision", "NAME": "resnet18", "WEIGHTS": "random", "CLASSES": some}
    with pytest.raises(UserError, match=r"2 classes of the student have no teacher class \(green, yellow\)"):
        _teacher(NAMES, **node)
    teacher, classes = _teacher(NAMES, **node, ALLOW_UNMAPPED=True)
    assert classes == NAMES
    assert teacher.answered == (0, 2, 4)
    answers = teacher.logits(torch.rand(4, 3, 32, 32) * 255).argmax(1)
    assert set(answers.tolist()) <= {0, 2, 4}


def _cifar_config(test_data, tmp_path, *overrides):
    pairs = [
        "DATASETS.ROOT",
        str(test_data / "cifar100"),
        "OUTPUT_DIR",
        str(tmp_path / "run"),
        "MODEL.DEVICE",
        "cpu",
    ]
    weights = ["TEACHER.CLASSIFICATION.WEIGHTS", str(tmp_path / "teacher.pth")]
    data = ["DATASETS.TRAIN", "('cifar100_test_half2',)"]
    return load_config(ROOT / "projects/envise/envise.yaml", [*pairs, *weights, *data, *map(str, overrides)])


@pytest.fixture
def checkpoint(test_data, tmp_path):
    """A checkpoint of fcn_kd's ResNet-20 whose configuration says that it was trained on the first half."""
    classes = load_dataset("cifar100_test", root=str(test_data / "cifar100")).classes
    cfg = load_config(
        ROOT / "projects/fcn_kd/cifar_resnet20.yaml",
        ["DATASETS.TRAIN", "('cifar100_test_half1',)", "DATASETS.CLASSES", str(classes)],
    )
    net = build_model(cfg)
    save_model(net, cfg.dump(), tmp_path / "teacher.pth")
    return net


def test_checkpoint_of_ours_and_what_it_has_seen(test_data, tmp_path, checkpoint, caplog):
    """fcn_kd's classifier teaches as it is; the half it was trained on is refused as a stream, the other is not."""
    cfg = _cifar_config(test_data, tmp_path)
    with caplog.at_level("INFO"):
        teacher, classes = build_stream_teacher(cfg, build_stream(cfg).classes)
    assert "the teacher, trained on cifar100_test_half1, shares 0 images with the stream" in caplog.text
    assert len(classes) == 100
    images = torch.rand(2, 3, 32, 32) * 255
    with torch.no_grad():
        expected = checkpoint.eval().logits(images)
    assert torch.allclose(teacher.logits(images), expected, atol=1e-5)
    assert teacher.features_and_logits(images)[0].shape == (2, 64, 8, 8)  # layer3 of a CIFAR ResNet
    seen = _cifar_config(test_data, tmp_path, "DATASETS.TRAIN", "('cifar100_test',)")
    with pytest.raises(
        UserError, match="trained on cifar100_test_half1, which shares 1000 images with the stream"
    ):
        build_stream_teacher(seen, classes)
    allowed = _cifar_config(
        test_data, tmp_path, "DATASETS.TRAIN", "('cifar100_test',)", "DATASETS.ALLOW_OVERLAP", "True"
    )
    assert build_stream_teacher(allowed, classes)[1] == classes


def test_run_from_the_shipped_config(test_data, tmp_path, checkpoint):
    """CIFAR-100, the pair, a checkpoint, the student: two batches of it, and on from there."""
    cfg = _cifar_config(test_data, tmp_path, "STREAM.SAMPLES", 48)
    run = OnlineRun.from_config(cfg)
    answers = [run.advance(), run.advance()]
    assert [len(a.positions) for a in answers] == [16, 16]
    again = OnlineRun.from_config(cfg)
    assert again.resume()
    assert again.batches == 2
    last = again.advance()
    assert last.positions.tolist() == list(range(32, 48))
    assert again.advance() is None
    assert again.summary()["counts"]["learn"]["samples"] == 48


def test_published_weights(test_data):
    """The published ResNet-56 of CIFAR-10 with a configuration that describes it: on 100 test images of the test data
    it is right on more than 88 (468 of 500 are: 93.6 %; three standard deviations of a hundred are 7)."""
    node = {
        "TYPE": "scenekd",
        "WEIGHTS": str(test_data / "weights_cifar10/resnet56-4bfd9763.th"),
        "CONFIG": str(ROOT / "projects/fcn_kd/cifar_resnet56.yaml"),
    }
    dataset = load_dataset("cifar10_test", root=str(test_data / "cifar10"))
    teacher, _ = _teacher(dataset.classes, **node)
    records = dataset.records[:100]
    images = torch.from_numpy(np.stack([r.pixels for r in records])).permute(0, 3, 1, 2).float()
    right = teacher.logits(images).argmax(1).numpy() == np.array([r.class_label for r in records])
    assert right.sum() > 86
