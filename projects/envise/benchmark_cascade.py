"""Wall time of the deployed cascade against its teacher alone on the same stream, and of a step with the attention
triplet loss against one without, on one thread.

Student and teacher are not trained, for time does not depend on weights: the threshold is set so that the gate hands on
what it would with every outlier unfamiliar and the default ``ONLINE.TPR`` of the inliers familiar. How right such a
cascade is, a study tells; the suite ``deployed`` times one as it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode

from scenekd import checkpoint
from scenekd.benchmark.measure import Row, interleave
from scenekd.benchmark.options import Options, worker_threads
from scenekd.config import build_config, get_cfg
from scenekd.losses.attention_maps import last_linear, look_of
from scenekd.losses.attention_triplet import AttentionTripletLoss
from scenekd.models import build_model
from scenekd.nets.packed_native import library
from scenekd.registry import register

from .online import OnlineDistiller
from .phases import ANSWER
from .step import ExtraLoss, StepView
from .stream import StreamBatch
from .students import build_student
from .teachers import StreamTeacher, build_stream_teacher

NAME = "cascade"
CLASSES = tuple(f"class{k}" for k in range(100))
OUTLIER_SHARE = 0.1
_CASES = (  # student, teacher, side, batch
    ("bireal_resnet20", "cifar_resnet56", 32, 16),
    ("bireal_resnet20", "cifar_resnet56", 32, 1),
    ("reactnet_resnet20", "cifar_resnet56", 32, 16),
    ("bireal_resnet20", "cifar_resnet110", 32, 16),
)
# Whatever the answers are, the student goes on answering
GOES_ON = {"AUDIT_AGREEMENT": 0.0, "GATE_SHARE": 1.0}
_STEPS = ((1, True), (1, False), (8, True))  # updates a batch, whether the maps come from the linear heads


@register("benchmark", NAME)
def suite(options: Options) -> Iterator[Row]:
    """The cascade for each pair of networks, then the steps."""
    with worker_threads():
        for student, teacher, side, batch in options.pick(_CASES, _CASES[:2], _CASES[:1]):
            yield from _cascade(options, student, teacher, side, batch)
        for updates, heads in options.pick(_STEPS, _STEPS[:2], _STEPS[:1]):
            yield _step(options, updates, heads)


def _config(options: Options, student: str, teacher: str, side: int, **online: object) -> CfgNode:
    """Of a stream with this student, and an untrained teacher of fcn_kd from its checkpoint."""
    theirs = get_cfg("fcn_kd")
    theirs.DATASETS.CLASSES, theirs.INPUT.SIZE, theirs.MODEL.FCN_KD.NETWORK = CLASSES, side, teacher
    weights = options.workdir / f"{teacher}_{side}.pth"
    if not weights.is_file():
        checkpoint.save_model(build_model(theirs, pretrained=False), theirs.dump(), weights)
    tree = {
        "SYSTEM": "envise",
        "MODEL": {"DEVICE": "cpu", "ENVISE": {"NETWORK": student}},
        "INPUT": {"SIZE": side},
        "STREAM": {"SOURCE": "drawn"},
        "TEACHER": {"CLASSIFICATION": {"TYPE": "scenekd", "WEIGHTS": str(weights)}},
        "ONLINE": online,
    }
    return build_config(tree, source=NAME)


def _distiller(cfg: CfgNode, teacher: StreamTeacher, extra: ExtraLoss | None = None) -> OnlineDistiller:
    return OnlineDistiller(build_student(cfg, len(CLASSES)), teacher, len(CLASSES), cfg, extra_loss=extra)


def _batches(count: int, size: int, side: int) -> list[StreamBatch]:
    """Drawn images; what they show does not matter."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return cut(np.arange(count), images, size)


def cut(places: np.ndarray, images: torch.Tensor, size: int) -> list[StreamBatch]:
    """Samples of a stream as batches of ``size``."""
    return [
        StreamBatch(places[i : i + size], tuple(map(str, places[i : i + size])), images[i : i + size])
        for i in range(0, len(places), size)
    ]


def _cascade(options: Options, student: str, teacher: str, side: int, batch: int) -> Iterator[Row]:
    name = f"{student} before {teacher}, {side} px, batch {batch}: cascade / teacher alone, wall time"
    if library() is None:
        yield Row(NAME, name, detail="the kernels of packed bits need a C++ compiler and ninja")
        return
    cfg = _config(options, student, teacher, side, **GOES_ON)
    asked, _ = build_stream_teacher(cfg, CLASSES)
    stream = _batches(options.pick(640, 320, 16), batch, side)
    yield from timed(
        options, _answering(_distiller(cfg, asked), stream), stream, name, "untrained, threshold set"
    )


def timed(
    options: Options,
    distiller: OnlineDistiller,
    stream: Sequence[StreamBatch],
    name: str,
    about: str,
    suite: str = NAME,
) -> Iterator[Row]:
    """A student that answers, by packed bits and in the simulation, against its teacher alone, over the same batches.

    Args:
        name: of the rows. about: of student and gate, for their details.
    """

    def alone() -> None:
        for part in stream:
            distiller.teacher.logits(part.images.float()).argmax(1)

    def cascade() -> None:
        for part in stream:
            distiller.process(part)

    for packed, target in ((True, ("<=", 0.6)), (False, None)):
        before = dict(distiller.counts.summary()[ANSWER])
        if packed:
            distiller.student.pack()
        else:
            distiller.student.load_state_dict(distiller.student.state_dict())  # drops the packed form
        times = interleave(cascade, alone, repeats=options.repeats(), min_seconds=0)
        counts = distiller.counts.summary()[ANSWER]
        samples, to_teacher, handed = (
            counts[key] - before[key] for key in ("samples", "asked", "by_teacher")
        )
        how = "on packed bits" if packed else "in the float simulation"
        detail = (
            f"one thread, {times.describe('teacher alone')} for {sum(map(len, stream))} samples; the student {how}; "
            f"{about}: {handed / samples:.1%} handed on, {to_teacher / samples:.1%} asked with audits"
        )
        title = name if packed else name.replace("cascade", "cascade without packed bits")
        yield Row(suite, title, *times.cost, target=target, detail=detail)


def _answering(distiller: OnlineDistiller, stream: Sequence[StreamBatch]) -> OnlineDistiller:
    """The distiller with a threshold that the share OUTLIER_SHARE + (1 − OUTLIER_SHARE) · (1 − TPR) of the stream
    exceeds: all outliers, and the inliers that the gate gives up."""
    student = distiller.student.eval()
    with torch.no_grad():
        looks = [student.features_and_logits(part.images.float()) for part in stream]
        scores = torch.cat([distiller.score.score(*look) for look in looks])
    share = OUTLIER_SHARE + (1 - OUTLIER_SHARE) * (1 - distiller.options.tpr)
    distiller.phases.phase = ANSWER
    distiller.phases.threshold = float(np.quantile(scores.double().numpy(), 1 - share))
    return distiller


def _step(options: Options, updates: int, heads: bool) -> Row:
    """A batch of the stream while the student learns: its prediction, the teacher's answer, the optimizer's steps."""
    student, teacher, side = "bireal_resnet20", "cifar_resnet56", 32
    # Never converged, so that each batch is learnt
    size = options.pick({}, {}, {"BATCH_SIZE": 2, "REPLAY_BATCH": 2})
    cfg = _config(options, student, teacher, side, AGREEMENT=1.0, WINDOWS=10**6, UPDATES=updates, **size)
    asked, _ = build_stream_teacher(cfg, CLASSES)
    part = _batches(cfg.ONLINE.BATCH_SIZE, cfg.ONLINE.BATCH_SIZE, side)[0]
    plain, ours = _distiller(cfg, asked), _distiller(cfg, asked)
    ours.extra_loss = _attention(ours, asked, heads=heads)
    for _ in range(options.pick(3, 3, 1)):  # until the replayed samples are as many as they will be
        plain.process(part)
        ours.process(part)
    times = interleave(
        lambda: ours.process(part), lambda: plain.process(part), repeats=options.repeats(), min_seconds=0
    )
    how = "maps by the linear head" if heads else "maps by a backward pass"
    name = f"attention triplet, {updates} update{'s' * (updates > 1)} a batch, {how}: with / without, step"
    detail = (
        f"one thread, {times.describe('without')}; {student} and {teacher}, {side} px, {cfg.ONLINE.BATCH_SIZE} new "
        f"samples and {cfg.ONLINE.REPLAY_BATCH} replayed; the teacher's answer is in both"
    )
    return Row(NAME, name, *times.cost, target=("<=", 1.6), detail=detail)


def _attention(distiller: OnlineDistiller, teacher: StreamTeacher, *, heads: bool) -> ExtraLoss:
    """The triplet loss, with the networks' linear heads or as if they had none."""
    loss = AttentionTripletLoss()
    own = last_linear(distiller.student) if heads else None
    other = last_linear(teacher.net) if heads else None

    def extra(view: StepView) -> dict[str, torch.Tensor]:
        student = look_of(view.student_features, view.student_logits, own)
        told = look_of(view.teacher_features, view.teacher_logits, other)
        return {"loss_attention": loss(student, told, view.labels).loss}

    return extra
