"""The doctor on small made-up runs: every finding by the run that has it, and a sound run without any."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doctor_helpers import only, worse

from scenekd.config import get_cfg
from scenekd.doctor_curves import best_evaluation, fall_at_end, raw_series, rise, wobble
from scenekd.doctor_health import RunFacts, check_health, check_rate, read_teacher_scores
from scenekd.doctor_run import check_run

STEPS = np.arange(1, 41)


def _falling(start: float = 5.0, end: float = 1.0) -> np.ndarray:
    """From start to about end, flat over the last half."""
    return end + (start - end) * np.exp(-STEPS / 3.0)


def _lines(**series: np.ndarray) -> list[dict[str, Any]]:
    """40 training lines of a run of 400 steps; total_loss is the sum of the losses."""
    lines = []
    for i, step in enumerate(STEPS):
        values = {name.replace("__", "/"): float(s[i]) for name, s in series.items() if np.isfinite(s[i])}
        total = sum(v for n, v in values.items() if n.startswith("loss_"))
        lines.append({"iteration": int(step) * 10, "total_loss": total, **values})
    return lines


def _evaluations(values: Sequence[float], name: str = "sem_seg/mIoU") -> list[dict[str, Any]]:
    return [{"iteration": 400 * (i + 1) // len(values), name: v} for i, v in enumerate(values)]


@pytest.fixture
def cfg() -> Any:
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 400, 20
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.REFERENCE_LR = 32, 1e-4
    return cfg


RESULTS = {
    "sem_seg": {"mIoU": 50.0, "IoU-background": 90.0, "IoU-cup": 20.0, "IoU-cow": None},
    "bbox": {"mAP": 30.0, "AP-cup": 30.0},
    "meta": {"train": {"images": 100}, "images_seen": 12800},
}
SOUND = _lines(loss_seg=_falling(), loss_cls=_falling(8.0, 2.0), loss_box=_falling(4.0, 0.9))
STEADY = _evaluations([30.0, 40.0, 45.0, 48.0, 49.5, 49.8, 50.1, 50.0])


def test_a_sound_run(cfg: Any) -> None:
    assert worse(check_health(RunFacts(cfg, SOUND + STEADY, RESULTS))) == []


def test_a_teacher_that_is_worse_than_its_student(cfg: Any) -> None:
    cfg.DISTILL.SEGMENTATION.POLICY = "teacher"
    scores = {"segmentation": {"sem_seg": {"mIoU": 41.0}}}
    facts = RunFacts(cfg, SOUND, RESULTS, scores)
    only(check_health(facts), "warning", "teacher scores mIoU 41.0 alone, its student 50.0", "fill_missing")
    scores["segmentation"]["sem_seg"]["mIoU"] = 60.0
    assert worse(check_health(facts)) == []
    cfg.DISTILL.DETECTION.POLICY = "combined"
    weak = {"detection": {"bbox": {"AP50": 10.0, "mAP": 10.0}}}
    only(check_health(RunFacts(cfg, SOUND, RESULTS, weak)), "warning", "detection teacher scores mAP 10.0")


def test_a_teacher_that_disagrees_with_the_ground_truth(cfg: Any) -> None:
    """Its loss rises from 1 to 2 while the other falls from 3 to 1 up to the end."""
    cfg.DISTILL.SEGMENTATION.POLICY = "combined"
    own, theirs = "source__segmentation__ground_truth", "source__segmentation__teacher"
    away = {own: np.linspace(3, 1, 40), theirs: np.linspace(1, 2, 40)}
    lines = _lines(loss_seg=_falling(), **away)
    only(check_health(RunFacts(cfg, lines)), "warning", "they disagree", "FRACTION or TEACHER_WEIGHT")
    lines = _lines(loss_seg=_falling(), **{own: away[own], theirs: np.linspace(2, 1, 40)})
    assert worse(check_health(RunFacts(cfg, lines))) == []
    cfg.DISTILL.SEGMENTATION.POLICY = "ground_truth"
    assert worse(check_health(RunFacts(cfg, _lines(loss_seg=_falling(), **away)))) == []


def test_divergence(cfg: Any) -> None:
    """The best mean of five lines is about 1; from step 30 on the loss is 3, so it ends 200 % above."""
    series = np.where(STEPS > 30, 3.0, _falling())
    lines = _lines(loss_seg=series, loss_cls=_falling())
    only(check_health(RunFacts(cfg, lines)), "error", "loss_seg diverged: it ends 2", "CLIP_GRADIENTS")


def test_under_training(cfg: Any) -> None:
    """From 5 to 1 on a line: the last 10 lines of 40 fall by 9 · 4 / 39 = .92 around a mean of 1.46: 63 %."""
    lines = _lines(loss_seg=np.linspace(5, 1, 40), loss_cls=_falling())
    findings = check_health(RunFacts(cfg, lines))
    only(findings, "warning", "under-trained", "loss_seg by 63%", "raise SOLVER.MAX_ITER above 400")


def test_warm_up_and_epochs(cfg: Any) -> None:
    cfg.SOLVER.WARMUP_ITERS = 100
    only(check_health(RunFacts(cfg, SOUND)), "warning", "warm-up takes 25% of the run (100 of 400 steps)")
    cfg.SOLVER.WARMUP_ITERS = 20
    results = RESULTS | {"meta": {"train": {"images": 4000}, "images_seen": 12800}}
    only(
        check_health(RunFacts(cfg, SOUND, results)), "warning", "seen 3.2 times (12800 views of 4000 images)"
    )


def test_learning_rate_against_the_reference(cfg: Any) -> None:
    """1e-4 at 32. At 8, a quarter: between 2.5e-5 (linear) and 5e-5 (root), and half and twice of these, pass."""
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH = 8
    for lr, well in ((1.2e-5, False), (1.3e-5, True), (5e-5, True), (1e-4, True), (1.1e-4, False)):
        solver.BASE_LR = lr
        assert (check_rate(cfg) == []) is well, lr
    only(check_rate(cfg), "warning", "BASE_LR 0.00011 at IMS_PER_BATCH 8", "BASE_LR to 2.5e-05 … 5e-05")
    solver.IMS_PER_BATCH, solver.BASE_LR = 512, 1e-4  # 16 times: 4e-4 … 16e-4
    only(check_rate(cfg), "warning", "set BASE_LR to 0.0004 … 0.0016")
    solver.REFERENCE_LR = 0.0
    assert check_rate(cfg) == []


def test_a_starved_term(cfg: Any) -> None:
    """loss_seg stays at .1 beside 2 + .9 at the end, 3.3 % of the sum, while loss_cls fell by most of itself."""
    others = {"loss_cls": _falling(8.0, 2.0), "loss_box": _falling(4.0, 0.9)}
    lines = _lines(loss_seg=np.full(40, 0.1), **others)
    only(check_health(RunFacts(cfg, lines)), "warning", "loss_seg is starved: 3.3%", "BALANCE uncertainty")
    small = _lines(loss_seg=_falling(0.5, 0.1), **others)
    assert worse(check_health(RunFacts(cfg, small))) == [], "small, but it falls"
    # A balance that weighs it by 20 gives it its part, though it does not fall.
    weighted = _lines(loss_seg=np.full(40, 2.0), balance__loss_seg=np.full(40, 20.0), **others)
    assert worse(check_health(RunFacts(cfg, weighted))) == []


def test_evaluations_that_wobble(cfg: Any) -> None:
    noisy = _evaluations([30.0, 40.0, 50.0, 44.0, 51.0, 45.0, 52.0, 51.0])
    only(
        check_health(RunFacts(cfg, SOUND + noisy)), "warning", "sem_seg/mIoU wobbles by ±", "EMA.ENABLED True"
    )
    cfg.SOLVER.EMA.ENABLED = True
    assert worse(check_health(RunFacts(cfg, SOUND + noisy))) == []


def test_over_fitting(cfg: Any) -> None:
    """Best at the third of eight evaluations, iteration 150 of 400, then down by ten points."""
    down = _evaluations([30.0, 45.0, 50.0, 48.0, 46.0, 44.0, 42.0, 40.0], "bbox/mAP")
    told = ("over-fitting: bbox/mAP was best at iteration 150 of 400 (50.0) and ended at 40.0", "BEST_METRIC")
    only(check_health(RunFacts(cfg, SOUND + down)), "warning", *told)
    late = _evaluations(
        [30.0, 35.0, 40.0, 45.0, 50.0, 48.0, 46.0, 44.0], "bbox/mAP"
    )  # best at 250, beyond .6
    assert worse(check_health(RunFacts(cfg, SOUND + late))) == []


def test_a_class_that_is_never_predicted(cfg: Any) -> None:
    results = {"sem_seg": RESULTS["sem_seg"] | {"IoU-boat": 0.0, "IoU-boat_interval": [0.0, 0.0]}}
    only(check_health(RunFacts(cfg, SOUND, results)), "warning", "sem_seg: boat never predicted", "1 of 2")


def test_teacher_scores_are_found_beside_the_cache(tmp_path: Path, cfg: Any) -> None:
    cfg.TEACHER.SEGMENTATION.TYPE = "scenekd"
    cache = tmp_path / "run" / "teacher_cache" / "segmentation"
    cache.mkdir(parents=True)
    assert read_teacher_scores(tmp_path / "run", cfg) == {}
    scores = {"sem_seg": {"mIoU": 7.0}}
    for folder in (tmp_path / "run", cache.parent, cache):  # the nearest counts
        (folder / "teacher_scores.json").write_text(json.dumps(scores))
        assert read_teacher_scores(tmp_path / "run", cfg) == {"segmentation": scores}
        scores = {"sem_seg": {"mIoU": scores["sem_seg"]["mIoU"] + 1}}
    (cache / "teacher_scores.json").write_text('{"bbox": {"mAP": 1.0}}')
    assert read_teacher_scores(tmp_path / "run", cfg)["segmentation"] == {"sem_seg": {"mIoU": 8.0}}


def test_a_folder_is_read_whole(tiny_config: Callable[..., Any]) -> None:
    """Configuration, lines, results and teacher scores together, through the tool's own entry."""
    cfg = tiny_config("run", "SOLVER.WARMUP_ITERS", 1, "DISTILL.SEGMENTATION.POLICY", "teacher",
                      "TEACHER.SEGMENTATION.TYPE", "scenekd")  # fmt: skip
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in SOUND))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "teacher_scores.json").write_text(json.dumps({"sem_seg": {"mIoU": 41.0}}))
    text = "\n".join(map(str, check_run(folder)))
    assert "teacher scores mIoU 41.0 alone" in text
    (folder / "teacher_scores.json").write_text("{")
    assert "teacher_scores.json: damaged" in "\n".join(map(str, check_run(folder)))
    assert "[ok]      losses did not rise" in text


# The curves themselves --------------------------------------------------------------------------------------


def test_rise_is_from_the_best_mean_of_an_eighth() -> None:
    """16 points, means of two: the best is 1, the last 3: 2 above."""
    assert rise(np.array([4.0] * 6 + [1.0] * 6 + [3.0] * 4)) == pytest.approx(2.0)
    assert rise(np.zeros(16)) == 0.0


def test_fall_at_end_needs_a_sure_slope() -> None:
    """Last four of 16: 4, 3, 2, 1 fall by 3 around 2.5; rising, by −3; flat noise not at all."""
    assert fall_at_end(np.r_[np.full(12, 9.0), 4, 3, 2, 1]) == pytest.approx(1.2)
    assert fall_at_end(np.r_[np.full(12, 9.0), 1, 2, 3, 4]) == pytest.approx(-1.2)
    assert fall_at_end(np.r_[np.full(12, 9.0), 1, 2, 1, 1.5]) == 0.0
    assert fall_at_end(np.ones(4)) == 0.0


def test_wobble_is_blind_to_a_trend() -> None:
    """A line has none. ±1 in turn has second differences of ±4: √(16/6). Noise of deviation 2 gives about 2."""
    assert wobble(np.arange(20.0)) == pytest.approx(0.0)
    assert wobble(np.tile([1.0, -1.0], 6)) == pytest.approx((16 / 6) ** 0.5)
    noise = np.random.default_rng(0).normal(0, 2, 4000)
    assert wobble(np.arange(4000.0) + noise) == pytest.approx(2.0, rel=0.1)
    assert wobble(np.array([1.0, -1.0, 1.0])) == 0.0


def test_raw_series_takes_the_balance_out() -> None:
    lines = [
        {"total_loss": 1, "loss_a": 6.0, "balance/loss_a": 3.0},
        {"total_loss": 1, "loss_a": 6.0},
        {"loss_a": 1},
    ]
    assert raw_series(lines, "loss_a").tolist() == [2.0, 6.0]
    assert best_evaluation([1, 2], np.array([1.0, 2.0])) is None
