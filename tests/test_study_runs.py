"""Running a study: what is skipped, gone on with, shared, refused; with a runner that only writes results."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tool_runner import ToolRunner

from kd_mtl.reproduce import STUDY
from scenekd.config import load_config
from scenekd.errors import UserError
from scenekd.study import filters, stages
from scenekd.study.lists import link_with_lists
from scenekd.study.presets import read_preset
from scenekd.study.rows import Sweep, read_table
from scenekd.study.runs import Runs, State
from scenekd.study.study import Study
from scenekd.study.sweep import choose, chosen_row, score_settings, settings


class FakeRunner:
    """Stands in for the trainings and tools: writes what they would, and remembers what it was asked."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.together: list[list[str]] = []
        self.resumed: list[str] = []
        self.tools: list[tuple[str, ...]] = []
        self.fails: set[str] = set()
        self.score = lambda cfg: 10.0 + cfg.SEED

    def run_together(self, tool, jobs, output, steps, *, at_once, keep_going):
        """As :func:`scenekd.side_by_side.run_together`."""
        failed = {}
        self.together.append([*jobs])
        for name, arguments in jobs.items():
            self.trained.append(name)
            if "--resume" in arguments:
                self.resumed.append(name)
            if name in self.fails:
                failed[name] = "ended with exit code 2: diverged"
                continue
            cfg = load_config(arguments[arguments.index("--config-file") + 1])
            value = self.score(cfg)
            results = {
                "sem_seg": {"IoU-a": value, "mIoU": value},
                "bbox": {"AP-a": value / 2, "mAP": value / 2},
            }
            folder = Path(output) / name
            lines = [{"iteration": steps[name], "time": 0.5, "total_loss": 1.0}]
            for step in (40, 80):
                lines.append({"iteration": step, "sem_seg/IoU-a": value * step / 100, "bbox/AP-a": 1.0})
            (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "results.json").write_text(json.dumps(results))
            (folder / "last.pth").write_bytes(b"state")
        return failed

    def run_tool(self, name, *args):
        """As :func:`scenekd.study.stages.run_tool`."""
        self.tools.append((name, *args))


def install(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    """The fake in place of processes; scenes are not drawn, and no class is rare."""
    runner = FakeRunner()
    monkeypatch.setattr(stages, "run_together", runner.run_together)
    monkeypatch.setattr(stages, "run_tool", runner.run_tool)
    monkeypatch.setattr(filters, "run_tool", runner.run_tool)
    monkeypatch.setattr(stages, "generate_scenes", lambda folder, **options: None)
    monkeypatch.setattr("scenekd.study.scores.ClassMeans.counts", lambda self, cfg: {})
    return runner


@pytest.fixture
def fake(monkeypatch) -> FakeRunner:
    """The fake for one test."""
    return install(monkeypatch)


def make_study(output: Path, words: list[str], seeds: int = 2, overrides: tuple[str, ...] = ()) -> Study:
    """A study of some rows under the preset smoke."""
    table = read_table(STUDY.folder / "rows.yaml")
    preset = read_preset(STUDY.folder, "smoke", output=output)
    runs = Runs(STUDY, table, preset, output, overrides)
    return Study(runs, table.select(words), range(seeds), engine="mmengine", jobs=2)


def test_shared_runs_stages_and_skipping(fake, tmp_path):
    """Three rows of one setting are one run a seed; the teacher comes first; what is done is not done again."""
    study = make_study(tmp_path, ["4.1a", "4.5b", "F16@0", "4.1c"])
    study.run_rows(study.rows)
    students = ["runs/4.1a/seed0", "runs/4.1c/seed0", "runs/4.1a/seed1", "runs/4.1c/seed1"]
    assert fake.trained == ["stages/teacher_detection", *students]
    assert [tool[0] for tool in fake.tools] == ["cache_teacher.py"]
    assert fake.resumed == []
    study.run_rows(study.rows)
    make_study(tmp_path, ["4.1a"], seeds=3).run_rows(study.rows)
    assert fake.trained[5:] == ["runs/4.1a/seed2", "runs/4.1c/seed2"]
    assert len(fake.tools) == 1


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"teacher_detection": ["trunk"]}, ""),
        # The cache comes after the teacher.
        (
            {"teacher_detection": ["trunk"], "trunk": ["cache_detection"]},
            "teacher_detection waits for itself",
        ),
        ({"teacher_detection": ["tronk"]}, "the stage tronk does not exist"),
    ],
)
def test_stages_after_others(fake, tmp_path, after, message):
    """A stage put ahead of the base's is trained first and alone, though a mapping lists it last."""
    study = make_study(tmp_path, ["4.1c"], seeds=1)
    preset = study.runs.preset
    teacher = preset.stages["teacher_detection"]
    found = {**preset.stages, "trunk": {**teacher, "task": None}}
    found["cache_detection"] = {**found["cache_detection"], "after": ["teacher_detection"]}
    for name, others in after.items():
        found[name] = {**found[name], "after": others}
    study.runs.preset = replace(preset, stages=found)
    if message:
        with pytest.raises(UserError, match=message):
            study.run_rows(study.rows)
        assert fake.trained == []
        return
    study.run_rows(study.rows)
    assert fake.together == [["stages/trunk"], ["stages/teacher_detection"], ["runs/4.1c/seed0"]]


def test_no_teacher_without_need(fake, tmp_path):
    """Rows of ground truth alone ask for no teacher."""
    study = make_study(tmp_path, ["4.1a"], seeds=1)
    study.run_rows(study.rows)
    assert fake.trained == ["runs/4.1a/seed0"]
    assert fake.tools == []


def test_interrupted_runs_go_on(fake, tmp_path):
    """A checkpoint without results is resumed; with other settings it is refused, and left as it is."""
    study = make_study(tmp_path, ["4.1a"], seeds=1)
    study.run_rows(study.rows)
    (tmp_path / "runs/4.1a/seed0/results.json").unlink()
    run = study.runs.run(study.rows[0], 0)
    assert study.runs.state(run) is State.STARTED
    study.run_rows(study.rows)
    assert fake.resumed == ["runs/4.1a/seed0"]
    changed = make_study(tmp_path, ["4.1a"], seeds=1, overrides=("SOLVER.BASE_LR", "0.5"))
    with pytest.raises(
        UserError, match=r"holds results.json of other settings \(SOLVER.BASE_LR was 0.002, now 0.5"
    ):
        changed.run_rows(changed.rows)
    assert changed.runs.finished(changed.rows[0]) == {}
    (tmp_path / "runs/4.1a/seed0/run.yaml").unlink()
    with pytest.raises(UserError, match="its configuration cannot be read"):
        study.run_rows(study.rows)


def test_settings_that_do_not_matter(fake, tmp_path):
    """How often a run is saved, where the folder lies, and what else is measured make no other run of it."""
    study = make_study(tmp_path / "a", ["4.1c"], seeds=1)
    study.run_rows(study.rows)
    (tmp_path / "a").rename(tmp_path / "b")
    again = make_study(tmp_path / "b", ["4.1c"], seeds=1, overrides=("SOLVER.CHECKPOINT_PERIOD", "7"))
    assert list(again.runs.finished(again.rows[0])) == [0]
    for metrics, found in (("('sem_seg',)", []), ("('segm', 'bbox', 'sem_seg')", [0])):
        again = make_study(tmp_path / "b", ["4.1c"], seeds=1, overrides=("TEST.METRICS", metrics))
        assert list(again.runs.finished(again.rows[0])) == found


def test_stage_with_other_settings_is_refused(fake, tmp_path):
    """A cache made with other keys must not be taken for this one."""
    study = make_study(tmp_path, ["4.1c"], seeds=1)
    study.run_rows(study.rows)
    (tmp_path / "runs/4.1c/seed0/results.json").unlink()
    (tmp_path / "stages/cache_detection/stage.yaml").write_text("{}")
    with pytest.raises(UserError, match="cache_detection: made with other settings; delete the folder"):
        study.run_rows(study.rows)


def test_a_failed_run_costs_only_itself(fake, tmp_path):
    """The others end, the page names it, and it is run again next time."""
    fake.fails = {"runs/4.1a/seed1"}
    study = make_study(tmp_path, ["4.1a", "4.1a+"])
    study.run_rows(study.rows)
    assert study.failed == {"runs/4.1a/seed1": "ended with exit code 2: diverged"}
    findings = study.findings()
    assert findings.scores["4.1a"].seeds == [0]
    assert findings.scores["4.1a+"].seeds == [0, 1]
    fake.fails, fake.trained = set(), []
    study.run_rows(study.rows)
    assert fake.trained == ["runs/4.1a/seed1"]


def test_sweep_chooses_apart_from_the_test_set(fake, tmp_path):
    """Every point is scored on the validation split; the best mean wins and becomes a row on the test set."""
    study = make_study(tmp_path, ["4.1c"])
    key = "DISTILL.DETECTION.MIN_SCORE"
    sweep = Sweep("4.1c", "mAP", {key: [0.001, 0.01, 0.1], "SOLVER.BASE_LR": [1e-3, 2e-3]})
    # mAP is half of it: 0.01 wins by its threshold; of the rates the first wins as they score the same.
    fake.score = lambda cfg: 20.0 - abs(cfg.DISTILL.DETECTION.MIN_SCORE - 0.01) * 100 + cfg.SEED
    found = study.run_sweeps([sweep])
    scored, best = found[0][1], found[0][2]
    assert len(scored) == 6
    assert best is not None and best.values == {key: 0.01, "SOLVER.BASE_LR": 1e-3}
    assert best.scores is not None and best.scores.mean("mAP") == pytest.approx((20.0 + 21.0) / 4)
    points = [name for name in fake.trained if name.startswith("validation/")]
    assert len(points) == 12
    assert all(set(load_config(tmp_path / p / "run.yaml").DATASETS.TEST) == {"voc_seg_hold"} for p in points)
    assert fake.trained[-2:] == ["runs/4.1c/chosen/seed0", "runs/4.1c/chosen/seed1"]
    chosen = load_config(tmp_path / "runs/4.1c/chosen/seed0/run.yaml")
    assert (chosen.DATASETS.TEST, chosen.DISTILL.DETECTION.MIN_SCORE) == (("voc_seg_val",), 0.01)
    assert study.rows[-1].compared == ("4.1c", "4.1a")
    assert "4.1c/chosen" in study.findings(found).scores


def test_sweep_at_equal_time(fake, tmp_path):
    """All settings of a row of equal time have its steps; each side's best is held against the other's; settings are
    scored with fewer seeds than the chosen ones."""
    study = make_study(tmp_path, ["4.1a", "4.1c"])
    study.run_rows(study.rows)
    for path in tmp_path.glob("runs/4.1a/*/metrics.json"):
        path.write_text(path.read_text().replace('"time": 0.5', '"time": 1.0'))
    timed = dataclasses.replace(
        study.runs.table.row("4.1c"), id="t", series="t", compared=("4.1a",), same_time=("4.1a", "4.1c")
    )
    study.runs.table = dataclasses.replace(study.runs.table, rows=(*study.runs.table.rows, timed))
    study.sweep_seeds = range(1)
    rates = {"SOLVER.BASE_LR": [1e-3, 3e-3]}
    study.run_sweeps([Sweep("4.1a", "mAP", rates), Sweep("t", "mAP", rates)])
    points = [name for name in fake.trained if name.startswith("validation/")]
    assert len(points) == 4 and all(name.endswith("/seed0") for name in points)
    steps = {name: load_config(tmp_path / name / "run.yaml").SOLVER.MAX_ITER for name in fake.trained}
    plain = steps["runs/4.1a/seed0"]
    assert {steps[name] for name in points if name.startswith("validation/t")} == {2 * plain}
    assert [steps[f"runs/{name}/chosen/seed1"] for name in ("4.1a", "t")] == [plain, 2 * plain]
    assert [path.name for path in (tmp_path / "same_time").iterdir()] == ["4.1c_as_long_as_4.1a.yaml"]
    assert study.rows[-1].compared == ("t", "4.1a", "4.1a/chosen")


def test_sweep_without_results_chooses_nothing(fake, tmp_path):
    """Before anything is run there is nothing to choose; the points are the grid's product in its order."""
    study = make_study(tmp_path, ["4.1c"])
    sweep = Sweep("4.1c", "mAP", {"SEED": [1], "DISTILL.DETECTION.MIN_SCORE": [0.1, 0.2]})
    points = settings(sweep, study.runs.table)
    assert [p.row.id for p in points] == ["4.1c[SEED=1,MIN_SCORE=0.1]", "4.1c[SEED=1,MIN_SCORE=0.2]"]
    assert choose(sweep, score_settings(sweep, study.runs, study.means, range(1))) is None
    row = chosen_row(sweep, points[1], study.runs.table)
    assert (row.id, row.published, row.settings["DISTILL.DETECTION.MIN_SCORE"]) == ("4.1c/chosen", {}, 0.2)
    assert row.title == f"{study.runs.table.row('4.1c').title}, chosen: SEED 1, MIN_SCORE 0.2"


def test_lists_beside_those_of_the_source(scenes, tmp_path):
    """A view has the source's lists and its own; parts are disjoint and complete; the source is not touched."""
    before = sorted(path.name for path in scenes.rglob("*.txt"))
    lists = [
        {"name": "Segmentation/hold", "take": "Segmentation/train", "share": 0.25},
        {"name": "Segmentation/fit", "take": "Segmentation/train", "without": "Segmentation/hold"},
        {"name": "Segmentation/more", "take": "Segmentation/none", "optional": True},
    ]
    view = tmp_path / "view"
    for _ in range(2):
        link_with_lists(scenes, view, lists)
    read = {p.stem: p.read_text().split() for p in (view / "ImageSets/Segmentation").glob("*.txt")}
    assert sorted(read) == ["fit", "hold", "train", "val"]
    assert (len(read["train"]), len(read["hold"])) == (12, 3)
    assert sorted(read["fit"] + read["hold"]) == sorted(read["train"])
    assert (view / "JPEGImages").resolve() == (scenes / "JPEGImages").resolve()
    assert sorted(path.name for path in scenes.rglob("*.txt")) == before
    with pytest.raises(UserError, match=r"missing.txt: no such list"):
        link_with_lists(scenes, view, [{"name": "Main/x", "take": "Main/missing"}])
    with pytest.raises(UserError, match="would be empty"):
        link_with_lists(scenes, view, [{"name": "Main/x", "take": "Main/val", "without": "Main/val"}])
    (tmp_path / "other/JPEGImages").mkdir(parents=True)
    (tmp_path / "other/ImageSets").mkdir()
    with pytest.raises(UserError, match="is no link to"):
        link_with_lists(tmp_path / "other", view, [])


def test_command_line(fake, tmp_path, monkeypatch, capsys):
    """--list runs nothing; a run writes page and numbers; a failure is told at the end."""
    run = ToolRunner("reproduce", monkeypatch)
    common = ("kd_mtl", "--preset", "smoke", "--output", tmp_path, "--engine", "mmengine")
    assert run(*common, "--list", "--only", "4.1a", "F14") == 0
    text = capsys.readouterr().out
    assert "F14@0.25" in text and "4.4a" not in text
    assert fake.trained == [] and not list(tmp_path.iterdir())
    assert run(*common, "--seeds", 2, "--only", "4.1a", "4.1a+", "trainval", "SOLVER.MAX_ITER", 7) == 0
    assert "page: " in capsys.readouterr().out
    found = json.loads((tmp_path / "reproduce.json").read_text())
    assert found["overrides"] == ["SOLVER.MAX_ITER", "7"]
    assert {row["id"]: row["here"].get("mIoU") for row in found["rows"]}["4.1a"] == {"0": 10.0, "1": 11.0}
    assert "scenes have no larger detection set" in (tmp_path / "reproduce.html").read_text()
    fake.fails = {"runs/4.1c/seed0"}
    assert run(*common, "--seeds", 1, "--only", "4.1c", "SOLVER.MAX_ITER", 7) == 2
    assert "1 runs failed" in capsys.readouterr().err
    assert run(*common, "--seeds", 0) == 2
    assert run(*common, "--only", "nope") == 2
