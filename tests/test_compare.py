"""Networks side by side: the command, its files, what it refuses, and the students and teachers that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fcn_parts import CLASSES, ORDER, read, save_network, save_teacher, taught_by, write_config
from PIL import Image
from tool_runner import ToolRunner

from scenekd.compare.sources import open_student, open_teacher, read_numbers
from scenekd.data.catalog import load_datasets
from scenekd.data.images import read_image
from scenekd.data.records import Record
from scenekd.errors import UserError
from scenekd.evaluation.evaluator import Evaluator
from scenekd.predictor import open_predictor
from scenekd.sample import SoftSegmentation
from scenekd.study.looks import look_at, look_json, look_sections
from scenekd.study.rows import Pair
from scenekd.study.runs import Run
from scenekd.study.scores import ClassMeans


@pytest.fixture(scope="module")
def parts(scenes, tmp_path_factory):
    """A configuration file on six test images, two students and a teacher with other size, stride and class order."""
    folder = tmp_path_factory.mktemp("compare")
    file = write_config(folder, scenes)
    for seed, name in enumerate(("none", "kd")):
        save_network(read(file, "SEED", seed), folder / f"{name}.pth")
    save_teacher(file, folder / "teacher.pth")
    return SimpleNamespace(
        folder=folder,
        file=file,
        none=folder / "none.pth",
        kd=folder / "kd.pth",
        teacher=taught_by(folder / "teacher.pth"),
    )


@pytest.fixture
def run(monkeypatch):
    return ToolRunner("compare", monkeypatch)


def _call(parts, tmp_path, *more):
    models = (f"before={parts.none}", f"after={parts.kd}")
    return ("--config-file", parts.file, "--output", tmp_path / "out", "--models", *models, *more)


def test_command(parts, tmp_path, run, capsys):
    """Scores as the evaluator has them, gains as their differences, a cost of each network, a picture of each image."""
    data = load_datasets(("voc_seg_val",), read(parts.file), train=False)
    ids = data.image_ids[:2]
    more = (
        *parts.teacher,
        "TEST.BOOTSTRAP",
        20,
        "--teacher",
        "--images",
        *ids,
        "--rounds",
        2,
        "--min-images",
        3,
    )
    assert run(*_call(parts, tmp_path, *more)) == 0
    out = tmp_path / "out"
    found = json.loads((out / "compare.json").read_text())
    assert [model["name"] for model in found["models"]] == ["teacher", "before", "after"]
    mious = []
    for model, weights in zip(found["models"][1:], (parts.none, parts.kd)):
        predict, evaluator = open_predictor(weights), Evaluator(data, tasks=("sem_seg",))
        for record in data.records:
            evaluator.add(record.image_id, predict(read_image(record)))
        expected = evaluator.summarize()["sem_seg"]
        scores = model["trainings"][0]["scores"]
        assert scores["mIoU"] == pytest.approx(expected["mIoU"])
        assert scores["pACC"] == pytest.approx(expected["pACC"])
        mious.append({name: expected[f"IoU-{name}"] for name in ("background", *CLASSES)})
    gains = found["gains"][0]
    assert len(gains["classes"]) + len(gains["apart"]) + len(gains["undefined"]) == 11
    assert all(entry["images"] >= 3 for entry in gains["classes"])
    assert all(entry["images"] < 3 for entry in gains["apart"])
    for entry in (*gains["classes"], *gains["apart"]):
        assert entry["gain"] == pytest.approx(mious[1][entry["name"]] - mious[0][entry["name"]])
        assert entry["interval"] is None or entry["interval"][0] <= entry["interval"][1]
    costs = found["cost"]["networks"]
    assert [cost["size"] for cost in costs] == [[48, 48], [64, 64], [64, 64]]
    assert costs[0]["flops"] > 0 and costs[1]["flops"] == costs[2]["flops"]
    assert sorted(found["pictures"]) == sorted(ids) == sorted(p.stem for p in (out / "pictures").iterdir())
    # five columns of tiles (image, ground truth, teacher and both students) in two rows
    width, height = Image.open(out / "pictures" / f"{ids[0]}.png").size
    assert 1100 < width <= 1280 and height > 300
    text = (out / "compare.html").read_text()
    assert text.count("<img") == 3 and "nothing can be claimed of the method" in text
    assert "after − before:" in capsys.readouterr().out


def test_seeds_and_results(parts, tmp_path, run):
    """Several trainings of a name are paired by seed, results.json among them; the interval is then over the seeds."""
    names = ("background", *CLASSES)
    for folder, seed, value in (("none1", 1, 10.0), ("kd1", 0, 11.5)):
        (tmp_path / folder).mkdir()
        content = {
            "sem_seg": {"mIoU": value} | {f"IoU-{name}": value for name in names},
            "meta": {"seed": seed},
        }
        (tmp_path / folder / "results.json").write_text(json.dumps(content))
    more = (f"before={tmp_path}/none1/results.json", f"after={tmp_path}/kd1/results.json")
    assert run(*_call(parts, tmp_path, *more, "--changed", 1, "--rounds", 0, "--min-images", 0)) == 0
    found = json.loads((tmp_path / "out/compare.json").read_text())
    by_seed = [{one["seed"]: one["IoU"] for one in model["trainings"]} for model in found["models"]]
    assert [sorted(one) for one in by_seed] == [[0, 1], [0, 1]]
    entry = next(e for e in found["gains"][0]["classes"] if e["name"] == "background")
    assert entry["values"] == pytest.approx(
        [by_seed[1][seed]["background"] - by_seed[0][seed]["background"] for seed in (0, 1)]
    )
    assert found["gains"][0]["over"] == "seeds"
    assert found["cost"]["networks"] == [] and len(found["pictures"]) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--images", "nobody"), "--images nobody: voc_seg_val has no such image"),
        (("after",), "--models after: give NAME=FILE"),
        (("third=/nowhere.pth",), "/nowhere.pth: no such checkpoint"),
        (("third=/nowhere.json",), "third=/nowhere.json: cannot be read as results"),
        (("--teacher",), "TEACHER.SEGMENTATION: names no teacher"),
        (("--worst", "-1"), "--worst: -1 is too few"),
        (
            ("DATASETS.CLASSES", (*CLASSES, "dog")),
            "has 10 classes that are not the configuration's 11 (dog differ",
        ),
        (("before={none}",), "before: its trainings have seeds 0, 0"),
        (("DATASETS.TEST", "()"), "DATASETS.TEST: names no data set"),
    ],
)
def test_bad_input_is_one_line(parts, tmp_path, run, capsys, more, message):
    words = [str(word).replace("{none}", str(parts.none)) for word in more]
    assert run(*_call(parts, tmp_path, *words)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and message in said
    assert not (tmp_path / "out/compare.html").exists()


def test_results_of_other_images_are_refused(parts, tmp_path):
    """Another test set, another list of classes, and no classes at all."""
    data = load_datasets(("voc_seg_val",), read(parts.file), train=False)
    file = tmp_path / "results.json"
    for names, meta, message in (
        (
            ("background", *CLASSES),
            {"test": {"names": ["voc_seg_train"], "images": 12}},
            "scored on 12 images of",
        ),
        (("background", *CLASSES[1:]), {}, "has 10 classes that are not"),
        ((), {}, "holds no IoU of single classes"),
    ):
        file.write_text(json.dumps({"sem_seg": {f"IoU-{name}": 1.0 for name in names}, "meta": meta}))
        with pytest.raises(UserError, match=message):
            read_numbers("x", str(file), data)


def test_other_classes_and_tasks_are_refused(parts, tmp_path):
    """A checkpoint whose list differs, one in another order, and a classifier's."""
    cfg = read(parts.file)
    with pytest.raises(UserError, match=r"teacher.pth: has the classes .* in another order"):
        open_student("x", str(parts.folder / "teacher.pth"), cfg, CLASSES)
    with pytest.raises(UserError, match="10 classes that are not the configuration's 2"):
        open_student("x", str(parts.none), cfg, CLASSES[:2])
    keys = ("MODEL.FCN_KD.NETWORK", "cifar_resnet20", "MODEL.FCN_KD.OUTPUT_STRIDE", 32)
    save_network(read(parts.file, *keys), tmp_path / "c.pth")
    with pytest.raises(UserError, match="does classification, not segmentation"):
        open_student("x", str(tmp_path / "c.pth"), cfg, CLASSES)


def test_teacher_is_shown_in_our_classes(parts):
    """Asked live, its k-th class is the student's ORDER[k]-th."""
    cfg = read(parts.file, *parts.teacher)
    record = load_datasets(("voc_seg_val",), cfg, train=False).records[0]
    image = read_image(record)
    said = open_teacher(cfg).label_map(record, image)
    own = open_predictor(parts.folder / "teacher.pth")(image).sem_seg.argmax(0).numpy()
    place = np.array([0, *(1 + k for k in ORDER)])
    # both resize bilinearly, by different code: a pixel on a border may fall to the other side
    assert (said == place[own]).mean() > 0.99


def test_saved_outputs_of_a_teacher(parts, monkeypatch):
    """They are read where they hold the image; nothing is measured of a network that is not there."""

    class Store:
        def __contains__(self, image_id):
            return image_id == "known"

        def get_segmentation(self, image_id):
            logits = np.zeros((11, 4, 4), np.float32)
            logits[3] = 1
            return SoftSegmentation(logits, "logits")

    monkeypatch.setattr("scenekd.report_panels.open_store", lambda cfg, task: Store())
    teacher = open_teacher(read(parts.file, "TEACHER.SEGMENTATION.CACHE", "kept"))
    image = np.zeros((20, 30, 3), np.uint8)
    assert teacher.net is None
    assert (teacher.label_map(Record("known", ""), image) == 3).all()
    with pytest.raises(UserError, match="TEACHER.SEGMENTATION: its saved outputs hold no image other"):
        teacher.label_map(Record("other", ""), image)


def test_teacher_whose_weights_are_missing(parts):
    teacher = open_teacher(read(parts.file, *taught_by(Path("/nowhere.pth"))))
    with pytest.raises(UserError, match=r"/nowhere.pth: no such checkpoint"):
        teacher.label_map(Record("x", ""), np.zeros((20, 30, 3), np.uint8))


def test_students_of_other_systems(parts, tiny_config, tmp_path):
    """A multi-task network of kd_mtl is compared by its masks."""
    cfg = tiny_config("run")
    save_network(cfg, tmp_path / "blitz.pth")
    record = load_datasets(("voc_seg_val",), cfg, train=False).records[0]
    image = read_image(record)
    source = open_student("x", str(tmp_path / "blitz.pth"), read(parts.file), CLASSES)
    assert source.label_map(record, image).shape == image.shape[:2]
    assert source.trained_on == ("voc_seg_train",)


def test_pair_of_a_study(parts, tmp_path):
    """Gains come from results of all common seeds, pictures and costs from the checkpoints of the first; without a
    checkpoint the gains stay and the page says why the rest is missing."""
    iou = {f"IoU-{name}": 40.0 for name in ("background", *CLASSES)}
    finished = {"a": {}, "b": {}}
    for name, weights, value in (("a", parts.none, 0.0), ("b", parts.kd, 2.0)):
        for seed in (0, 1):
            folder = tmp_path / name / str(seed)
            folder.mkdir(parents=True)
            (folder / "model_final.pth").write_bytes(weights.read_bytes())
            content = {"sem_seg": {key: old + value + seed * value for key, old in iou.items()}}
            (folder / "results.json").write_text(json.dumps(content))
            finished[name][seed] = Run(
                name, read(parts.file, "OUTPUT_DIR", folder), SimpleNamespace(kind="train")
            )
    weights = read(parts.file, "MODEL.WEIGHTS", parts.none)
    finished["t"] = {0: Run("t", weights, SimpleNamespace(kind="test"))}
    table = SimpleNamespace(pairs=(Pair("Side by side", "a", "b", "t"), Pair("not run", "a", "z")))
    looks = look_at(table, finished, ClassMeans(3))
    assert len(looks) == 1 and not looks[0].problem
    assert looks[0].gains.mean.values == pytest.approx((2, 4))
    assert [cost.name for cost in looks[0].costs] == ["t", "a", "b"] and len(looks[0].pictures) == 4
    ((title, pieces),) = look_sections(looks)
    assert title == "Side by side" and "".join(pieces).count("<img") == 5
    assert look_json(looks[0])["gains"]["mean"]["gain"] == pytest.approx(3)
    Path(tmp_path / "b/0/model_final.pth").unlink()
    (bare,) = look_at(table, finished, ClassMeans(3))
    assert "no such checkpoint" in bare.problem and bare.gains == looks[0].gains
    assert "No pictures and costs" in "".join(look_sections([bare])[0][1])


def test_checkpoint_without_configuration(parts, tmp_path):
    """Weights alone are built by the configuration at hand."""
    torch.save(torch.load(parts.none, weights_only=True)["model"], tmp_path / "bare.pth")
    cfg = read(parts.file)
    source = open_student("x", str(tmp_path / "bare.pth"), cfg, CLASSES)
    whole = open_student("x", str(parts.none), cfg, CLASSES)
    record = load_datasets(("voc_seg_val",), cfg, train=False).records[0]
    image = read_image(record)
    np.testing.assert_array_equal(source.label_map(record, image), whole.label_map(record, image))
    assert (source.seed, whole.seed) == (None, 0)
