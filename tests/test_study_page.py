"""What the page says, from fabricated results whose statistics are worked out by hand."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from test_study_runs import install, make_study

from scenekd.data.catalog import load_dataset
from scenekd.evaluation.statistics import minimum_detectable_effect
from scenekd.study.bars import draw_bars
from scenekd.study.figures import curve, draw_figure, filter_figure
from scenekd.study.page import comparison_table, late_gain, mean_sd, saying, trunk_start, write_study_page
from scenekd.study.rows import Figure, Sweep
from scenekd.study.scores import ClassMeans, RowScores, compare, images_per_class, spread_of
from scenekd.study.spec import Metric
from scenekd.study.study import as_json
from scenekd.study.sweep import Setting, choose
from scenekd.study.teachers import teachers_of
from scenekd.teachers.score import TeacherScore, write_scores

MIOU = Metric("mIoU", "sem_seg", "IoU-")


def _row(name: str, *values: float, published: float | None = None):
    scores = RowScores({"mIoU": dict(enumerate(values))})
    return name, scores, {} if published is None else {"mIoU": published}


def test_comparison_in_closed_form():
    """Differences 1, 2, 3: mean 2, sd 1, standard error 1/√3; t(.975, 2) = 4.302653, so 2 ± 2.484138."""
    found = compare(_row("b", 11, 13, 15, published=52.3), _row("a", 10, 11, 12, published=60.2), "mIoU")
    assert found is not None and found.difference is not None
    assert found.difference.mean == pytest.approx(2)
    assert found.difference.sd == pytest.approx(1)
    assert found.difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.difference.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.published == pytest.approx(-7.9)
    assert found.detectable == pytest.approx(minimum_detectable_effect(1.0, 3))
    assert found.verdict == ""
    assert saying(found) == "no difference claimed"


def test_verdicts_need_an_interval_without_zero():
    """Differences 2, 2.1, 1.9 leave out zero on either side; one seed claims nothing; no common seed, no comparison."""
    a, b = _row("a", 10, 10, 10), _row("b", 12, 12.1, 11.9)
    assert saying(compare(b, a, "mIoU")) == "better"
    assert saying(compare(a, b, "mIoU")) == "worse"
    one = compare(_row("b", 12), a, "mIoU")
    assert (one.single, one.difference, one.detectable) == (2, None, None)
    assert saying(one) == "one seed: nothing can be claimed"
    alone, beside = comparison_table([one]), comparison_table([one, compare(b, a, "mIoU")])
    assert "One seed: nothing can be claimed" in alone and "what may be said" not in alone
    assert "what may be said" in beside and saying(one) in beside
    assert compare(("c", RowScores({"mIoU": {7: 1.0}}), {}), a, "mIoU") is None


def test_less_may_be_better():
    """Of a rank or a loss: differences of about 2 are worse; what all labels take away is the headroom."""
    a, b = _row("a", 10, 10, 10), _row("b", 12, 12.1, 11.9)
    assert saying(compare(b, a, "mIoU", lower=True)) == "worse"
    assert saying(compare(a, b, "mIoU", lower=True)) == "better"
    room = compare(b, a, "mIoU", headroom=(b[1], a[1]), lower=True)
    assert room.headroom == pytest.approx(2) and room.has_headroom
    setting = [Setting(None, {"x": n}, _row("s", value)[1]) for n, value in enumerate((3, 2, 4))]
    found = [choose(Sweep("a", "mIoU", {}), setting, lower=lower) for lower in (False, True)]
    assert [one.values["x"] for one in found] == [2, 1]
    assert (
        Metric("rank", "t", unit="").label == "rank"
        and Metric("loss", "t", unit="nats").label == "loss in nats"
    )


def test_headroom_rule():
    """The sd of the differences is .1, so about .4 can be found: room of .2 cannot tell, room of 2 can."""
    a, b = _row("a", 10, 10, 10), _row("b", 12, 12.1, 11.9)
    for oracle, enough in ((10.2, False), (12.0, True)):
        found = compare(b, a, "mIoU", headroom=(a[1], _row("o", oracle, oracle, oracle)[1]))
        assert found.headroom == pytest.approx(oracle - 10)
        assert 0.2 < found.detectable < 1.0
        assert found.has_headroom is enough
    assert "no headroom" in saying(compare(b, a, "mIoU", headroom=(a[1], _row("o", 10.2, 10.2, 10.2)[1])))


def test_row_numbers():
    """Mean and deviation (n − 1): 1, 2, 6 have mean 3 and variance (4 + 1 + 9) / 2 = 7."""
    scores = _row("a", 1, 2, 6)[1]
    assert scores.mean("mIoU") == pytest.approx(3)
    assert scores.sd("mIoU") == pytest.approx(math.sqrt(7))
    assert mean_sd(scores, "mIoU") == "3.00 ± 2.65"
    assert mean_sd(_row("a", 4)[1], "mIoU") == "4.00"
    assert math.isnan(scores.mean("mAP"))


def test_rare_classes_are_left_out(scenes, tiny_config):
    """The mean is over classes with enough test images alone; the others are listed with their count."""
    cfg = tiny_config("run")
    data = load_dataset("voc_seg_val", cfg)
    counts = images_per_class(data)
    # Independently: by walking over the annotations and masks of the six images.
    by_hand = {name: 0 for name in data.classes}
    for record in data.records:
        for label in {int(c) for c, d in zip(record.labels, record.difficult) if not d}:
            by_hand[data.classes[label]] += 1
    assert counts["bbox"] == by_hand
    assert counts["sem_seg"]["background"] == 6
    frequent = {name for name, n in counts["sem_seg"].items() if n >= 3}
    assert 1 < len(frequent) < len(counts["sem_seg"])
    means = ClassMeans(min_images=3)
    numbers = {f"IoU-{name}": 10.0 if name in frequent else 99.0 for name in counts["sem_seg"]}
    numbers |= {"mIoU": 50.0, "IoU-background_interval": [0, 1]}
    assert means.mean(MIOU, cfg, numbers) == pytest.approx(10)
    assert set(means.left_out(cfg, "sem_seg")) == set(counts["sem_seg"]) - frequent
    assert means.mean(Metric("mIoU", "sem_seg"), cfg, numbers) == 50
    assert math.isnan(means.mean(MIOU, cfg, {}))


def _share(node):
    return node.FRACTION if node.POLICY == "per_batch" else float(node.POLICY == "teacher")


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """A study of figure 16 and 4.1 with two seeds, and what it found."""
    with pytest.MonkeyPatch.context() as patch:
        fake = install(patch)
        fake.score = lambda cfg: 10.0 + cfg.SEED + 4 * _share(cfg.DISTILL.DETECTION)
        study = make_study(tmp_path_factory.mktemp("study"), ["4.1a", "4.1c", "F16", "trainval"])
        study.run_rows([row for row in study.rows if row.id != "trainval"])
        study.failed = {"runs/x/seed0": "it <diverged>"}
        yield study.findings()


def test_page(findings, tmp_path):
    """Published and own numbers, shared runs, figures, the trunk's start, caveats, what failed and what is missing."""
    text = write_study_page(tmp_path / "page.html", findings).read_text()
    for part in (
        "random weights (nothing pretrained)",
        "62.6",
        "(the run of 4.1a)",
        "scenes have no larger detection set",
        "it &lt;diverged&gt;",
        "Nothing is claimed inside an interval",
        "What the last steps still gained",
        "made sparse for the thesis&#x27;s rows",
    ):
        assert part in text, part
    # Curves of 4.1a and 4.1c, and figure 16; what was not run is not drawn.
    assert text.count('<img src="data:image/png') == 2
    assert "figure 14" not in text.split("<h2>Figures</h2>")[1]


def test_comparisons_of_a_study(findings):
    """F16@50 has two steps of seed cancelled by pairing: exactly half of 4 × .5 in mAP; none with its own run."""
    found = {(c.row, c.reference, c.metric): c for c in findings.comparisons()}
    half = found["F16@50", "F16@0", "mAP"]
    assert half.difference.mean == pytest.approx(1.0)
    assert half.difference.sd == pytest.approx(0.0)
    assert half.published == pytest.approx(1.7)
    assert ("F16@0", "F16@0", "mAP") not in found
    table = comparison_table([half])
    assert "+1.00" in table and "+1.7" in table and "better" in table


def test_json(findings):
    """Programs read the same numbers; it is valid JSON without NaN."""
    content = json.loads(json.dumps(as_json(findings), allow_nan=False))
    by_id = {row["id"]: row for row in content["rows"]}
    assert by_id["F16@50"]["here"]["mAP"] == {"0": 6.0, "1": 6.5}
    assert by_id["F16@0"]["run"] == "4.1a"
    assert by_id["4.1a"]["images"] == 120 * 8
    assert by_id["4.1a"]["seconds"] == pytest.approx(0.5 * 120)
    assert content["failed"] == {"runs/x/seed0": "it <diverged>"}


def test_curves_over_training(findings):
    """Seeds 0 and 1 score 10 and 11 percent of the step in mIoU, at the steps that both have."""
    runs = findings.finished["4.1a"]
    assert curve(runs, MIOU, findings.means) == {40: [4.0, 4.4], 80: [8.0, 8.8]}
    path = runs[1].folder / "metrics.json"
    lines = path.read_text()
    path.write_text(json.dumps({"iteration": 80, "sem_seg/IoU-a": 1.0}) + "\n")
    assert curve(runs, MIOU, findings.means) == {80: [8.0, 1.0]}
    path.write_text(lines)
    assert curve({}, MIOU, findings.means) == {}


def test_what_the_last_steps_gained(findings):
    """Mean 8.4 at the last evaluation, 4.2 at the one before."""
    assert late_gain(findings.finished["4.1a"], MIOU, findings.means) == pytest.approx(4.2)
    assert math.isnan(late_gain({}, MIOU, findings.means))


def test_figures_are_pictures(findings):
    """Figure 16 shows ours beside the paper's; figures of rows that were not run are left away."""
    table, spec = findings.runs.table, findings.runs.spec
    drawn = [
        draw_figure(figure, table, spec, findings.scores, findings.finished, findings.means)
        for figure in table.figures
    ]
    kinds = {figure.title[:10]: png for figure, png in zip(table.figures, drawn)}
    assert kinds["Temperatur"] is None
    for png in (kinds["Share of i"], filter_figure([{"threshold": 0.1, "mAP": 3.0, "boxes": 7.0}])):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert pixels.shape[1] > 700 and (pixels < 128).mean() > 0.001


def test_teachers_alone(findings):
    """One line a teacher that differs, with the rows that learn from it; a run without scores adds none."""
    runs = findings.own_runs()
    assert teachers_of(runs) == []
    for name, quality in (("4.1c", 40.0), ("F16@50", 40.0), ("F16@80", 41.5)):
        for run in runs[name].values():
            write_scores(run.folder, {"detection": TeacherScore("detection", "small net", 9, 9, quality)})
    text = teachers_of(runs)[0]
    assert text.count("small net") == 2
    assert "small net (4.1c, F16@50)" in text and "small net (F16@80)" in text and "41.50" in text
    for run in (run for by_seed in runs.values() for run in by_seed.values()):
        (run.folder / "teacher_scores.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("weights", "words"),
    [("", "random weights (nothing pretrained)"), ("torchvision", "ImageNet"), ("a/b.pth", "b.pth")],
)
def test_trunk_start(weights, words):
    """The page says where the trunk's weights come from."""
    assert words in trunk_start(weights)


def test_bars_are_drawn_from_two_rows_on(findings):
    """Rows of the study with their deviations; a metric or a row that was not run has no bar."""
    table = findings.runs.table
    figure = Figure("bars", "bars", ("4.1a", "4.1c", "4.1b"), ("mAP", "mIoU"), level="F16@100")
    picture = Image.open(io.BytesIO(draw_bars(figure, table, findings.scores)))
    assert picture.size[0] > picture.size[1] > 50
    alone = Figure("bars", "bars", ("4.1a", "4.1b"), ("mAP",))
    assert draw_bars(alone, table, findings.scores) is None


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 1, 1), "one seed"),
        ((3, 3, 0), "mean ± standard deviation of 3 seeds"),
        ((3, 2), "mean ± standard deviation of 2 to 3 seeds"),
        ((1, 3), "mean ± standard deviation of 1 to 3 seeds (of one: no bar)"),
    ],
)
def test_figures_say_how_many_seeds_they_stand_on(counts, said):
    """All rows of a figure are spoken for, those that were not run aside."""
    assert spread_of(counts) == said
