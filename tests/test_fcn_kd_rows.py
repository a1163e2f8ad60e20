"""The table of fcn_kd's experiments: true to the paper, loadable under every preset, fair to every loss."""

from __future__ import annotations

import itertools

import pytest

from fcn_kd.reproduce import STUDY
from scenekd.losses.distillation_options import KINDS
from scenekd.report_tables import flatten_keys
from scenekd.study.presets import read_preset
from scenekd.study.rows import read_table, read_yaml
from scenekd.study.runs import Runs
from scenekd.study.same_time import FOLDER
from scenekd.study.sweep import settings

TABLE = read_table(STUDY.folder / "rows.yaml")
PUBLISHED = {
    "c.teacher": {"accuracy": 95},
    "c.kd": {"accuracy": 80},
    "v.teacher": {"mIoU": 63.7},
    "v.kd": {"mIoU": 57.9},
    "v.kd.decay": {"mIoU": 54.2},
    "v.kd.momentum": {"mIoU": 54.2},
    "v.kd40": {"mIoU": 61.4},
}


@pytest.fixture(params=("paper", "small", "smoke"), scope="module")
def runs(request, tmp_path_factory) -> Runs:
    """The study under each preset, with data that need not exist; a step of the other row is thrice as dear."""
    output = tmp_path_factory.mktemp(request.param)
    (output / FOLDER).mkdir()
    for row in TABLE.rows:
        if row.same_time:
            other, like = row.same_time
            costs = f"as_long_as: {{row: {other}, seconds: 0.3, steps: 60}}\n"
            (output / FOLDER / f"{like}_as_long_as_{other}.yaml").write_text(
                costs + f"a_step_of: {{row: {like}, seconds: 0.1, steps: 60}}\n"
            )
    preset = read_preset(STUDY.folder, request.param, output=output, data="somewhere")
    return Runs(STUDY, TABLE, preset, output)


def _config(runs: Runs, name: str, **options):
    return runs.config(TABLE.row(name), 0, **options)


def test_the_main_pair_differs_in_the_teacher_alone(runs):
    """What the page sets side by side: one network, one schedule, one seed."""
    (pair,) = TABLE.pairs
    assert (pair.before, pair.after, pair.teacher) == ("v.none", "v.kd", "v.teacher")
    before, after = (dict(flatten_keys(_config(runs, name))) for name in (pair.before, pair.after))
    different = {key for key in before if before[key] != after[key]}
    assert different and all(key.startswith(("DISTILL.", "TEACHER.")) for key in different), different


def test_published_numbers():
    """Exactly the paper's numbers, in the units of their row's task."""
    assert {row.id: dict(row.published) for row in TABLE.rows if row.published} == PUBLISHED


def test_every_row_loads(runs):
    """On the test set, and where settings are chosen apart from it; the teacher's overlap is nowhere allowed but in
    the row that shows it."""
    for row in TABLE.rows:
        cfg = runs.config(row, 3, "x")
        assert (3, str(runs.output / "x")) == (cfg.SEED, cfg.OUTPUT_DIR)
        assert row.id == "v.leak" or not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)
        assert (row.id == "v.leak") == cfg.DATASETS.ALLOW_OVERLAP
    for sweep in TABLE.sweeps:
        test = set(_config(runs, sweep.row).DATASETS.TEST)
        for setting in settings(sweep, TABLE):
            cfg = runs.config(setting.row, 0, validation=True)
            apart = cfg.DATASETS
            assert not set(apart.TEST) & (test | set(apart.TRAIN))
            # The teacher of the small preset has learnt from all training images, and a network says so.
            knows = runs.preset.name == "small" and cfg.DISTILL.TEACHER == "online"
            assert knows == apart.ALLOW_OVERLAP


def test_stages_make_what_the_rows_read(runs):
    """The teacher that a stage trains is the one that is scored and asked; it starts from nothing."""
    for task, name in (("CLASSIFICATION", "c"), ("SEGMENTATION", "v")):
        asked = _config(runs, f"{name}.kd").TEACHER[task].WEIGHTS
        stage = asked.split("/")[-2] if "stages" in asked else ""
        assert not stage or asked == _config(runs, f"{name}.teacher").MODEL.WEIGHTS
        if stage:
            entry = runs.preset.stages[stage]
            assert entry["keys"].get("MODEL", {"WEIGHTS": ""})["WEIGHTS"] == ""
            assert entry["role"] in TABLE.row(f"{name}.kd").roles


def test_equal_settings_are_one_run(runs):
    """No teacher's word is plain training, whatever teacher would have been asked; no others coincide."""
    owners = {row.id: runs.owner(row) for row in TABLE.rows}
    none = {name for name, owner in owners.items() if owner == "v.none"}
    assert none == {"v.none", "m.none", "t.none", "b8.none", "g.T1@0", "g.T4@0", "g.T20@0"}
    assert {name for name, owner in owners.items() if owner == "v.kd"} == {
        *("v.kd", "g.T20@0.9", "b8.kd", "m.hinton")
    }
    assert sum(name == owner for name, owner in owners.items()) == len(owners) - 6 - 3


def test_rows_differ_in_what_they_state(runs):
    """Each comparison of a student with its twin without a teacher is at one budget."""
    free = ("DISTILL.", "TEACHER.")
    for pair in (("v.kd", "v.none"), ("v.kd40", "v.none40"), ("b16.kd", "b16.none"), ("b32.kd", "b32.none"),
                 ("c.kd", "c.none"), *((f"m.{kind}", "m.none") for kind in KINDS)):  # fmt: skip
        one, other = (dict(flatten_keys(_config(runs, name))) for name in pair)
        assert {key for key in one if one[key] != other[key] and not key.startswith(free)} == set(), pair


def test_steps_follow_from_costs(runs):
    """Steps of .3 s there and of .1 s here: thrice as many. Batches of twice and four times, the same images."""
    steps = _config(runs, "v.none").SOLVER.MAX_ITER
    assert 3 * steps == _config(runs, "v.time").SOLVER.MAX_ITER
    assert 2 * steps == _config(runs, "v.kd40").SOLVER.MAX_ITER
    base = _config(runs, "b8.kd").SOLVER
    for name, factor in (("b16.kd", 2), ("b32.kd", 4)):
        solver = _config(runs, name).SOLVER
        assert solver.MAX_ITER * solver.IMS_PER_BATCH == base.MAX_ITER * base.IMS_PER_BATCH
        assert pytest.approx(factor * base.BASE_LR) == solver.BASE_LR


def test_every_loss_has_the_same_chances():
    """Each TYPE is a row of either budget, and is given as many settings as no distillation is, of the same rates."""
    names = {"none", *KINDS}
    for group, letter in (("methods.steps", "m"), ("methods.time", "t")):
        assert {row.id for row in TABLE.rows if row.group == group} == {f"{letter}.{name}" for name in names}
    assert {sweep.row for sweep in TABLE.sweeps} == {f"t.{name}" for name in names}
    assert {len(settings(sweep, TABLE)) for sweep in TABLE.sweeps} == {4}
    assert len({tuple(sweep.grid["SOLVER.BASE_LR *"]) for sweep in TABLE.sweeps}) == 1


def test_losses_are_of_the_type_that_their_row_is_named_after(runs):
    """One entry each, also where a preset names its layers."""
    for kind in KINDS:
        for name in (f"m.{kind}", f"t.{kind}"):
            assert [entry["TYPE"] for entry in _config(runs, name).DISTILL.LOSSES] == [kind]


def test_files_state_only_what_differs():
    """A file of the experiments repeats no key of its base, nor a preset's role one of COMMON."""
    for path in STUDY.folder.glob("*.yaml"):
        if path.name == "rows.yaml":
            continue
        own = read_yaml(path)
        base = read_yaml(path.parent / own.pop("_BASE_"))
        shared = dict(_leaves(own)).items() & dict(_leaves(base)).items()
        assert not shared, path
    for path in (STUDY.folder / "presets").glob("*.yaml"):
        preset = read_yaml(path)
        common = dict(_leaves(preset["COMMON"]))
        for role in preset["ROLES"].values():
            assert not dict(_leaves(role)).items() & common.items(), path


def _leaves(node, prefix=""):
    parts = [
        _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", repr(value))]
        for key, value in node.items()
    ]
    return list(itertools.chain.from_iterable(parts))
