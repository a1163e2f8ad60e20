"""The shipped configurations of detectron2's own models, trained and evaluated through the tools: on real images, and
on drawn scenes where masks of objects are needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from teacher_folders import save_boxes, save_masks
from test_datasets_engines import CLASSES
from tool_runner import ToolRunner

from scenekd import checkpoint
from scenekd.data.catalog import load_dataset
from scenekd.engines.native import NativeRun, native_framework
from scenekd.errors import UserError
from scenekd.teachers.more import each_teacher

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from scenekd.engines.detectron2_native import load_native  # noqa: E402 - needs detectron2

CONFIGS = Path(__file__).parents[1] / "configs" / "detectron2"
SMALL = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.PIXEL_STD": [57.0, 57.0, 57.0],
    "DATASETS.TRAIN": ("voc_seg_train",),
    "DATASETS.TEST": ("voc_seg_val",),
    "DATASETS.MAX_IMAGES": 8,
    "DATASETS.KEEP_BOXES": 0.5,
    "DATASETS.KEEP_SEM_SEG": 0.5,
    "INPUT.MIN_SIZE_TRAIN": (64, 96),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.CROP.ENABLED": True,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": 3,
    "SOLVER.WARMUP_ITERS": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}
RUNS = {
    "retinanet_kd_voc": ("", {"loss_cls", "loss_box_reg"}, {"bbox"}),
    "faster_rcnn_kd_voc": ("", {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}, {"bbox"}),
    "panoptic_fpn_kd_voc": (
        "",
        {"loss_rpn_cls", "loss_cls", "loss_box_reg", "loss_sem_seg", "loss_sem_seg_soft"},
        {"bbox", "sem_seg"},
    ),
    "semantic": ("SceneKDSemanticSegmentor", {"loss_sem_seg", "loss_sem_seg_soft"}, {"sem_seg"}),
}


@pytest.fixture(scope="module")
def teachers(test_data, tmp_path_factory):
    """Teachers of the eight training images: their own labels, boxes at confidence 0.8."""
    root = test_data / "voc_mini"
    data, folder = load_dataset("voc_seg_train", root=str(root)), tmp_path_factory.mktemp("teachers")
    return {
        "DATASETS.ROOT": root,
        "TEACHER.DETECTION.WEIGHTS": save_boxes(folder / "boxes", data, data.records[:8], 0.8),
        "TEACHER.SEGMENTATION.WEIGHTS": save_masks(folder / "masks", data, data.records[:8], stride=4),
    }


@pytest.mark.parametrize("name", RUNS)
def test_config_trains_and_evaluates(name, teachers, tmp_path, monkeypatch):
    """Three steps of every loss; tools/test.py finds the same numbers from the checkpoint."""
    architecture, losses, tasks = RUNS[name]
    file = CONFIGS / f"{'panoptic_fpn_kd_voc' if architecture else name}.yaml"
    options = {**SMALL, **teachers} | ({"MODEL.META_ARCHITECTURE": architecture} if architecture else {})
    train_and_test(file, options, losses, tasks, tmp_path, monkeypatch)


def test_mask_rcnn_trains_and_evaluates(scenes, tmp_path, monkeypatch):
    """Of twelve images six keep their boxes, and of these some their masks; the others have a teacher's boxes alone."""
    data = load_dataset("voc_seg_train", root=str(scenes), classes=CLASSES)
    options = SMALL | {
        "DATASETS.ROOT": scenes,
        "DATASETS.CLASSES": CLASSES,
        "DATASETS.MAX_IMAGES": 0,
        "DATASETS.KEEP_INSTANCE_MASKS": 0.7,
        "TEACHER.DETECTION.WEIGHTS": save_boxes(tmp_path / "boxes", data, data.records, 0.8),
        "MODEL.ROI_HEADS.NUM_CLASSES": len(CLASSES),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "SOLVER.IMS_PER_BATCH": 12,
    }
    losses, tasks = RUNS["faster_rcnn_kd_voc"][1] | {"loss_mask"}, {"bbox", "segm"}
    file, panels = CONFIGS / "mask_rcnn_kd_voc.yaml", tmp_path / "panels"
    line = train_and_test(file, options, losses, tasks, tmp_path, monkeypatch, "--show-dir", panels)
    assert line["loss_mask"] > 0.1 and line["mask_rcnn/accuracy"] > 0
    assert len(list(panels.glob("*.png"))) == 6


def train_and_test(file, options, losses, tasks, folder, monkeypatch, *arguments):
    """Train and evaluate, with ``arguments`` of tools/test.py; returns the last line of losses."""
    out = folder / "out"
    words = [str(part) for pair in options.items() for part in pair]
    assert ToolRunner("train_net", monkeypatch)("--config-file", file, "--output-dir", out, *words) == 0
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    line = next(line for line in lines if "total_loss" in line)
    assert {key for key in line if key.startswith("loss_")} >= losses
    assert all(0 <= line[key] < 100 for key in losses) and line["total_loss"] > 0
    trained = json.loads((out / "results.json").read_text())
    assert trained.keys() & {"bbox", "segm", "sem_seg"} == tasks
    assert {"model", "state_dict", "format"} <= checkpoint.read(out / "model_final.pth").keys()
    again = folder / "again.json"
    arguments = (file, out / "model_final.pth", "--out", again, *arguments)
    assert ToolRunner("test", monkeypatch)(*arguments, *words) == 0
    scores = json.loads(again.read_text())
    if "sem_seg" in tasks:
        assert 0 < trained["sem_seg"]["mIoU"] <= 100
        assert scores["sem_seg"]["mIoU"] == pytest.approx(trained["sem_seg"]["mIoU"], abs=1e-4)
    for task in tasks - {"sem_seg"}:
        assert scores[task]["AP50"] == pytest.approx(trained[task]["AP50"], abs=1e-4, nan_ok=True)
    return line


def test_a_teacher_by_its_uri(tmp_path):
    """In the file, over a node of its base, and on the command line; detectron2's own URIs stay what they are."""
    file, base = tmp_path / "uri.yaml", CONFIGS / "retinanet_kd_voc.yaml"
    file.write_text(f"""_BASE_: "{base}"
TEACHER:
  DETECTION: "detectron2://COCO-Detection/retinanet_R_50_FPN_1x"
  SEGMENTATION: {{CACHE: "c"}}
""")
    assert native_framework(file) == "detectron2"
    cfg = load_native(NativeRun(str(file)))
    node = cfg.TEACHER.DETECTION
    assert (node.TYPE, node.NAME, node.WEIGHTS) == (
        "detectron2",
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "",
    )
    assert cfg.TEACHER.SEGMENTATION.WEIGHTS.endswith("TeacherSegmentation")
    assert cfg.TEACHER.SEGMENTATION.CACHE == "c" and cfg.MODEL.WEIGHTS.startswith("detectron2://")
    more = "('torchvision://ssd300_vgg16?weights=random',)"
    pairs = ("TEACHER.DETECTION.WEIGHTS", "w.pkl", "TEACHER.DETECTION", "detectron2://x.yaml")
    cfg = load_native(NativeRun(str(file), (*pairs, "TEACHER.DETECTION.MORE", more, "SOLVER.BASE_LR", "1")))
    node = cfg.TEACHER.DETECTION
    assert (node.NAME, node.WEIGHTS, cfg.SOLVER.BASE_LR) == ("x.yaml", "w.pkl", 1.0)
    assert each_teacher(cfg, "detection")[1].node.NAME == "ssd300_vgg16"


@pytest.mark.parametrize(
    ("text", "pairs", "message"),
    [
        ("TEACHER: {DETECTION: 'detectron://x'}", (), "uri.yaml: TEACHER.DETECTION: unknown scheme"),
        ("", ("TEACHER.DETECTION", "detectron://x"), "TEACHER.DETECTION: unknown scheme in 'detectron://x'"),
        ("", ("TEACHER.DEPTH", "mmseg://x"), "command line: Non-existent config key: TEACHER.DEPTH"),
        ("TEACHER: {DEPTH: 'mmseg://x'}", (), "uri.yaml: Non-existent config key: TEACHER.DEPTH"),
    ],
)
def test_teachers_that_are_none(text, pairs, message, tmp_path):
    file = tmp_path / "uri.yaml"
    file.write_text(f'_BASE_: "{CONFIGS / "retinanet_kd_voc.yaml"}"\n{text}\n')
    with pytest.raises(UserError, match=message):
        load_native(NativeRun(str(file), pairs))
