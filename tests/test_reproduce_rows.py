"""The table of kd_mtl's experiments: complete, true to the thesis, loadable under every preset, each trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_mtl.reproduce import STUDY
from scenekd.command_line import split_words
from scenekd.errors import UserError
from scenekd.report_tables import flatten_keys
from scenekd.study.presets import read_preset
from scenekd.study.rows import read_table
from scenekd.study.runs import Runs
from scenekd.study.spec import find_study
from scenekd.study.stages import Stages

PRESETS = ("paper", "pool", "scenes", "small", "smoke")
TABLE = read_table(STUDY.folder / "rows.yaml")

# The thesis's numbers: (mAP, mIoU) in percent, None where it gives none.
PUBLISHED = {
    "4.1a": (62.6, 60.2),
    "4.1b": (62.4, 52.3),
    "4.1c": (64.0, 63.4),
    "4.2d1": (61.0, 59.9),
    "4.2d2": (64.0, 63.4),
    "4.2d3": (41.4, 54.3),
    **{f"F14@{t:g}": (None, v) for t, v in zip(
        (0.25, 0.35, 0.4, 0.45, 0.5, 0.75, 1), (53.2, 51.2, 55.5, 51.2, 53.9, 51.6, 47.9))},
    **{f"F15@{x}": (None, v) for x, v in zip((0, 20, 50, 80, 100), (60.2, 55.3, 58.9, 58.0, 55.5))},
    **{f"F16@{x}": (v, None) for x, v in zip((0, 20, 50, 80, 100), (62.6, 63.1, 64.3, 65.1, 64.0))},
    "4.4a": (72.6, 64.6),
    "4.4b": (70.2, 64.4),
    "4.5a": (63.6, 55.0),
    "4.5b": (62.6, 60.2),
    "4.5c": (73.6, 62.9),
    "4.5d": (72.6, 64.6),
}  # fmt: skip
WISHED = {"trainval", "trainval_tutor", "sbd", "async", "filter"}


@pytest.fixture(params=PRESETS, scope="module")
def runs(request) -> Runs:
    """The study under each preset, with data that need not exist."""
    output = Path("nowhere")
    preset = read_preset(STUDY.folder, request.param, output=output, data="somewhere")
    return Runs(STUDY, TABLE, preset, output)


def _config(runs: Runs, name: str, **options):
    return runs.config(TABLE.row(name), 0, **options)


def test_published_numbers():
    """Every row of the thesis with exactly its numbers, and no number on a row that it does not have."""
    for row in TABLE.rows:
        expected = dict(zip(("mAP", "mIoU"), PUBLISHED.get(row.id, (None, None))))
        assert row.published == {key: value for key, value in expected.items() if value is not None}, row.id
    assert set(PUBLISHED) | WISHED <= {row.id for row in TABLE.rows}


def test_every_thesis_row_has_its_twin():
    """The corrected choice stands beside each row, compared with it, on the same data."""
    for name in PUBLISHED:
        series, at, x = name.partition("@")
        row, twin = TABLE.row(name), TABLE.row(f"{series}+{at}{x}")
        assert name in twin.compared
        assert (twin.group, twin.roles, twin.x) == (row.group, row.roles, row.x)


def test_every_row_loads(runs):
    """Every YAML, inherited and laid over, is a configuration, on the test set and apart from it."""
    for row in TABLE.rows:
        if not runs.preset.why_unavailable(row):
            cfg = runs.config(row, 3, "x")
            assert (3, str(runs.output / "x")) == (cfg.SEED, cfg.OUTPUT_DIR)
    for sweep in TABLE.sweeps:
        cfg, apart = (_config(runs, sweep.row, validation=v) for v in (False, True))
        assert not set(apart.DATASETS.TEST) & set(cfg.DATASETS.TEST)
        for key in sweep.grid:
            assert key in dict(flatten_keys(cfg)), key


def test_stages_are_configurations(runs):
    """What a preset prepares loads too, and names what the rows read."""
    stages = runs.preset.stages
    for name, stage in stages.items():
        if stage["kind"] in ("train", "cache"):
            row = TABLE.row("4.1a")
            cfg = runs.config(row, 0, name, keys=stage["keys"])
            assert cfg.DATASETS.TRAIN
    cfg = _config(runs, "4.1c")
    assert Path(cfg.TEACHER.DETECTION.CACHE).name in stages
    if cfg.TEACHER.DETECTION.TYPE == "scenekd":
        assert Path(cfg.TEACHER.DETECTION.WEIGHTS).parent.name in stages


def test_equal_settings_are_one_run(runs):
    """A fraction of 0 is ground truth, one of 1 the tutor alone: the thesis's own repetitions, and no others."""
    owners = {row.id: runs.owner(row) for row in TABLE.rows if not runs.preset.why_unavailable(row)}
    for name in ("F15@0", "F16@0", "4.5b"):
        assert owners[name] == "4.1a"
    for name in ("F15@100", "F14@0.4"):
        assert owners[name] == "4.1b"
    assert owners["F14+@1"] == "4.1b+"
    for name in ("4.2d2", "F16@100"):
        assert owners[name] == "4.1c"
    assert owners["4.5d"] == "4.4a"
    assert owners["F16+@100"] == "4.1c+"
    own = [
        "4.1a",
        "4.1b",
        "4.1c",
        "4.2d1",
        "4.2d3",
        "F14@0.5",
        "F15@50",
        "F16@50",
        "4.4a",
        "4.4b",
        "4.5a",
        "4.5c",
    ]
    for name in [*own, *(f"{n.replace('@', '+@')}" if "@" in n else f"{n}+" for n in own)]:
        assert owners[name] == name


def test_rows_of_a_preset_have_one_budget(runs):
    """No row may change steps, batch, rate, network or test set: the comparison would not be paired. A preset may give
    the questions about masks and about boxes a network of one task each."""
    free = (
        "DATASETS.TRAIN",
        "DATASETS.KEEP_",
        "DATASETS.REQUIRE_LABELS",
        "DISTILL.",
        "TEACHER.",
        "INPUT.ZOOM_OUT_",
        "SOLVER.ASYNC",
    )
    bases = {"masks": "qs.gt@80", "boxes": "qd.gt@80", "": "4.1a"}
    budgets = {role: dict(flatten_keys(_config(runs, name))) for role, name in bases.items()}
    for row in TABLE.rows:
        if runs.preset.why_unavailable(row):
            continue
        base = budgets[next((role for role in row.roles if role in budgets), "")]
        for key, value in flatten_keys(runs.config(row, 0)):
            assert key.startswith(free) or value == base[key], f"{row.id}: {key}"


def test_thesis_choices_and_their_corrections(runs):
    """As it was got: a coin a run, background borders, scores through a softmax, a split a batch."""
    cfg, twin = _config(runs, "F15@50"), _config(runs, "F15+@50")
    assert (cfg.INPUT.ZOOM_OUT_PER_RUN, cfg.INPUT.ZOOM_OUT_FILL_SEG) == (True, 0)
    assert (twin.INPUT.ZOOM_OUT_PER_RUN, twin.INPUT.ZOOM_OUT_FILL_SEG) == (False, 255)
    seg, better = cfg.DISTILL.SEGMENTATION, twin.DISTILL.SEGMENTATION
    assert (seg.POLICY, seg.FRACTION, seg.TARGET, seg.TEMPERATURE) == ("per_batch", 0.5, "scores", 0.4)
    assert (better.POLICY, better.FRACTION, better.TARGET) == ("fixed_subset", 0.5, "probabilities")
    assert (cfg.TEACHER.SEGMENTATION.BACKGROUND, twin.TEACHER.SEGMENTATION.BACKGROUND) == ("none", "explicit")
    unfiltered = _config(runs, "4.2d1")
    assert unfiltered.DISTILL.DETECTION.MIN_SCORE == unfiltered.TEACHER.DETECTION.MIN_SCORE == 0
    assert not _config(runs, "4.2d3").DISTILL.DETECTION.USE_CONFIDENCE


def test_selection():
    """Ids, series, groups and patterns; in the table's order, each once; unknown words are told."""
    assert [row.id for row in TABLE.select(["4.1c", "4.1a", "4.1a"])] == ["4.1a", "4.1c"]
    assert len(TABLE.select(["F14"])) == 7
    assert len(TABLE.select(["F14*"])) == 14
    thesis = {row.id for row in TABLE.select(["thesis"])}
    assert set(PUBLISHED) <= thesis and not thesis & WISHED
    assert {row.group for row in TABLE.select(["question"])} == {
        "question.segmentation",
        "question.detection",
    }
    with pytest.raises(UserError, match="--only 9.9: no such row"):
        TABLE.select(["9.9"])


def test_words_after_only():
    """Ids end where configuration keys begin."""
    words = ["4.1a", "F14", "SOLVER.MAX_ITER", "5", "SEED", "1"]
    assert split_words(words, "kd_mtl") == (["4.1a", "F14"], ["SOLVER.MAX_ITER", "5", "SEED", "1"])
    assert split_words(["4.1a"], "kd_mtl") == (["4.1a"], [])


def test_study_of_a_system():
    """A system is asked by name, from the closed list."""
    assert find_study("kd_mtl") is STUDY
    with pytest.raises(UserError, match="unknown system 'os'"):
        find_study("os")


_ROWS = "groups: {g: G}\nrows:\n- {id: a, title: A, group: g, file: a.yaml}\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("- {id: a, title: B, group: g, file: b.yaml}", "two rows are called a"),
        ("- {id: b, title: B, group: h, file: b.yaml}", "row b: no group 'h'"),
        ("- {id: b, title: B, group: g, file: b.yaml, compared: c}", "row b: no row 'c'"),
        ("- {id: b, title: B, group: g, fiel: b.yaml}", "row b: unknown field 'fiel'"),
        ("- {id: b, title: B, group: g}", "KeyError: 'file'"),
        ("- {id: b, title: B, group: g, file: b.yaml, kind: odd}", "kind 'odd' is none of"),
        ("sweeps: [{row: z, metric: m, grid: {}}]", "no row 'z'"),
        ("figures: [{title: T, kind: points, series: [z], metrics: [m]}]", "figure 'T': no row 'z'"),
        ("pairs: [{title: T, before: z, after: z}]", "no row 'z'"),
        ("- {id: b", "not valid YAML"),
    ],
)
def test_faulty_tables(tmp_path, more, message):
    """What is wrong with a table is told in one line with its file."""
    path = tmp_path / "rows.yaml"
    path.write_text(_ROWS + more)
    with pytest.raises(UserError, match="rows.yaml: ") as caught:
        read_table(path)
    assert message in str(caught.value)


def test_faulty_presets(tmp_path, monkeypatch):
    """An unknown preset, field or role, and data that nobody named."""
    with pytest.raises(UserError, match="--preset huge: there are paper, pool, scenes, small, smoke"):
        read_preset(STUDY.folder, "huge", output=tmp_path)
    monkeypatch.delenv("SCENEKD_TEST_DATA", raising=False)
    with pytest.raises(UserError, match="give --data DIR, or set \\$SCENEKD_TEST_DATA"):
        read_preset(STUDY.folder, "small", output=tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "odd.yaml").write_text("COMON: {}")
    with pytest.raises(UserError, match="unknown field 'COMON'"):
        read_preset(tmp_path, "odd", output=tmp_path)
    (tmp_path / "presets" / "own.yaml").write_text("BASE: own")
    with pytest.raises(UserError, match="BASE names the preset itself"):
        read_preset(tmp_path, "own", output=tmp_path)
    smoke = read_preset(STUDY.folder, "smoke", output=tmp_path)
    scenes = read_preset(STUDY.folder, "scenes", output=tmp_path)
    assert scenes.common["SOLVER"] == {**smoke.common["SOLVER"], **scenes.common["SOLVER"]}
    assert scenes.common["INPUT"] == smoke.common["INPUT"]
    with pytest.raises(UserError, match="ROLES has no 'x'"):
        smoke.overlays(["x"])
    with pytest.raises(UserError, match="no validation split"):
        smoke.overlays(["dense"], validation=True)


def test_a_series_without_such_a_point_is_not_compared_with(tmp_path):
    """a has 1 and 2, b has 1 alone; a series that does not exist is still refused."""
    text = """groups: {g: ""}
rows:
- {id: b, title: "", group: g, file: f.yaml, vary: KEY, points: [{x: 1}]}
- {id: a, title: "", group: g, file: f.yaml, compared: ["NAME@{x}"], vary: KEY, points: [{x: 1}, {x: 2}]}
"""
    path = tmp_path / "rows.yaml"
    path.write_text(text.replace("NAME", "b"))
    table = read_table(path)
    assert [table.row(name).compared for name in ("a@1", "a@2")] == [("b@1",), ()]
    path.write_text(text.replace("NAME", "c"))
    with pytest.raises(UserError, match="row a@1: no row 'c@1'"):
        read_table(path)


def test_the_scenes_network_is_of_another_system(runs):
    """It learns from the teachers' pictures, its keys are blindnet's own, and the cache it speaks in is its row's."""
    row = TABLE.row("qd.context@80")
    if runs.preset.why_unavailable(row):
        return
    cfg, stages = runs.config(row, 0), runs.preset.stages
    context = Stages(runs, engine="auto", jobs=1)._run("context", stages["context"]).cfg
    assert context.SYSTEM == "blindnet" and "BLITZNET" not in context.MODEL
    assert str(Path(context.OUTPUT_DIR) / "model_final.pth") == cfg.TEACHER.CONTEXT.WEIGHTS
    assert not set(context.DATASETS.TRAIN) & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    cached = Stages(runs, engine="auto", jobs=1)._run("cache_context", stages["cache_context"]).cfg
    assert cached.TEACHER == cfg.TEACHER and stages["cache_context"]["role"] in row.roles
    assert _config(runs, "qd.both@80").TEACHER.DETECTION.CACHE != cfg.TEACHER.DETECTION.CACHE
