"""What one source says about one image, as the pictures show it; shapes as in :mod:`.drawing`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sample import Prediction


@dataclass
class View:
    """What one source (ground truth, a teacher, a student) says about an image; None: nothing of that task.

    Attributes:
        name: of the source.
        boxes (N, 4), labels (N,), scores (N,): ``scores`` is None for ground truth.
        sem_seg: (H, W) uint8 class indices.
        masks: (N, H, W) bool of the boxes; all False for a box without one.
        class_label: of the whole image. probability: of it; None for ground truth.
    """

    name: str
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    sem_seg: np.ndarray | None = None
    masks: np.ndarray | None = None
    class_label: int | None = None
    probability: float | None = None

    @classmethod
    def of_prediction(cls, name: str, prediction: Prediction) -> View:
        """From a prediction at the image's own size."""
        boxes, labels, scores = (
            None if value is None else value.detach().float().cpu().numpy()
            for value in (prediction.boxes, prediction.labels, prediction.scores)
        )
        labels = None if labels is None else labels.astype(np.int64)
        logits = prediction.sem_seg
        mask = None if logits is None else logits.argmax(0).to("cpu").numpy().astype(np.uint8)
        objects = None if prediction.masks is None else prediction.masks.cpu().numpy()
        view = cls(name, boxes, labels, scores, mask, objects)
        if prediction.class_scores is not None:
            probabilities = prediction.class_scores.detach().float().softmax(0)
            view.class_label, view.probability = int(probabilities.argmax()), float(probabilities.max())
        return view
