"""The doctor: every check is triggered by the mistake it is for, and is silent where there is none."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scenekd import checkpoint, doctor
from scenekd import doctor_environment as environment
from scenekd.data.catalog import load_datasets
from scenekd.doctor_config import check_settings, scores_target_peak
from scenekd.doctor_data import check_data
from scenekd.doctor_findings import Finding, ok
from scenekd.doctor_run import check_losses, check_numbers, check_run
from scenekd.doctor_targets import (
    check_soft_labels,
    check_targets,
    check_teacher,
    looks_like_probabilities,
    looks_softmaxed_twice,
)
from scenekd.doctor_teachers import check_filter
from scenekd.errors import run_cli
from scenekd.models import build_model
from scenekd.sample import SoftSegmentation, SourceWeights, Target
from scenekd.teachers.cache_builder import write_cache
from scenekd.teachers.manifest import Manifest
from scenekd.teachers.protocol import Detections, TeacherOutput

REQUIREMENTS = [
    "torch<2.16,>=2.11",
    "opencv-python",
    'timm; extra == "timm"',
    'detectron2 @ git+https://example.org/d2.git ; extra == "detectron2"',
]


def told(findings: Sequence[Finding], level: str) -> list[str]:
    return [f"{finding.what} → {finding.fix}" for finding in findings if finding.level == level]


def only(findings: Sequence[Finding], level: str, *words: str) -> None:
    """Exactly one finding that is not ok: of this level, with these words."""
    rest = [finding for finding in findings if finding.level != "ok"]
    assert [finding.level for finding in rest] == [level], list(map(str, rest))
    for word in words:
        assert word in told(rest, level)[0]


# The environment ------------------------------------------------------------------------------------------


def test_versions_are_held_against_the_requirements() -> None:
    good = {"torch": "2.15.0+cpu", "opencv-python": "5.0"}
    assert told(environment.check_required(good, REQUIREMENTS), "error") == []
    old = {"torch": "2.10.1", "opencv-python": "5.0"}
    only(
        environment.check_required(old, REQUIREMENTS),
        "error",
        "torch 2.10.1",
        'pip install "torch<2.16,>=2.11"',
    )
    missing = {"torch": "2.11.0"}
    only(
        environment.check_required(missing, REQUIREMENTS), "error", "opencv-python is missing", "pip install"
    )
    only(environment.check_required(good, []), "error", "scenekd is not installed")


def test_extras_are_told_with_their_command() -> None:
    lines = told(environment.check_extras({"timm": "1.0"}, REQUIREMENTS), "ok")
    assert lines[0].startswith("optional timm: timm 1.0")
    assert "INSTALL.md" in lines[1] and '-e ".[detectron2]"' in lines[1]


def test_mixed_openmmlab_packages() -> None:
    onedl = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6"}
    assert environment.check_openmmlab(onedl) == []
    mixed = onedl | {"mmcv-lite": "2.2.0"}
    only(
        environment.check_openmmlab(mixed), "error", "mmcv-lite with onedl-mmengine", "uninstall -y mmcv-lite"
    )
    only(environment.check_openmmlab({"mmsegmentation": "1.2.2"}), "error", "not supported")


def test_two_opencvs() -> None:
    one = {"opencv-python-headless": "5.0"}
    assert environment.check_opencv(one) == []
    only(environment.check_opencv(one | {"opencv-python": "5.0"}), "error", "opencv-python and", "uninstall")


def test_torch_pair() -> None:
    pair = {"torch": "2.15.0+cu130", "torchvision": "0.29.2+cu130"}
    assert environment.check_torch_pair(pair, lambda: None) == []
    other = pair | {"torchvision": "0.29.2+cpu"}
    only(environment.check_torch_pair(other, lambda: None), "error", "different builds")
    broken = environment.check_torch_pair(pair, lambda: "operator torchvision::nms does not exist")
    only(broken, "error", "do not fit", "nms does not exist")
    assert environment.check_torch_pair(pair) == [], "the pair of this environment imports"


def test_detectron2_needs_an_older_setuptools() -> None:
    assert environment.check_detectron2({"setuptools": "83.0"}) == []
    assert environment.check_detectron2({"setuptools": "81.0", "detectron2": "0.6"}) == []
    only(
        environment.check_detectron2({"setuptools": "82.0", "detectron2": "0.6"}),
        "warning",
        '"setuptools>=77.0.3,<82"',
    )


def test_this_environment_is_told_whole() -> None:
    lines = told(environment.check_environment(), "ok")
    assert any(line.startswith(f"torch {torch.__version__.split('+')[0]}") for line in lines)
    assert any("CPU" in line or "CUDA" in line for line in lines)


# A configuration by itself --------------------------------------------------------------------------------

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


def test_peak_of_a_scores_target_is_the_thesiss() -> None:
    # 21 slots, confidence 1: T .25 → .732, .4 → .379, 1 → .120
    peaks = [round(scores_target_peak(20, t), 3) for t in (0.25, 0.4, 1.0)]
    assert peaks == [0.732, 0.379, 0.120]


# Teachers, soft labels, targets ---------------------------------------------------------------------------


def test_a_teacher_in_training_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    messages = check_teacher(net)
    assert "training mode (3 modules" in told(messages, "error")[0]
    assert "4 parameters, such as 0.weight" in told(messages, "warning")[0]
    net.eval().requires_grad_(False)
    assert check_teacher(net) == []
    net[1].train()  # as a parent's train() does to a teacher it holds
    only(check_teacher(net), "error", "1 modules, such as 1")


def logits(seed: int = 0, classes: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 4, (classes, 6, 8)).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(0))
    return exponents / exponents.sum(0)


def soft(values: np.ndarray, form: str) -> list[SoftSegmentation]:
    return [SoftSegmentation(values, form)]


def test_probabilities_are_told_from_logits() -> None:
    assert looks_like_probabilities(softmax(logits()))
    assert not looks_like_probabilities(logits())
    assert not looks_like_probabilities(np.log(softmax(logits())))
    assert not looks_like_probabilities(softmax(logits()) / 2)


def test_soft_labels_that_are_what_they_say() -> None:
    assert check_soft_labels(soft(logits(), "logits"), 10, "probabilities") == []
    assert check_soft_labels(soft(softmax(logits()), "probabilities"), 10, "probabilities") == []
    assert check_soft_labels(soft(softmax(logits()), "probabilities"), 10, "logits") == []
    assert check_soft_labels([], 10, "probabilities") == []
    sparse = np.zeros((11, 6, 8), np.float32)
    sparse[4, :3] = 0.9
    assert check_soft_labels(soft(sparse, "scores"), 10, "scores", "explicit") == []
    only(check_soft_labels(soft(sparse, "scores"), 10, "scores"), "warning", "1/11")


def test_probabilities_that_would_go_through_a_softmax() -> None:
    wrong = check_soft_labels(soft(softmax(logits()), "logits"), 10, "probabilities")
    only(wrong, "error", "through a softmax once more")
    # declared as scores, they would be divided by T and go through a softmax
    wrong = check_soft_labels(soft(softmax(logits()), "scores"), 10, "scores", "explicit")
    only(wrong, "error", "scores are probabilities")
    wrong = check_soft_labels(soft(softmax(logits()), "probabilities"), 10, "scores")
    only(wrong, "error", "choose probabilities or logits")


def test_other_wrong_soft_labels() -> None:
    only(check_soft_labels(soft(logits(), "probabilities"), 10, "probabilities"), "error", "may be logits")
    only(check_soft_labels(soft(logits(), "scores"), 10, "scores", "explicit"), "error", "outside 0…1")
    only(check_soft_labels(soft(logits(), "logits"), 20, "probabilities"), "error", "11 dense classes", "21")
    nan = logits()
    nan[0, 0, 0] = np.nan
    only(check_soft_labels(soft(nan, "logits"), 10, "probabilities"), "error", "NaN")


def test_double_softmax() -> None:
    once = softmax(logits())
    assert not looks_softmaxed_twice([once])
    twice = softmax(once)
    # of arguments in 0…1 the largest softmax is e / (e + 10) = .2137
    assert twice.max() <= math.e / (math.e + 10)
    only(
        check_soft_labels(soft(twice, "probabilities"), 10, "probabilities"),
        "error",
        "softmax of probabilities",
    )


def target(**changes: Any) -> Target:
    arguments: dict[str, Any] = {
        "image_id": "a",
        "boxes": torch.zeros(1, 4),
        "labels": torch.tensor([3]),
        "confidences": torch.ones(1),
        "from_teacher": torch.zeros(1, dtype=torch.bool),
        "difficult": torch.zeros(1, dtype=torch.bool),
        "soft_seg": torch.from_numpy(softmax(logits())),
        "soft_valid": torch.ones(6, 8, dtype=torch.bool),
    }
    return Target(**(arguments | changes))


def test_targets_of_a_batch() -> None:
    assert check_targets([target()], 10) == []
    only(check_targets([target(soft_valid=None)], 10), "error", "without a valid mask", "would be distilled")
    only(check_targets([target(labels=torch.tensor([10]))], 10), "error", "label 10", "0…9")
    only(check_targets([target(soft_seg=torch.from_numpy(logits()))], 10), "error", "not probabilities")
    assert check_targets([target(soft_seg=torch.from_numpy(logits()))], 10, "logits") == []
    nothing = SourceWeights(segmentation_gt=0.0)
    only(check_targets([target(weights=nothing)], 10), "warning", "teaches segmentation")
    nan, half = softmax(logits()), torch.ones(6, 8, dtype=torch.bool)
    nan[:, 0] = np.nan
    only(check_targets([target(soft_seg=torch.from_numpy(nan))], 10), "error", "NaN")
    half[0] = False
    assert check_targets([target(soft_seg=torch.from_numpy(nan), soft_valid=half)], 10) == [], "not looked at"


def boxes(*scores: float) -> Detections:
    return Detections.build(np.tile([[0, 0, 5, 5]], (len(scores), 1)), np.zeros(len(scores)), scores)


def test_a_filter_that_leaves_no_boxes() -> None:
    assert check_filter([boxes(0.9, 0.1), boxes(0.4)], 0.3) == []
    only(check_filter([boxes(0.2), boxes(0.1)], 0.5), "error", "leaves none of 2", "highest score is 0.2")
    only(check_filter([boxes(), boxes()], 0.0), "error", "no box on 2 images")
    only(check_filter([boxes(0.9), boxes(0.1), boxes(0.1)], 0.5), "warning", "no box on 2 of 3")
    only(check_filter([boxes(0.9, 0.01, 0.02)], 0.001, use_confidence=False), "warning", "USE_CONFIDENCE")


# Data and caches ------------------------------------------------------------------------------------------


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


def worse(findings: Sequence[Finding]) -> list[str]:
    return told(findings, "error") + told(findings, "warning")


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
    assert len(lines) == 2 and all("nowhere" in line for line in lines)


def test_a_task_without_labels(tiny_config: Callable[..., Any]) -> None:
    findings = told(check_data(tiny_config("run", "DATASETS.KEEP_SEM_SEG", "0.0")), "warning")
    assert "no image of voc_seg_train has labels for segmentation" in findings[0]
    assert "none of the first 32 images teaches segmentation" in findings[1]


# A run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tiny_config: Callable[..., Any]) -> Path:
    """The output folder of a run that ended well."""
    cfg = tiny_config("run")
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    state = checkpoint.model_state(build_model(cfg, pretrained=False), cfg.dump())
    checkpoint.atomic_save(state, folder / "model_final.pth")
    checkpoint.atomic_save({**state, "iteration": 10, "engine": "mmengine"}, folder / "last.pth")
    write_lines(folder, [5.0 / i for i in range(1, 11)])
    numbers = {"sem_seg": {"mIoU": 9.0, "IoU-cup": 9.0}, "bbox": {"mAP": 2.0, "AP-cup": 2.0, "AP-cow": None}}
    (folder / "results.json").write_text(json.dumps(numbers | {"meta": {}}))
    return folder


def write_lines(folder: Path, losses: Sequence[float]) -> None:
    lines = [{"iteration": i + 1, "total_loss": x, "loss_seg": x} for i, x in enumerate(losses)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_ended_well(finished: Path) -> None:
    findings = check_run(finished)
    assert worse(findings) == []
    assert any("no test label of cow" in line for line in told(findings, "ok"))


def test_an_interrupted_run_names_the_command_that_goes_on(finished: Path) -> None:
    (finished / "model_final.pth").unlink()
    (finished / "results.json").unlink()
    state = checkpoint.read(finished / "last.pth")
    checkpoint.atomic_save({**state, "iteration": 4}, finished / "last.pth")
    command = f"--config-file {finished}/config.yaml --output-dir {finished} --resume"
    only(check_run(finished), "warning", "4 of 10 iterations", command)


def test_damaged_checkpoints(finished: Path) -> None:
    state = checkpoint.read(finished / "model_final.pth")
    (finished / "last.pth").write_bytes((finished / "last.pth").read_bytes()[:1000])
    only(check_run(finished), "error", "last.pth: not a readable checkpoint")
    checkpoint.atomic_save({**state, "iteration": 10}, finished / "last.pth")
    state["model"]["trunk.conv1.weight"][0] = math.nan
    checkpoint.atomic_save(state, finished / "model_final.pth")
    only(check_run(finished), "error", "not finite")


def test_losses_that_are_not_finite_or_do_not_fall(finished: Path) -> None:
    write_lines(finished, [5.0, 4.0, math.nan])
    assert "total_loss is not finite from iteration 3" in told(check_run(finished), "error")[0]
    flat = [{"iteration": i, "total_loss": 3 + 0.01 * (i % 2), "loss_box": 0.0} for i in range(12)]
    lines = told(check_losses(flat), "warning")
    assert "total_loss is flat" in lines[0] and "loss_box is 0 throughout" in lines[1]
    # A quarter of 8 is 2: from 3.5 to 2.5 is no flat loss; 7 lines say nothing.
    assert check_losses([{"iteration": i, "total_loss": 4 - i / 5} for i in range(8)]) == []
    assert check_losses(flat[:7]) == []


def test_results_that_say_nothing(finished: Path) -> None:
    undefined = {"sem_seg": {"mIoU": None}}
    assert "sem_seg/mIoU is undefined" in told(check_numbers(undefined), "error")[0]
    nothing = {"sem_seg": {"mIoU": 8.0, "IoU-background": 80.0, "IoU-cup": 0.0, "IoU-cow": 0.0}}
    assert "every class scores 0" in told(check_numbers(nothing), "warning")[0]
    (finished / "results.json").write_text('{"sem_seg"')
    only(check_run(finished), "error", "results.json: damaged")
    (finished / "results.json").unlink()
    only(check_run(finished), "warning", "tools/test.py")


def test_leftovers_and_folders_that_are_no_run(finished: Path, tmp_path: Path) -> None:
    (finished / ".model_final.pth.7.tmp").touch()
    only(check_run(finished), "warning", ".model_final.pth.7.tmp")
    only(check_run(tmp_path / "gone"), "error", "no such folder")
    (tmp_path / "empty").mkdir()
    assert "config.yaml" in told(check_run(tmp_path / "empty"), "error")[0]


# The tool -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``run(arguments…)``: the exit code of tools/doctor.py."""
    path = Path(__file__).parents[1] / "tools" / "doctor.py"
    spec = importlib.util.spec_from_file_location("scenekd_doctor", path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(doctor, "check_environment", lambda: [ok("python")])

    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["doctor.py", *map(str, arguments)])
        try:
            run_cli(tool.main)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def test_the_tool_prints_marks_and_fixes(
    run: Callable[..., int], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "== installation\n[ok]      python\n\n0 errors, 0 warnings, 1 ok\n"
    assert run(finished / "config.yaml", "SOLVER.BASE_LR", "0.0", "--quiet") == 2
    out = capsys.readouterr().out
    assert "[error]   SOLVER.BASE_LR is 0.0: nothing is learned\n          → set it above 0" in out
    assert "[ok]" not in out and out.splitlines()[-1].startswith("1 errors, 0 warnings")
    assert run("--run", finished) == 0
    assert f"== {finished}" in capsys.readouterr().out
    assert run(tmp_path / "gone.yaml") == 2
    assert "no such config file" in capsys.readouterr().out
    assert run(finished / "config.yaml", "SOLVER.BASE_LR") == 2
    assert "stands alone" in capsys.readouterr().out


def test_an_installation_that_does_not_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scenekd.doctor_config", None)
    only(doctor.check_config("any.yaml"), "error", "cannot be imported", "see the errors above")
