"""SceneKDEncoderDecoder: MMSegmentation's losses where masks are missing, weighed, and joined by saved soft labels."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import PixelData
from mmseg.models.utils import resize
from mmseg_parts import CROSS_ENTROPY, batch, build, head, weigh, with_soft, without_mask

from scenekd import checkpoint
from scenekd.engines.mmengine_loss import DistillationLoss
from scenekd.errors import UserError
from scenekd.losses.distill import hinton_kd
from scenekd.losses.soft_label import pixel_confidence, soft_label_cross_entropy, soft_label_map

SOFT = {"type": "SoftLabelCrossEntropy", "target_is": "logits", "temperature": 2.0, "loss_weight": 3.0}
HINTON = {"type": "SceneKDHintonLoss", "temperature": 2.0, "alpha": 0.5}


def _logits(model, images, part="decode_head"):
    logits = getattr(model, part)(model.extract_feat(images))
    return resize(logits, images.shape[-2:], mode="bilinear")


VARIANTS = {
    "one loss": {},
    "several, two of one name": {
        "decode_head": head(
            loss_decode=[
                {"type": "CrossEntropyLoss", "class_weight": [0.5, 1.0, 2.0]},
                {"type": "DiceLoss", "loss_weight": 0.3},
                {"type": "LovaszLoss", "reduction": "none", "loss_name": "loss_ce"},
            ]
        )
    },
    "auxiliary head": {"auxiliary_head": head(2)},
    "auxiliary heads": {"auxiliary_head": [head(0), head(2)]},
    "pixel sampler": {
        "decode_head": head(sampler={"type": "OHEMPixelSampler", "thresh": 0.7, "min_kept": 100})
    },
    "one channel": {
        "decode_head": head(
            num_classes=2, out_channels=1, loss_decode={"type": "CrossEntropyLoss", "use_sigmoid": True}
        )
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_labelled_is_the_original_to_the_bit(variant):
    """Every image with its mask, no teacher: the losses, and their gradients, are EncoderDecoder's."""
    options, (images, samples) = VARIANTS[variant], batch()
    if variant == "one channel":
        for sample in samples:
            sample.gt_sem_seg.data[sample.gt_sem_seg.data == 2] = 1
    results = []
    for kind in ("EncoderDecoder", "SceneKDEncoderDecoder"):
        model = build(kind, **options)
        torch.manual_seed(5)  # dropout
        losses = model(images, samples, mode="loss")
        sum(value for name, value in losses.items() if "loss" in name).backward()
        results.append((losses, [p.grad for p in model.parameters()]))
    (wanted, wanted_gradients), (got, gradients) = results
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name
    for gradient, other in zip(gradients, wanted_gradients):
        assert (gradient is None) == (other is None)
        assert gradient is None or torch.equal(gradient, other)


@pytest.mark.parametrize(
    "variant", ["one loss", "several, two of one name", "auxiliary heads", "pixel sampler"]
)
def test_images_without_a_mask_are_skipped(variant):
    """The losses are those of the labelled images alone; in evaluation mode, as batch statistics are of all."""
    options, (images, samples) = VARIANTS[variant], batch(4)
    wanted = build("EncoderDecoder", **options).eval()(images[1:3], samples[1:3], mode="loss")
    without_mask(samples[0])
    without_mask(samples[3])
    got = build(**options).eval()(images, samples, mode="loss")
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_no_mask_at_all():
    """Losses of 0, gradients of zeros, which are finite even where the logits are not; no accuracy of nothing."""
    model, (images, samples) = build(decode_head=head(3, loss_decode=[CROSS_ENTROPY, SOFT, HINTON])), batch()
    for sample in samples:
        without_mask(sample)
    losses = model(images, samples, mode="loss")
    assert {name: value.item() for name, value in losses.items()} == {
        "decode.loss_ce": 0.0,
        "decode.loss_soft": 0.0,
        "decode.loss_kd": 0.0,
    }
    sum(losses.values()).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_weights_of_masks():
    """CrossEntropyLoss is a mean over pixels, so over n images of one size it is (1/n) Σ L_i, and with weights
    (1/n) Σ w_i L_i: halving the weight of image 0 takes L_0 / (2n) away; halving all halves the loss; 0 leaves out."""
    model, (images, samples) = build().eval(), batch()
    single = [model(images[i : i + 1], samples[i : i + 1], mode="loss")["decode.loss_ce"] for i in range(3)]

    def loss(*weights):
        for sample, weight in zip(samples, weights):
            weigh(sample, ground_truth=weight)
        return model(images, samples, mode="loss")["decode.loss_ce"].item()

    whole = loss(1, 1, 1)
    assert loss(0.5, 1, 1) == pytest.approx(whole - single[0].item() / 6, rel=1e-5)
    assert loss(0.5, 0.5, 0.5) == whole / 2
    assert loss(0, 1, 1) == pytest.approx((single[1] + single[2]).item() / 2, rel=1e-5)


def test_weights_of_a_teacher():
    """The loss is Σ w_i S_i / Σ c_i with S_i the sum of an image's pixel losses and c_i the number of its valid pixels:
    halving w_0 takes S_0 / (2 (c_0 + c_1)) away. S_0 / c_0 is the function on image 0."""
    model, (images, samples) = build(decode_head=head(loss_decode=[CROSS_ENTROPY, SOFT])).eval(), batch()
    for i in range(2):  # the third has no teacher
        with_soft(samples[i], i)
    whole = model(images, samples, mode="loss")["decode.loss_soft"].item()
    target, valid = samples[0].gt_soft_seg.data[None], samples[0].gt_soft_valid.data
    mean = 3 * soft_label_cross_entropy(
        _logits(model, images[:1]), target, temperature=2.0, target_is="logits", valid=valid
    )
    counts = [sample.gt_soft_valid.data.sum().item() for sample in samples[:2]]
    weigh(samples[0], teacher=0.5)
    halved = model(images, samples, mode="loss")["decode.loss_soft"].item()
    assert whole - halved == pytest.approx(mean.item() * counts[0] / (2 * sum(counts)), rel=1e-4)
    weigh(samples[1], teacher=0.5)
    assert model(images, samples, mode="loss")["decode.loss_soft"].item() == pytest.approx(
        whole / 2, rel=1e-6
    )


@pytest.mark.parametrize("shape", [(32, 32), (32, 24)])
@pytest.mark.parametrize("part", ["decode", "aux"])
def test_soft_labels_reach_the_heads(shape, part):
    """The head's losses are those of the functions on its own logits; what a data preprocessor padded is not valid."""
    heads = {"decode_head": head(), "auxiliary_head": head(2)}
    name = "decode_head" if part == "decode" else "auxiliary_head"
    heads[name]["loss_decode"] = [CROSS_ENTROPY, SOFT, HINTON]
    model, (images, samples) = build(**heads).eval(), batch()
    target, valid = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    for i in range(2):
        with_soft(samples[i], i, shape=shape)
        target[i, :, :, : shape[1]] = samples[i].gt_soft_seg.data
        valid[i, :, : shape[1]] = samples[i].gt_soft_valid.data[0]
    losses = model(images, samples, mode="loss")
    logits = _logits(model, images, name)[:2]
    wanted = 3 * soft_label_cross_entropy(logits, target, temperature=2.0, target_is="logits", valid=valid)
    assert losses[f"{part}.loss_soft"].item() == pytest.approx(wanted.item(), rel=1e-5)
    # With labels, hinton_kd is α T² KL over what is not ignored, and (1 − α) CE: twice α less without.
    labels = torch.where(valid, 0, 255)
    both = hinton_kd(logits, target, temperature=2.0, alpha=0.5, labels=labels)
    none = 0.5 * torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
    assert losses[f"{part}.loss_kd"].item() == pytest.approx((both - none).item(), rel=1e-4)
    losses[f"{part}.loss_kd"].backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_checkpoints_are_those_of_an_encoder_decoder(tmp_path):
    """The same keys; MMEngine loads one strictly into the other."""
    options = {"auxiliary_head": head(2), "decode_head": head(loss_decode=[CROSS_ENTROPY, HINTON])}
    ours, plain = build(**options), build("EncoderDecoder", auxiliary_head=head(2))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        ours.backbone.conv1.weight.fill_(0.25)
    checkpoint.save_model(ours, "", tmp_path / "model.pth")
    load_checkpoint(plain, str(tmp_path / "model.pth"), map_location="cpu", strict=True)
    assert (plain.backbone.conv1.weight == 0.25).all()


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"type": "DAHead", "pam_channels": 4}, "DAHead has a loss_by_feat"),
        ({"type": "EncHead", "in_channels": (8, 16), "in_index": (0, 1)}, "EncHead has a loss_by_feat"),
        ({"type": "DDRHead"}, "DDRHead has a loss_by_feat"),
        ({"type": "OCRHead", "ocr_channels": 4}, "OCRHead has a loss of its own"),
    ],
)
@pytest.mark.parametrize("place", ["decode_head", "auxiliary_head"])
def test_heads_with_losses_of_their_own_are_refused(config, name, place):
    """When the model is built, in one line that names the head."""
    options = head() | config
    del options["num_convs"]  # an FCNHead's
    with pytest.raises(UserError, match=name) as error:
        build(**{place: options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_classes": 2, "out_channels": 1, "threshold": 0.3},
            "soft losses need out_channels = num_classes",
        ),
        ({"sampler": {"type": "OHEMPixelSampler", "min_kept": 9}}, "give it thresh"),
    ],
)
def test_heads_that_cannot_take_soft_losses(options, message):
    """One channel for two classes; a pixel sampler that asks the losses themselves."""
    with pytest.raises(UserError, match=message):
        build(decode_head=head(loss_decode=[SOFT], **options))


def test_a_plain_encoder_decoder_hands_no_soft_labels():
    """Masks alone are no soft labels: one line names the segmentor."""
    model, (images, samples) = build("EncoderDecoder", decode_head=head(loss_decode=[SOFT])), batch()
    with pytest.raises(UserError, match="SoftLabelCrossEntropy: .*SceneKDEncoderDecoder"):
        model(images, samples, mode="loss")


def test_soft_labels_that_do_not_fit():
    """Another form, another number of classes, another size; a mask of another size than the image."""
    model, (images, samples) = build(decode_head=head(loss_decode=[SOFT])), batch()
    with_soft(samples[0], 0, form="probabilities")
    with pytest.raises(UserError, match="takes logits, the pipeline gives probabilities"):
        model(images, samples, mode="loss")
    with_soft(samples[0], 0)
    samples[0].set_metainfo({"img_shape": (32, 30)})
    with pytest.raises(UserError, match="soft_size"):
        model(images, samples, mode="loss")
    with_soft(samples[0], 0)
    del samples[0].gt_soft_seg
    samples[0].gt_soft_seg = PixelData(data=torch.zeros(5, 32, 32))
    with pytest.raises(UserError, match="5 dense classes, the logits 3"):
        model(images, samples, mode="loss")
    with pytest.raises(UserError, match="a mask is"):
        model(images[:, :, :16], samples, mode="loss")


# The losses alone -------------------------------------------------------------------------------------------


def test_soft_label_loss_is_the_function():
    """Weights of 1 in the first image, 0 in the second: half of the first image's own mean."""
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(2, 2, 3, 4, 5, generator=generator)
    loss = MODELS.build({"type": "SoftLabelCrossEntropy", "target_is": "logits", "loss_weight": 2.0})
    wanted = 2 * soft_label_cross_entropy(logits, target, target_is="logits")
    assert loss(logits, target).item() == pytest.approx(wanted.item(), rel=1e-6)
    first = 2 * soft_label_cross_entropy(logits[:1], target[:1], target_is="logits")
    got = loss(logits, target, weight=torch.tensor([1.0, 0.0]))
    assert got.item() == pytest.approx(first.item() / 2, rel=1e-6)


@pytest.mark.parametrize("confidence", ["none", "max", "entropy"])
def test_soft_label_options(confidence):
    """The same options as in SceneKD's own criterion: each pixel's loss by them, the mean weighed by confidence."""
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(2, 2, 5, 4, 3, generator=generator)
    valid = torch.rand(2, 4, 3, generator=generator) > 0.4
    options = {
        "temperature": 2.0,
        "target_is": "logits",
        "temper_student": True,
        "top_k": 2,
        "tail": "spread",
    }
    loss = MODELS.build({"type": "SoftLabelCrossEntropy", "confidence": confidence, **options})
    pixels = soft_label_map(logits, target, valid=valid, **options)
    weight = pixel_confidence(target, target_is="logits", confidence=confidence) * valid
    wanted = (pixels * weight).sum() / weight.sum()
    got = loss(logits, target.masked_fill(~valid[:, None], torch.nan), valid)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    with pytest.raises(ValueError, match="confidence must be one of"):
        MODELS.build({"type": "SoftLabelCrossEntropy", "confidence": "much"})


def test_a_loss_of_ones_own():
    """A subclass with sums alone, which is no mean over pixels: weights of images apply to it too."""

    class Largest(DistillationLoss):
        def sums(self, logits, target, valid):
            differences = (logits - target).abs().amax(dim=1).masked_fill(~valid, 0)
            return differences.amax(dim=(1, 2)), valid.any(dim=(1, 2))

    logits, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    target[0, 1, 2, 3], target[1, 0, 0, 0], target[1, 0, 1, 1] = 5.0, 9.0, 7.0
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, 0, 0] = False
    loss = Largest(loss_weight=2.0)
    assert loss(logits, target, valid).item() == 2 * (5 + 7) / 2
    assert loss(logits, target, valid, torch.tensor([1.0, 0.5])).item() == 2 * (5 + 3.5) / 2


def test_hinton_loss():
    """It is hinton_kd without labels; at equality it and its gradient are 0; nothing valid is 0.

    By hand: student (0, 0), teacher (2 ln 3, 0) at T = 2: p = (3/4, 1/4), q = (1/2, 1/2), KL = 3/4 ln 3/2 + 1/4 ln 1/2
    = 0.130812; α T² KL = 0.5 · 4 · 0.130812.
    """
    loss = MODELS.build(HINTON)
    student = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    teacher = torch.tensor([2 * torch.log(torch.tensor(3.0)), 0.0]).double().view(1, 2, 1, 1)
    assert loss(student, teacher).item() == pytest.approx(2 * 0.1308120, rel=1e-6)

    generator = torch.Generator().manual_seed(2)
    logits, other = torch.randn(2, 2, 3, 4, 5, generator=generator)
    wanted = hinton_kd(logits, other, temperature=2.0, alpha=0.5)
    assert loss(logits, other).item() == pytest.approx(wanted.item(), rel=1e-6)
    logits.requires_grad_()
    same = loss(logits, logits.detach())
    same.backward()
    assert abs(same.item()) < 1e-6 and logits.grad.abs().max() < 1e-6
    none = loss(logits, torch.full_like(other, torch.nan), torch.zeros(2, 4, 5, dtype=torch.bool))
    assert none.item() == 0
    logits.grad = None
    none.backward()
    assert (logits.grad == 0).all()
    with pytest.raises(ValueError, match="temperature must be positive"):
        MODELS.build({**HINTON, "temperature": 0.0})
