"""What blindnet adds to a run: cases with a hidden object, the lines to compare with, the curve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from scenekd.data.mapper import Mapper
from scenekd.data.records import Dataset
from scenekd.experiment import Experiment
from scenekd.files import write_bytes
from scenekd.hooks import Hooks, Results
from scenekd.report_panels import Picture

from . import data, transfer, transfer_data
from .hiding import hide_boxes
from .pictures import case_pictures
from .references import gap_covered, read_compared, reference_results, top_n_chart

CURVE = "top_n.png"


class BlindNetHooks(Hooks):
    """See the module."""

    def prepare_data(self, dataset: Dataset, cfg: CfgNode, *, train: bool) -> Dataset:
        if transfer.is_transfer(cfg):
            return transfer_data.prepare_data(dataset, cfg, train=train)
        return data.prepare_data(dataset, cfg, train=train)

    def build_mapper(self, dataset: Dataset, cfg: CfgNode, *, train: bool, **options: Any) -> Mapper:
        if transfer.is_transfer(cfg):
            return transfer_data.build_mapper(dataset, cfg, train=train, **options)
        return data.HidingMapper(dataset, cfg, train=train, **options)

    def begin(self, experiment: Experiment) -> None:
        """A linear probe takes its features, once of every training picture."""
        cfg = experiment.cfg
        if transfer.is_transfer(cfg) and cfg.MODEL.BLINDNET.FREEZE_TRUNK:
            net = experiment.net
            assert isinstance(net, transfer.TransferNet)
            mapper = Mapper(experiment.train_data, cfg, train=False)
            transfer_data.take_features(net, mapper, cfg.TEST.BATCH_SIZE)

    def hide_boxes(self, image: np.ndarray, boxes: np.ndarray, cfg: CfgNode) -> tuple[np.ndarray, np.ndarray]:
        return hide_boxes(image, boxes, cfg)

    def complete(self, experiment: Experiment, results: Results) -> dict[str, bytes]:
        """Score the class prior and, on drawn scenes, the oracle; draw the curve into ``OUTPUT_DIR/top_n.png``."""
        own = results.get("hidden_object")
        if own is None:
            return {}
        cfg = experiment.cfg
        own["pictures_left_out"] = len(experiment.test_images) - own["pictures"]
        compared = read_compared(cfg, len(own["top_n"]))
        shares = experiment.net.class_shares.cpu().numpy()  # type: ignore[operator]
        found = reference_results(experiment.test_data, shares, bootstrap=cfg.TEST.BOOTSTRAP, seed=cfg.SEED)
        results.update(found)
        if "oracle" in found:
            own["gap_covered"] = gap_covered(
                own["top1"], found["class_prior"]["top1"], found["oracle"]["top1"]
            )
        network = cfg.MODEL.BLINDNET.NETWORK
        shown = {name.replace("_", " "): found[name] for name in ("class_prior", "oracle") if name in found}
        curves = {network: own["top_n"], **compared, **{name: one["top_n"] for name, one in shown.items()}}
        chart = top_n_chart(curves)
        write_bytes(experiment.output_dir / CURVE, chart)
        return {"the true class among the first n, for every n": chart}

    def panels(self, experiment: Experiment, count: int) -> Iterable[Picture] | None:
        if transfer.is_transfer(experiment.cfg):
            return None
        mapper = self.build_mapper(experiment.test_data, experiment.cfg, train=False)
        return case_pictures(experiment.net, mapper, count)
