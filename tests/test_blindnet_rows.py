"""The table of blindnet's experiments: complete, loadable under every preset, each row apart from its test set."""

from __future__ import annotations

import pytest

from blindnet.model import NETWORKS
from blindnet.reproduce import STUDY
from scenekd.report_tables import flatten_keys
from scenekd.study.presets import read_preset
from scenekd.study.rows import read_table
from scenekd.study.runs import Runs
from scenekd.study.sweep import settings

TABLE = read_table(STUDY.folder / "rows.yaml")
NODE = "MODEL.BLINDNET"
BUDGET = {"full", "prior", "transfer", "blitznet"}  # roles that may change steps and rate


@pytest.fixture(params=("paper", "scenes", "small", "smoke"), scope="module")
def runs(request, tmp_path_factory) -> Runs:
    """The study under each preset, with data that need not exist."""
    output = tmp_path_factory.mktemp(request.param)
    preset = read_preset(STUDY.folder, request.param, output=output, data="somewhere")
    return Runs(STUDY, TABLE, preset, output)


@pytest.fixture(scope="module")
def configs(runs):
    """Row id → configuration, of the rows that the preset has."""
    return {row.id: runs.config(row, 3, "x") for row in TABLE.rows if not runs.preset.why_unavailable(row)}


def test_every_row_loads(runs, configs):
    """On the test set; the rows of one preset have one budget, but for those that are about another."""
    budgets = set()
    for name, cfg in configs.items():
        row = TABLE.row(name)
        assert (3, str(runs.output / "x")) == (cfg.SEED, cfg.OUTPUT_DIR)
        assert not set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)
        if runs.preset.name != "paper" and not BUDGET & set(row.roles):
            solver = cfg.SOLVER
            budgets.add((solver.MAX_ITER, solver.IMS_PER_BATCH, solver.BASE_LR, solver.OPTIMIZER))
    assert runs.preset.name == "paper" or len(budgets) == 1


def test_paper_settings_stay(configs):
    """What the paper says of its experiments reaches the rows through every preset."""
    unet, pixel, full, scene = (configs[name] for name in ("3.1", "3.3", "3.3.full", "3.4"))
    assert (unet.MODEL.BLINDNET.MASK_WEIGHT, unet.MODEL.BLINDNET.UPSAMPLING) == (5, "bilinear")
    assert configs["3.1.even"].MODEL.BLINDNET.MASK_WEIGHT == 1
    assert configs["3.1t"].MODEL.BLINDNET.UPSAMPLING == "transposed"
    assert unet.MODEL.BLINDNET.AUGMENT.LETTERBOX and unet.MODEL.BLINDNET.AUGMENT.ROTATE_PROB == 0.2
    # A longest side of 422 for a crop of 384, at the preset's size.
    assert unet.INPUT.SHORT_SIDE[0] == unet.INPUT.SIZE * 422 // 384
    for cfg in (pixel, scene):
        assert cfg.INPUT.SIZE == 64 and cfg.MODEL.BLINDNET.AUGMENT.GRAY and cfg.INPUT.CROP_PROB == 1
    assert full.SOLVER.BASE_LR < pixel.SOLVER.BASE_LR and full.SOLVER.MAX_ITER > pixel.SOLVER.MAX_ITER
    assert not full.MODEL.BLINDNET.AUGMENT.GRAY and full.INPUT.SIZE >= pixel.INPUT.SIZE
    assert configs["3.4.weights"].MODEL.BLINDNET.CLASS_WEIGHTS == "pixels"
    assert configs["permuted"].MODEL.BLINDNET.PERMUTE_TARGETS
    assert 0 < configs["m.partial"].MODEL.BLINDNET.MASK.PARTIAL_ITERS < configs["m.partial"].SOLVER.MAX_ITER


def test_no_published_numbers():
    """The paper prints none of its results: a row with one would be invented."""
    assert not any(row.published for row in TABLE.rows)


def test_every_network_has_a_row(configs):
    """All that can be trained is in the table, each comparison at one seed and set of keys."""
    own = [cfg for cfg in configs.values() if cfg.SYSTEM == "blindnet"]
    assert {cfg.MODEL.BLINDNET.NETWORK for cfg in own} == {*NETWORKS, "transfer"}


def test_stages_make_what_the_rows_read(runs, configs):
    """A trunk that rows start from is that of a stage, trained on pictures that they do not learn from."""
    for name, role in (("t.probe.context@10", "context_trunk"), ("t.fine.supervised@1", "supervised_trunk")):
        source = configs[name].MODEL.BLINDNET.PRETRAINED
        stage = source.split("/")[-2]
        assert source == f"{runs.output}/stages/{stage}/model_final.pth"
        entry = runs.preset.stages[stage]
        assert entry["role"] == role and role in TABLE.row(name).roles
        trunk = runs.config(TABLE.row("context"), 0, f"stages/{stage}", keys=entry.get("keys", {}))
        assert not set(trunk.DATASETS.TRAIN) & set(configs[name].DATASETS.TRAIN)
        assert ("transfer" if role == "supervised_trunk" else "context") == trunk.MODEL.BLINDNET.NETWORK
        for key in ("TRUNK", "TRUNK_WIDTH", "NORM", "OUTPUT_STRIDE"):
            assert trunk.MODEL.BLINDNET[key] == configs[name].MODEL.BLINDNET[key]


def test_blitznets_trunks_fit(runs, configs):
    """Of the trunks that BlitzNet begins with the norms and the width are its own, and the pictures others."""
    rows = [name for name in configs if name.startswith("t.blitznet.") and "random" not in name]
    assert len(rows) == (6 if runs.preset.name in ("scenes", "smoke") else 0)
    for name in rows:
        net = configs[name].MODEL.BLITZNET
        stage = runs.preset.stages[net.PRETRAINED.split("/")[-2]]
        assert stage["role"] in TABLE.row(name).roles
        trunk = runs.config(TABLE.row("context"), 0, "x", keys=stage["keys"])
        for key in ("TRUNK", "TRUNK_WIDTH", "NORM"):
            assert trunk.MODEL.BLINDNET[key] == net[key]
        assert not set(trunk.DATASETS.TRAIN) & set(configs[name].DATASETS.TRAIN)


def test_equal_settings_are_one_run(runs, configs):
    """The default cap is the row without one; where trunks begin at random there is no row that says so."""
    owners = {name: runs.owner(TABLE.row(name)) for name in configs}
    shared = {name: owner for name, owner in owners.items() if name != owner}
    assert shared == {"m.cap@50": "context", "m.cap.hole@50": "mask_only"}
    drawn = runs.config(TABLE.row("context"), 0, keys={"MODEL": {"BLINDNET": {"COMPARE": [["a", "b"]]}}})
    assert runs.settings(drawn) == runs.settings(runs.config(TABLE.row("context"), 0))


def test_sweeps_choose_apart_from_the_test_set(runs):
    """Rates and class weights, as the paper searched them, on pictures that are neither learnt from nor tested on."""
    for sweep in TABLE.sweeps:
        test = set(runs.config(TABLE.row(sweep.row), 0).DATASETS.TEST)
        points = settings(sweep, TABLE)
        assert len(points) == 6
        apart = [runs.config(point.row, 0, validation=True) for point in points]
        for cfg in apart:
            assert not set(cfg.DATASETS.TEST) & (test | set(cfg.DATASETS.TRAIN))
        keys = [dict(flatten_keys(cfg)) for cfg in apart]
        differ = {key for key in keys[0] if len({repr(one[key]) for one in keys}) > 1}
        assert differ == {"SOLVER.BASE_LR", f"{NODE}.CLASS_WEIGHTS"}
