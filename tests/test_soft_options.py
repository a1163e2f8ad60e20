"""Options of the dense soft-label loss: tempered student, top-k classes, pixel confidence; and the sparse teacher."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scenekd.losses.soft_label import pixel_confidence, soft_label_map
from scenekd.losses.top_k import bucket_cross_entropy, spread_tail
from scenekd.sample import SoftSegmentation
from scenekd.teachers.sparse import SparseStore, make_sparse


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_tempered_student_is_hintons_gradient():
    # d/dz T² · CE(p_T, softmax(z / T)) = T² · 1/T · (softmax(z / T) − p_T) = T · (q_T − p_T).
    student, teacher, temperature = rand(2, 5, 3, 3).requires_grad_(), rand(2, 5, 3, 3, seed=1), 3.0
    loss = soft_label_map(student, teacher, temperature=temperature, target_is="logits", temper_student=True)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    expected = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))
    torch.testing.assert_close(gradient, expected.detach())


def test_tempered_student_at_one_changes_nothing():
    student, teacher = rand(1, 4, 2, 2), rand(1, 4, 2, 2, seed=1)
    plain = soft_label_map(student, teacher, target_is="logits")
    assert torch.equal(plain, soft_label_map(student, teacher, target_is="logits", temper_student=True))


def test_bucket_by_hand():
    # p = (.5, .3, .15, .05), k = 2: −.5 ln q0 − .3 ln q1 − .2 ln (q2 + q3), with q uniform: q0 = ¼, q2 + q3 = ½.
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).view(1, 4, 1)
    loss = bucket_cross_entropy(torch.zeros(1, 4, 1, dtype=torch.float64), p, 2)
    assert loss.item() == pytest.approx(0.8 * math.log(4) + 0.2 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("k", [5, 6])
def test_a_bucket_of_one_class_or_none_is_the_full_cross_entropy(k):
    logits, p = rand(2, 6, 3, 3), rand(2, 6, 3, 3, seed=1).softmax(1)
    full = -(p * F.log_softmax(logits, 1)).sum(1)
    torch.testing.assert_close(bucket_cross_entropy(logits, p, k), full)


def test_bucket_does_not_ask_how_the_tail_is_divided():
    # At equality of the top classes and of the tail's mass the gradient is zero, whatever the tail looks like.
    p = torch.tensor([0.6, 0.2, 0.15, 0.05], dtype=torch.float64).view(1, 4, 1)
    q = torch.tensor([0.6, 0.2, 0.02, 0.18], dtype=torch.float64).view(1, 4, 1)
    logits = q.log().requires_grad_()
    (gradient,) = torch.autograd.grad(bucket_cross_entropy(logits, p, 2).sum(), logits)
    assert gradient.abs().max() < 1e-12


def test_bucket_gradcheck():
    logits, p = rand(1, 5, 2, 2).requires_grad_(), rand(1, 5, 2, 2, seed=1).softmax(1)
    assert torch.autograd.gradcheck(lambda z: bucket_cross_entropy(z, p, 2), (logits,))


def test_spread_by_hand():
    # The two likeliest of (.5, .3, .15, .05) stay; .2 over two classes is .1 each.
    p = torch.tensor([0.15, 0.5, 0.05, 0.3]).view(1, 4, 1, 1)
    wanted = torch.tensor([0.1, 0.5, 0.1, 0.3]).view(1, 4, 1, 1)
    torch.testing.assert_close(spread_tail(p, 2), wanted)
    assert torch.equal(spread_tail(p, 4), p)


def test_top_k_in_the_loss():
    logits, teacher = rand(1, 6, 2, 2), rand(1, 6, 2, 2, seed=1)
    p = teacher.softmax(1)
    spread = soft_label_map(logits, teacher, target_is="logits", top_k=2, tail="spread")
    torch.testing.assert_close(spread, -(spread_tail(p, 2) * F.log_softmax(logits, 1)).sum(1))
    bucket = soft_label_map(logits, teacher, target_is="logits", top_k=2, tail="bucket")
    torch.testing.assert_close(bucket, bucket_cross_entropy(logits, p, 2))


@pytest.mark.parametrize("k", [0, 7])
def test_top_k_out_of_range(k):
    with pytest.raises(ValueError, match="top_k"):
        spread_tail(torch.ones(1, 6, 1) / 6, k)


def test_unknown_tail():
    with pytest.raises(ValueError, match="tail"):
        soft_label_map(rand(1, 3, 1, 1), rand(1, 3, 1, 1), target_is="logits", top_k=1, tail="cut")


def test_confidence_of_a_pixel():
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    p = p.T.reshape(1, 4, 1, 3)
    highest = pixel_confidence(p, target_is="probabilities", confidence="max")
    torch.testing.assert_close(highest, torch.tensor([[[0.7, 0.25, 1.0]]]))
    # H(.7, .2, .1) = .802 nats; ln 4 = 1.386.
    sure = pixel_confidence(p, target_is="probabilities", confidence="entropy")
    h = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    torch.testing.assert_close(sure, torch.tensor([[[1 - h / math.log(4), 0.0, 1.0]]]))
    assert torch.equal(pixel_confidence(p, target_is="probabilities", confidence="none"), torch.ones(1, 1, 3))


def test_confidence_of_scores_is_the_box_score():
    scores = torch.tensor([0.0, 0.9, 0.2]).view(1, 3, 1, 1)
    assert pixel_confidence(scores, target_is="scores", confidence="max").item() == pytest.approx(0.9)
    assert pixel_confidence(scores * 0, target_is="scores", confidence="max").item() == 0


def test_sparse_by_hand():
    # One row of five cells, three classes. Likeliest: 1, 1, 0, 2, 1. Regions: {0, 1} of class 1 with mean (.8 + .6)/2,
    # {3} of class 2 with .9, {4} of class 1 with .5.
    p = np.array(
        [[0.1, 0.3, 0.8, 0.05, 0.4], [0.8, 0.6, 0.1, 0.05, 0.5], [0.1, 0.1, 0.1, 0.9, 0.1]], np.float32
    )
    sparse = make_sparse(SoftSegmentation(p[:, None], "probabilities"))
    wanted = np.array([[0, 0, 0, 0, 0], [0.7, 0.7, 0, 0, 0.5], [0, 0, 0, 0.9, 0]], np.float32)
    assert sparse.form == "scores"
    np.testing.assert_allclose(sparse.values[:, 0], wanted, atol=1e-6)


def test_sparse_of_logits_is_sparse_of_their_probabilities():
    logits = rand(4, 6, 6).numpy().astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(0)
    from_logits = make_sparse(SoftSegmentation(logits, "logits"))
    np.testing.assert_allclose(
        from_logits.values, make_sparse(SoftSegmentation(p, "probabilities")).values, atol=1e-6
    )


def test_scores_stay_as_they_are():
    soft = SoftSegmentation(np.zeros((3, 2, 2), np.float32), "scores")
    assert make_sparse(soft) is soft


def test_sparse_store_tells_its_form():
    class Dense:
        classes = ("a", "b")
        info = {"form": "logits", "name": "t"}

        def __contains__(self, image_id):
            return image_id == "im"

        def get_segmentation(self, image_id):
            return SoftSegmentation(np.eye(3, dtype=np.float32)[:, :, None] * 9, "logits")

    store = SparseStore(Dense())
    assert store.info == {"form": "scores", "name": "t"} and "im" in store and "other" not in store
    scores = store.get_segmentation("im").values[:, :, 0]
    confidence = math.exp(9) / (math.exp(9) + 2)
    np.testing.assert_allclose(scores, np.diag([0, confidence, confidence]), rtol=1e-5)
