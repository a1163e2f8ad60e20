"""The stop at a loss or gradient that is not finite names the term, the iteration and the images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scenekd.errors import UserError
from scenekd.extras import LogMeans
from scenekd.finite import FiniteGuard
from scenekd.losses.reduce import mean_over_processes
from scenekd.sample import Target


class Mean(nn.Module):
    """loss_a: the mean output; loss_b: the mean of output · the target's first confidence."""

    def forward(self, outputs: dict[str, Tensor], targets: list[Target]) -> dict[str, Tensor]:
        assert self.training or not torch.is_grad_enabled()
        outputs, confidence = outputs["x"], torch.stack([t.confidences[0] for t in targets])
        return {"loss_a": outputs.mean(), "loss_b": mean_over_processes((outputs[:, 0] * confidence).mean())}


class Net(nn.Module):
    def __init__(self, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        if criterion is not None:
            self.criterion = criterion

    def forward(self, x: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        outputs = {"x": self.layer(x)}
        return self.criterion(outputs, targets) if hasattr(self, "criterion") else Mean()(outputs, targets)


def _targets(*confidences):
    none = torch.zeros(0)
    return [
        Target(f"img{i}", torch.zeros(0, 4), none, torch.tensor([float(c)]), none, none)
        for i, c in enumerate(confidences)
    ]


def _stop(net, x, targets, iteration=7):
    guard = FiniteGuard(net)
    guard.iteration = iteration
    with pytest.raises(UserError) as caught:
        guard.check_losses(net(x, targets), targets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_bad_label_is_found():
    """Outputs are finite, so its labels are at fault, not the learning rate; the first bad term is named."""
    net = Net(Mean())
    message = _stop(net, torch.ones(3, 1), _targets(1, math.nan, 1))
    assert message == (
        "loss_b became nan at iteration 7 in image img1, where the network's outputs are finite; look at the labels "
        "and the teacher's output there"
    )
    assert net.criterion.training, "the criterion is given back in training mode"


def test_outputs_that_are_not_finite_are_told_apart():
    message = _stop(Net(Mean()), torch.tensor([[1.0], [math.inf], [math.inf]]), _targets(1, 1, 1))
    assert "loss_a became" in message
    assert "at iteration 7 in images img1, img2, where the network's outputs are not finite; lower" in message


def test_a_network_that_diverged_names_all_of_its_batch():
    net = Net(Mean())
    nn.init.constant_(net.layer.weight, math.nan)
    message = _stop(net, torch.ones(10, 1), _targets(*[1] * 10))
    assert "in all 10 images img0, img1, img2, img3, img4, img5, img6, img7 and 2 more, where" in message


def test_a_sum_that_overflows_is_in_no_image_alone():
    """3e38 + 3e38 is beyond float32; each alone is not."""
    net = Net(Mean())
    nn.init.constant_(net.layer.weight, 1.0)
    nn.init.zeros_(net.layer.bias)
    message = _stop(net, torch.full((2, 1), 3e38), _targets(1, 1))
    assert (
        "loss_a became inf at iteration 7 in the batch of img0, img1, though in none of its images" in message
    )


def test_without_a_criterion_module_the_batch_is_named():
    message = _stop(Net(), torch.ones(2, 1), _targets(1, math.inf))
    assert "at iteration 7 in the batch of img0, img1; lower SOLVER.BASE_LR" in message


def test_finite_losses_pass_and_outputs_are_let_go():
    net = Net(Mean())
    guard = FiniteGuard(net)
    targets = _targets(1, 2)
    guard.check_losses(net(torch.ones(2, 1), targets), targets)
    assert guard._call is None


def test_gradients_name_their_parameters():
    net = Net(Mean())
    guard = FiniteGuard(net)
    guard.iteration = 3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    targets = _targets(1, 1)
    losses = net(torch.ones(2, 1), targets)
    guard.check_losses(losses, targets)
    guard.check_gradients(optimizer)  # none there yet
    sum(losses.values()).backward()
    guard.check_gradients(optimizer)
    net.layer.weight.grad.fill_(3e38)  # its square overflows, it does not
    guard.check_gradients(optimizer)
    net.layer.weight.grad.fill_(math.inf)
    with pytest.raises(
        UserError, match="^the gradient of layer.weight became .* iteration 3 in the batch of img0"
    ):
        guard.check_gradients(optimizer)
    net.layer.bias.grad.fill_(math.nan)
    with pytest.raises(UserError, match="layer.weight and of 1 other parameters became infinite or NaN"):
        guard.check_gradients(optimizer)


def test_log_means_count_where_a_name_appears():
    """a: (1 + 3) / 2; b, in one of the two steps: 5. Then anew."""
    means = LogMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    means.add({"a": torch.tensor(3.0)})
    assert means.pop() == {"a": 2.0, "b": 5.0}
    assert means.pop() == {}
