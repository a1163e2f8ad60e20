"""Images a second at batch 1, by the protocol of BlitzNet (Dvornik et al., ICCV 2017, section 4): the forward pass,
NMS and the class map at the input's size are timed, reading and resizing are not.

The weights are random, but brought to where a trained network works: normalised activations, logits of a usual
spread, and as many scores over the threshold as crowded images have.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scenekd.benchmark.material import voc_images
from scenekd.benchmark.measure import Row, interleave, spread
from scenekd.benchmark.options import Options
from scenekd.config import get_cfg, load_config
from scenekd.data.images import read_image
from scenekd.export_graph import ExportGraph
from scenekd.export_onnx import PACKAGES, Session, write
from scenekd.predictor import Predictor
from scenekd.sample import Prediction

from .anchors import ANCHORS_PER_CELL
from .blitznet import BlitzNet

CANDIDATES = 500  # scores over the threshold on the timed image
IMAGES = 4  # for the statistics of batch normalisation; the first is timed
MOST_COMPILED = 200
Work = Callable[[], object]


def speed_rows(options: Options, suite: str, device: str) -> Iterator[Row]:
    """For each network: images a second as it is; then what each way of running it gains."""
    for name, cfg in networks(options):
        net = BlitzNet.from_config(cfg, pretrained=False).eval()
        images = timed_images(options, net, cfg)
        candidates = tame(net, images)
        net, image = net.to(device), images[:1].to(device)
        yield from _of_one(options, suite, f"{name}, {device}", net, image, candidates)


def networks(options: Options) -> list[tuple[str, Any]]:
    """The paper's network, and a small student of ours."""
    paper = get_cfg()
    student = load_config(Path(__file__).parent / "experiments" / "voc_small.yaml")
    student.defrost()
    student.INPUT.SIZE = options.pick(160, 160, 64)
    both = [("BlitzNet300-R50", paper), (f"student {student.INPUT.SIZE}-R18", student)]
    return options.pick(both, both, both[1:])


def timed_images(options: Options, net: nn.Module, cfg: Any) -> Tensor:
    """(4, 3, S, S) real images, where there is real data, else drawn ones."""
    prepare = Predictor(net, cfg).prepare
    records = voc_images(options).records
    return torch.cat([prepare(read_image(records[i % len(records)])) for i in range(IMAGES)])


@torch.no_grad()
def tame(net: BlitzNet, images: Tensor) -> int:
    """Bring a random network to a trained one's range, in place; returns the scores over the threshold.

    Class logits get a spread of 2 and offsets of .5, and background is raised until :data:`CANDIDATES` scores of the
    first image are left.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over what is seen
    net.train()
    net.outputs(images)
    net.eval()
    outputs = net.outputs(images[:1])
    for convolutions, values, wanted in (
        (net.detection.classes, outputs["class_logits"], 2.0),
        (net.detection.offsets, outputs["offsets"], 0.5),
    ):
        for convolution in convolutions:
            convolution.weight.mul_(wanted / float(values.std()))  # type: ignore[operator]
    logits = net.outputs(images[:1])["class_logits"][0]
    raised = _background(logits, net.postprocess.score_threshold)
    for convolution in net.detection.classes:
        assert isinstance(convolution.bias, Tensor)
        convolution.bias.view(ANCHORS_PER_CELL, -1)[:, -1] += raised
    scores = net.outputs(images[:1])["class_logits"][0].softmax(-1)[:, :-1]
    return int((scores > net.postprocess.score_threshold).sum())


def _background(logits: Tensor, threshold: float) -> float:
    """What must be added to background's logits (A, C + 1), the last, for :data:`CANDIDATES` scores to stay above."""
    low, high = -100.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        raised = torch.cat([logits[:, :-1], logits[:, -1:] + middle], dim=1)
        many = int((raised.softmax(-1)[:, :-1] > threshold).sum()) > CANDIDATES
        low, high = (middle, high) if many else (low, middle)
    return high


def finish(prediction: Prediction, size: int) -> tuple[Tensor, Tensor]:
    """(N, 4) boxes and the (size, size) class map of a prediction."""
    prediction = prediction.resize(size, size)
    assert prediction.boxes is not None and prediction.sem_seg is not None
    return prediction.boxes, prediction.sem_seg.argmax(0)


def run(net: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """What is timed; the image is (1, 3, S, S) in 0…255."""
    return finish(net(image)[0], image.shape[-1])


def _of_one(
    options: Options, suite: str, name: str, net: BlitzNet, image: Tensor, candidates: int
) -> Iterator[Row]:
    def plain() -> object:
        return run(net, image)

    with torch.inference_mode():
        kept = len(run(net, image)[0])
        base = interleave(plain, plain, repeats=options.repeats(5))
        rates = spread([1 / seconds for seconds in (*base.ours, *base.peer)])
        detail = f"{candidates} scores over the threshold, {kept} boxes kept"
        yield Row(suite, f"{name}: with NMS and class map, batch 1", *rates, unit="images/s", detail=detail)
        for way, build in ways(options, net, image).items():
            yield _way(options, suite, f"{name}: {way}", plain, build)


def _way(options: Options, suite: str, name: str, plain: Work, build: Callable[[], Work | str]) -> Row:
    """The gain of one way, or why there is none."""
    try:
        work = build()
        if isinstance(work, str):
            return Row(suite, name, detail=work)
        work()  # compiles, where it does
        times = interleave(work, plain, repeats=options.repeats(5))
    except Exception as error:  # compilers and runtimes raise whatever they like; the other rows still count
        lines = str(error).strip().splitlines() or [""]
        return Row(suite, name, detail=f"{type(error).__name__}: {lines[0][:160]}")
    rates = [1 / spread(side)[0] for side in (times.ours, times.peer)]
    return Row(suite, name, *times.speedup, detail=f"{rates[0]:.4g} images/s against {rates[1]:.4g} as it is")


def ways(options: Options, net: BlitzNet, image: Tensor) -> dict[str, Callable[[], Work | str]]:
    """Name → what builds the timed work, or says why it is not run here."""
    cuda = image.device.type == "cuda"
    low = torch.float16 if cuda else torch.bfloat16

    def channels_last(amp: bool) -> Work:
        copied = copy.deepcopy(net).to(memory_format=torch.channels_last)
        moved = image.contiguous(memory_format=torch.channels_last)

        def work() -> object:
            with torch.autocast(image.device.type, low, enabled=amp):
                return run(copied, moved)

        return work

    def amp() -> Work:
        def work() -> object:
            with torch.autocast(image.device.type, low):
                return run(net, image)

        return work

    def compiled() -> Work | str:
        if options.size != "full":
            return "compiling takes a minute; run without --quick"
        if not cuda and net.image_size > MOST_COMPILED:
            return f"compiling for the CPU takes minutes above {MOST_COMPILED} px"
        copied: Any = copy.deepcopy(net)
        copied.outputs = torch.compile(copied.outputs)
        return lambda: run(copied, image)

    def onnx() -> Work | str:
        if cuda:
            return "onnxruntime is asked on the CPU alone"
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        return f"needs {', '.join(missing)}" if missing else _onnx(options, net, image)

    found: dict[str, Callable[[], Work | str]] = {
        "channels-last weights": lambda: channels_last(False),
        f"AMP ({str(low).removeprefix('torch.')})": amp,
        "AMP, channels-last weights": lambda: channels_last(True),
        "torch.compile": compiled,
        "ONNX with NMS, by onnxruntime": onnx,
    }
    if not cuda:  # the two together are for tensor cores
        del found["AMP, channels-last weights"]
    return found


def _onnx(options: Options, net: BlitzNet, image: Tensor) -> Work:
    path = options.workdir / f"blitznet_{net.image_size}.onnx"
    with torch.inference_mode(False), torch.no_grad():
        graph = ExportGraph(copy.deepcopy(net), nms=True)
        write(graph, path, graph.description([str(k) for k in range(net.num_classes)]), None)
    session = Session(path, torch.get_num_threads())
    size = net.image_size

    def work() -> object:
        said = session(image)
        boxes, dense = torch.from_numpy(said["boxes"]), torch.from_numpy(said["sem_seg"])
        return finish(Prediction((size, size), boxes=boxes, sem_seg=dense), size)

    return work
