"""The networks for small images: layers, names, the shortcut, and the published weights on real images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tool_runner import ToolRunner

from fcn_kd.cifar import DEPTHS, CifarResNet, FiveLayerCNN, resnet18_cifar
from fcn_kd.student import NO_CLASS, build_model, tasks_of
from scenekd import checkpoint
from scenekd.config import load_config
from scenekd.errors import UserError
from scenekd.sample import Target

PROJECT = Path(__file__).parents[1] / "projects" / "fcn_kd"


def _count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _target(label: int | None) -> Target:
    none = torch.zeros(0)
    return Target("x", torch.zeros(0, 4), none.long(), none, none.bool(), none.bool(), class_label=label)


def test_sizes_are_those_of_the_papers() -> None:
    # He et al., 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million parameters.
    millions = [_count(CifarResNet(depth, 10)) / 1e6 for depth in DEPTHS]
    assert millions == pytest.approx([0.27, 0.46, 0.66, 0.85, 1.73], abs=0.006)
    # 3→32→64→128 convolutions of 9 weights and a bias, 2048→128→10, and two values a channel of the norms:
    # 896 + 18,496 + 73,856 + 262,272 + 1,290 + 2·(32 + 64 + 128 + 128)
    assert _count(FiveLayerCNN(10)) == 896 + 18496 + 73856 + 262272 + 1290 + 704
    # torchvision's 11,689,512 without the 1000 classes (513,000) and the 7×7 stem (9,408), with 10 (5,130), 3×3 (1,728)
    assert _count(resnet18_cifar(10)) == 11689512 - 513000 - 9408 + 5130 + 1728


def test_logits_have_a_value_a_class() -> None:
    x = torch.randn(2, 3, 32, 32)
    for net in (CifarResNet(20, 7), FiveLayerCNN(7), resnet18_cifar(7)):
        assert net.eval()(x).shape == (2, 7)
    assert FiveLayerCNN(7, image_size=64).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    stem = resnet18_cifar(7)
    assert stem.maxpool(stem.relu(stem.bn1(stem.conv1(x)))).shape == (
        2,
        64,
        32,
        32,
    )  # nothing is strided away


def test_the_shortcut_has_no_parameters() -> None:
    """A strided block whose convolutions say nothing gives every second pixel, its channels in the middle."""
    block = CifarResNet(8, 2, width=4).layer2[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


def test_arguments_out_of_range() -> None:
    for depth in (2, 21):
        with pytest.raises(ValueError, match="6n \\+ 2"):
            CifarResNet(depth, 10)
    with pytest.raises(ValueError, match="at least 8"):
        FiveLayerCNN(10, image_size=7)


def _student(*overrides: str):
    cfg = load_config(PROJECT / "cifar_cnn5.yaml", ["DATASETS.CLASSES", "('a', 'b', 'c')", *overrides])
    assert tasks_of(cfg) == ("classification",)
    return build_model(cfg)


def test_the_student_learns_labelled_images_alone() -> None:
    net = _student("MODEL.FCN_KD.NETWORK", "cifar_resnet20")
    images = torch.rand(3, 3, 32, 32) * 255
    targets = [_target(2), _target(None), _target(0)]
    assert net.labels(targets, images).tolist() == [2, NO_CLASS, 0]
    loss = net.eval().train()(images, targets)["loss_ce"]
    logits = net.logits(images).log_softmax(1)
    assert loss.item() == pytest.approx(-(logits[0, 2] + logits[2, 0]).item() / 2, rel=1e-5)
    nothing = net(images, [_target(None)] * 3)["loss_ce"]
    nothing.backward()
    assert nothing.item() == 0.0 and not any(p.grad.any() for p in net.parameters())
    with torch.no_grad():
        predictions = net.eval()(images)
    assert predictions[0].class_scores.shape == (3,) and predictions[0].sem_seg is None
    normal = (images - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / torch.tensor(
        [58.395, 57.12, 57.375]
    ).view(3, 1, 1)
    assert torch.allclose(predictions[1].class_scores, net.network(normal)[1], atol=1e-4)


def test_bad_settings_name_their_key() -> None:
    with pytest.raises(UserError, match="INPUT.SIZE: 7"):
        _student("INPUT.SIZE", "7")
    with pytest.raises(UserError, match="MODEL.FCN_KD.NETWORK: 'cnn9'; choose one of cifar_cnn5"):
        _student("MODEL.FCN_KD.NETWORK", "cnn9")


def test_weights_of_the_bare_network_load(tmp_path: Path) -> None:
    """As others publish them: wrapped by DataParallel, without our prefix, without batch counts."""
    donor, net = CifarResNet(20, 3), _student("MODEL.FCN_KD.NETWORK", "cifar_resnet20")
    state = {f"module.{k}": v for k, v in donor.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "net.th"
    torch.save({"state_dict": state, "best_prec1": 91.0}, path)
    assert checkpoint.load_weights(net, path, strict=True).matched == len(state)
    assert torch.equal(net.network.linear.weight, donor.linear.weight)
    del state["module.linear.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match="1 missing, such as network.linear.bias"):
        checkpoint.load_weights(net, path, strict=True)


@pytest.mark.parametrize(("name", "right"), [("resnet20-12fca82f", 462), ("resnet56-4bfd9763", 468)])
def test_published_weights_score_as_published(test_data, tmp_path, monkeypatch, name, right) -> None:
    run = ToolRunner("test", monkeypatch)
    monkeypatch.chdir(tmp_path)
    weights = test_data / "weights_cifar10" / f"{name}.th"
    config = PROJECT / f"cifar_{name.split('-')[0]}.yaml"
    more = ("DATASETS.ROOT", test_data / "cifar10", "DATALOADER.NUM_WORKERS", 0, "TEST.BOOTSTRAP", 0)
    assert run(config, weights, *more) == 0
    # Others' weights may lie where nothing can be written: the results go to OUTPUT_DIR.
    results = json.loads((tmp_path / "output/results.json").read_text())
    assert results["classification"]["accuracy"] == pytest.approx(100 * right / 500)
