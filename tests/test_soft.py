"""The one sampling of soft labels: grids, forms, background, conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scenekd.data.geometry import identity_coordinates
from scenekd.data.soft import check_target, convert_soft, nearest_exact, sample_soft
from scenekd.errors import UserError
from scenekd.sample import SoftSegmentation


def _values(shape: tuple[int, int, int] = (5, 9, 12)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(9, 12), (40, 33), (5, 7)])
def test_identity_sampling_is_torch_s_bilinear_interpolation(size: tuple[int, int]) -> None:
    values = _values()
    sampled, valid = sample_soft(SoftSegmentation(values, "logits"), identity_coordinates(*size))
    expected = F.interpolate(torch.from_numpy(values)[None], size=size, mode="bilinear", align_corners=False)[
        0
    ]
    np.testing.assert_allclose(sampled, expected.numpy(), atol=2e-5)
    assert valid.all()


def test_scores_take_the_nearest_cell() -> None:
    values = np.abs(_values())
    sampled, _ = sample_soft(SoftSegmentation(values, "scores"), identity_coordinates(30, 31))
    expected = F.interpolate(torch.from_numpy(values)[None], size=(30, 31), mode="nearest-exact")[0]
    np.testing.assert_array_equal(sampled, expected.numpy())


def test_a_flipped_field_gives_the_flipped_values() -> None:
    soft = SoftSegmentation(_values(), "logits")
    field = identity_coordinates(20, 30)
    straight, _ = sample_soft(soft, field)
    flipped, _ = sample_soft(soft, np.ascontiguousarray(field[:, ::-1]))
    np.testing.assert_allclose(flipped, straight[:, :, ::-1], atol=1e-5)


@pytest.mark.parametrize("bad", [-0.01, 1.01, np.nan])
def test_outside_is_invalid_and_zero(bad: float) -> None:
    field = identity_coordinates(4, 4)
    field[1, 2, 0] = bad
    for form in ("logits", "scores"):
        values, valid = sample_soft(SoftSegmentation(_values(), form), field)
        assert np.argwhere(~valid).tolist() == [[1, 2]]
        assert (values[:, 1, 2] == 0).all()
        assert np.isfinite(values).all()


@pytest.mark.parametrize(("length", "out"), [(300, 75), (300, 38), (512, 128), (13, 5)])
def test_the_field_is_resized_as_torch_resizes_labels(length: int, out: int) -> None:
    index = torch.arange(length, dtype=torch.float32)[None, None]
    expected = F.interpolate(index, size=out, mode="nearest-exact")[0, 0].long()
    assert nearest_exact(length, out).tolist() == expected.tolist()


def test_a_size_picks_pixels_of_the_field() -> None:
    soft = SoftSegmentation(_values(), "probabilities")
    field = identity_coordinates(12, 16)
    whole, _ = sample_soft(soft, field)
    part, valid = sample_soft(soft, field, (3, 4))
    np.testing.assert_allclose(part, whole[:, 2::4, 2::4], atol=1e-6)
    assert valid.shape == (3, 4)


def test_explicit_background_is_one_minus_the_largest_score() -> None:
    # one cell without a box, one with confidences .9 and .3, one with 1
    scores = np.asarray([[[0, 0, 0]], [[0, 0.9, 0]], [[0, 0.3, 1]]], np.float32)
    soft = SoftSegmentation(scores, "scores")
    none, _ = sample_soft(soft, identity_coordinates(1, 3), background="none")
    explicit, _ = sample_soft(soft, identity_coordinates(1, 3), background="explicit")
    np.testing.assert_allclose(none[0, 0], [0, 0, 0])
    np.testing.assert_allclose(explicit[0, 0], [1, 0.1, 0], atol=1e-6)
    np.testing.assert_array_equal(soft.values, scores)  # the store's array is not touched
    with pytest.raises(ValueError, match="background"):
        sample_soft(soft, identity_coordinates(1, 3), background="some")


def test_explicit_background_leaves_dense_forms_alone() -> None:
    soft = SoftSegmentation(_values(), "logits")
    one, two = (sample_soft(soft, identity_coordinates(5, 5), background=b)[0] for b in ("none", "explicit"))
    np.testing.assert_array_equal(one, two)


def test_conversions_between_the_forms() -> None:
    logits = _values()
    probabilities = convert_soft(logits, "logits", "probabilities")
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(logits), 0).numpy(), atol=1e-6)
    back = convert_soft(probabilities, "probabilities", "logits")
    # logits are known up to a constant per pixel
    np.testing.assert_allclose(back - back[:1], logits - logits[:1], atol=1e-4)
    # background .1, class .9 and .3 → divided by 1.3
    scores = np.asarray([0.1, 0.9, 0.3], np.float32).reshape(3, 1, 1)
    shares = convert_soft(scores, "scores", "probabilities").ravel()
    np.testing.assert_allclose(shares, np.asarray([1, 9, 3]) / 13, rtol=1e-6)
    assert convert_soft(scores, "scores", "scores") is scores


def test_targets_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(UserError, match="TARGET: the teacher gives logits"):
        check_target("logits", "scores", "none")
    with pytest.raises(UserError, match="BACKGROUND explicit"):
        check_target("scores", "probabilities", "none")
    check_target("scores", "probabilities", "explicit")
    check_target("scores", "scores", "none")
    check_target("probabilities", "logits", "none")
