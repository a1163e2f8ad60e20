"""blindnet's classifier under the frameworks' own trainers: it hides the objects of a detection batch itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from blindnet_parts import CLASSES, blind_config, dataset, picture
from conftest import ENGINES
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from mmseg.structures import SegDataSample
from tool_runner import ToolRunner, edited

import scenekd.engines.mmengine  # noqa: F401 - registers the names
from blindnet import RegisteredMaskedContext
from blindnet.data import HidingMapper, prepare_data
from scenekd import checkpoint
from scenekd.data.mapper import Mapper, collate
from scenekd.engines.mmengine_hidden import SceneKDHiddenObjectMetric
from scenekd.errors import UserError
from scenekd.evaluation.hidden_pictures import HiddenPictures
from scenekd.hidden import HiddenObject, HiddenScores
from scenekd.models import build_model

pytestmark = pytest.mark.usefixtures("plain_dumps")

NODE = "MODEL.BLINDNET"
CONFIGS = Path(__file__).parents[1] / "configs"
DETECTRON2 = [
    pytest.mark.detectron2,
    pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed"),
]
TINY = {"num_classes": 10, "image_size": 64, "trunk_width": 4, "output_stride": 16}
LEFT, RIGHT, WIDE = [0, 0, 20, 20], [40, 40, 60, 60], [0, 0, 64, 40]


def _pool():
    return dataset(
        picture("a", [(3, LEFT), (4, RIGHT)]),
        picture("bb", [(1, WIDE), (5, LEFT), (6, [30, 0, 64, 10])]),
        picture("ccc", [(7, RIGHT)]),
    )


def _config(*overrides: object):
    return blind_config(f"{NODE}.TRUNK_WIDTH", 4, "SOLVER.IMS_PER_BATCH", 3, *overrides)


def _mask(**keys):
    return RegisteredMaskedContext(**TINY, mask=keys).eval()


def test_the_loss_is_ours_on_the_same_hidden_pictures() -> None:
    """The draws of our mapper, (iteration · processes + process) · batch + place, with all that is random in hiding."""
    shapes, start = f"{NODE}.MASK.SHAPES", f"{NODE}.MASK.PARTIAL_START"
    cfg = _config(
        shapes, ("box", "blob"), f"{NODE}.MASK.FILL", "noise", start, 0.4, f"{NODE}.MASK.PARTIAL_ITERS", 4
    )
    pool = prepare_data(_pool(), cfg, train=True)
    ours = build_model(cfg).train()
    own = {"shapes": ("box", "blob"), "fill": "noise", "partial_start": 0.4, "partial_iters": 4}
    net = RegisteredMaskedContext(**TINY, mask=own).train()
    net.load_state_dict(ours.state_dict())
    hidden, whole = (make(pool, cfg, train=True) for make in (HidingMapper, Mapper))
    for iteration in (0, 3):
        draws = range(3 * iteration, 3 * iteration + 3)
        wanted = ours(*collate([hidden(draw) for draw in draws]))
        net.begin_step(iteration, 4)
        got = net(*collate([whole(draw) for draw in draws]))
        assert got.keys() == {"loss_class"} and torch.equal(got["loss_class"], wanted["loss_class"])


def test_every_object_is_hidden_in_evaluation_as_ours_is() -> None:
    cfg = _config(f"{NODE}.MASK.SHAPES", ("box", "blob"), f"{NODE}.MASK.FILL", "noise")
    cases = HidingMapper(prepare_data(_pool(), cfg, train=False), cfg, train=False)
    ours = build_model(cfg).eval()
    net = _mask(shapes=("box", "blob"), fill="noise")
    net.load_state_dict(ours.state_dict())
    whole = Mapper(_pool(), cfg, train=False)
    with torch.no_grad():
        wanted = [each.class_scores for each in ours(*collate([cases(i) for i in range(len(cases))]))]
        found = net(*collate([whole(i) for i in range(3)]))
    own = [case for each in found for case in each.hidden.cases]
    assert own == [record.hidden for record in cases.dataset.records]
    assert [case.name for case in own] == [record.image_id for record in cases.dataset.records]
    torch.testing.assert_close(torch.cat([each.hidden.scores for each in found]), torch.stack(wanted))


def test_a_picture_without_a_candidate_is_left_out(caplog) -> None:
    """The others' loss is as if it were not there; alone it teaches nothing, and every gradient is 0."""
    pool = dataset(picture("a", [(3, LEFT)]), picture("bb", [(1, WIDE)]), picture("ccc", []))
    cfg = _config()
    images, targets = collate([Mapper(pool, cfg, train=False)(i) for i in range(3)])
    net = RegisteredMaskedContext(**TINY).train()
    with caplog.at_level(logging.WARNING, logger="blindnet"):
        loss = net(images, targets)["loss_class"]
    assert net.left_out == 2 and caplog.text.count("has no object that can be hidden") == 1
    assert loss == net(images[:1], targets[:1])["loss_class"]
    nothing = net(images[1:], targets[1:])
    assert nothing.keys() == {"loss_class"} and nothing["loss_class"] == 0
    net.zero_grad()
    nothing["loss_class"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())
    with torch.no_grad():
        found = net.eval()(images, targets)
    assert [len(each.hidden.cases) for each in found] == [1, 0, 0] and found[1].hidden.scores.shape == (0, 10)


def test_draws_follow_from_step_and_seed() -> None:
    images, targets = collate([Mapper(_pool(), _config(), train=False)(i) for i in range(3)])
    losses = []
    for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1)):
        torch.manual_seed(0)
        net = RegisteredMaskedContext(**TINY, hide_seed=seed, mask={"fill": "noise"}).train()
        net.begin_step(step, 9)
        losses.append(net(images, targets)["loss_class"].item())
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_samples_of_any_pipeline() -> None:
    """Bytes in BGR and a sample with gt_instances, which no transform of ours has packed; results beside them."""
    net = MODELS.build({"type": "SceneKDMaskedContext", **TINY})
    record = _pool().records[0]
    boxes = torch.from_numpy(record.boxes)
    sample = SegDataSample(gt_instances=InstanceData(bboxes=boxes, labels=torch.from_numpy(record.labels)))
    sample.set_metainfo({"img_path": "x/a.jpg", "ori_shape": (64, 64)})
    pixels = torch.from_numpy(record.pixels).permute(2, 0, 1)
    batch = net.data_preprocessor({"inputs": [pixels.flip(0)], "data_samples": [sample]})
    with torch.no_grad():
        told = net.eval()(**batch, mode="predict")[0].hidden_objects
        wanted = net.net(*collate([Mapper(_pool(), _config(), train=False)(0)]))[0].hidden
    assert told.cases == wanted.cases
    torch.testing.assert_close(told.scores, wanted.scores)


# Runs -------------------------------------------------------------------------------------------------------------


def _mmseg_file(folder: Path, root: Path) -> Path:
    base = {
        "size = 300": "size = 64",
        'dict(root="datasets/VOCdevkit")': f"dict(root={str(root)!r}, classes={CLASSES})",
        "num_workers=4, persistent_workers=True": "num_workers=0, persistent_workers=False",
        "interval=50, ": "interval=1, ",
    }
    (folder / "blitznet_voc.py").write_text(edited((CONFIGS / "mmseg/blitznet_voc.py").read_text(), base))
    own = {
        "num_classes=20,": "num_classes=10,\n    trunk_width=4,",
        'pretrained="torchvision"': 'pretrained=""',
        "voc2012_main_train": "voc_main_train",
        "voc2012_main_val": "voc_main_val",
        "batch_size=64": "batch_size=4",
        "max_iters=10000, val_interval=2000": "max_iters=3, val_interval=3",
        "begin=0, end=500": "begin=0, end=1",
        "begin=500, end=10000": "begin=1, end=3",
    }
    file = folder / "masked_context_voc.py"
    file.write_text(edited((CONFIGS / "mmseg/masked_context_voc.py").read_text(), own))
    return file


def _detectron2_file(folder: Path, root: Path) -> Path:
    changes = {
        '"torchvision"  # ImageNet\'s, of the trunk': '""',
        'TRUNK: "resnet18"': 'TRUNK: "resnet18"\n    TRUNK_WIDTH: 4',
        'ROOT: "datasets/VOCdevkit"': f'ROOT: "{root}"\n  CLASSES: {CLASSES}',
        "voc2012_main_train": "voc_main_train",
        "voc2012_main_val": "voc_main_val",
        "SIZE: 300": "SIZE: 64",
        "NUM_WORKERS: 4": "NUM_WORKERS: 0",
        "IMS_PER_BATCH: 64": "IMS_PER_BATCH: 4",
        "MAX_ITER: 10000": "MAX_ITER: 3",
        "STEPS: (8000,)": "STEPS: ()",
        "WARMUP_ITERS: 500": "WARMUP_ITERS: 1",
        "EVAL_PERIOD: 2000": "EVAL_PERIOD: 3",
    }
    file = folder / "masked_context_voc.yaml"
    file.write_text(edited((CONFIGS / "detectron2/masked_context_voc.yaml").read_text(), changes))
    return file


FILES = {"mmseg": _mmseg_file, "detectron2": _detectron2_file}


@pytest.mark.parametrize("framework", ["mmseg", pytest.param("detectron2", marks=DETECTRON2)])
def test_shipped_configs_train_and_are_scored(framework, scenes, tmp_path, monkeypatch) -> None:
    """The framework's runner trains it; tools/test.py gives the numbers again, and so does our own configuration from
    the same checkpoint, but for MMSegmentation's resize."""
    file, out = FILES[framework](tmp_path, scenes), tmp_path / "out"
    assert ToolRunner("train_net", monkeypatch)("--config-file", file, "--output-dir", out) == 0
    log = next(iter(out.glob("*/vis_data/scalars.json")), out / "metrics.json")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(0 < step["loss_class"] < 10 for step in steps if "loss_class" in step)
    trained = json.loads((out / "results.json").read_text())["hidden_object"]
    assert trained["objects"] >= trained["pictures"] == 6 and 0 < trained["mean_rank"] <= 10
    torch.manual_seed(0)
    fresh = build_model(_config(f"{NODE}.OUTPUT_STRIDE", 32)).state_dict()
    state = checkpoint.read(out / "model_final.pth")["model"]
    assert state.keys() == fresh.keys()
    again = tmp_path / "again.json"
    assert ToolRunner("test", monkeypatch)(file, out / "model_final.pth", "--out", again) == 0
    assert json.loads(again.read_text())["hidden_object"] == pytest.approx(trained)
    cfg = _config(
        f"{NODE}.OUTPUT_STRIDE", 32, "DATASETS.ROOT", scenes, "TEST.BOOTSTRAP", 0, "TEST.VISUALIZE", 0
    )
    own = tmp_path / "own.yaml"
    own.write_text(cfg.dump())
    assert ToolRunner("test", monkeypatch)(own, out / "model_final.pth", "--out", again) == 0
    ours = json.loads(again.read_text())["hidden_object"]
    assert ours["objects"] == trained["objects"]
    if framework == "detectron2":
        assert ours["mean_rank"] == pytest.approx(trained["mean_rank"])
    else:
        assert ours["mean_rank"] == pytest.approx(trained["mean_rank"], abs=0.3)


@DETECTRON2[0]
@DETECTRON2[1]
def test_torchvision_is_no_file_to_detectron2(tmp_path) -> None:
    from scenekd.engines.detectron2_native import NativeCheckpointer

    net = torch.nn.Linear(2, 1)
    assert NativeCheckpointer(net, str(tmp_path)).load("torchvision") == {}


# Metric -----------------------------------------------------------------------------------------------------------


def _case(name: str, place: int, label: int) -> HiddenObject:
    return HiddenObject(name, place, label, "box", 0.1, 1)


def test_pictures_count_once_and_over_processes() -> None:
    """Of three classes: ranks 1 and 2 in picture a, 3 in b, told by two processes that share a; nothing in c."""
    scores = torch.tensor([[3.0, 2, 1], [3, 2, 1]])
    a = HiddenScores([_case("a", 0, 0), _case("a", 1, 1)], scores)
    b = HiddenScores([_case("b", 0, 2)], scores[:1])
    first, second = HiddenPictures("xyz"), HiddenPictures("xyz")
    for pictures, found in ((first, {"a": a}), (second, {"a": a, "b": b, "c": HiddenScores([], scores[:0])})):
        for name, hidden in found.items():
            pictures.add(name, hidden)
    first.merge([first.state(), second.state()])
    summary = first.summarize()["hidden_object"]
    assert (summary["objects"], summary["pictures"], summary["pictures_left_out"]) == (3, 2, 1)
    assert summary["mean_rank"] == pytest.approx(2) and summary["top1"] == pytest.approx(100 / 3)


def test_what_the_metric_refuses() -> None:
    with pytest.raises(UserError, match="image a: the model hides no objects"):
        HiddenPictures("xyz").add("a", None)
    with pytest.raises(UserError, match="hidden object a#0: .*3"):
        HiddenPictures("xyz").add("a", HiddenScores([_case("a", 0, 0)], torch.zeros(1, 4)))
    pictures = HiddenPictures("xyz")
    pictures.add("a", HiddenScores([], torch.zeros(0, 3)))
    with pytest.raises(UserError, match="none of 1 pictures has an object .* test loader must give boxes"):
        pictures.summarize()
    with pytest.raises(UserError, match="names no classes"):
        SceneKDHiddenObjectMetric().process(None, [{"img_path": "a.jpg"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width_of_trunk": 3}, "^SceneKDMaskedContext: .*MODEL.BLINDNET.WIDTH_OF_TRUNK"),
        ({"mask": {"fill": "water"}}, r"^MODEL.BLINDNET.MASK.FILL: 'water'"),
        ({"mask": {"draw": "object"}}, r"^MODEL.BLINDNET.MASK.DRAW: object; .*set it to image"),
        ({"class_weights": "objects"}, r"^MODEL.BLINDNET.CLASS_WEIGHTS: objects; .*set it to none"),
        ({"compare": (("a", "b"),)}, r"^MODEL.BLINDNET.COMPARE: "),
        ({"permute_targets": True}, r"^MODEL.BLINDNET.PERMUTE_TARGETS: .*set it to False"),
        ({"network": "fft"}, r"^MODEL.BLINDNET.NETWORK: 'fft'"),
        ({"pretrained": "x.pth"}, "^SceneKDMaskedContext: pretrained: 'x.pth'"),
    ],
)
def test_what_the_model_refuses(options, message) -> None:
    with pytest.raises(UserError, match=message):
        RegisteredMaskedContext(**TINY, **options)


def test_an_outline_needs_masks() -> None:
    images, targets = collate([Mapper(_pool(), _config(), train=False)(0)])
    net = _mask(shapes=("segment",))
    with pytest.raises(UserError, match="segment needs masks"):
        net(images, targets)
    targets[0].masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    targets[0].masks[0, :10, :10] = targets[0].masks[1, 40:50, 40:50] = 1
    with torch.no_grad():
        found = net(images, targets)[0].hidden
    assert [case.shape for case in found.cases] == ["segment"] * 2 and np.isfinite(found.scores.numpy()).all()
    with pytest.raises(ValueError, match="target for each picture"):
        net(images)
