"""What a finished run measures beyond its stream: outlier scores held against each other, attention against masks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENGINES
from envise_parts import NAMES, SIZE, ColourTeacher, build_run, colour_dataset, envise_config, finish
from envise_runs import StreamFolder
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_envise_streams import SCENE_CLASSES

from envise import run as envise_run
from envise.answer_log import AnswerLog
from envise.compare import OF_SCORES, OF_SYSTEM, kept_apart, settled
from envise.focus import attention_results, attention_samples, gaze
from envise.phases import ANSWER, CALIBRATE, LEARN
from envise.sources import CropMask
from envise.stream import build_stream, stream_dataset
from envise.views import (
    attention_of_runs,
    read_attention,
    read_separation,
    save_view,
    separation_of_runs,
)
from scenekd import checkpoint
from scenekd.data.catalog import load_dataset
from scenekd.engines.session import train_once
from scenekd.errors import UserError
from scenekd.evaluation.ood import outlier_metrics
from scenekd.visualize_attention import attention_panel

pytestmark = pytest.mark.usefixtures("plain_dumps")

ALL = (
    "max_softmax",
    "max_logit",
    "energy",
    "odin",
    "mahalanobis",
    "vim",
    "knn",
    "attention",
    "classifier_discrepancy",
    "leave_out_ensemble",
)


@pytest.fixture
def config(tmp_path, monkeypatch) -> StreamFolder:
    return StreamFolder(tmp_path, monkeypatch)


def _train(cfg, engine="mmengine", resume=False):
    return train_once(0, 0, 1, cfg, engine, resume)


def _written(cfg):
    return json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())


@pytest.mark.parametrize("engine", ENGINES)
def test_measuring_changes_nothing(config, engine):
    """Weights, answers and every other number are those of a run that measures nothing more, to the bit; and all
    scores have all metrics."""
    plain = config("plain", ONLINE={"JUDGE_TEACHER": False})
    more = config("more", ONLINE={"JUDGE_TEACHER": False, "COMPARE_SCORES": ALL, "COMPARE_ATTENTION": True})
    _train(plain, engine)
    found = _train(more, engine)
    weights, others = (
        checkpoint.read(Path(cfg.OUTPUT_DIR) / checkpoint.MODEL_FINAL)["model"] for cfg in (plain, more)
    )
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    logs = [(Path(cfg.OUTPUT_DIR) / "answers.csv").read_text() for cfg in (plain, more)]
    assert logs[0] == logs[1]
    assert _written(plain)["stream"] == _written(more)["stream"]
    assert _written(plain).keys() == {"stream", "meta"}
    scores = _written(more)["outlier_scores"]
    expected = {f"{name}/{metric}" for name in ALL for metric in (*OF_SCORES, *OF_SYSTEM)}
    assert scores.keys() == expected | {"samples", "outliers_shown"}
    assert all(0 <= scores[f"{name}/auroc"] <= 100 for name in ALL)
    # Colours have no masks: distances alone, and the log says why in one line.
    assert found["attention"].keys() == {"samples", "distance", "contrast"}
    log = (Path(more.OUTPUT_DIR) / "log.txt").read_text()
    assert log.count("ONLINE.COMPARE_ATTENTION: the data name no mask of any object") == 1
    assert "where teacher and student look" in (Path(more.OUTPUT_DIR) / "report.html").read_text()


@pytest.mark.parametrize("score", ["max_softmax", "knn"])
def test_the_gates_own_score_is_found_again(config, score):
    """Fitted and asked after the run, with the student, the replayed samples and the calibration of the run: the same
    threshold up to rounding, so the same samples are sent. GiE is that without audits."""
    cfg = config("out", ONLINE={"SCORE": score, "COMPARE_SCORES": ("max_softmax", "knn")})
    results = _train(cfg)
    stream, scores = results["stream"], results["outlier_scores"]
    assert scores["samples"] == stream["samples_answering"] and scores["outliers_shown"] == 0
    for metric in (*OF_SCORES, "share_to_teacher", "accuracy"):
        assert scores[f"{score}/{metric}"] == pytest.approx(stream[metric], abs=0.01), metric
    assert scores[f"{score}/gie"] == pytest.approx(stream["gie_without_audits"])
    # And by hand from the log
    table = AnswerLog(cfg.OUTPUT_DIR).read()
    rows = table.phase == ANSWER
    truth = envise_run.OnlineRun.from_config(cfg).stream.truth
    auroc = roc_auc_score(truth.outlier[table.position[rows]], table.score[rows])
    assert scores[f"{score}/auroc"] == pytest.approx(100 * auroc)


def test_scores_that_see_outliers_see_others(config):
    """Every fourth image since the last calibration is scored by none, its outliers are shown; no image is on both
    sides, and the others' numbers are those of the rest."""
    cfg = config("out", ONLINE={"COMPARE_SCORES": ("max_softmax", "classifier_discrepancy")})
    scores = _train(cfg)["outlier_scores"]
    table = AnswerLog(cfg.OUTPUT_DIR).read().of(ANSWER)
    truth = envise_run.OnlineRun.from_config(cfg).stream.truth
    images, outlier = truth.records[table.position], truth.outlier[table.position]
    kept = kept_apart(images, outlier)
    assert not set(images[kept]) & set(images[~kept])
    assert scores["samples"] == (~kept).sum() and scores["outliers_shown"] == (kept & outlier).sum() > 0
    rest = outlier_metrics(table.score[~kept & ~outlier], table.score[~kept & outlier])
    assert scores["max_softmax/auroc"] == pytest.approx(100 * rest.auroc)
    assert scores["classifier_discrepancy/auroc"] > 50


def test_images_kept_apart():
    """Inliers show images 5 5 6 7 8 9, in this order: the fourth of 5 6 7 8 9 is 8. Outliers 1 2 3 4 4: it is 4."""
    images = np.array([5, 1, 5, 6, 2, 7, 3, 8, 4, 9, 4])
    outlier = np.isin(images, [1, 2, 3, 4])
    assert images[kept_apart(images, outlier)].tolist() == [8, 4, 4]
    assert not kept_apart(images[:6], outlier[:6]).any()


def test_only_the_last_students_answers_belong(config, tmp_path):
    """After a drift the student learns again: what it answered before, and what it was calibrated on, is not counted;
    and nothing at all where the run ends while it learns."""
    online = {"AUDIT_SHARE": 1.0, "AUDIT_WINDOW": 20, "AUDIT_AGREEMENT": 0.9, "COMPARE_SCORES": ("energy",)}
    cfg = config("out", STREAM={"SAMPLES": 400, "SHIFTS": ()}, ONLINE=online)
    stream = build_stream(cfg, colour_dataset())
    teacher = ColourTeacher()
    run = build_run(cfg, tmp_path / "state", stream=stream, teacher=teacher)
    log = AnswerLog(tmp_path)
    log.begin(0)
    run.before_save = log.add
    while run.advance() is not None:
        # Once: the teacher's opinion changes while the student answers, so that the audit fails.
        if run.distiller.phases.phase == ANSWER and not teacher.shift:
            teacher.shift = 1
    phases = [phase for _, phase, _ in run.distiller.phases.changes]
    assert phases[:5] == [CALIBRATE, ANSWER, LEARN, CALIBRATE, ANSWER]
    table, changes = log.read(), run.distiller.phases.changes
    calibration, answered = settled(run.distiller.phases, table)
    assert table.position[answered[0]] == changes[4][0] + 1
    assert table.position[calibration[0]] == changes[3][0] + 1
    assert (table.phase[answered] == ANSWER).all() and (table.phase[calibration] == CALIBRATE).all()
    run.distiller.phases.phase = LEARN
    assert [len(rows) for rows in settled(run.distiller.phases, table)] == [0, 0]


def test_scores_that_cannot_be_had(config):
    """A name that is not known ends the run before it begins; what cannot be fitted is told and null."""
    with pytest.raises(UserError, match="ONLINE.COMPARE_SCORES: outlier score 'nope' is not known"):
        _train(config("one", ONLINE={"COMPARE_SCORES": ("energy", "nope")}))
    online = {"REPLAY_SIZE": 0, "REPLAY_BATCH": 0, "COMPARE_SCORES": ("energy", "knn", "leave_out_ensemble")}
    cfg = config("two", STREAM={"SHIFTS": ()}, ONLINE=online)
    _train(cfg)
    scores = _written(cfg)["outlier_scores"]
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert "knn is left out: ONLINE.REPLAY_SIZE" in log
    assert scores["knn/gie"] is None and scores["knn/auroc"] is None
    # No outliers came, so there is nothing to tell apart; what is sent can be told all the same.
    assert scores["energy/auroc"] is None and scores["energy/share_to_teacher"] > 0


class _Planted(ColourTeacher):
    """Looks at the upper left quarter, whatever it sees: 2 × 2 maps of one channel, and a head of its own."""

    def features_and_logits(self, images):
        _, logits = super().features_and_logits(images)
        features = torch.zeros(len(images), 1, 2, 2)
        features[:, 0, 0, 0] = 1
        features.requires_grad_()
        return features, logits.detach() + features.mean((1, 2, 3))[:, None]


def _crops():
    """Colours whose objects' masks are known: the left half of each image; of every fifth image nothing is known."""
    data = colour_dataset()
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[..., : SIZE // 2] = 1
    for number, record in enumerate(data.records):
        if number % 5:
            record.boxes, record.labels = np.zeros((1, 4), np.float32), np.zeros(1, np.int64)
            record.object_masks = _HalfMask(data, record, 0, (0, 0, SIZE, SIZE), None)
    return data


class _HalfMask(CropMask):
    def __call__(self, size):
        mask = np.zeros((1, *size), np.uint8)
        mask[..., : size[1] // 2] = 1
        return mask


def test_attention_of_a_planted_map(tmp_path):
    """The teacher's map is 1 in the upper left of 2 × 2 cells. Along 8 columns a cell of 1 beside one of 0 becomes,
    bilinear at pixel centres, 1 1 7/8 5/8 3/8 1/8 0 0. The left four hold 3.5 of 4: 87.5 % of the energy; the peak lies
    in the left half; a flat map has half."""
    cfg = envise_config(STREAM={"SAMPLES": 240})
    data = _crops()
    run = finish(build_run(cfg, tmp_path / "state", stream=build_stream(cfg, data), teacher=_Planted()))
    table = _table(run, cfg, tmp_path, data)
    found = attention_results(run, table, "grad_cam")
    answered = table.of(ANSWER)
    assert found["samples"] == len(answered)
    assert found["masks"] == sum(run.stream.truth.mask(at) is not None for at in answered.position)
    assert 0 < found["masks"] < found["samples"]
    assert found["energy_teacher"] == pytest.approx(87.5)
    assert found["pointing_teacher"] == 100
    assert found["energy_uniform"] == 50
    assert found["zero_maps_teacher"] == 0
    assert 0 <= found["energy_student"] <= 100


def _table(run, cfg, folder, data):
    """The log of a run that is made once more, answer by answer."""
    again = build_run(cfg, folder / "again", stream=build_stream(cfg, data), teacher=_Planted())
    log = AnswerLog(folder)
    log.begin(0)
    again.before_save = log.add
    finish(again)
    return log.read()


def test_distances_of_maps(tmp_path):
    """Unit maps that lie on each other are at squared distance 0, those that share nothing at 2; a map of zeros is at
    none. The contrast is that of the student's own two answers, where a second map of zeros is at 1."""
    cfg = envise_config()
    run = build_run(cfg, tmp_path, teacher=_Fixed([[0, 0, 0], [0, 1, 2]]))
    run.distiller.student = _Fixed([[0, 3, 4], [1, 3, 0]])
    seen = gaze(run, np.arange(3), "grad_cam")
    assert seen.said.tolist() == [0, 0, 0]
    # For class 0 both look at cell 0 of the first image, at 3 and 0 in the second; the student nowhere in the third
    assert seen.apart[:2].tolist() == pytest.approx([0, 2])
    assert math.isnan(seen.apart[2])
    # Its first and second class: cells 0 and 1; 3 and 3; in the third class 1 comes first, and class 0 is nowhere.
    assert seen.contrast.tolist() == pytest.approx([2, 0, 1])


class _Fixed(torch.nn.Module):
    """Maps of two channels that are 1 in one cell of four each, image by image (4: in none); class 0 reads the first,
    class 1 the second, the first more."""

    def __init__(self, cells):
        super().__init__()
        self.cells = torch.tensor(cells)
        self.head = torch.nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))

    def features_and_logits(self, images):
        features = torch.nn.functional.one_hot(self.cells.T[: len(images)], 5)[..., :4].float()
        features = features.reshape(-1, 2, 2, 2)
        return features, self.head(features.mean((2, 3)))


def test_object_crops_have_their_masks(scenes):
    """At the network's size, from the image's own: the nearest pixel's, and only the object of the box; the stream
    tells it by position, its batches do not."""
    tree = {"DATASETS": {"ROOT": str(scenes), "TRAIN": ("voc_seg_train",), "CLASSES": SCENE_CLASSES}}
    given = {"FREQUENCIES": "given", "GIVEN": (("person", 1.0), ("tree", 1.0))}
    crop = {"OBJECT_CROPS": True, "SAMPLES": 40, "CROP_MARGIN": 0.0}
    cfg = envise_config(**tree, STREAM={**crop, **given}, INPUT={"SIZE": 16})
    crops, whole = stream_dataset(cfg), load_dataset("voc_seg_train", cfg)
    by_id = {record.image_id: record for record in whole.records}
    crop = next(one for one in crops.records if one.object_masks is not None)
    image_id, number = crop.image_id.rsplit("_", 1)
    record = by_id[image_id]
    mask = whole.read_instance_masks(record)[int(number)]
    x1, y1 = np.floor(record.boxes[int(number)][:2]).astype(int)
    x2, y2 = np.ceil(record.boxes[int(number)][2:]).astype(int)
    cut = np.asarray(Image.fromarray(mask[y1:y2, x1:x2]).resize((16, 16), Image.Resampling.NEAREST))
    found = crops.read_instance_masks(crop)
    assert found.shape == (1, 16, 16)
    assert (found[0] == cut).mean() > 0.95  # a nearest pixel may be the other of two at one distance
    assert (
        crop.boxes == pytest.approx(np.array([[0, 0, 16, 16]]), abs=2) and crop.labels[0] == crop.class_label
    )
    stream = build_stream(cfg, crops)
    masks = [stream.truth.mask(position) for position in range(40)]
    assert sum(mask is not None for mask in masks) > 30
    shown = crops.records[int(stream.truth.records[0])]
    assert (stream.truth.mask(0) == crops.read_instance_masks(shown)[0]).all()
    assert vars(stream.next_batch(4)).keys() == {"positions", "image_ids", "images"}


def test_views_of_several_runs(config, tmp_path):
    """What two runs leave is read back and drawn in one figure; other files and other streams are refused."""
    online = {"COMPARE_ATTENTION": True}
    first, second = (
        config("with", ONLINE=online),
        config("without", ONLINE=online | {"ATTENTION": {"WEIGHT": 0.0}}),
    )
    for cfg in (first, second):
        _train(cfg)
    folders = {Path(cfg.OUTPUT_DIR).name: Path(cfg.OUTPUT_DIR) for cfg in (first, second)}
    maps = {name: read_attention(folder / "attention.npz") for name, folder in folders.items()}
    one, other = maps.values()
    assert len(one.positions) == 8 and (one.positions == other.positions).all()
    assert one.images.shape == (8, SIZE, SIZE, 3) and one.images.dtype == np.uint8
    assert (one.masks == 255).all() and set(one.names) <= set(NAMES)
    planes = {name: read_separation(folder / "separation.npz") for name, folder in folders.items()}
    view = planes["with"]
    assert view.points.shape == (len(view.label), 2) and view.outlier.any() and view.classes == NAMES
    # The principal directions: the mean lies at 0, and the first has the larger variance.
    assert view.points.mean(0) == pytest.approx([0, 0], abs=1e-4)
    assert view.points[:, 0].var() >= view.points[:, 1].var()
    pictures = attention_of_runs(maps), attention_of_runs({"one": one}), separation_of_runs(planes)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    with pytest.raises(ValueError, match="as many maps, masks and names as images, 8"):
        attention_panel(one.images, {"teacher": one.teacher}, one.masks[:3])
    with pytest.raises(ValueError, match="no sample in common"):
        elsewhere = type(one)(**vars(one) | {"positions": one.positions + 1})
        attention_of_runs({"one": one, "elsewhere": elsewhere})
    (tmp_path / "other.npz").write_text("no array")
    with pytest.raises(UserError, match="other.npz: holds no such view"):
        read_attention(tmp_path / "other.npz")
    with pytest.raises(UserError, match="gone.npz: is not there"):
        read_separation(tmp_path / "gone.npz")
    save_view(tmp_path / "again.npz", one)
    assert (read_attention(tmp_path / "again.npz").student == one.student).all()


def test_nothing_to_show(tmp_path):
    """A student that never answers; and the frames of a camera, which do not come again."""
    cfg = envise_config(ONLINE={"AGREEMENT": 1.0, "WINDOWS": 9}, STREAM={"SAMPLES": 30})
    run = build_run(cfg, tmp_path / "state")
    log = AnswerLog(tmp_path)
    log.begin(0)
    run.before_save = log.add
    finish(run)
    assert attention_results(run, log.read(), "grad_cam") == {}
    assert attention_samples(run, log.read(), "grad_cam") is None
    run.stream.can_reread = False
    assert attention_samples(run, log.read(), "grad_cam") is None
