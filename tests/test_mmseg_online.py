"""Online teachers of SceneKDEncoderDecoder: MMSegmentation's, torchvision's and ours."""

from __future__ import annotations

import copy
import pprint

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg_parts import CROSS_ENTROPY, NAMES, PREPROCESSOR, batch, build, head
from torchvision import models

from scenekd import checkpoint
from scenekd.engines.mmengine_live import build_live_teacher, original_images
from scenekd.errors import UserError
from scenekd.teachers.live import asked

HINTON = {"type": "SceneKDHintonLoss", "temperature": 2.0}
BACKBONE = {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}}


def _teacher(folder, model=None, names=NAMES, preprocessor=PREPROCESSOR, **meta):
    """A configuration and weights as MMEngine writes them: for the SegDataPreProcessor of another training."""
    model = model or build()
    config = {
        "type": "EncoderDecoder",
        "data_preprocessor": preprocessor,
        "backbone": BACKBONE,
        "decode_head": head(),
        "pretrained": "torchvision://resnet18",
        "test_cfg": {"mode": "whole"},
    }
    (folder / "teacher.py").write_text(f"default_scope = 'mmseg'\nmodel = {pprint.pformat(config)}\n")
    history = HistoryBuffer()
    history.update(1.5)
    state = {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": names}, **meta}}
    state["message_hub"] = {"log_scalars": {"train/loss": history}, "scale": np.float64(2)}
    torch.save(state, folder / "teacher.pth")
    return {"config": str(folder / "teacher.py"), "checkpoint": str(folder / "teacher.pth")}


def _student(teacher, distill=(HINTON,), classes=NAMES, **options):
    return build(teacher=teacher, distill=list(distill), classes=classes, **options)


def test_a_student_that_is_its_teacher(tmp_path):
    """KL 0 and no gradient of it, in evaluation mode, as a teacher uses its running statistics."""
    student = _student(_teacher(tmp_path)).eval()
    images, samples = batch()
    loss = student(images, samples, mode="loss")["distill.loss_kd"]
    loss.backward()
    assert abs(loss.item()) < 1e-6
    gradients = [p.grad.abs().max().item() for p in student.parameters() if p.grad is not None]
    assert gradients and max(gradients) < 1e-6
    with torch.no_grad():
        student.decode_head.conv_seg.bias[0] += 1
    assert student(images, samples, mode="loss")["distill.loss_kd"].item() > 1e-2


def test_a_teacher_is_only_asked(tmp_path):
    """Evaluation mode even when someone trains it, buffers and weights untouched, no gradient; in no state dict and no
    optimizer. The student's checkpoint keeps EncoderDecoder's keys."""
    student = _student(_teacher(tmp_path))
    student.init_weights()
    teacher = student.live_teacher()
    before = copy.deepcopy(teacher.net.state_dict())
    teacher.net.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    losses = student(*batch(), mode="loss")
    sum(value for name, value in losses.items() if "loss" in name).backward()
    optimizer.step()
    assert not any(module.training for module in teacher.net.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.net.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.net.parameters())
    assert student.state_dict().keys() == build("EncoderDecoder").state_dict().keys()
    assert len(list(student.parameters())) == len(list(build("EncoderDecoder").parameters()))
    assert student.backbone.bn1.running_mean.abs().sum() > 0  # the student's own go on


@pytest.mark.parametrize(
    "own", [PREPROCESSOR, {"type": "SegDataPreProcessor"}, {"type": "SceneKDDataPreprocessor"}]
)
@pytest.mark.parametrize(
    "other",
    [
        {"type": "SegDataPreProcessor", "mean": [10.0, 20.0, 30.0], "std": [5.0, 6.0, 7.0]},
        {
            "type": "SegDataPreProcessor",
            "mean": [1.0, 2.0, 3.0],
            "std": [50.0, 60.0, 70.0],
            "bgr_to_rgb": True,
            "test_cfg": {"size_divisor": 64},
        },
    ],
)
def test_a_teacher_normalises_in_its_own_way(own, other, tmp_path):
    """From what the student's data preprocessor made of a batch, its logits are those of its own prediction on the raw
    images, as MMSegmentation's inference_model makes it."""
    options = _teacher(tmp_path, build(data_preprocessor=other), preprocessor=other)
    student = _student(options, data_preprocessor=own)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    meta = {"ori_shape": (32, 32), "img_shape": (32, 32), "pad_shape": (32, 32)}
    samples = [
        SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.zeros(1, 32, 32).long())) for _ in images
    ]
    raw = {"inputs": list(images), "data_samples": samples}
    if own["type"] == "SegDataPreProcessor":
        student.data_preprocessor.size = (32, 32)
    inputs = student.data_preprocessor(copy.deepcopy(raw), True)["inputs"]
    teacher = student.live_teacher()
    got = teacher.logits(original_images(student.data_preprocessor, inputs))
    with torch.no_grad():
        plain = build("EncoderDecoder", data_preprocessor=other).eval()
        wanted = plain.test_step(copy.deepcopy(raw))
    for logits, sample in zip(got, wanted):
        torch.testing.assert_close(logits, sample.seg_logits.data, rtol=1e-4, atol=1e-4)


def test_padding_is_left_out(tmp_path):
    """Divergences on a pipeline's and a data preprocessor's padding do not count: the loss over the left part alone is
    the mean over its pixels, whatever the right part would say."""
    student = _student(_teacher(tmp_path)).eval()
    with torch.no_grad():
        student.decode_head.conv_seg.bias[0] += 1
    images, samples = batch(2)
    teacher = student.live_teacher()
    said = teacher.logits(original_images(student.data_preprocessor, images))
    shown = torch.zeros(2, 32, 32, dtype=torch.bool)
    shown[0, :, :20] = True
    shown[1, 5:30, :24] = True
    samples[0].set_metainfo({"img_shape": (32, 20)})
    samples[1].set_metainfo({"img_shape": (30, 32)})
    samples[1].gt_shown = PixelData(data=shown[1:2, :30])
    got = student(images, samples, mode="loss")["distill.loss_kd"]
    logits = torch.nn.functional.interpolate(student._forward(images), (32, 32), mode="bilinear")
    p, q = (said / 2).log_softmax(1), (logits / 2).log_softmax(1)
    divergence = (p.exp() * (p - q)).sum(1)
    assert got.item() == pytest.approx(4 * divergence[shown].mean().item(), rel=1e-4)


def test_probabilities_and_sums_of_losses(tmp_path):
    """A loss that takes probabilities gets them; two of one name are added."""
    soft = {"type": "SoftLabelCrossEntropy", "loss_name": "loss_kd"}
    options, (images, samples) = _teacher(tmp_path), batch()
    both = _student(options, [soft, HINTON]).eval()(images, samples, mode="loss")["distill.loss_kd"]
    student = _student(options, [soft]).eval()
    alone = student(images, samples, mode="loss")["distill.loss_kd"]
    probabilities = torch.nn.functional.interpolate(
        student._forward(images), (32, 32), mode="bilinear"
    ).softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()  # of a student that is its teacher
    assert alone.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert both.item() == pytest.approx(alone.item(), abs=1e-6)  # the divergence is 0


@pytest.mark.parametrize("loss", [HINTON, {"TYPE": "pixel"}])
def test_a_teacher_whose_logits_are_not_finite(loss, tmp_path):
    """Refused by the losses of both forms."""
    MessageHub.get_current_instance().update_info("iter", 0)  # another test's runner may have left its own
    model = build()
    with torch.no_grad():
        model.decode_head.conv_seg.bias[1] = float("nan")
    student = _student(_teacher(tmp_path, model), [loss])
    with pytest.raises(
        UserError, match="the teacher's logits at iteration 0 are not finite; check its weights"
    ):
        student(*batch(), mode="loss")


def test_classes_are_matched_by_name(tmp_path):
    """A teacher whose classes stand in another order is brought to the student's; the weights are permuted alike."""
    model = build()
    student = _student(_teacher(tmp_path, model)).eval()
    order = [2, 0, 1]  # the teacher's classes are dog, background, cat
    with torch.no_grad():
        model.decode_head.conv_seg.weight.copy_(student.decode_head.conv_seg.weight[order])
        model.decode_head.conv_seg.bias.copy_(student.decode_head.conv_seg.bias[order])
    options = _teacher(tmp_path, model, names=[NAMES[i] for i in order])
    got = _student(options).eval()(*batch(), mode="loss")["distill.loss_kd"]
    assert abs(got.item()) < 1e-6
    wrong = _teacher(tmp_path, model, names=NAMES)
    assert _student(wrong).eval()(*batch(), mode="loss")["distill.loss_kd"].item() > 1e-3


def test_a_class_map_joins_the_teachers_classes(tmp_path):
    """Pairs and allow_unmapped, as TEACHER.SEGMENTATION has them: a student of dog, background and cow learns dog from
    the teacher's dog and cat, whose probabilities add; cow is as good as impossible, e^−30."""
    options = _teacher(tmp_path) | {"class_map": [("cat", "dog")], "allow_unmapped": True}
    images, samples = batch()
    student = _student(options, classes=("dog", "background", "cow"))
    original = original_images(student.data_preprocessor, images)
    got = student.live_teacher().logits(original).softmax(1)
    theirs = student.live_teacher().net._forward(images)
    theirs = torch.nn.functional.interpolate(theirs, (32, 32), mode="bilinear").softmax(1)
    wanted = torch.stack([theirs[:, 1] + theirs[:, 2], theirs[:, 0], torch.zeros_like(theirs[:, 0])], 1)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert student(images, samples, mode="loss")["distill.loss_kd"].isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ("background", "cat", "cow")},
            r"^teacher.class_map: 1 classes of the teacher have no counterpart \(dog\) and 1 classes of the student "
            r"have no teacher class \(cow\); add pairs to teacher.class_map or set teacher.allow_unmapped True$",
        ),
        ({"classes": ("thing", "cat", "dog")}, "1 classes of the student have no teacher class .thing"),
        ({"classmap": ()}, "^teacher: unknown key classmap; known: config, checkpoint, classes, class_map"),
        (
            {"class_map": [("cow", "cat")]},
            "^teacher.class_map: the teacher has no class 'cow'; it has cat, dog$",
        ),
        (
            {"class_map": [("cat", "cow")]},
            "^teacher.class_map: 'cow' is neither a class of the student nor background$",
        ),
        ({"classes": ()}, "classes has 0 names for 3 channels"),
        ({"classes": "voc"}, "classes has 21 names for 3 channels"),
        ({"classes": "vox"}, "no list 'vox'"),
        ({"distill": ()}, "teacher and distill belong together"),
        ({"teacher": None}, "teacher and distill belong together"),
        ({"distill": [CROSS_ENTROPY]}, "CrossEntropyLoss is no loss between the logits"),
        (
            {"distill": [{"type": "SoftLabelCrossEntropy", "target_is": "scores"}]},
            "SoftLabelCrossEntropy is no loss between the logits",
        ),
        ({"checkpoint": "missing.pth"}, "missing.pth: no such checkpoint"),
        ({"checkpoint": ""}, "checkpoint is missing"),
        ({"config": "missing.py"}, "missing.py"),
        ({"checkpoint": "torchvision://fasterrcnn_resnet50_fpn"}, "no segmentation network of torchvision"),
        ({"checkpoint": "torchvision://nothing"}, "torchvision://nothing: no segmentation network"),
    ],
)
def test_what_is_refused_when_training_begins(options, message, tmp_path):
    """One line each; a student without training needs no teacher."""
    options = {"teacher": _teacher(tmp_path), "distill": [HINTON], "classes": NAMES} | options
    options["teacher"] = options["teacher"] and options["teacher"] | {
        key: options.pop(key) for key in ("checkpoint", "config", "class_map", "classmap") if key in options
    }
    with pytest.raises(UserError, match=message) as error:
        build(**options).init_weights()
    assert "\n" not in str(error.value)


def test_a_teacher_without_class_names_is_refused(tmp_path):
    """Neither in the checkpoint nor in the configuration; given by hand they serve."""
    options = _teacher(tmp_path, names=None)
    with pytest.raises(UserError, match=r"tells the classes; add classes=\(...\)"):
        build_live_teacher(**options)
    assert build_live_teacher(**options, classes=NAMES).names == NAMES
    config = tmp_path / "teacher.py"
    dataset = "{'type': 'RepeatDataset', 'dataset': {'type': 'PascalVOCDataset'}}"
    config.write_text(config.read_text() + f"train_dataloader = dict(dataset={dataset})\n")
    assert build_live_teacher(**options).names[:3] == ("background", "aeroplane", "bicycle")
    config.write_text(
        config.read_text()
        + "train_dataloader = dict(dataset=dict(type='SceneKDDataset', classes=('cat', 'dog')))\n"
        + "custom_imports = dict(imports=['scenekd.engines.mmengine'])\n"
    )
    assert build_live_teacher(**options).names == NAMES


def test_weights_of_another_network_are_refused(tmp_path):
    """All or nothing: a teacher with a part of its weights would teach noise."""
    options = _teacher(tmp_path, build(auxiliary_head=head(2)))
    with pytest.raises(UserError, match="weights of another network"):
        build_live_teacher(**options)


# Other teachers ---------------------------------------------------------------------------------------------


def test_torchvision_teachers(tmp_path):
    """The network's own output on images normalised as torchvision does; classes by hand."""
    torch.manual_seed(0)
    net = models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3
    ).eval()
    torch.save(net.state_dict(), tmp_path / "lraspp.pth")
    options = {
        "config": "torchvision://lraspp_mobilenet_v3_large",
        "checkpoint": str(tmp_path / "lraspp.pth"),
        "classes": NAMES,
    }
    student = _student(options)
    images, samples = batch()
    assert student(images, samples, mode="loss")["distill.loss_kd"].item() > 0
    assert build_live_teacher(**options).names == NAMES
    teacher = student.live_teacher()
    pixels = torch.rand(2, 3, 48, 32) * 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    got = teacher.logits(pixels)
    with torch.no_grad():
        wanted = net((pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))["out"]
    torch.testing.assert_close(got, wanted)


def test_scenekd_teachers(tiny_config, tmp_path):
    """A checkpoint of ours, with the configuration inside it: what the network itself says of the resized images."""
    from scenekd.models import build_model

    cfg = tiny_config("run")
    torch.manual_seed(0)
    net = build_model(cfg, pretrained=False).eval()
    checkpoint.save_model(net, cfg.dump(), tmp_path / "model.pth")
    teacher = build_live_teacher(checkpoint=str(tmp_path / "model.pth"))
    assert teacher.names == ("background", *cfg.DATASETS.CLASSES)
    images = torch.rand(2, 3, 48, 80) * 255
    with asked(teacher, images.device):
        got = teacher.logits(images)
        resized = torch.nn.functional.interpolate(images, (64, 64), mode="bilinear")
        wanted = [prediction.sem_seg for prediction in net(resized, None)]
    torch.testing.assert_close(got, torch.stack(wanted))


def test_blitznet_of_a_native_configuration_teaches(tmp_path):
    """A configuration of ours in MMSegmentation's form: BlitzNet predicts segmentation beside boxes."""
    network = {
        "type": "BlitzNet",
        "image_size": 64,
        "num_classes": 2,
        "trunk": "resnet18",
        "trunk_width": 8,
        "pretrained": "torchvision",
        "block_channels": (8, 16),
        "stream_channels": 16,
        "neck_channels": 8,
        "seg_channels": 8,
    }
    text = f"custom_imports = dict(imports=['scenekd.engines.mmengine'])\nmodel = {pprint.pformat(network)}\n"
    (tmp_path / "blitznet.py").write_text(text)
    from mmengine.registry import MODELS

    cfg = Config.fromfile(tmp_path / "blitznet.py")
    net = MODELS.build({**cfg.model, "pretrained": ""})
    checkpoint.save_model(net, "", tmp_path / "blitznet.pth")
    teacher = build_live_teacher(str(tmp_path / "blitznet.py"), str(tmp_path / "blitznet.pth"), NAMES)
    images = torch.rand(2, 3, 64, 64) * 255
    with asked(teacher, images.device):
        got = teacher.logits(images)
        wanted = torch.stack([prediction.sem_seg for prediction in net.eval().net(images, None)])
        wanted = torch.nn.functional.interpolate(wanted, (64, 64), mode="bilinear")
    torch.testing.assert_close(got, wanted)
