"""detectron2's networks as teachers: equal to detectron2's own DefaultPredictor, on real images, from local
weight files in the zoo's own format."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ENGINES

from scenekd.data.catalog import load_datasets
from scenekd.data.images import read_image
from scenekd.errors import UserError
from scenekd.teachers.build import build_teacher, open_store, teacher_class_map
from scenekd.teachers.caching import cache_teacher
from scenekd.teachers.dense import without_padding
from scenekd.teachers.protocol import Teacher

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed"),
]

BASE = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: "{architecture}"
  BACKBONE: {{NAME: "{backbone}"}}
  RESNETS:
    RES2_OUT_CHANNELS: 16
    STEM_OUT_CHANNELS: 16
    WIDTH_PER_GROUP: 4
    OUT_FEATURES: {features}
  FPN: {{IN_FEATURES: {features}, OUT_CHANNELS: 16}}
  MASK_ON: {mask}
  ANCHOR_GENERATOR: {{SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}}
  RPN: {{IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 40}}
  RETINANET: {{NUM_CLASSES: 20, NUM_CONVS: 1, IN_FEATURES: ["p3", "p4", "p5", "p6", "p7"]}}
  ROI_HEADS: {{NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"], NUM_CLASSES: {classes}}}
  ROI_BOX_HEAD: {{NAME: "FastRCNNConvFCHead", NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}}
  ROI_MASK_HEAD: {{NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 14}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 54, CONVS_DIM: 16, NORM: ""}}
INPUT: {{MIN_SIZE_TEST: {side}, MAX_SIZE_TEST: 400, FORMAT: "{channels}"}}
DATASETS: {{TRAIN: ["voc_2007_train"], TEST: ["{data}"]}}
"""
ROI = {"backbone": "build_resnet_fpn_backbone", "features": '["res2", "res3", "res4", "res5"]'}
RETINA = {"backbone": "build_retinanet_resnet_fpn_backbone", "features": '["res3", "res4", "res5"]'}
SHARED = {"side": 160, "mask": "False", "channels": "BGR", "data": "voc_2007_test", "classes": 20}
KINDS = {
    "faster": SHARED | ROI | {"architecture": "GeneralizedRCNN"},
    "mask_rgb": SHARED | ROI | {"architecture": "GeneralizedRCNN", "mask": "True", "channels": "RGB"},
    "retinanet": SHARED | RETINA | {"architecture": "RetinaNet"},
    "panoptic": SHARED
    | ROI
    | {"architecture": "PanopticFPN", "mask": "True", "classes": 80}
    | {"data": "coco_2017_val_panoptic_separated"},
}


@pytest.fixture(scope="module")
def images(test_data):
    files = sorted((test_data / "voc_mini").rglob("JPEGImages/*.jpg"))
    return [read_image(str(file)) for file in files[:3]]


def detectron2_config(file: Path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(file), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def make(folder: Path, kind: str, **changes) -> tuple[Path, Path]:
    """A config file, and random weights of its network as the zoo writes them."""
    from detectron2.modeling import build_model

    config, weights = folder / f"{kind}.yaml", folder / f"{kind}.pkl"
    config.write_text(BASE.format(**(KINDS[kind] | changes)))
    torch.manual_seed(7)
    net = build_model(detectron2_config(config))
    with torch.no_grad():
        net.get_parameter("backbone.bottom_up.stem.conv1.weight").mul_(0.003)  # for moderate features
        for name, value in net.named_parameters():
            if "predictor" in name or "cls_score" in name:  # scores that differ, masks on both sides of ½
                value.normal_(std=0.1)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    weights.write_bytes(pickle.dumps({"model": state, "__author__": "a test"}, protocol=2))
    return config, weights


@pytest.fixture
def teacher_of(tiny_config):
    def build(task, config, weights, *pairs):
        key = f"TEACHER.{task.upper()}"
        uri = f"detectron2://{config}?weights={weights}"
        cfg = tiny_config("run", key, uri, f"{key}.MIN_SCORE", "0.03", f"{key}.MAX_BOXES", "15", *pairs)
        return build_teacher(cfg, task), cfg

    return build


def default_predictor(config, weights, teacher):
    """detectron2's own, with the thresholds that the teacher set."""
    from detectron2.engine import DefaultPredictor

    cfg = detectron2_config(config)
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.03
    cfg.TEST.DETECTIONS_PER_IMAGE = 15
    return DefaultPredictor(cfg)


@pytest.mark.parametrize("kind", ["faster", "mask_rgb", "retinanet", "panoptic"])
def test_boxes_are_those_of_the_default_predictor(kind, tmp_path, images, teacher_of):
    """It takes BGR images, as OpenCV reads them; all images at once, of two sizes, change nothing."""
    config, weights = make(tmp_path, kind, **({"side": 120} if kind == "panoptic" else {}))
    teacher, _ = teacher_of("detection", config, weights)
    assert isinstance(teacher, Teacher) and teacher.tasks == ("detection",)
    assert teacher.classes[:2] == (("person", "bicycle") if kind == "panoptic" else ("aeroplane", "bicycle"))
    predictor = default_predictor(config, weights, teacher)
    for image, output in zip(images, teacher.predict(images)):
        want = predictor(image[:, :, ::-1])["instances"]
        assert len(want) > 3
        np.testing.assert_allclose(output.boxes, want.pred_boxes.tensor.numpy(), atol=1e-3)
        np.testing.assert_allclose(output.scores, want.scores.numpy(), atol=1e-5)
        np.testing.assert_array_equal(output.labels, want.pred_classes.numpy())
        vectors = output.class_probabilities
        assert (vectors is None) == (kind == "retinanet")  # its classes are scored one by one
        if vectors is not None:  # the whole row of the head that each score is taken from, background last
            assert vectors.shape == (len(output.labels), len(teacher.classes) + 1)
            np.testing.assert_allclose(vectors.sum(1), 1, atol=1e-5)
            np.testing.assert_array_equal(vectors[np.arange(len(vectors)), output.labels], output.scores)


def test_masks_of_the_default_predictor_carry_their_scores(tmp_path, images, teacher_of):
    config, weights = make(tmp_path, "mask_rgb")
    teacher, _ = teacher_of("segmentation", config, weights)
    assert teacher.info()["form"] == "scores"
    predictor = default_predictor(config, weights, teacher)
    soft = teacher.predict(images[:1])[0].segmentation
    found = predictor(images[0][:, :, ::-1])["instances"]
    want = np.zeros((21, *images[0].shape[:2]), np.float32)
    for mask, label, score in zip(found.pred_masks, found.pred_classes, found.scores):
        plane = want[int(label) + 1]
        plane[mask.numpy()] = np.maximum(plane[mask.numpy()], float(score))
    assert soft.form == "scores" and want.any()
    np.testing.assert_allclose(soft.values, want, atol=1e-5)


@pytest.mark.parametrize("kind", ["mask_rgb", "panoptic"])
def test_masks_of_objects_are_those_of_the_default_predictor(kind, tmp_path, images, teacher_of):
    """Boxes and masks in one order; all images at once, of two sizes, change nothing."""
    config, weights = make(tmp_path, kind, **({"side": 120} if kind == "panoptic" else {}))
    teacher, _ = teacher_of("instance_segmentation", config, weights)
    assert teacher.tasks == ("instance_segmentation",) and teacher.info()["form"] == ""
    predictor = default_predictor(config, weights, teacher)
    for image, output in zip(images, teacher.predict(images)):
        want = predictor(image[:, :, ::-1])["instances"]
        assert len(want) > 3 and 0 < want.pred_masks.float().mean() < 1
        np.testing.assert_allclose(output.boxes, want.pred_boxes.tensor.numpy(), atol=1e-3)
        np.testing.assert_array_equal(output.labels, want.pred_classes.numpy())
        assert output.masks.shape == (len(want), *image.shape[:2])
        # a pixel whose probability is ½ to the last bits may fall on either side in a batch
        assert (output.masks != want.pred_masks.numpy()).mean() < 1e-5
    single = teacher.predict(images[:1])[0]
    want = predictor(images[0][:, :, ::-1])["instances"]
    np.testing.assert_array_equal(single.masks, want.pred_masks.numpy())


def test_masks_of_objects_are_cached(tmp_path, teacher_of):
    """In our classes and without loss; another task's request is refused."""
    config, weights = make(tmp_path, "mask_rgb", side=64)
    key = "TEACHER.INSTANCE_SEGMENTATION"
    teacher, cfg = teacher_of("instance_segmentation", config, weights, f"{key}.ALLOW_UNMAPPED", "True")
    cfg.defrost()
    cfg.DATASETS.MAX_IMAGES = 2
    assert cache_teacher(cfg, "instance_segmentation").asked == 2
    records = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True).records
    store = open_store(cfg, "instance_segmentation", records)
    class_map = teacher_class_map(cfg, "instance_segmentation", teacher.classes)
    kept = 0
    for record in records:
        found = store.get_instances(record.image_id)
        want = class_map.instances(teacher.predict([read_image(record)])[0].instances)
        np.testing.assert_array_equal(found.boxes, want.boxes)
        np.testing.assert_array_equal(found.labels, want.labels)
        np.testing.assert_array_equal(found.masks(), want.masks())
        kept += len(want.boxes)
    assert kept > 0


def test_semantic_head_at_the_image_s_size_is_the_default_predictor_s(tmp_path, images, teacher_of):
    """The first plane is an added background that no pixel reaches."""
    config, weights = make(tmp_path, "panoptic", side=120)
    teacher, _ = teacher_of("segmentation", config, weights, "TEACHER.SEGMENTATION.GRID", "image")
    assert teacher.classes[:3] == ("things", "banner", "blanket") and len(teacher.classes) == 54
    predictor = default_predictor(config, weights, teacher)
    for image, output in zip(images[:2], teacher.predict(images[:2])):
        want = predictor(image[:, :, ::-1])["sem_seg"].numpy()
        values = output.segmentation.values
        assert output.segmentation.form == "logits"
        np.testing.assert_allclose(values[1:], want, atol=1e-4)
        below = torch.from_numpy(values[0]) - torch.from_numpy(values[1:]).logsumexp(0)
        assert below.max() < -29  # p = e^−30


def test_own_grid_leads_to_the_default_predictor_s_output(tmp_path, images, teacher_of):
    """Where the input needs no padding, enlarging the stored grid as detectron2 does gives its output: a side of
    128 for a square image leaves 32 × 32 cells of stride 4."""
    config, weights = make(tmp_path, "panoptic", side=128)
    teacher, _ = teacher_of("segmentation", config, weights)
    square = images[0][:256, :256]
    values = teacher.predict([square])[0].segmentation.values
    assert values.shape == (55, 32, 32)
    enlarged = F.interpolate(
        torch.from_numpy(values[1:])[None], scale_factor=4, mode="bilinear", align_corners=False
    )
    enlarged = F.interpolate(enlarged, (256, 256), mode="bilinear", align_corners=False)[0]
    want = default_predictor(config, weights, teacher)(square[:, :, ::-1])["sem_seg"]
    torch.testing.assert_close(enlarged, want, atol=1e-4, rtol=0)


def test_padding_is_cut_off_between_cells():
    """A ramp x of the padded input, on cells of stride 4 (cell j holds 4j + 2), shown up to 10 of 16 pixels, is
    the ramp on ⌈10 / 4⌉ = 3 cells: their centres lie at 10 (j + ½) / 3, the first before the ramp begins."""
    ramp = torch.arange(4.0) * 4 + 2
    logits = ramp.expand(1, 4, 4)
    shown = without_padding(logits, (16, 10), (16, 16))
    assert shown.shape == (1, 4, 3)
    torch.testing.assert_close(shown[0, 0], torch.tensor([2.0, 5.0, 25 / 3]))
    assert without_padding(logits, (16, 16), (16, 16)) is logits


def test_stuff_becomes_background_and_names_are_matched(tmp_path, images, teacher_of):
    """“things” and all stuff without a counterpart make the background; their probabilities add up."""
    config, weights = make(tmp_path, "panoptic", side=64)
    allow = ("TEACHER.SEGMENTATION.ALLOW_UNMAPPED", "True")
    teacher, cfg = teacher_of("segmentation", config, weights, *allow)
    class_map = teacher_class_map(cfg, "segmentation", teacher.classes)
    pairs = class_map.as_dict()
    # of the scenes' classes COCO's stuff knows trees and houses
    assert pairs["tree"] == "tree" and pairs["house"] == "house" and pairs["things"] == "background"
    raw = teacher.predict(images[:1])[0].segmentation
    mapped = class_map.segmentation(raw)

    def probabilities(values):
        return torch.from_numpy(values).double().softmax(0).numpy()

    p, q = probabilities(raw.values), probabilities(mapped.values)
    tree = teacher.classes.index("tree") + 1
    np.testing.assert_allclose(q[cfg.DATASETS.CLASSES.index("tree") + 1], p[tree], atol=1e-6)
    house = teacher.classes.index("house") + 1
    np.testing.assert_allclose(q[0], 1 - p[tree] - p[house], atol=1e-6)


class Evil:
    """What a stranger could have pickled."""

    def __reduce__(self):
        return (print, ("it ran",))


def test_other_files_are_refused_in_one_line(tmp_path, teacher_of, capsys):
    config, weights = make(tmp_path, "faster")
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps({"model": Evil(), "__author__": "x"}))
    with pytest.raises(UserError, match="evil.pkl: holds more than arrays .*print"):
        teacher_of("detection", config, evil)
    assert "it ran" not in capsys.readouterr().out
    with pytest.raises(UserError, match="none.pkl: no such file; set TEACHER.DETECTION.WEIGHTS"):
        teacher_of("detection", config, tmp_path / "none.pkl")
    other, _ = make(tmp_path, "mask_rgb")
    with pytest.raises(UserError, match="weights of another network: .*mask_head"):
        teacher_of("segmentation", other, weights)


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_other_suppression_keeps_duplicates(kind, tmp_path, images, teacher_of):
    config, weights = make(tmp_path, kind)
    few, _ = teacher_of("detection", config, weights, "TEACHER.DETECTION.MAX_BOXES", "0")
    more, _ = teacher_of(
        "detection",
        config,
        weights,
        "TEACHER.DETECTION.MAX_BOXES",
        "0",
        "TEACHER.DETECTION.NMS_THRESHOLD",
        "1.0",
    )
    count = [len(teacher.predict(images[:1])[0].boxes) for teacher in (few, more)]
    assert count[0] < count[1] and more.info()["nms_threshold"] == 1.0


def test_pth_with_the_same_tensors_is_the_same_teacher(tmp_path, teacher_of):
    config, weights = make(tmp_path, "faster")
    state = pickle.loads(weights.read_bytes())["model"]
    torch.save({"model": {k: torch.from_numpy(v) for k, v in state.items()}}, tmp_path / "w.pth")
    infos = [teacher_of("detection", config, w)[0].info() for w in (weights, tmp_path / "w.pth")]
    assert infos[0] == infos[1] and infos[0]["trained_on"] == []


def test_names_of_the_zoo(tiny_config, monkeypatch):
    def build(uri, *pairs, task="detection"):
        key = f"TEACHER.{task.upper()}"
        return build_teacher(tiny_config("run", key, uri, *pairs), task)

    with pytest.raises(UserError, match="TEACHER.DETECTION.NAME: .* the nearest are .*_3x"):
        build("detectron2://COCO-Detection/faster_rcnn_R_101_FPN")
    with pytest.raises(UserError, match="rpn_R_50_FPN_1x .*finds no classes of boxes"):
        build("detectron2://COCO-Detection/rpn_R_50_FPN_1x?weights=random")
    with pytest.raises(UserError, match="has no masks"):
        build("detectron2://COCO-Detection/retinanet_R_50_FPN_1x?weights=random", task="segmentation")
    with pytest.raises(UserError, match="TEACHER.INSTANCE_SEGMENTATION: .*has no masks of objects"):
        build("detectron2://COCO-Detection/faster_rcnn_R_50_FPN_1x", task="instance_segmentation")
    from detectron2.utils.file_io import PathManager

    def offline(path, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(PathManager, "get_local_path", offline)
    message = r"cannot be downloaded \(no route to host\); fetch https://.*/137851257/model_final_f6e8b1.pkl"
    with pytest.raises(UserError, match=f"{message} elsewhere and set TEACHER.DETECTION.WEIGHTS"):
        build("detectron2://COCO-Detection/faster_rcnn_R_101_FPN_3x")


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    ],
)
def test_zoo_configs_build_by_name(name, tiny_config):
    teacher = build_teacher(
        tiny_config("run", "TEACHER.DETECTION", f"detectron2://{name}?weights=random"), "detection"
    )
    assert len(teacher.classes) == 80 and teacher.classes[0] == "person"
    assert teacher.cfg.INPUT.MIN_SIZE_TEST == 800 and teacher.cfg.INPUT.FORMAT == "BGR"
