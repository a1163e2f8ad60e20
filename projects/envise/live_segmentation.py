"""A video that a student segments and learns from its teacher, as a live task; see :class:`.live.LiveTask`.

H, W: size of a frame; K: dense classes, background first.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scenekd import checkpoint
from scenekd.data.images import SUFFIXES
from scenekd.data.records import Dataset
from scenekd.data.scenes_files import write_mask
from scenekd.drawing import blend_mask
from scenekd.errors import UserError
from scenekd.files import replacing

from .frame_learner import FrameAnswer, FrameLearner, class_map
from .frame_report import FrameReport
from .live import Status, share
from .phases import ANSWER, LEARN
from .saved import StateFiles, load_student
from .stream import Stream

_SHOWN = 10  # key frames over which the view tells the agreement


class LiveSegmentation:
    """A :class:`.frame_learner.FrameLearner` over a stream of whole frames.

    Args:
        folder: of its state and pictures. seed: held against a state's. classes: K names.
        truth: the data set whose images the frames are; their masks are for the report alone.
        judge: whether the teacher's answer to every labelled frame is part of that report, outside all times.
    """

    def __init__(
        self,
        learner: FrameLearner,
        stream: Stream,
        folder: str | Path,
        *,
        seed: int,
        classes: Sequence[str],
        truth: Dataset | None = None,
        judge: bool = True,
    ) -> None:
        self.learner, self.stream, self._folder = learner, stream, Path(folder)
        self._files = StateFiles(folder, _place)
        self._truth, self._judge, self._seed = truth, judge, seed
        self.report = FrameReport(classes)
        self._latest: FrameAnswer | None = None
        self._agreed = deque[float](maxlen=_SHOWN)

    @property
    def position(self) -> int:
        """See :class:`.live.LiveTask`."""
        return self.stream.position

    @property
    def phase(self) -> str:
        """LEARN while the student was too far from its teacher at the last key frame, else ANSWER."""
        return ANSWER if self.learner.key_frames.good else LEARN

    def resume(self) -> bool:
        """See :class:`.live.LiveTask`."""
        path = self._files.path
        if not path.is_file():
            return False
        state = self._files.read()
        if state["seed"] != self._seed:
            raise UserError(
                f"{path}: written with SEED {state['seed']}, not {self._seed}; set that to resume"
            )
        try:
            self.learner.load_state_dict(state)
            self.report.load_state_dict(state["report"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path}: the state of another configuration ({reason}); give another --output"
            ) from None
        self.stream.load_state_dict(state["stream"])
        return True

    def load_weights(self, path: str) -> None:
        """Begin with a student of an earlier run, see :func:`.saved.load_student`."""
        load_student(self.learner.student, path)

    def save(self, *, final: bool = False) -> None:
        """See :class:`.live.LiveTask`; at the end also the student, as ``model_final.pth``."""
        light = {
            "batches": self.report.frames,
            "seed": self._seed,
            "stream": self.stream.state_dict(),
            "report": self.report.state_dict(),
            **self.learner.light_state_dict(),
        }
        self._files.save(light, self.learner.state_dict)
        if final:
            student, config = self.learner.student, self.learner.student_config.dump()
            checkpoint.save_model(student, config, self._folder / checkpoint.MODEL_FINAL)

    def advance(self) -> list[dict[str, Any]] | None:
        """See :class:`.live.LiveTask`."""
        batch = self.stream.next_batch(1)
        if batch is None:
            return None
        frame, position = batch.images[0].permute(1, 2, 0).numpy(), int(batch.positions[0])
        answer = self.learner.process(frame, position)
        self._latest = answer
        self.report.add(answer)
        if answer.before is not None:
            self._agreed.append(answer.before)
        self._look_at_labels(frame, position, answer)
        self._draw(frame, batch.image_ids[0], answer)
        return [
            {
                "position": position,
                "image": batch.image_ids[0],
                "by": "teacher" if answer.asked else "student",
                "asked": answer.asked,
                "updates": answer.updates,
                "stride": answer.stride,
                "agreement": answer.before,
                "agreement_after": answer.after,
                "milliseconds": round(1000 * answer.seconds, 3),
            }
        ]

    def _look_at_labels(self, frame: np.ndarray, position: int, answer: FrameAnswer) -> None:
        """For the report alone."""
        if self._truth is None or not self._truth.records[position].has_sem_seg:
            return
        size = frame.shape[:2]
        label = self._truth.read_sem_seg(self._truth.records[position], (size[0], size[1]))
        mask = class_map(answer.logits[None], size)
        teacher = mask if answer.asked else self.learner.ask(frame, size)[1] if self._judge else None
        self.report.judge(mask, teacher, label)

    def _draw(self, frame: np.ndarray, name: str, answer: FrameAnswer) -> None:
        kind = self.learner.options.pictures
        if kind == "none":
            return
        stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
        mask = class_map(answer.logits[None], frame.shape[:2])
        if kind == "masks":
            with replacing(self._folder / "segmentation" / f"{stem}.png") as path:
                write_mask(path, mask)
        else:
            with replacing(self._folder / "overlay" / f"{stem}.jpg") as path:
                Image.fromarray(blend_mask(frame, mask)).save(path, format="JPEG", quality=90)

    def status(self) -> Status:
        """See :class:`.live.LiveTask`."""
        report, latest = self.report, self._latest
        asked = share(report.asked, report.frames)
        agreed = f"{100 * statistics.mean(self._agreed):.1f} %" if self._agreed else "–"
        ratio = report.time_ratio
        details = [
            ("to teacher", f"{asked} of the frames, stride {self.learner.key_frames.stride}"),
            ("agreement", f"mIoU {agreed} before updates, over the last {len(self._agreed)} key frames"),
            ("updates", str(report.updates)),
            ("time", "not yet" if ratio is None else f"{100 * ratio:.0f} % of the teacher alone"),
        ]
        if latest is not None:
            details.append(
                ("last", f"{'teacher' if latest.asked else 'student'}, {1000 * latest.seconds:.0f} ms")
            )
        return Status(report.frames, self.phase, tuple(details))

    def results(self) -> dict[str, dict[str, Any]]:
        """Numbers of the run by group, see :meth:`.frame_report.FrameReport.summary`."""
        return self.report.summary()


def _place(state: Mapping[str, Any]) -> list[int]:
    """While the student takes no step, weights and optimizer stay."""
    return [int(state["step"])]
