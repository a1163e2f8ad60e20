"""Parts of a study that systems share: keys of rows, rows that take as long as another, objects cut out, columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_study_runs import install, make_study
from voc_folder import add_image, annotation

from scenekd.data.geometry import wider
from scenekd.errors import UserError
from scenekd.recorder import training_cost, training_seconds
from scenekd.study.crops import crop_objects, window
from scenekd.study.keys import with_key
from scenekd.study.rows import Row
from scenekd.study.same_time import costs, measure, steps_factor

TREE = {"A": {"B": 2, "L": [{"W": 1.5}, {"W": 1}], "S": (10, 20)}, "R": 0.1}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("A.B", 5, {**TREE, "A": {**TREE["A"], "B": 5}}),
        ("A.L.1.W", 7, {**TREE, "A": {**TREE["A"], "L": [{"W": 1.5}, {"W": 7}]}}),
        ("A.L.0.W *", 2, {**TREE, "A": {**TREE["A"], "L": [{"W": 3.0}, {"W": 1}]}}),
        ("A.B *", 1.3, {**TREE, "A": {**TREE["A"], "B": 3}}),  # 2.6, a whole number as before
        ("A.B *", 0.1, {**TREE, "A": {**TREE["A"], "B": 1}}),  # no count of steps or images is 0
        ("A.S *", 0.5, {**TREE, "A": {**TREE["A"], "S": [5, 10]}}),
        ("A", {"N": 1}, {**TREE, "A": {**TREE["A"], "N": 1}}),
        ("N.M", 1, {**TREE, "N": {"M": 1}}),
    ],
)
def test_keys(key, value, expected):
    """Into mappings and lists, with a value or a factor; the tree itself is left as it is."""
    before = json.dumps(TREE)
    assert with_key(TREE, key, value) == expected
    assert json.dumps(TREE) == before


@pytest.mark.parametrize(
    ("key", "message"),
    [("A.L.2.W", "A.L.2.W: no entry 2 in a list of 2"), ("A.X *", r"A.X \*: neither file nor preset")],
)
def test_keys_that_lead_nowhere(key, message):
    """A wrong number, and a factor on nothing."""
    with pytest.raises(UserError, match=message):
        with_key(TREE, key, 1)


def _timed(folder: Path, seconds: float) -> Path:
    folder.mkdir()
    lines = [{"iteration": 10, "time": seconds}, {"iteration": 20, "time": seconds}]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_processor_time_is_the_cost_where_it_was_taken(tmp_path):
    """10 steps of .3 s and 10 of .3 s on the clock are 6 s; .1 s of the processor each are 2 s."""
    folder = _timed(tmp_path / "cpu", 0.3)
    assert training_seconds(folder) == training_cost(folder) == pytest.approx(6)
    lines = [
        json.loads(line) | {"cpu_time": 0.1} for line in (folder / "metrics.json").read_text().splitlines()
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_seconds(folder) == pytest.approx(6) and training_cost(folder) == pytest.approx(2)


def test_same_time_in_closed_form(tmp_path):
    """20 steps of (.3 + .5) / 2 s are 8 s; 40 steps of .1 s would be 4 s, so twice as many fit. What was measured once
    stays."""
    row = Row("c", "C", "g", Path("c.yaml"), "c", same_time=("a", "b"))
    folders = [_timed(tmp_path / "a0", 0.3), _timed(tmp_path / "a1", 0.5)]
    with pytest.raises(UserError, match="row c: its steps follow from a and b; run those first"):
        steps_factor(row, tmp_path)
    with pytest.raises(UserError, match="run b with it, or before"):
        measure(row, {"a": (folders, 20)}, tmp_path)
    half = _timed(tmp_path / "b0", 0.2)  # its 20 lines of .2 s over 40 steps: .1 s a step
    measure(row, {"a": (folders, 20), "b": ([half], 40)}, tmp_path)
    assert steps_factor(row, tmp_path) == pytest.approx(2)
    measure(row, {"a": ([half], 20), "b": ([half], 40)}, tmp_path)
    assert [cost.seconds for cost in costs(row, tmp_path)] == pytest.approx([0.4, 0.1])
    (tmp_path / "same_time/b_as_long_as_a.yaml").write_text("as_long_as: 3")
    with pytest.raises(UserError, match="not what a study writes; delete it"):
        steps_factor(row, tmp_path)
    assert steps_factor(Row("d", "D", "g", Path("d.yaml"), "d"), tmp_path) == 1
    empty = _timed(tmp_path / "e0", 0.0)
    row = Row("f", "F", "g", Path("f.yaml"), "f", same_time=("e", "e"))
    with pytest.raises(UserError, match="row e: its steps were not timed"):
        measure(row, {"e": ([empty], 20)}, tmp_path)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 10, 20, 30), (5, 10, 25, 30)),  # 20 pixels high: 5 pixels more on either side
        ((0, 10, 10, 30), (0, 10, 20, 30)),  # moved in from the left border
        ((5, 0, 55, 40), (10, 0, 50, 40)),  # no higher than the image
    ],
)
def test_windows(box, expected):
    """The square around a box in an image of 60 × 40."""
    assert window(np.array(box, np.float32), 60, 40) == expected


def test_objects_as_images(tmp_path):
    """One square image an object, below its class; difficult ones are left out; done once."""
    source = tmp_path / "voc"
    hard = annotation([("dog", (5, 5, 20, 20))]).replace("<difficult>0", "<difficult>1")
    for name, xml in (("a", annotation([("cat", (1, 1, 21, 21)), ("dog", (30, 10, 50, 30))])), ("b", hard)):
        add_image(source, name, xml, np.zeros((40, 60)))
    (source / "ImageSets/Segmentation").mkdir(parents=True)
    (source / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    crop_objects(source, tmp_path / "crops", splits=["train"], classes=["cat", "dog"], size=8)
    files = sorted(str(path.relative_to(tmp_path / "crops")) for path in tmp_path.glob("crops/*/*/*"))
    assert files == ["train/cat/a_0.png", "train/dog/a_1.png"]
    assert Image.open(tmp_path / "crops/train/cat/a_0.png").size == (8, 8)
    crop_objects(source, tmp_path / "crops", splits=["none"], classes=[], size=8)  # not looked at again


def test_wider_boxes_end_at_the_border() -> None:
    """A box of 20 x 10 and a margin of .1: 2 pixels on each side, but for the left one, where the image ends."""
    assert wider(np.array([1.0, 10.0, 21.0, 20.0]), 0.1, 100, 100) == (0, 8, 23, 22)


def test_columns_of_a_group(tmp_path, monkeypatch):
    """A group shows the metrics that it has; one without any numbers shows all."""
    install(monkeypatch)
    study = make_study(tmp_path, ["4.1a", "filter"], seeds=1)
    study.run_rows(study.rows[:1])
    findings = study.findings()
    rows = {row.id: row for row in findings.rows}
    assert findings.metrics_of([rows["4.1a"]]) == ["mAP", "mIoU"]
    assert findings.metrics_of([rows["filter"]]) == ["mAP", "mIoU"]
    masks = study.runs.table.row("F14@0.25")  # published: mIoU alone, and not run here
    assert findings.metrics_of([masks]) == ["mIoU"]
