"""What ``ONLINE`` says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from scenekd.errors import UserError

_AT_LEAST_ONE = (
    "batch_size",
    "answer_batch_size",
    "updates",
    "window",
    "windows",
    "calibration",
    "audit_window",
    "gate_window",
)
_AT_LEAST_ZERO = ("ce_weight", "kd_weight", "replay_size", "replay_batch")
_SHARES = (
    "agreement",
    "inlier_min_share",
    "audit_share",
    "audit_agreement",
    "gate_share",
    "max_disagreement",
)


@dataclass(frozen=True)
class OnlineOptions:
    """The keys of ``ONLINE`` in small letters; their meaning stands beside their defaults in :mod:`.config`."""

    batch_size: int
    answer_batch_size: int
    updates: int
    ce_weight: float
    kd_weight: float
    kd_temperature: float
    replay_size: int
    replay_batch: int
    agreement: float
    window: int
    windows: int
    calibration: int
    tpr: float
    max_disagreement: float
    hand_on_rare: bool
    inlier_min_share: float
    threshold: tuple[float, ...]
    audit_share: float
    audit_window: int
    audit_agreement: float
    gate_share: float
    gate_window: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> OnlineOptions:
        """From a configuration.

        Raises:
            UserError: a value out of its range.
        """
        node = cfg.ONLINE
        values: dict[str, Any] = {
            "batch_size": node.BATCH_SIZE,
            "answer_batch_size": node.ANSWER_BATCH_SIZE or node.BATCH_SIZE,
            "updates": node.UPDATES,
            "ce_weight": node.CE_WEIGHT,
            "kd_weight": node.KD_WEIGHT,
            "kd_temperature": node.KD_TEMPERATURE,
            "replay_size": node.REPLAY_SIZE,
            "replay_batch": node.REPLAY_BATCH,
            "agreement": node.AGREEMENT,
            "window": node.WINDOW,
            "windows": node.WINDOWS,
            "calibration": node.CALIBRATION,
            "tpr": node.TPR,
            "max_disagreement": node.MAX_DISAGREEMENT,
            "hand_on_rare": node.HAND_ON_RARE,
            "inlier_min_share": node.INLIER_MIN_SHARE,
            "threshold": node.THRESHOLD,
            "audit_share": node.AUDIT_SHARE,
            "audit_window": node.AUDIT_WINDOW,
            "audit_agreement": node.AUDIT_AGREEMENT,
            "gate_share": node.GATE_SHARE,
            "gate_window": node.GATE_WINDOW,
        }
        for names, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
            for name in names:
                if not values[name] >= least:
                    raise UserError(f"ONLINE.{name.upper()}: {values[name]} must be at least {least}")
        if values["batch_size"] == 1 and not (values["replay_size"] and values["replay_batch"]):
            raise UserError(
                "ONLINE.BATCH_SIZE: 1 without replayed samples gives no batch statistics; raise it, or REPLAY_BATCH"
            )
        for name in _SHARES:
            if not 0 <= values[name] <= 1:
                raise UserError(f"ONLINE.{name.upper()}: {values[name]} is no share between 0 and 1")
        if not 0 < values["tpr"] < 1:
            raise UserError(
                f"ONLINE.TPR: {values['tpr']} must lie between 0 and 1: at 1 no sample is unfamiliar"
            )
        if not values["kd_temperature"] > 0:
            raise UserError(f"ONLINE.KD_TEMPERATURE: {values['kd_temperature']} must be above 0")
        if not values["ce_weight"] + values["kd_weight"]:
            raise UserError("ONLINE: CE_WEIGHT and KD_WEIGHT are both 0; the student would learn nothing")
        try:
            values["threshold"] = tuple(float(value) for value in values["threshold"])
        except (TypeError, ValueError):
            raise UserError(f"ONLINE.THRESHOLD: {node.THRESHOLD!r} is no (value,); () fits one") from None
        if len(values["threshold"]) > 1:
            raise UserError(f"ONLINE.THRESHOLD: {node.THRESHOLD} holds several; give one, or () to fit one")
        return cls(**values)
