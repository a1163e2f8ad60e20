"""Transfer of a trunk to the classes of whole pictures, and to BlitzNet."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from blindnet_parts import FOLDER, blind_config, dataset, picture
from conftest import ENGINES

from blindnet.transfer import presence_loss
from blindnet.transfer_data import prepare_data
from scenekd import checkpoint
from scenekd.config import load_config
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import UserError
from scenekd.models import build_model, load_initial_weights

NODE = "MODEL.BLINDNET"
TINY = (f"{NODE}.TRUNK_WIDTH", 4)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A checkpoint of a masked-context classifier that looks at holes, and its network."""
    cfg = blind_config(*TINY, "SEED", 5)
    net = build_model(cfg)
    torch.nn.init.normal_(net.network.trunk_net.conv1.hole_weight)
    file = tmp_path_factory.mktemp("context") / "context.pth"
    checkpoint.save_model(net, cfg.dump(), file)
    return file, net.eval()


@pytest.fixture
def config(scenes: Path, tmp_path: Path):
    def build(folder: str, *overrides: object, file: str = "transfer_scenes.yaml"):
        keys = {
            "OUTPUT_DIR": tmp_path / folder,
            "DATASETS.ROOT": scenes,
            "DATASETS.TRAIN": "('voc_main_train',)",
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": 6,
            "SOLVER.WARMUP_ITERS": 0,
            "SOLVER.LOG_PERIOD": 1,
            "SOLVER.CHECKPOINT_PERIOD": 3,
            "TEST.BATCH_SIZE": 4,
            "TEST.BOOTSTRAP": 20,
            "TEST.VISUALIZE": 1,
        }
        return blind_config(*TINY, *(w for pair in keys.items() for w in pair), *overrides, file=file)

    return build


def test_loss_in_closed_form() -> None:
    # log 2 of logit 0 whatever is shown; log(1 + e^-2) of logit 2 on a class that is there; the last does not count.
    logits, presence = torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[0, 1, -1]], dtype=torch.int8)
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2
    assert presence_loss(logits, presence).item() == pytest.approx(expected, rel=1e-6)
    nothing = torch.full((1, 3), -1, dtype=torch.int8)
    logits.requires_grad_()
    loss = presence_loss(logits, nothing)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_context_trunk_without_its_hole_weights_is_the_same(context) -> None:
    """Where nothing is hidden the hole's channel is 0, and so is what its weights add."""
    file, net = context
    cfg = blind_config(*TINY, f"{NODE}.PRETRAINED", file, file="transfer_scenes.yaml")
    moved = build_model(cfg).eval()
    images = 255 * torch.rand(2, 3, 64, 64)
    inputs = net.inputs(torch.cat([images, torch.zeros(2, 1, 64, 64)], dim=1))
    with torch.no_grad():
        expected = net.network.trunk_net(torch.cat([inputs.images, inputs.hole], dim=1))[-1].mean(dim=(2, 3))
        found = moved.features(images)
    torch.testing.assert_close(found, expected)
    # The same file in MODEL.WEIGHTS.
    other = build_model(blind_config(*TINY, "SEED", 9, file="transfer_scenes.yaml")).eval()
    load_initial_weights(other, str(file))
    with torch.no_grad():
        torch.testing.assert_close(other.features(images), expected)


def test_supervised_trunk_leaves_its_classes_behind(context, tmp_path) -> None:
    cfg = blind_config(*TINY, "SEED", 3, file="transfer_scenes.yaml")
    trained = build_model(cfg)
    torch.nn.init.normal_(trained.classes.weight)
    checkpoint.save_model(trained, cfg.dump(), tmp_path / "supervised.pth")
    begun = build_model(
        blind_config(*TINY, f"{NODE}.PRETRAINED", tmp_path / "supervised.pth", file="transfer_scenes.yaml")
    )
    assert torch.equal(begun.trunk.conv1.weight, trained.trunk.conv1.weight)
    assert begun.classes.weight.abs().sum() == 0


@pytest.mark.parametrize("key", ["MODEL.BLITZNET.PRETRAINED", "MODEL.WEIGHTS"])
def test_context_trunk_in_blitznet(context, tiny_config, key) -> None:
    file, net = context
    cfg = tiny_config("blitz", "MODEL.BLITZNET.TRUNK_WIDTH", 4, key, file)
    student = build_model(cfg)
    load_initial_weights(student, cfg.MODEL.WEIGHTS)
    theirs = {n: v for n, v in net.network.trunk_net.state_dict().items() if n != "conv1.hole_weight"}
    for name, value in student.trunk.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_the_configuration_of_blitznet_takes_a_trunk_with_its_norms(tmp_path) -> None:
    cfg = blind_config("MODEL.BLINDNET.NORM", "GN")
    net = build_model(cfg)
    checkpoint.save_model(net, cfg.dump(), tmp_path / "context.pth")
    student = build_model(
        load_config(
            FOLDER / "transfer_blitznet_scenes.yaml",
            ["MODEL.BLITZNET.PRETRAINED", str(tmp_path / "context.pth")],
        )
    )
    theirs = net.network.trunk_net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in student.trunk.state_dict().items())


def test_pictures_without_labels_are_left_out() -> None:
    cfg = blind_config(file="transfer_scenes.yaml")
    bare = picture("b", [])
    bare.boxes = bare.labels = None
    found = prepare_data(dataset(picture("a", [(2, (0, 0, 9, 9))]), bare), cfg, train=True)
    assert found.image_ids == ["a"] and found.records[0].presence.tolist() == np.eye(10)[2].tolist()
    with pytest.raises(
        UserError, match="no picture has boxes; choose MODEL.BLINDNET.LABELS, or raise DATASETS.KEEP"
    ):
        prepare_data(dataset(bare), cfg, train=True)
    with pytest.raises(UserError, match=f"{NODE}.LABELS: 'words' is none of boxes, masks"):
        wrong = blind_config(f"{NODE}.LABELS", "words", file="transfer_scenes.yaml")
        prepare_data(dataset(bare), wrong, train=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("file", ["transfer_scenes.yaml", "transfer_probe_scenes.yaml"])
def test_a_run_trains_scores_and_resumes(config, context, train_until, engine, file) -> None:
    cfg = config("out", f"{NODE}.PRETRAINED", context[0], "DATASETS.KEEP_BOXES", 0.5, file=file)
    train_once(0, 0, 1, cfg, engine)
    folder = Path(cfg.OUTPUT_DIR)
    saved = json.loads((folder / "results.json").read_text())
    assert saved["multi_label"]["images"] == 6 and saved["meta"]["train"]["images"] == 6
    assert {"mAP", "mAP_interval", "chance", "AP-kite"} <= saved["multi_label"].keys()
    assert (folder / "report.html").is_file()
    weights = checkpoint.read(folder / "model_final.pth")["model"]
    begun = build_model(cfg).state_dict()
    moved = any(not torch.equal(weights[n], begun[n]) for n in begun if n.startswith("trunk."))
    assert moved == (file == "transfer_scenes.yaml")
    assert not torch.equal(weights["classes.weight"], begun["classes.weight"])
    again = config("again", "MODEL.WEIGHTS", folder / "model_final.pth", file=file)
    evaluate_once(0, 0, 1, again, engine)
    second = json.loads((Path(again.OUTPUT_DIR) / "results.json").read_text())
    assert second["multi_label"] == saved["multi_label"]
    cut = config("cut", f"{NODE}.PRETRAINED", context[0], "DATASETS.KEEP_BOXES", 0.5, file=file)
    train_until(cut, engine, 4)
    train_once(0, 0, 1, cut, engine, True)
    for name, value in checkpoint.read(Path(cut.OUTPUT_DIR) / "model_final.pth")["model"].items():
        assert torch.equal(value, weights[name]), name


def test_a_probe_standardises_its_features(config, context) -> None:
    from blindnet.hooks import BlindNetHooks
    from scenekd.experiment import Experiment

    experiment = Experiment(
        config("out", f"{NODE}.PRETRAINED", context[0], file="transfer_probe_scenes.yaml")
    )
    BlindNetHooks().begin(experiment)
    net, data = experiment.net.train(), experiment.train_data
    assert not net.trunk.training and not any(p.requires_grad for p in net.trunk.parameters())
    rows = torch.stack([net._features[image_id] for image_id in data.image_ids])
    scaled = (rows - net.feature_mean) / net.feature_std
    torch.testing.assert_close(scaled.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    spread = scaled.std(0, unbiased=False)
    torch.testing.assert_close(spread[rows.std(0) > 1e-4], torch.ones(int((rows.std(0) > 1e-4).sum())))
    images, targets = next(iter(experiment.train_loader()))
    assert images.shape[1:] == (3, 1, 1)
    # Before the first step the scores are the classes' log-odds: (shown + 1) / (pictures + 2) of each.
    shown = sum(torch.from_numpy(record.presence == 1).int() for record in data.records)
    expected = torch.logit((shown + 1) / (len(data) + 2))
    torch.testing.assert_close(net.classify(rows[:1])[0], expected)
    assert net(images, targets)["loss_classes"] > 0


def test_labels_from_masks(config) -> None:
    cfg = config("out", f"{NODE}.LABELS", "masks", "DATASETS.TRAIN", "('voc_seg_train',)")
    import blindnet

    assert blindnet.tasks_of(cfg) == ("segmentation",)
    train_once(0, 0, 1, cfg, "mmengine")
    assert json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())["multi_label"]["images"] == 6


@pytest.mark.parametrize("file", ["transfer_voc.yaml", "transfer_probe_voc.yaml"])
def test_photographs(file) -> None:
    net = build_model(blind_config(*TINY, file=file))
    assert net.classes.out_features == 20 and net.frozen == ("probe" in file)
