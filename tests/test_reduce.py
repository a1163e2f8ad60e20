import math

import torch
import torch.distributed as dist

from scenekd.losses.reduce import at_least_float32, mean_over_processes, safe_count, zero_loss


def _average(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = torch.tensor([float(rank), 10.0])
    assert mean_over_processes(mine).tolist() == [0.5, 10.0]
    assert mine.tolist() == [float(rank), 10.0]
    dist.destroy_process_group()


def test_mean_over_two_processes(tmp_path):
    torch.multiprocessing.spawn(_average, args=(str(tmp_path),), nprocs=2)


def test_mean_over_one_process_is_the_value():
    value = torch.tensor([3.0], requires_grad=True)
    assert mean_over_processes(value).tolist() == [3.0]
    assert not mean_over_processes(value).requires_grad


def test_safe_count():
    assert safe_count(torch.tensor([0.0, 0.25, 7.0])).tolist() == [1, 0.25, 7]


def test_zero_loss_is_zero_with_a_zero_gradient_even_of_an_overflow():
    output = torch.tensor([[1.0, math.inf], [math.nan, 2.0]], requires_grad=True)
    loss = zero_loss(output)
    loss.backward()
    assert loss.item() == 0
    assert output.grad.tolist() == [[0, 0], [0, 0]]


def test_at_least_float32():
    half, double = torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)
    assert at_least_float32(half).dtype == at_least_float32(half.half()).dtype == torch.float32
    assert at_least_float32(double).dtype == torch.float64
