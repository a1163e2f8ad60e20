"""The metric of hidden objects for MMEngine's own configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..errors import UserError
from ..evaluation.hidden_pictures import HiddenPictures
from ..results import flatten
from .mmengine_data import image_id_of

_BACKGROUND = "background"


@METRICS.register_module()
class SceneKDHiddenObjectMetric(BaseMetric):
    """How high SceneKDMaskedContext ranks the true class of every object that it hides, see
    :mod:`scenekd.evaluation.hidden_objects`; cases are keyed by image and object, so nothing is padded or truncated.

    Args:
        classes: C names; by default those of the data set, without background.
        bootstrap: resamples of the images for 95 % intervals, which stay in ``latest``; 0: none. seed: of them.
    """

    # Not used, as evaluate() names its numbers itself; MMEngine warns where there is none.
    default_prefix = "hidden_object"

    def __init__(self, classes: Sequence[str] = (), *, bootstrap: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.classes, self.bootstrap, self.seed = tuple(classes), bootstrap, seed
        self.latest: dict[str, dict[str, Any]] = {}
        self._pictures: HiddenPictures | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Record all that was hidden in each image."""
        for sample in data_samples:
            self._found().add(image_id_of(sample), sample.get("hidden_objects"))

    def _found(self) -> HiddenPictures:
        if self._pictures is None:
            names = self.classes or (self.dataset_meta or {}).get("classes", ())
            names = tuple(name for name in names if name != _BACKGROUND)
            if not names:
                raise UserError(
                    "SceneKDHiddenObjectMetric: the data set names no classes; give classes=(...)"
                )
            self._pictures = HiddenPictures(names, bootstrap=self.bootstrap, seed=self.seed)
        return self._pictures

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Not used: :meth:`evaluate` merges over processes by image."""
        raise RuntimeError("SceneKDHiddenObjectMetric merges by image; call evaluate")

    def evaluate(self, size: int) -> dict[str, Any]:
        """Merge over processes and summarise; all of it stays in ``latest``."""
        found = self._found()
        found.merge(all_gather_object(found.state()))
        self.latest = found.summarize()
        found.reset()
        return dict(flatten(self.latest))
