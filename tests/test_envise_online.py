"""envise's online distillation: learn, calibrate, answer, audit, and go on from any batch."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from envise_parts import NAMES, PAIRS, ColourTeacher, build_run, colour_dataset, envise_config, finish

from envise.phases import ANSWER, CALIBRATE, LEARN
from envise.saved import LIGHT, WHOLE
from envise.step import StepView
from envise.stream import Truth, build_stream
from envise.teachers import StreamTeacher
from scenekd.errors import UserError
from scenekd.losses.distill import hinton_kd
from scenekd.outliers.logits import MaxSoftmax
from scenekd.teachers.live_build import OnlineTeacher


def _weights(run):
    return run.distiller.student.state_dict()


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text(PAIRS)
    return {"PAIRS": str(path), "PAIR": "warm"}


def test_learns_then_answers(tmp_path):
    """Colours are learnt within some batches; then the teacher is asked for the gate and the audit alone."""
    teacher = ColourTeacher()
    run = finish(build_run(envise_config(), tmp_path, teacher=teacher))
    phases = [phase for _, phase, _ in run.distiller.phases.changes]
    assert phases[:2] == [CALIBRATE, ANSWER]
    summary = run.summary()
    counts = summary["counts"]
    # Every sample is counted once; in LEARN and CALIBRATE each is asked.
    assert sum(row["samples"] for row in counts.values()) == 240
    assert counts[LEARN]["asked"] == counts[LEARN]["samples"]
    assert counts[CALIBRATE]["samples"] == 40  # four batches of ten reach CALIBRATION 40
    assert counts[ANSWER]["asked"] < counts[ANSWER]["samples"]
    assert teacher.asked == run.distiller.counts.total("asked")
    # A step for each batch of LEARN, none after it.
    assert summary["steps"] == counts[LEARN]["samples"] / 10
    # The nearest colour is the true one: noise of 30 does not reach halfway (80) to another.
    assert summary["truth"]["learn/inlier"]["accuracy"] == 100
    assert summary["truth"]["answer/inlier"]["student_accuracy"] >= 90


def test_it_answers_in_batches_of_their_own(tmp_path):
    """Learnt and calibrated ten by ten, answered 24 by 24, as it would have ten by ten: an answer is its sample's own.
    A state goes on with the batches that it was made with."""
    same = {"ONLINE": {"AUDIT_AGREEMENT": 0.0, "GATE_SHARE": 1.0}}
    tens = build_run(envise_config(**same), tmp_path / "a")
    large = build_run(envise_config(ONLINE={**same["ONLINE"], "ANSWER_BATCH_SIZE": 24}), tmp_path / "b")
    sizes: dict[str, list[int]] = {LEARN: [], CALIBRATE: [], ANSWER: []}
    told = {True: [], False: []}
    for is_large, run in ((True, large), (False, tens)):
        while (answers := run.advance()) is not None:
            told[is_large] += zip(
                answers.positions.tolist(), answers.answers.tolist(), answers.asked.tolist()
            )
            if is_large:
                sizes[answers.phase].append(len(answers.positions))
    assert set(sizes[LEARN]) == set(sizes[CALIBRATE]) == {10}
    assert set(sizes[ANSWER][:-1]) == {24} and len(sizes[ANSWER]) > 2
    assert told[True] == told[False]
    with pytest.raises(
        UserError, match="written with ONLINE.ANSWER_BATCH_SIZE 24, not 10; set that to resume"
    ):
        build_run(envise_config(**same), tmp_path / "b").resume()


def test_agreement_is_counted_before_the_update(tmp_path):
    """The first batch's agreement is that of the untrained student, and its answers are the teacher's."""
    cfg = envise_config()
    run = build_run(cfg, tmp_path)
    untrained = copy.deepcopy(run.distiller.student).eval()
    batch = build_stream(cfg, colour_dataset()).next_batch(10)
    with torch.no_grad():
        expected = untrained(batch.images.float()).argmax(1)
    answers = run.advance()
    assert answers.student.tolist() == expected.tolist()
    assert answers.by_teacher.all()
    assert answers.answers.tolist() == ColourTeacher().logits(batch.images.float()).argmax(1).tolist()


def test_labels_are_for_the_report_only(tmp_path):
    """With random labels in the stream's truth the trained weights are the same to the bit, the report is not."""
    cfg = envise_config()
    told = finish(build_run(cfg, tmp_path / "a"))
    stream = build_stream(cfg, colour_dataset())
    rng = np.random.default_rng(7)
    stream.truth = Truth(rng.integers(0, 5, 240), rng.random(240) < 0.5)
    guessed = finish(build_run(cfg, tmp_path / "b", stream=stream))
    assert _same(_weights(told), _weights(guessed))
    assert told.summary()["counts"] == guessed.summary()["counts"]
    assert told.summary()["truth"] != guessed.summary()["truth"]


@pytest.mark.parametrize("cut", [1, 5, 9, 14])
def test_killed_and_resumed(tmp_path, cut):
    """A run cut after any batch, with the next one half done, ends as an uninterrupted one, bit for bit: in LEARN, in
    CALIBRATE and in ANSWER."""
    cfg = envise_config(ONLINE={"KD_WEIGHT": 0.5, "UPDATES": 2, "AUDIT_WINDOW": 5})
    whole = finish(build_run(cfg, tmp_path / "a"))
    killed = build_run(cfg, tmp_path / "b")
    for _ in range(cut):
        killed.advance()
    killed.distiller.process(
        killed.stream.next_batch(10)
    )  # the batch that is lost: no state was written after it
    resumed = build_run(cfg, tmp_path / "b")
    assert resumed.resume()
    assert resumed.batches == cut
    finish(resumed)
    assert _same(_weights(whole), _weights(resumed))
    ended, gone_on = (one.distiller.state_dict() for one in (whole, resumed))
    assert ended["phases"] == gone_on["phases"]
    assert ended["counts"] == gone_on["counts"]
    assert torch.equal(ended["replay"]["images"], gone_on["replay"]["images"])
    assert whole.report.state_dict() == resumed.report.state_dict()


def test_state_while_answering_is_small(tmp_path):
    """Without learning, only the light state is written; a killed write of either leaves the other of use."""
    cfg = envise_config()
    run = build_run(cfg, tmp_path)
    while run.distiller.phases.phase != ANSWER:
        run.advance()
    written = (tmp_path / WHOLE).stat().st_mtime_ns
    run.advance()
    assert (tmp_path / WHOLE).stat().st_mtime_ns == written
    assert (tmp_path / LIGHT).stat().st_size < (tmp_path / WHOLE).stat().st_size / 2
    (tmp_path / LIGHT).unlink()  # the kill before it was written: the whole state alone is an earlier batch's
    earlier = build_run(cfg, tmp_path)
    assert earlier.resume()
    assert earlier.batches == run.batches - 1
    # A light state of another place in learning is not taken.
    other = build_run(cfg, tmp_path / "other")
    other.advance()
    run.save()
    (tmp_path / "other" / LIGHT).write_bytes((tmp_path / LIGHT).read_bytes())
    again = build_run(cfg, tmp_path / "other")
    assert again.resume()
    assert again.batches == 1


def test_resume_refuses_another_run(tmp_path):
    """Another seed or batch size shows other samples, another network does not fit; each is one line."""
    build_run(envise_config(), tmp_path).advance()
    for changed, named in (
        ({"SEED": 1}, "SEED 0, not 1"),
        ({"ONLINE": {"BATCH_SIZE": 20}}, "ONLINE.BATCH_SIZE 10, not 20"),
        ({"ONLINE": {"REPLAY_SIZE": 4}}, "another configuration"),
    ):
        with pytest.raises(UserError, match=named) as caught:
            build_run(envise_config(**changed), tmp_path).resume()
        assert "\n" not in str(caught.value)


def test_gate_and_drift(tmp_path, pairs):
    """Once outliers are half of the stream, a part is gated; where they are most of it, the student learns again."""
    shifts = ({"AT": 150, "OUTLIER_SHARE": 0.9},)
    stream = {"SAMPLES": 500, "SHIFTS": shifts, **pairs}
    online = {"TPR": 0.8, "GATE_WINDOW": 30, "GATE_SHARE": 0.5, "AUDIT_WINDOW": 10, "AUDIT_AGREEMENT": 0.8}
    run = finish(build_run(envise_config(STREAM=stream, ONLINE=online), tmp_path))
    changes = run.distiller.phases.changes
    assert [phase for _, phase, _ in changes[:3]] == [CALIBRATE, ANSWER, LEARN]
    assert changes[2][0] >= 150
    assert changes[2][2].startswith(("share unfamiliar", "audit agreement"))
    # What it learns then contains the new classes, so that it is trusted again.
    assert [phase for _, phase, _ in changes[3:5]] == [CALIBRATE, ANSWER]


def test_audit_finds_a_changed_teacher(tmp_path):
    """A teacher that names every colour otherwise from some sample on: familiar images, wrong answers; the audit sees
    agreement 0 and the student learns the new names."""
    teacher = ColourTeacher()
    run = build_run(
        envise_config(STREAM={"SAMPLES": 600}, ONLINE={"AUDIT_WINDOW": 8}), tmp_path, teacher=teacher
    )
    while run.distiller.phases.phase != ANSWER:
        run.advance()
    teacher.shift = 1
    finish(run)
    learn = [(at, why) for at, phase, why in run.distiller.phases.changes if phase == LEARN]
    assert learn
    assert learn[0][1].startswith("audit agreement")
    assert run.distiller.phases.phase == ANSWER


def test_losses_of_a_step(tmp_path):
    """Cross-entropy with the teacher's top class and T²·KL on batch and replay, each times its weight; an extra loss
    sees the same step, with the teacher's features of the new samples alone."""
    seen = []

    def extra(view: StepView):
        seen.append(view)
        return {"loss_extra": 0.25 * view.student_logits.square().mean()}

    cfg = envise_config(ONLINE={"CE_WEIGHT": 2.0, "KD_WEIGHT": 0.5, "KD_TEMPERATURE": 3.0})
    run = build_run(cfg, tmp_path, extra_loss=extra)
    first, second = run.advance(), run.advance()
    assert [len(view.labels) for view in seen] == [10, 20]  # the second has ten replayed samples
    view = seen[0]
    logits, teacher = view.student_logits.detach(), view.teacher_logits.detach()
    assert first.losses["loss_ce"] == pytest.approx(
        2 * float(torch.nn.functional.cross_entropy(logits, teacher.argmax(1)))
    )
    assert first.losses["loss_kd"] == pytest.approx(
        0.5 * float(hinton_kd(logits, teacher, temperature=3.0, alpha=1.0))
    )
    assert first.losses["loss_extra"] == pytest.approx(0.25 * float(logits.square().mean()))
    assert set(second.losses) == {"loss_ce", "loss_kd", "loss_extra"}
    assert seen[1].new == len(seen[1].teacher_features) == 10
    # Grad-CAM is possible on both sides: the logits follow from the features.
    for features, said in (
        (view.teacher_features, view.teacher_logits),
        (seen[1].teacher_features, seen[1].teacher_logits),
    ):
        gradient = torch.autograd.grad(said[:, 0].sum(), features, retain_graph=True)[0]
        assert gradient.abs().sum() > 0


def test_extra_loss_reaches_the_weights(tmp_path):
    """With an extra loss whose gradient with respect to the logits is 0 the weights stay those without it."""
    cfg = envise_config(STREAM={"SAMPLES": 30})
    plain = finish(build_run(cfg, tmp_path / "a"))
    nothing = finish(
        build_run(cfg, tmp_path / "b", extra_loss=lambda v: {"loss_x": 0 * v.student_logits.sum()})
    )
    some = finish(
        build_run(cfg, tmp_path / "c", extra_loss=lambda v: {"loss_x": v.student_features.square().mean()})
    )
    assert _same(_weights(plain), _weights(nothing))
    assert not _same(_weights(plain), _weights(some))


class _Centre(MaxSoftmax):
    """Distance from the mean feature, of images that are moved by 1; ``fits``: how often it was fitted."""

    needs_fit, fits = True, 0

    def prepare(self, net, images):
        assert net(images[:1]).shape == (1, len(NAMES))
        return images + 1

    def fit(self, features, logits, labels=None):
        if len(labels) < 10:
            raise ValueError("too few")
        assert features.shape[0] == logits.shape[0] == labels.shape[0] == 30  # REPLAY_SIZE
        self.fitted, self.fits = {"centre": features.mean((0, 2, 3))}, self.fits + 1

    def score(self, features, logits):
        return (features.mean((2, 3)) - self.fitted["centre"]).norm(dim=1)

    def load_fitted(self, fitted):
        self.fitted = dict(fitted)


def test_score_that_is_fitted(tmp_path):
    """It is fitted once, on the replayed samples, when learning ends; what it learnt travels; it scores the features of
    the images that it has moved, while the answers are of those that came."""
    score, cfg = _Centre(), envise_config()
    run = build_run(cfg, tmp_path, score=score)
    while run.distiller.phases.phase != ANSWER:
        run.advance()
    assert score.fits == 1
    again = _Centre()
    assert build_run(cfg, tmp_path, score=again).resume()
    assert torch.equal(again.fitted["centre"], score.fitted["centre"])
    assert again.fits == 0
    batch = run.stream.next_batch(4)
    answers = run.distiller.process(batch)
    with torch.no_grad():
        images = batch.images.float()
        moved = run.distiller.student.features_and_logits(images + 1)
        assert answers.scores == pytest.approx(score.score(*moved).numpy())
        assert answers.student.tolist() == run.distiller.student(images).argmax(1).tolist()
    with pytest.raises(
        UserError, match="ONLINE.SCORE: too few; choose another, or a larger ONLINE.REPLAY_SIZE"
    ):
        few = envise_config(ONLINE={"REPLAY_SIZE": 5})
        finish(build_run(few, tmp_path / "few", score=_Centre()))


def test_loss_that_is_not_finite(tmp_path):
    run = build_run(
        envise_config(), tmp_path, extra_loss=lambda view: {"loss_x": view.student_logits.sum() / 0}
    )
    with pytest.raises(UserError, match="sample 0: .*loss_x.*not finite, lower SOLVER.BASE_LR"):
        run.advance()


def test_teacher_of_one_class(tmp_path):
    """Converged on a single pseudo-label: refused, as the student has learnt a constant."""

    class One(ColourTeacher):
        def logits(self, images):
            return torch.eye(len(NAMES))[:1].repeat(len(images), 1) * 5

    with pytest.raises(UserError, match="named one class alone in the 40 samples"):
        finish(build_run(envise_config(ONLINE={"AGREEMENT": 0.0}), tmp_path, teacher=One()))


def test_features_of_a_teacher():
    """A network's last feature map is found; it is a leaf, the logits follow from it, the weights get no gradient."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    )

    @dataclasses.dataclass
    class Live:
        net: torch.nn.Module
        names = NAMES
        trained_on = ()

        def logits(self, images):
            return self.net(images / 255)

    live = Live(net.eval().requires_grad_(False))
    teacher = StreamTeacher(OnlineTeacher(live, range(5), 5))
    images = torch.rand(2, 3, 8, 8) * 255
    features, logits = teacher.features_and_logits(images)
    assert torch.equal(features, net[:2](images / 255))  # module 1, the ReLU: after it the map is 1 × 1
    assert torch.allclose(logits, teacher.logits(images))
    assert not teacher.logits(images).requires_grad
    # The pool is a mean over 6 · 6 pixels: ∂ logit_k / ∂ feature = weight_k / 36 everywhere.
    gradient = torch.autograd.grad(logits[:, 3].sum(), features)[0]
    assert torch.allclose(gradient, (net[4].weight[3] / 36)[None, :, None, None].expand_as(features))
    with pytest.raises(UserError, match="TEACHER_LAYER: the teacher: the network has no layer 'nope'"):
        StreamTeacher(OnlineTeacher(live, range(5), 5), "nope")
