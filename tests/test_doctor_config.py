"""The doctor on configurations, data and caches: every check is triggered by the mistake it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doctor_helpers import logits, only, softmax, told, worse

from scenekd.data.catalog import load_datasets
from scenekd.doctor_config import check_settings, scores_target_peak
from scenekd.doctor_data import check_data
from scenekd.sample import SoftSegmentation
from scenekd.teachers.cache_builder import write_cache
from scenekd.teachers.manifest import Manifest
from scenekd.teachers.protocol import TeacherOutput

TEACHER = ("TEACHER.SEGMENTATION.TYPE", "scenekd")


@pytest.mark.parametrize(
    ("overrides", "level", "words"),
    [
        (("SOLVER.BASE_LR", "0.0"), "error", "BASE_LR"),
        (("SOLVER.STEPS", "(5, 10)"), "warning", "(10,) lie beyond"),
        (("SOLVER.WARMUP_ITERS", "10"), "warning", "WARMUP_ITERS 10"),
        (("SOLVER.ACCUMULATE_STEPS", "3"), "error", "4 does not divide"),
        (("MODEL.WEIGHTS", "gone.pth"), "error", "gone.pth: no such file"),
        (("MODEL.DEVICE", "abacus"), "error", "abacus"),
        (("DISTILL.SEGMENTATION.POLICY", "teacher"), "error", "needs a teacher"),
        (("DISTILL.SEGMENTATION.POLICY", "teachers"), "error", "is none of"),
        (TEACHER, "warning", "takes nothing from it"),
        (
            (
                *TEACHER,
                "DISTILL.SEGMENTATION.POLICY",
                "combined",
                "DISTILL.SEGMENTATION.TEACHER_WEIGHT",
                "0.0",
            ),
            "warning",
            "TEACHER_WEIGHT is 0",
        ),
        (
            (*TEACHER, "DISTILL.SEGMENTATION.POLICY", "per_batch", "DISTILL.SEGMENTATION.FRACTION", "0.0"),
            "warning",
            "FRACTION is 0",
        ),
        # int(4 · .2) = 0 images of a batch of 4
        (
            (*TEACHER, "DISTILL.SEGMENTATION.POLICY", "per_batch", "DISTILL.SEGMENTATION.FRACTION", "0.2"),
            "warning",
            "is no image → set it to 0.25",
        ),
        (("DISTILL.DETECTION.GT_WEIGHT", "-1.0"), "error", "must not be negative"),
        (("MODEL.BLITZNET.LOSS_WEIGHTS", "(0.0, 1.0, 1.0)"), "warning", "switches a loss off"),
        (("DISTILL.SEGMENTATION.TEMPERATURE", "0.0"), "error", "TEMPERATURE is 0"),
        (
            (*TEACHER, "DISTILL.SEGMENTATION.POLICY", "teacher", "DISTILL.SEGMENTATION.TARGET", "scores"),
            "warning",
            "a target of 0.21",  # e / (e + 10) for the ten classes of the scenes
        ),
        (("INPUT.ZOOM_OUT_FILL_SEG", "0"), "warning", "taught as background"),
    ],
)
def test_mistakes_in_settings(
    tiny_config: Callable[..., Any], overrides: tuple[str, ...], level: str, words: str
) -> None:
    only(check_settings(tiny_config("run", *overrides)), level, words)


def test_good_settings_are_all_ok(tiny_config: Callable[..., Any]) -> None:
    assert {finding.level for finding in check_settings(tiny_config("run"))} == {"ok"}
    zoo = check_settings(tiny_config("run", "MODEL.WEIGHTS", "torchvision"))
    assert {finding.level for finding in zoo} == {"ok"}, "the zoo's name is no file"


def test_peak_of_a_scores_target_is_the_thesiss() -> None:
    # 21 slots, confidence 1: T .25 → .732, .4 → .379, 1 → .120
    peaks = [round(scores_target_peak(20, t), 3) for t in (0.25, 0.4, 1.0)]
    assert peaks == [0.732, 0.379, 0.120]


def make_cache(
    cfg: Any, task: str, folder: Path, *, keep: int = 12, score: float = 0.8, **teacher: Any
) -> None:
    """A cache of the first ``keep`` training images, as SceneKD's own teacher would make it."""
    source = {"type": "scenekd", "name": "", "weights": "teacher.pth", "file_sha256": ""}
    info = {"type": "scenekd", "name": "net", "trained_on": ["coco_x"], "form": "logits", "source": source}
    records = load_datasets(cfg.DATASETS.TRAIN, cfg, train=True).records[:keep]
    output = TeacherOutput(np.array([[1.0, 1, 50, 50]]), np.array([2]), np.array([score]))
    if task == "segmentation":
        output = TeacherOutput(segmentation=SoftSegmentation(logits(), "logits"))
    detection = {"max_boxes": 100} if task == "detection" else {}
    manifest = Manifest(task, tuple(cfg.DATASETS.CLASSES), info | teacher, **detection)  # type: ignore[arg-type]
    write_cache(folder, manifest, [(r.image_id, r.file_name, output) for r in records])


@pytest.fixture
def distil(tiny_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``distil(task, *overrides)``: a configuration with a teacher of one task, cached below tmp_path."""

    def build(task: str, *overrides: object) -> Any:
        key = task.upper()
        pairs = [f"TEACHER.{key}.TYPE", "scenekd", f"TEACHER.{key}.WEIGHTS", "teacher.pth"]
        pairs += [f"TEACHER.{key}.CACHE", str(tmp_path / "cache"), f"DISTILL.{key}.POLICY", "teacher"]
        pairs += [f"TEACHER.{key}.TRAINED_ON", "('voc_seg_other',)"]
        return tiny_config("run", *pairs, *overrides)

    return build


def test_data_without_teachers_is_ok(tiny_config: Callable[..., Any]) -> None:
    assert worse(check_data(tiny_config("run"))) == []


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_whole_cache_is_ok(distil: Callable[..., Any], tmp_path: Path, task: str) -> None:
    cfg = distil(task)
    make_cache(cfg, task, tmp_path / "cache")
    # The set that the teacher was trained on is not at hand, and that is told.
    only(check_data(cfg), "warning", "an unknown number of images")


def test_a_missing_cache_names_its_command(distil: Callable[..., Any]) -> None:
    lines = told(check_data(distil("detection"), "my.yaml"), "error")
    assert "no teacher cache here" in lines[0]
    assert "python tools/cache_teacher.py --config-file my.yaml --task detection" in lines[0]


def test_a_further_teacher_that_is_none_is_told_once(distil: Callable[..., Any]) -> None:
    """No cache would mend it."""
    lines = told(check_data(distil("detection", "TEACHER.DETECTION.MORE", "mmsegm://x"), "my.yaml"), "error")
    assert len(lines) == 1 and "MORE[0]: unknown scheme in 'mmsegm://x'" in lines[0]
    assert "cache_teacher" not in lines[0]


def test_a_cache_that_lacks_images(distil: Callable[..., Any], tmp_path: Path) -> None:
    cfg = distil("segmentation")
    make_cache(cfg, "segmentation", tmp_path / "cache", keep=9)
    lines = told(check_data(cfg), "error")
    assert len(lines) == 1 and "nothing about 3 of 12 images" in lines[0] and "--resume" in lines[0]
    filled = distil(
        "segmentation", "DISTILL.SEGMENTATION.POLICY", "fill_missing", "DATASETS.KEEP_SEM_SEG", "1.0"
    )
    assert told(check_data(filled), "error") == [], "no image needs the teacher"
    assert any("never asked" in line for line in told(check_data(filled), "warning"))


def test_a_cache_for_other_classes(distil: Callable[..., Any], tmp_path: Path) -> None:
    make_cache(distil("segmentation"), "segmentation", tmp_path / "cache")
    other = distil("segmentation")
    other = other.clone()
    other.defrost()
    other.DATASETS.CLASSES = tuple(reversed(other.DATASETS.CLASSES))
    assert any("made for other classes" in line for line in told(check_data(other), "error"))


def test_a_filter_above_all_cached_scores(distil: Callable[..., Any], tmp_path: Path) -> None:
    cfg = distil("detection", "DISTILL.DETECTION.MIN_SCORE", "0.5")
    make_cache(cfg, "detection", tmp_path / "cache", score=0.3)
    assert any("leaves none of 12" in line for line in told(check_data(cfg), "error"))


def test_cached_probabilities_that_are_called_logits(
    distil: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = distil("segmentation")
    make_cache(cfg, "segmentation", tmp_path / "cache")
    wrong = SoftSegmentation(softmax(logits()), "logits")
    monkeypatch.setattr("scenekd.teachers.cache.CacheStore.get_segmentation", lambda *_: wrong)
    assert any("through a softmax once more" in line for line in told(check_data(cfg), "error"))


def test_training_and_test_images_overlap(tiny_config: Callable[..., Any]) -> None:
    cfg = tiny_config("run", "DATASETS.TEST", "('voc_seg_train',)")
    only(check_data(cfg), "error", "12 of the 12 test images")
    allowed = tiny_config("run", "DATASETS.TEST", "('voc_seg_train',)", "DATASETS.ALLOW_OVERLAP", "True")
    only(check_data(allowed), "warning", "12 of the 12 test images")


def test_a_teacher_trained_on_the_test_images(distil: Callable[..., Any], tmp_path: Path) -> None:
    cfg = distil("detection", "TEACHER.DETECTION.TRAINED_ON", "('voc_seg_val',)")
    make_cache(cfg, "detection", tmp_path / "cache")
    only(check_data(cfg), "error", "trained on voc_seg_val", "6 images of DATASETS.TEST")


def test_a_teacher_that_does_not_say_what_it_was_trained_on(
    distil: Callable[..., Any], tmp_path: Path
) -> None:
    cfg = distil("detection", "TEACHER.DETECTION.TRAINED_ON", "()")
    make_cache(cfg, "detection", tmp_path / "cache", trained_on=[])
    only(
        check_data(cfg), "warning", "nothing says what the detection teacher", "TEACHER.DETECTION.TRAINED_ON"
    )


def test_data_that_is_not_there(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    lines = told(check_data(tiny_config("run", "DATASETS.ROOT", tmp_path / "nowhere")), "error")
    assert len(lines) == 1 and "nowhere" in lines[0], "one mistake is told once, though both splits meet it"


def test_a_task_without_labels(tiny_config: Callable[..., Any]) -> None:
    findings = told(check_data(tiny_config("run", "DATASETS.KEEP_SEM_SEG", "0.0")), "warning")
    assert "no image of voc_seg_train has labels for segmentation" in findings[0]
    assert "none of the first 32 images teaches segmentation" in findings[1]


def test_few_labels_and_nobody_to_fill_in(tiny_config: Callable[..., Any]) -> None:
    """A share of .25 of the masks: told, with what leaves the others out; of .5 not."""
    (line,) = told(check_data(tiny_config("run", "DATASETS.KEEP_SEM_SEG", "0.25")), "warning")
    assert "images have labels for segmentation: the others teach it nothing" in line
    left_out = ("DATASETS.KEEP_SEM_SEG", "0.25", "DATASETS.REQUIRE_LABELS", "('segmentation',)")
    for pairs in (left_out, ("DATASETS.KEEP_SEM_SEG", "0.5")):
        assert told(check_data(tiny_config("run", *pairs)), "warning") == []
