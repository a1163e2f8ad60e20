"""Distillation losses in MMSegmentation: by their type in loss_decode and distill, and by a list with layers' names."""

from __future__ import annotations

import copy
import pprint

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmseg_parts import CROSS_ENTROPY, NAMES, PREPROCESSOR, batch, build, head, with_soft, without_mask

import scenekd.engines.mmengine  # noqa: F401
from scenekd import registry
from scenekd.engines.mmengine_live import build_live_teacher
from scenekd.engines.mmengine_loss import DistillationLoss
from scenekd.errors import UserError
from scenekd.losses.attention import attention_transfer
from scenekd.losses.channel_wise import channel_wise_kd
from scenekd.losses.correlation import correlation_kd
from scenekd.losses.decoupled import decoupled_kd
from scenekd.losses.distill import hinton_kd, pixel_wise_kd
from scenekd.losses.pair_wise import pair_wise_kd

# By type: its options, and the function that it must be, of logits, target, valid and labels.
BY_TYPE = {
    "SceneKDCWDLoss": (
        {"temperature": 2.0},
        lambda s, t, v, _: channel_wise_kd(s, t, temperature=2, valid=v),
    ),
    "SceneKDPairWiseLoss": ({"scale": 0.25}, lambda s, t, v, _: pair_wise_kd(s, t, scale=0.25, valid=v)),
    "SceneKDDISTLoss": (
        {"temperature": 2.0, "beta": 3.0},
        lambda s, t, v, _: correlation_kd(s, t, temperature=2, beta=3, valid=v, over="image"),
    ),
    "SceneKDDKDLoss": (
        {"temperature": 2.0, "beta": 3.0},
        lambda s, t, v, y: decoupled_kd(s, t, y.masked_fill(~v, 255), temperature=2, beta=3),
    ),
    "SceneKDHintonLoss": (
        {"temperature": 2.0, "reduction": "elements"},
        lambda s, t, v, _: hinton_kd(
            s,
            t,
            temperature=2,
            alpha=1,
            labels=torch.where(v, 0, 255),
            reduction="elements",
        ),
    ),
}
CWD = {"TYPE": "cwd", "STUDENT": "backbone.layer2", "TEACHER": "backbone.layer3", "TEMPERATURE": 2.0}


def teacher_files(folder):
    """A configuration and weights of a wider EncoderDecoder."""
    backbone = {"type": "ResNet", "depth": 18, "base_channels": 12, "norm_cfg": {"type": "BN"}}
    parts = {"backbone": backbone, "decode_head": head(in_channels=24)}
    config = {
        "type": "EncoderDecoder",
        "data_preprocessor": PREPROCESSOR,
        "test_cfg": {"mode": "whole"},
        **parts,
    }
    (folder / "teacher.py").write_text(f"default_scope = 'mmseg'\nmodel = {pprint.pformat(config)}\n")
    state = {
        "state_dict": build("EncoderDecoder", **parts).state_dict(),
        "meta": {"dataset_meta": {"classes": NAMES}},
    }
    torch.save(state, folder / "teacher.pth")
    return {"config": str(folder / "teacher.py"), "checkpoint": str(folder / "teacher.pth")}


def student(folder, distill, **options):
    return build(teacher=teacher_files(folder), distill=distill, classes=NAMES, **options)


@pytest.fixture(autouse=True)
def told(request):
    """What a runner would tell of its progress, and nothing of it afterwards."""
    hub = MessageHub.get_current_instance()
    before = dict(hub.runtime_info)
    hub.update_info("iter", 0)
    hub.update_info("max_iters", 10)
    yield hub
    hub.runtime_info.clear()
    hub.runtime_info.update(before)


# By type --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_TYPE)
@pytest.mark.parametrize("shape", [(32, 32), (32, 24)])
def test_losses_of_saved_outputs(kind, shape):
    """In a head's loss_decode: the function's value on the head's own logits of the two images with an output."""
    options, function = BY_TYPE[kind]
    loss = {"type": kind, "loss_weight": 3.0, **options}
    model = build(decode_head=head(loss_decode=[CROSS_ENTROPY, loss])).eval()
    images, samples = batch()
    target, valid = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples[:2]])
    for i in range(2):
        with_soft(samples[i], i, shape=shape)
        target[i, :, :, : shape[1]] = samples[i].gt_soft_seg.data
        valid[i, :, : shape[1]] = samples[i].gt_soft_valid.data[0]
    if kind == "SceneKDDKDLoss":
        without_mask(samples[1])  # it learns from images with both
        labels[1] = 255
    name = MODELS.build(loss).loss_name
    got = model(images, samples, mode="loss")[f"decode.{name}"]
    logits = F.interpolate(model._forward(images), (32, 32), mode="bilinear")[:2]
    torch.testing.assert_close(got, 3 * function(logits, target, valid, labels))
    got.backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", BY_TYPE)
@pytest.mark.parametrize("scope", [None, "mmseg"])
def test_losses_are_built_in_every_scope(kind, scope):
    """They are records of the library, published to MMEngine's root registry; wrong options are refused."""
    assert registry.lookup("loss", kind).__name__ == kind
    with DefaultScope.overwrite_default_scope(scope):
        loss = MODELS.build({"type": kind, **BY_TYPE[kind][0]})
        assert isinstance(loss, DistillationLoss) and loss.loss_name.startswith("loss_")
        assert all(f"{key}={value!r}" in repr(loss) for key, value in BY_TYPE[kind][0].items())
        wrong = {"scale": 2.0} if kind == "SceneKDPairWiseLoss" else {"temperature": 0.0}
        with pytest.raises(ValueError, match=kind):
            MODELS.build({"type": kind, **wrong})


def test_losses_of_an_online_teacher(tmp_path):
    """In ``distill`` by type, beside an entry of the list; all pixels that show an image count for them, void too."""
    losses = [{"type": kind, **options} for kind, (options, _) in BY_TYPE.items() if kind != "SceneKDDKDLoss"]
    model = student(tmp_path, [*losses, {"TYPE": "pixel", "WEIGHT": 2.0}, {"type": "SceneKDDKDLoss"}]).eval()
    images, samples = batch()
    got = model(images, samples, mode="loss")
    logits, said, labels = both(model, images, samples)
    everywhere = torch.ones_like(labels, dtype=torch.bool)
    for kind, (_, function) in BY_TYPE.items():
        if kind != "SceneKDDKDLoss":
            name = f"distill.{MODELS.build({'type': kind}).loss_name}"
            torch.testing.assert_close(got[name], function(logits, said, everywhere, labels), msg=name)
    torch.testing.assert_close(
        got["distill.loss_pixel"], 2 * pixel_wise_kd(logits, said, valid=labels != 255)
    )
    torch.testing.assert_close(got["distill.loss_dkd"], decoupled_kd(logits, said, labels))


def both(model, images, samples):
    """Logits of student and teacher at the size of the labels, and these."""
    net = model.live_teacher().net
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    logits = [F.interpolate(each._forward(images), (32, 32), mode="bilinear") for each in (model, net)]
    return *logits, labels


# By a list ------------------------------------------------------------------------------------------------------


def test_layers_of_both_networks(tmp_path):
    """Features by module path on an MMSegmentation student and teacher, the values being those of the functions."""
    at = {**CWD, "TYPE": "at", "TEACHER": "backbone.layer2", "WEIGHT": 5.0}
    at.pop("TEMPERATURE")
    model = student(tmp_path, [CWD, at]).eval()
    images, samples = batch()
    got = model(images, samples, mode="loss")
    found, wanted = model.backbone(images), model.live_teacher().net.backbone(images)
    adapted = F.interpolate(found[1], wanted[2].shape[2:], mode="bilinear")
    adapted = model.distillation.losses.parts["loss_cwd"](adapted)
    assert adapted.shape[1] == 48
    cwd = channel_wise_kd(adapted, wanted[2], temperature=2)
    torch.testing.assert_close(got["distill.loss_cwd"], cwd, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        got["distill.loss_at"], 5 * attention_transfer(found[1], wanted[1]), rtol=1e-4, atol=1e-6
    )
    assert not any(m._forward_hooks for net in (model, model.live_teacher().net) for m in net.modules())


def test_what_is_saved(tmp_path):
    """A network with a list has its adaptors below ``distillation``; nothing of the teacher."""
    model = student(tmp_path, [CWD])
    more = model.state_dict().keys() - build("EncoderDecoder").state_dict().keys()
    assert more == {f"distillation.losses.parts.loss_cwd.{name}" for name in ("weight", "bias")}
    only_logits = student(tmp_path, [{"TYPE": "cwd"}, {"TYPE": "pair"}])
    assert only_logits.state_dict().keys() == build("EncoderDecoder").state_dict().keys()


def test_the_runner_tells_the_schedule(tmp_path, told):
    """Half of a cosine is half the weight; in an image without a mask no pixel is void, in others only by option."""
    specs = [
        {"TYPE": "pixel", "SCHEDULE": "cosine"},
        {"TYPE": "dist"},
        {"TYPE": "dist", "DISTILL_IGNORED": True},
    ]
    model = student(tmp_path, specs).eval()
    images, samples = batch()
    first = model(images, samples, mode="loss")["distill.loss_pixel"]
    told.update_info("iter", 5)
    torch.testing.assert_close(model(images, samples, mode="loss")["distill.loss_pixel"], first / 2)
    logits, said, labels = both(model, images, samples)
    without_mask(samples[0])
    got = model(images, samples, mode="loss")
    valid = labels != 255
    valid[0] = True
    torch.testing.assert_close(got["distill.loss_dist_1"], correlation_kd(logits, said, valid=valid))
    torch.testing.assert_close(got["distill.loss_dist_2"], correlation_kd(logits, said))


def critic_of(model):
    return copy.deepcopy(model.distillation.losses.parts["loss_holistic"].state_dict())


def test_the_critic_takes_its_step(tmp_path, told):
    """In train_step after the optimizer's; where a wrapper took the step without asking, in the next batch, alike."""
    spec = [{"TYPE": "holistic", "WIDTH": 4}]
    raw = {"inputs": [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)] * 2, "data_samples": batch(2)[1]}
    for sample in raw["data_samples"]:
        sample.set_metainfo({"img_shape": (32, 32)})
    model = student(tmp_path, spec)
    start = critic_of(model)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    logs = model.train_step(copy.deepcopy(raw), wrapper)
    stepped = critic_of(model)
    assert "distill.loss_holistic" in logs
    assert any(not torch.equal(start[name], stepped[name]) for name in start)

    other = student(tmp_path, spec)
    data = other.data_preprocessor(copy.deepcopy(raw), True)
    other(**data, mode="loss")
    assert all(torch.equal(start[name], value) for name, value in critic_of(other).items())
    told.update_info("iter", 1)
    other(**data, mode="loss")
    for name, value in critic_of(other).items():
        torch.testing.assert_close(value, stepped[name])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {**CWD, "STUDENT": "backbone.layer5"},
            r"STUDENT: SceneKDEncoderDecoder has no layer 'backbone.layer5'.*layer4",
        ),
        ({**CWD, "TEACHER": "layer2"}, r"TEACHER: EncoderDecoder has no layer 'layer2'"),
        ({**CWD, "STUDENT": "backbone"}, r"STUDENT backbone: the layer puts out a tuple, no map"),
        ({"TYPE": "hinton", "TEMPERATURE": 0}, "TEMPERATURE must be a number above 0"),
        ({"TYPE": "mgd"}, "STUDENT is missing"),
    ],
)
def test_wrong_entries(spec, message, tmp_path):
    with pytest.raises(UserError, match=message):
        student(tmp_path, [spec])


def test_a_teacher_that_is_gone(tmp_path):
    """A trained student is built, and tested, without it; training begins with the error."""
    options = teacher_files(tmp_path)
    options["checkpoint"] = str(tmp_path / "gone.pth")
    model = build(teacher=options, distill=[CWD], classes=NAMES)
    assert model.distillation is None
    with pytest.raises(UserError, match="gone.pth: no such checkpoint"):
        model.init_weights()


def test_a_student_becomes_a_teacher(tmp_path):
    """From its own configuration and checkpoint, without the teacher that it had."""
    model = student(tmp_path, [CWD])
    config = {
        "type": "SceneKDEncoderDecoder",
        "data_preprocessor": PREPROCESSOR,
        "test_cfg": {"mode": "whole"},
    }
    config |= {"backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_cfg": {"type": "BN"}}}
    config |= {
        "decode_head": head(),
        "teacher": {"checkpoint": "gone.pth"},
        "distill": [CWD],
        "classes": NAMES,
    }
    (tmp_path / "student.py").write_text(f"default_scope = 'mmseg'\nmodel = {pprint.pformat(config)}\n")
    torch.save(model.state_dict(), tmp_path / "student.pth")
    teacher = build_live_teacher(str(tmp_path / "student.py"), str(tmp_path / "student.pth"), NAMES)
    images = torch.rand(1, 3, 32, 32) * 255
    assert teacher.logits(images).shape == (1, 3, 32, 32)
