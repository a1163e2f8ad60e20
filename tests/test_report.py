"""The HTML report: what stands in it, that it needs nothing beside it, that it cannot harm a finished run."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scenekd.data.catalog import load_dataset
from scenekd.data.records import Record
from scenekd.errors import UserError
from scenekd.predictor import Predictor
from scenekd.report import report_run, save_panels, teacher_tasks, write_comparison, write_report
from scenekd.report_html import escape, figure, interval_bar, number, table
from scenekd.report_panels import (
    TeacherViews,
    choose_records,
    dense_labels,
    report_panels,
    with_ground_truth,
)
from scenekd.sample import Prediction, SoftSegmentation
from scenekd.teachers.protocol import Detections, InstanceDetections
from scenekd.visualize import View

RESULTS = {
    "sem_seg": {
        "mIoU": 41.5,
        "mIoU_interval": [39.0, 44.25],
        "IoU-background": 80.0,
        "IoU-cat": 3.0,
        "IoU-cat_interval": [1.0, 6.0],
    },
    "bbox": {"AP50": 22.0, "AP-cat": math.nan},
}


class Page(HTMLParser):
    """The text of the cells, tags that are left open, and the sources of pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.stack: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attrs)["src"] or "")
        if tag not in ("img", "meta", "line", "rect"):
            self.stack.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in ("rect", "line"):
            return
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("td", "th"):
            self.cells[-1] += data


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.stack == [], "every tag is closed"
    return page


def test_text_is_escaped_and_numbers_are_not_invented() -> None:
    assert escape('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert number(12.345) == "12.35" and number(math.nan) == "–" and number(None) == "–" and number(7) == "7"
    assert "<script>" not in table(["<script>"], [["<script>"]], "<script>")
    assert interval_bar(None) == "" and interval_bar(math.nan) == ""


def test_interval_bar_is_to_scale() -> None:
    # 200 pixels for 0…100: value 25 is 50 pixels long, the interval 10…40 runs from 20 to 80.
    bar = interval_bar(25.0, [10.0, 40.0], width=200)
    assert 'width="50.0"' in bar and 'x1="20.0" x2="80.0"' in bar


def test_pictures_are_inside_the_page() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 15:] = (250, 0, 0)
    found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', figure(pixels, 'a "name"'))
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        np.testing.assert_allclose(np.asarray(image), pixels, atol=12)


def test_report_holds_numbers_classes_curves_and_settings(tmp_path: Path) -> None:
    lines = [{"iteration": i, "total_loss": 1.0, "loss_seg": 1.0, "lr": 0.1} for i in (1, 2)]
    meta = {"seed": 3, "versions": {"torch": "2.x"}, "git_commit": "<b>abc</b>"}
    path = write_report(tmp_path, results=RESULTS, meta=meta, lines=lines)
    page, text = read(path), path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    row = page.cells.index("cat")
    # class, IoU, its interval, bar, AP (no ground truth: a dash), no interval, no bar
    assert page.cells[row : row + 7] == ["cat", "3.00", "1.0 … 6.0", "", "–", "", ""]
    assert "39.0 … 44.2" in text and "41.50" in text
    assert page.cells[page.cells.index("versions.torch") + 1] == "2.x"
    assert "<b>abc</b>" not in text and "&lt;b&gt;abc&lt;/b&gt;" in text
    assert len(page.sources) == 1 and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r'(src|href)="(?!data:)', text), "nothing is loaded from elsewhere"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_report_without_results_says_so(tmp_path: Path) -> None:
    assert "No results." in write_report(tmp_path, results={}).read_text(encoding="utf-8")


def test_report_lists_only_the_changed_settings(tmp_path: Path, tiny_config: Callable[..., Any]) -> None:
    page = read(write_report(tmp_path, results=RESULTS, cfg=tiny_config("run", "SEED", "7")))
    assert page.cells[page.cells.index("SEED") + 1] == "7"
    assert "SOLVER.GAMMA" not in page.cells, "left at its default"


def test_comparison_has_the_rows_the_mean_and_the_trivial_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"row": "a", "what": "x < y", "mIoU": 10.0, "mAP": 5.0, "AP50": 5.0, "seed": 0, "seconds": 9.7},
        {"row": "b", "what": "fill", "mIoU": 12.0, "mAP": None, "AP50": 6.0, "seed": 0, "seconds": 9.0},
    ]
    rows[0]["mIoU_interval"] = [9.0, 11.0]
    trivial = {"row": "-", "what": "no image", "mIoU": 1.0, "mAP": 2.0, "AP50": 2.0}
    page = read(write_comparison(tmp_path / "all.html", rows, trivial=trivial, notes=["b - a: <2>"]))
    first = page.cells.index("a")
    assert page.cells[:7] == ["row", "labels", "mIoU", "mAP", "AP50", "seed", "seconds"]
    assert page.cells[7:14] == ["-", "no image", "1.00", "2.00", "2.00", "–", "–"]
    assert page.cells[first + 1] == "x < y" and page.cells[first + 6] == "10"
    assert len(page.sources) == 1


class Fixed(nn.Module):
    """Says one box over the upper left quarter and class 2 everywhere."""

    def forward(self, images: torch.Tensor, targets: Any = None) -> list[Prediction]:
        assert not self.training and not torch.is_grad_enabled()
        height, width = images.shape[-2:]
        logits = torch.zeros(11, 4, 4)
        logits[2] = 1
        box = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
        return [Prediction((height, width), box, torch.tensor([4]), torch.tensor([0.9]), logits)]


def test_predictor_answers_at_the_image_size_and_keeps_the_mode(tiny_config: Callable[..., Any]) -> None:
    net = Fixed().train()
    prediction = Predictor(net, tiny_config("run"))(np.zeros((40, 100, 3), np.uint8))
    # The input is 64 × 64, the box its quarter; of an image of 40 × 100 that is 20 high and 50 wide.
    assert prediction.boxes is not None and prediction.boxes.tolist() == [[0, 0, 50, 20]]
    assert prediction.sem_seg is not None and prediction.sem_seg.shape == (11, 40, 100)
    assert net.training


def experiment(cfg: Any, net: nn.Module | None = None) -> Any:
    dataset = load_dataset("voc_seg_val", cfg)
    return SimpleNamespace(
        cfg=cfg,
        net=net or Fixed(),
        device="cpu",
        test_data=dataset,
        output_dir=Path(cfg.OUTPUT_DIR),
        is_main=True,
    )


def test_report_of_a_run_shows_its_images(tiny_config: Callable[..., Any]) -> None:
    cfg = tiny_config("run", "TEST.VISUALIZE", 3)
    run = experiment(cfg)
    run.output_dir.mkdir()
    (run.output_dir / "metrics.json").write_text('{"iteration": 1, "total_loss": 2.0, "lr": 0.1}\n{"iter')
    (run.output_dir / "results.json").write_text(json.dumps({"meta": {"seed": 5}}))
    path = report_run(run, RESULTS)
    assert path is not None
    page = read(path)
    assert len(page.sources) == 3 + 1  # three images, the losses
    assert page.cells[page.cells.index("seed") + 1] == "5"


def test_a_failing_report_is_told_and_raises_nothing(
    tiny_config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> None:
            raise RuntimeError("out of memory")

    run = experiment(tiny_config("run"), Broken())
    logging.getLogger("scenekd").propagate = True
    path = report_run(run, RESULTS)
    assert path is not None and read(path).sources == [], "the numbers are there without the pictures"
    assert "no pictures of test images (RuntimeError: out of memory)" in caplog.text

    path.unlink()
    (run.output_dir / "results.json").write_text("{")
    assert report_run(run, RESULTS) is None
    assert "no report.html (JSONDecodeError" in caplog.text
    assert [p.name for p in run.output_dir.iterdir()] == ["results.json"]
    assert report_run(SimpleNamespace(is_main=False), RESULTS) is None


def test_save_panels_writes_one_for_each_image(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    run = experiment(tiny_config("run"))
    assert save_panels(run, tmp_path / "show") == len(run.test_data) == 6
    names = sorted(path.stem for path in (tmp_path / "show").iterdir())
    assert names == sorted(run.test_data.image_ids)


def test_images_are_spread_evenly_over_the_best_labelled(tmp_path: Path) -> None:
    boxes = np.zeros((0, 4), np.float32)
    records = [Record(str(i), "", boxes=boxes, sem_seg_file="m" if i % 2 else None) for i in range(10)]
    dataset = SimpleNamespace(records=records)
    # Those with a mask too: 1, 3, 5, 7, 9; three of five, evenly: first, middle, last.
    assert [r.image_id for r in choose_records(dataset, 3)] == ["1", "5", "9"]  # type: ignore[arg-type]
    assert len(choose_records(dataset, 99)) == 5  # type: ignore[arg-type]


def test_dense_labels_of_scores_have_a_background() -> None:
    # One row of two cells: class 1 with confidence .8 beats background .2; .3 does not beat .7.
    values = np.zeros((3, 1, 2), np.float32)
    values[1, 0] = (0.8, 0.3)
    assert dense_labels(SoftSegmentation(values, "scores"), (1, 2)).tolist() == [[1, 0]]
    logits = np.log(np.array([[[0.1, 0.6]], [[0.2, 0.3]], [[0.7, 0.1]]], np.float32))
    assert dense_labels(SoftSegmentation(logits, "logits"), (2, 2)).tolist() == [[2, 0], [2, 0]]


def test_teachers_are_read_asked_or_left_out(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config("run", "DISTILL.SEGMENTATION.POLICY", "fill_missing")
    assert teacher_tasks(cfg) == ("segmentation",)
    values = np.zeros((11, 2, 2), np.float32)
    values[3] = 5

    class Store:
        def __contains__(self, image_id: object) -> bool:
            return image_id == "known"

        def get_segmentation(self, image_id: str) -> SoftSegmentation:
            return SoftSegmentation(values, "logits")

    monkeypatch.setattr("scenekd.report_panels.open_store", lambda cfg, task: Store())
    views = TeacherViews(cfg, teacher_tasks(cfg))
    image = np.zeros((4, 6, 3), np.uint8)
    said = views(Record("known", ""), image)
    assert said.boxes is None and said.sem_seg is not None and (said.sem_seg == 3).all()
    assert views(Record("unknown", ""), image).sem_seg is None

    def refuse(cfg: Any, task: str) -> None:
        raise UserError("no cache")

    monkeypatch.setattr("scenekd.report_panels.open_store", refuse)
    assert TeacherViews(cfg, ("segmentation",))(Record("known", ""), image).sem_seg is None


def test_masks_of_a_teacher_are_shown_on_the_boxes_that_teach(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone they come with their own boxes; beside a detector they go to its boxes of the same objects."""
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:8, 2:8], masks[1, 10:18, 10:18] = True, True
    found = InstanceDetections.build([[2, 2, 8, 8], [10, 10, 18, 18]], [3, 4], [0.5, 0.9], masks)
    boxes = Detections.build([[2, 2, 8, 9], [0, 0, 20, 20]], [3, 4], [0.8, 0.7])

    class Store:
        def __contains__(self, image_id: object) -> bool:
            return True

        def get_instances(self, image_id: str) -> InstanceDetections:
            return found

        def get_detections(self, image_id: str) -> Detections:
            return boxes

    monkeypatch.setattr("scenekd.report_panels.open_store", lambda cfg, task: Store())
    record, image = Record("known", ""), np.zeros((20, 20, 3), np.uint8)
    alone = TeacherViews(tiny_config("run"), ("instance_segmentation",))(record, image)
    assert alone.labels is not None and alone.labels.tolist() == [4, 3]  # the surest first
    np.testing.assert_array_equal(alone.masks, masks[::-1])
    both = TeacherViews(tiny_config("run"), ("detection", "instance_segmentation"))(record, image)
    np.testing.assert_array_equal(both.boxes, boxes.boxes)
    assert both.masks is not None and not both.masks[1].any()
    np.testing.assert_array_equal(both.masks[0], masks[0])


def test_true_masks_stand_beside_predicted_ones(tiny_config: Callable[..., Any]) -> None:
    dataset = load_dataset("voc_seg_val", tiny_config("run"))
    record = dataset.records[0]
    assert record.labels is not None
    plain, masked = View("a"), View("b", masks=np.zeros((0, *record.size()), bool))
    assert with_ground_truth(dataset, record, [plain])[0].masks is None
    truth = with_ground_truth(dataset, record, [plain, masked])
    assert truth[1:] == [plain, masked]
    assert truth[0].masks is not None and truth[0].masks.any(axis=(1, 2)).sum() == len(record.labels)


def test_panels_are_the_same_every_time(tiny_config: Callable[..., Any]) -> None:
    cfg = tiny_config("run")
    dataset = load_dataset("voc_seg_val", cfg)
    first, second = (
        list(report_panels({"student": Predictor(Fixed(), cfg)}, dataset, count=2)) for _ in range(2)
    )
    assert [p.image_id for p in first] == [p.image_id for p in second]
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.pixels, b.pixels)
