"""Balance, averaged weights, waiting gradients, the stop at bad losses and skipped images under both engines."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ENGINES

from scenekd import checkpoint
from scenekd.async_updates import _sum_over_processes
from scenekd.data.mapper import Mapper
from scenekd.engines.select import launch
from scenekd.engines.session import evaluate_once, train_once
from scenekd.errors import UserError
from scenekd.losses.balance import GradNormBalance
from scenekd.losses.reduce import alone, mean_over_processes
from scenekd.recorder import read_metrics
from scenekd.sample import SourceWeights

OPTIONS = {
    "uncertainty": ("MODEL.BLITZNET.BALANCE", "uncertainty"),
    "gradnorm, ema": ("MODEL.BLITZNET.BALANCE", "gradnorm", "SOLVER.EMA.ENABLED", True),
    "async": (
        "SOLVER.ASYNC_UPDATES.ENABLED",
        True,
        "SOLVER.ASYNC_UPDATES.TASK_IMAGES",
        "(('segmentation', 5),)",
    ),
    "bfloat16": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"),
}
SHORT = ("SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", "(4,)", "DATASETS.TEST", "()")


def _state(cfg, name=checkpoint.LAST):
    return checkpoint.read(f"{cfg.OUTPUT_DIR}/{name}")


def _steps(cfg):
    lines = [line for line in read_metrics(f"{cfg.OUTPUT_DIR}/metrics.json") if "total_loss" in line]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


def _assert_equal(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance, msg=name)


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_computes_the_same_losses_roughly(engine, tiny_config):
    """One step from the same weights on the same images: bfloat16 keeps 8 bits, so a relative error of 2^−8 in each
    product; averaged over a batch it stays within a few percent, and is not zero."""
    losses = []
    for enabled in (False, True):
        cfg = tiny_config(f"{engine}_{enabled}", *SHORT, *OPTIONS["bfloat16"], "SOLVER.AMP.ENABLED", enabled)
        train_once(0, 0, 1, cfg, engine)
        losses.append(_steps(cfg)[0])
    for name in ("loss_seg", "loss_cls", "loss_box"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=0.05)
        assert losses[0][name] != losses[1][name]


@pytest.mark.parametrize("name", OPTIONS)
def test_engines_agree_and_resume_to_the_bit(name, tiny_config, train_until):
    """A run cut off after step 5 of 6 is resumed from step 4."""
    options, whole = OPTIONS[name], {}
    for engine in ENGINES:
        cfg = whole[engine] = tiny_config(f"{engine}_whole", *SHORT, *options)
        train_once(0, 0, 1, cfg, engine)
        again = tiny_config(f"{engine}_cut", *SHORT, *options)
        train_until(again, engine, 4)
        train_once(0, 0, 1, again, engine, resume=True)
        for key in ("model", "ema"):
            _assert_equal(_state(cfg)[key], _state(again)[key], atol=0, rtol=0)
        final, final_again = (_state(c, checkpoint.MODEL_FINAL)["model"] for c in (cfg, again))
        _assert_equal(final, final_again, atol=0, rtol=0)
        waiting, waiting_again = (_state(c)["async_updates"] for c in (cfg, again))
        assert waiting.get("waiting") == waiting_again.get("waiting")
        _assert_equal(waiting.get("kept", {}), waiting_again.get("kept", {}), atol=0, rtol=0)
        assert _steps(cfg) == _steps(again)
    first = whole[ENGINES[0]]
    _check_effect(name, first)
    for cfg in list(whole.values())[1:]:
        for a, b in zip(_steps(first), _steps(cfg)):
            assert a == pytest.approx(b, abs=1e-5)
        for key in ("model", "ema"):
            _assert_equal(_state(first)[key], _state(cfg)[key], atol=1e-4, rtol=0)


def _check_effect(name, cfg):
    """The option has done something, and a step logs the weights it used."""
    state, last = _state(cfg), _steps(cfg)[-1]
    if name == "async":
        # Half of the images have masks: after six steps of four images some wait, or a multiple of 5 has passed.
        assert state["async_updates"]["waiting"]["shared"] == 0
        steps = [int(entry["step"]) for entry in state["optimizer"]["state"].values()]
        assert max(steps) == 6 and min(steps) < 6
        return
    if name == "bfloat16":  # weights and their moments stay in single precision
        kept = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
        assert {value.dtype for value in kept} == {torch.float32}
        assert all(v.dtype == torch.float32 for v in state["model"].values() if v.is_floating_point())
        return
    weights = {key.split("/")[1]: value for key, value in last.items() if key.startswith("balance/")}
    assert weights.keys() == {"loss_seg", "loss_cls", "loss_box"}
    assert len(set(weights.values())) == 3
    if name == "gradnorm, ema":
        assert sum(weights.values()) == pytest.approx(3, abs=1e-5)
        final = _state(cfg, "model_final.pth")["model"]
        averaged = [key for key in final if key in state["ema"]]
        assert all(torch.equal(final[key], state["ema"][key]) for key in averaged)
        assert any(not torch.equal(final[key], state["model"][key]) for key in averaged)
        assert final.keys() == state["model"].keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_averaged_weights_are_what_is_evaluated(engine, tiny_config):
    """The run's own numbers are those of model_final.pth, of last.pth evaluated, and of model_best.pth."""
    cfg = tiny_config(
        "run",
        *SHORT[:-2],
        "SOLVER.EMA.ENABLED",
        True,
        "SOLVER.EMA.WARMUP",
        3,
        "TEST.BEST_METRIC",
        "sem_seg/mIoU",
    )
    results = train_once(0, 0, 1, cfg, engine)
    for name in ("model_final.pth", "model_best.pth"):
        other = tiny_config(name, "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/{name}")
        assert evaluate_once(0, 0, 1, other, engine)["sem_seg"] == pytest.approx(
            results["sem_seg"], nan_ok=True
        )
    assert evaluate_once(0, 0, 1, cfg, engine, resume=True)["sem_seg"] == pytest.approx(
        results["sem_seg"], nan_ok=True
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_label_names_its_image(engine, tiny_config, monkeypatch):
    """One image's teacher says NaN: the segmentation loss of the batch is none, and of its images that one's alone."""
    mapped, chosen = Mapper.__call__, []

    def poison(self, index):
        image, target = mapped(self, index)
        if not chosen or chosen[0] == target.image_id:
            chosen[:] = [target.image_id]
            target.soft_seg = torch.full((11, 8, 8), math.nan)
            target.weights = SourceWeights.of({**target.weights, "segmentation": (1.0, 1.0)})
        return image, target

    monkeypatch.setattr(Mapper, "__call__", poison)
    with pytest.raises(UserError) as caught:
        train_once(0, 0, 1, tiny_config("bad", *SHORT), engine)
    message = str(caught.value)
    assert (
        f"loss_seg became nan at iteration 0 in image {chosen[0]}, where the network's outputs are" in message
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_gradient_names_its_parameter(engine, tiny_config, monkeypatch):
    def poison(self, net, args, losses):
        next(net.parameters()).register_hook(lambda gradient: gradient * math.nan)

    from scenekd.extras import Extras

    monkeypatch.setattr(Extras, "_after_forward", poison)
    off = ("SOLVER.CLIP_GRADIENTS.ENABLED", False, "SOLVER.CHECK_GRADIENTS", True)
    for options in ((), off):
        with pytest.raises(
            UserError, match=r"^the gradient of trunk\.\S+ became .* at iteration 0 in the batch"
        ):
            train_once(0, 0, 1, tiny_config("grad", *SHORT, *options), engine)


def _break(root: Path, *ids: str) -> None:
    for image_id in ids:
        (path,) = (root / "JPEGImages").glob(f"{image_id}.*")
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("engine", ENGINES)
def test_skipped_images_are_counted_once_over_workers(engine, tiny_config, scenes, tmp_path):
    """Two images are damaged; two workers each meet them, as six steps of four see all twelve images twice."""
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    _break(root, "train_000003", "train_000007")
    options = ("DATASETS.ROOT", root, "DATASETS.ON_ERROR", "skip", "DATALOADER.NUM_WORKERS", 2)
    cfg = tiny_config("skip", *SHORT[:-2], *options, "SOLVER.CHECKPOINT_PERIOD", 3)
    train_once(0, 0, 1, cfg, engine)
    meta = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())["meta"]
    assert meta["train"]["skipped"] == {"annotations": 0, "images": ["train_000003", "train_000007"]}
    assert meta["test"]["skipped"] == {"annotations": 0, "images": []}
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert log.count("voc_seg_train: 2 of 12 images were left out") == 1
    assert "voc_seg_val" not in log
    assert _state(cfg)["skipped"] == ["train_000003", "train_000007"]


def _in_two_processes(rank, local_rank, world_size, folder):
    # The sum of (1, 10) and (2, 20).
    assert _sum_over_processes([rank + 1, 10 * (rank + 1)], torch.device("cpu")) == [3, 30]
    with alone():
        assert mean_over_processes(torch.tensor(float(rank))).item() == rank
    # Gradients of a: 8 and 10, of b: 1 and 1; their means 9 and 1 lead to (.2, 1.8), in both processes alike.
    theta = torch.nn.Parameter(torch.ones(1))
    balance = GradNormBalance(("loss_a", "loss_b"), alpha=0.0, lr=0.01)
    balance.share([theta])
    for _ in range(400):
        balance({"loss_a": (8 + 2 * rank) * theta.sum(), "loss_b": theta.sum()})
    both = [torch.zeros(2), torch.zeros(2)]
    dist.all_gather(both, balance.weights)
    assert torch.equal(*both)
    assert both[0].tolist() == pytest.approx([0.2, 1.8], rel=0.03)
    (Path(folder) / str(rank)).touch()


@pytest.mark.slow
def test_counts_and_weights_over_two_processes(tmp_path):
    launch(_in_two_processes, (str(tmp_path),), num_gpus=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.slow
def test_a_run_of_two_processes(tiny_config, scenes, tmp_path):
    """GradNorm, averaged weights and skipped images together; each process meets its own half of the images."""
    root = tmp_path / "scenes"
    shutil.copytree(scenes, root)
    _break(root, "train_000003", "train_000007")
    options = (*OPTIONS["gradnorm, ema"], "DATASETS.ROOT", root, "DATASETS.ON_ERROR", "skip")
    cfg = tiny_config("two", *SHORT[:-2], *options)
    launch(train_once, (cfg, ENGINES[-1]), num_gpus=2)
    meta = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())["meta"]
    assert meta["train"]["skipped"]["images"] == ["train_000003", "train_000007"]
    assert _state(cfg)["model"]["criterion.balance.weights"].sum().item() == pytest.approx(3, abs=1e-5)
    assert _state(cfg)["ema"]
