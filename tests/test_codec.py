"""The codec of dense outputs: what is lost, how many bytes, how fast; sparse scores lose nothing.

The real material: saved outputs of a real teacher, whose four likeliest classes are known; the other 17 get
smooth random tails of the same total, so that no plane is constant.
"""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from scenekd.sample import SoftSegmentation
from scenekd.teachers.codec import (
    CodecSettings,
    decode_detections,
    decode_segmentation,
    encode_detections,
    encode_segmentation,
    fidelity,
)
from scenekd.teachers.folder import read_top_classes
from scenekd.teachers.protocol import Detections

DATA = Path(os.environ.get("SCENEKD_TEST_DATA", "/nonexistent")) / "voc_pool_320" / "TeacherSegmentation"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SCENEKD_TEST_DATA names no folder")
BUDGET = 375 * 500 * 21 * 4 * 0.005  # 0.5 % of the dense float32 array at VOC's usual size
STRIDE_8, STRIDE_4 = (47, 63), (94, 125)


def smooth_logits(shape, seed=0, amplitude=4.0, background=4.0):
    """Random logits that vary slowly over the image, with one class in the lead: like a trained network's."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(shape[0], 6, 8)).astype(np.float32) * amplitude
    values = np.stack([cv2.resize(plane, shape[:0:-1], interpolation=cv2.INTER_CUBIC) for plane in coarse])
    values[0] += background
    return values + rng.normal(size=shape).astype(np.float32) * 0.05


def real_logits(count, shape):
    """Real outputs with tails, at another grid."""
    for seed, path in enumerate(sorted(DATA.glob("*.npz"))[:: 3243 // count][:count]):
        values = read_top_classes(path, 20).values
        rng = np.random.default_rng(seed)
        tails = rng.normal(size=(21, 16, 16)).astype(np.float32) * 1.5
        tails = np.stack([cv2.resize(plane, (64, 64), interpolation=cv2.INTER_CUBIC) for plane in tails])
        rest = np.sort(values, axis=0)[:17].max(0)
        unknown = values == rest
        values = values + unknown * (tails + rng.normal(size=tails.shape) * 0.15)
        values += rng.normal(size=values.shape) * 0.05  # the saved ones are rounded to 1/16 and coarser
        resized = [cv2.resize(plane.astype(np.float32), shape[::-1]) for plane in values]
        yield SoftSegmentation(np.stack(resized), "logits")


def roundtrip(soft, settings=CodecSettings()):  # noqa: B008
    meta, payload = encode_segmentation(soft, settings, BUDGET)
    return decode_segmentation(meta, payload), len(payload)


def gradient_cosine(soft, stored, temperature, seed=0):
    """Between the gradients of the student's CE: softmax(student) − target, with either target."""
    student = softmax(np.random.default_rng(seed).normal(size=soft.values.shape), 0)
    exact, lossy = (
        (student - softmax(s.values.astype(np.float64) / temperature, 0)).ravel() for s in (soft, stored)
    )
    return exact @ lossy / (np.linalg.norm(exact) * np.linalg.norm(lossy))


@needs_data
@pytest.mark.parametrize("shape", [STRIDE_8, STRIDE_4])
def test_real_outputs_meet_every_target(shape):
    sizes, measured = [], []
    for soft in real_logits(12, shape):
        stored, size = roundtrip(soft)
        sizes.append(size)
        measured.append(fidelity(soft, stored))
        assert gradient_cosine(soft, stored, 1) >= 0.999 and gradient_cosine(soft, stored, 4) >= 0.999
    assert np.mean(sizes) <= BUDGET
    for name in ("kl_t1", "kl_t4"):
        assert max(m[name] for m in measured) <= 1e-3
    assert min(m["argmax"] for m in measured) == 1.0


@pytest.mark.parametrize("shape", [STRIDE_8, STRIDE_4])
def test_smooth_outputs_meet_every_target(shape):
    soft = SoftSegmentation(smooth_logits((21, *shape)), "logits")
    stored, size = roundtrip(soft)
    measured = fidelity(soft, stored)
    assert size <= BUDGET
    assert measured["kl_t1"] <= 1e-3 and measured["kl_t4"] <= 1e-3 and measured["argmax"] == 1.0
    assert gradient_cosine(soft, stored, 1) >= 0.999 and gradient_cosine(soft, stored, 4) >= 0.999


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("classes", [2, 21, 151])
def test_any_distribution_is_kept(spread, classes):
    """From uniform to nearly one-hot, without any smoothness."""
    values = np.random.default_rng(1).normal(size=(classes, 20, 20)).astype(np.float32) * spread
    soft = SoftSegmentation(values, "logits")
    measured = fidelity(soft, roundtrip(soft)[0])
    assert measured["kl_t1"] <= 1e-3 and measured["kl_t4"] <= 1e-3 and measured["argmax"] == 1.0


def test_step_bounds_the_error():
    """Rounding is off by half a step at most: 0.02 / 2 · e^(x/2) at distance x below p = 1, 0.5 / 2 in the
    tails."""
    log_p = np.linspace(0, -60, 5000)
    values = np.stack([np.zeros(5000), log_p]).astype(np.float32)[:, None]
    exact = log_softmax(values.astype(np.float64), axis=0)
    stored = roundtrip(SoftSegmentation(values, "logits"))[0].values
    far = exact[1] < -2  # nearer, the two classes can tie
    step = np.minimum(0.02 * np.exp(-exact[1] / 2), 0.5)
    assert (np.abs(stored[1] - exact[1])[0][far[0]] <= 0.55 * step[0][far[0]]).all()


def test_argmax_of_near_ties_is_kept():
    values = np.zeros((5, 1, 1000), np.float32)
    top = np.random.default_rng(0).integers(0, 5, 1000)
    values[top, 0, np.arange(1000)] = 1e-4
    stored = roundtrip(SoftSegmentation(values, "logits"))[0].values
    np.testing.assert_array_equal(stored.argmax(0)[0], top)


def test_level_of_the_logits_does_not_matter():
    values = smooth_logits((4, 10, 12))
    shift = np.random.default_rng(0).normal(size=(10, 12)).astype(np.float32) * 50
    a, b = (roundtrip(SoftSegmentation(v, "logits"))[0].values for v in (values, values + shift))
    assert (np.abs(softmax(a, 0) - softmax(b, 0)) < 0.01).all()


def test_probabilities_sum_to_one():
    p = softmax(smooth_logits((21, 20, 30)), 0)
    stored, _ = roundtrip(SoftSegmentation(p, "probabilities"))
    assert stored.form == "probabilities"
    np.testing.assert_allclose(stored.values.sum(0), 1, atol=1e-5)
    # δp ≤ p · (half a step, 0.01 / √p) = 0.01 √p, and twice that where a tie is broken.
    assert np.abs(stored.values - p).max() < 0.02


@pytest.mark.parametrize("distinct", [3, 3000, 80000])
def test_scores_are_exact(distinct):
    rng = np.random.default_rng(0)
    values = np.zeros((21, 375, 500), np.float32)
    values[[3, 15]] = rng.uniform(size=distinct).astype(np.float32)[rng.integers(0, distinct, (2, 375, 500))]
    values[3, :, 250:] = 0
    stored, size = roundtrip(SoftSegmentation(values, "scores"))
    np.testing.assert_array_equal(stored.values, values)
    assert stored.form == "scores"


def test_usual_scores_are_small():
    values = np.zeros((21, 375, 500), np.float32)
    values[15, 50:300, 100:220] = 0.987
    values[12, 200:350, 180:400] = 0.55
    assert roundtrip(SoftSegmentation(values, "scores"))[1] < BUDGET / 10


def test_empty_scores_and_boxes():
    stored, _ = roundtrip(SoftSegmentation(np.zeros((3, 4, 5), np.float32), "scores"))
    assert stored.values.shape == (3, 4, 5) and not stored.values.any()
    boxes, labels, scores = decode_detections(*encode_detections(Detections.build([], [], [])))
    assert boxes.shape == (0, 4) and labels.dtype == np.int64 and scores.shape == (0,)


@pytest.mark.parametrize(
    "values, form",
    [
        (np.full((2, 3, 3), np.nan), "logits"),
        (np.full((2, 3, 3), np.inf), "logits"),
        (np.full((2, 3, 3), 0.7), "probabilities"),
        (np.full((2, 3, 3), 1.5), "scores"),
        (np.zeros((2, 0, 3)), "logits"),
        (np.zeros((3, 3)), "logits"),
    ],
)
def test_bad_values_are_refused(values, form):
    with pytest.raises(ValueError):
        encode_segmentation(SoftSegmentation(values, form))


def test_bad_steps_are_refused():
    for settings in ((0.0, 0.5), (0.5, 0.1), (0.02, 100.0)):
        with pytest.raises(ValueError, match="steps"):
            CodecSettings(*settings)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 20, 1 << 20, 1 << 20]},
        {"shape": [-21, 47, 63]},
        {"shape": [21, 47]},
        {"shape": [21, 47, 64]},
        {"step": 0.0},
        {"step": float("nan")},
        {"max_step": 1e9},
        {"form": "pickle"},
        {"form": "scores", "planes": [0, 99], "table": 4, "index": "u1"},
        {"form": "scores", "planes": [0], "table": 1 << 40, "index": "u1"},
        {"form": "scores", "planes": [0], "table": 4, "index": "O"},
    ],
)
def test_hostile_meta_is_refused(change):
    meta, payload = encode_segmentation(SoftSegmentation(smooth_logits((21, *STRIDE_8)), "logits"))
    with pytest.raises(ValueError):
        decode_segmentation(meta | change, payload)


def test_hostile_payload_is_refused():
    meta, payload = encode_segmentation(SoftSegmentation(smooth_logits((21, *STRIDE_8)), "logits"))
    for bad in (b"", payload[:-1], b"x" * 100, payload[:10] + b"x" * 20 + payload[30:]):
        with pytest.raises(ValueError):
            decode_segmentation(meta, bad)


def test_decoding_takes_about_a_millisecond():
    """0.15 ms at stride 8 and 0.4 ms at stride 4 on an idle core; a loose bound for a busy one."""
    for shape in (STRIDE_8, STRIDE_4):
        meta, payload = encode_segmentation(SoftSegmentation(smooth_logits((21, *shape)), "logits"))
        times = []
        for _ in range(30):
            start = time.perf_counter()
            decode_segmentation(meta, payload)
            times.append(time.perf_counter() - start)
        assert min(times) < 5e-3
