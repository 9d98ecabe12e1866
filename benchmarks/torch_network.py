"""The same network in PyTorch: MobileNetV2 and the default's heads, trained as its users would.

    python -m benchmarks.torch_network '{"batch_size": 32, ...}'

Channels last, `torch.compile`, the fused AdamW, bfloat16 autocast on request. It trains on one
batch in memory, which it does not augment, and words share no weights. It takes a `Recipe` as JSON,
and answers each line of standard input with images/s; the first also compiles. It needs PyTorch,
which carbox itself does not, and a process without TensorFlow: both bring an LLVM, and two of those
in a process end it. So nothing of `trainer` may be imported here.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Recipe:
    """What is trained; the defaults are those of `trainer.configs.schema`.

    Attributes:
        batch_size: photos in a step.
        height, width: of the photos that the network takes, in pixels.
        classes: how many names there are.
        steps: in each measurement.
        alpha, last_stride, filters, learning_rate, weight_decay, label_smoothing: as in a config.
        bfloat16: whether to compute in bfloat16 where autocast does.
        threads: of the CPU; PyTorch's own choice if 0.
    """

    batch_size: int
    height: int
    width: int
    classes: int
    steps: int
    alpha: float = 1.0
    last_stride: int = 1
    filters: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.5
    label_smoothing: float = 0.1
    bfloat16: bool = False
    threads: int = 0


# (expansion, filters, blocks, stride): table 2 of Sandler et al. 2018, arXiv:1801.04381.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
           (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
# The last block that halves the map: the box is read from inside it, as in `trainer.model`.
_BOX_BLOCK = 13
_BOX_FILTERS = 4  # one map for each edge


class Network(nn.Module):
    """`trainer.model` with the soft-argmax head, and a plain linear classifier."""

    def __init__(self, alpha: float, last_stride: int, filters: int, classes: int):
        super().__init__()
        channels = _divisible(32 * alpha)
        stem = _conv(3, channels, 3, 2)
        blocks: list[_Block] = []
        for expansion, width, count, stride in _STAGES:
            outside = _divisible(width * alpha)
            for number in range(count):
                step = last_stride if len(blocks) == _BOX_BLOCK else stride
                blocks.append(_Block(channels, outside, step if number == 0 else 1, expansion))
                channels = outside
        last = 1280 if alpha <= 1 else _divisible(1280 * alpha)
        expand, *rest = blocks[_BOX_BLOCK].body
        middle = blocks[_BOX_BLOCK].middle
        self.early = nn.Sequential(stem, *blocks[:_BOX_BLOCK], expand)
        self.late = nn.Sequential(*rest, *blocks[_BOX_BLOCK + 1 :], _conv(channels, last, 1))
        self.edges = nn.Sequential(
            nn.Conv2d(middle, filters, 1),
            nn.BatchNorm2d(filters, eps=1e-3),
            nn.ReLU(),
            nn.Conv2d(filters, _BOX_FILTERS, 1, bias=False),
        )
        self.label = nn.Linear(last, classes)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns boxes [b, 4] and logits [b, classes] of photos [b, 3, h, w] in [0, 255]."""
        features = self.early(image / 127.5 - 1)
        edges = self.edges(features).float()
        found = []
        for edge, axis in enumerate((2, 1, 2, 1)):  # as in `trainer.layers.soft_argmax`
            chances = edges[:, edge].mean(3 - axis).softmax(1)
            places = torch.linspace(0, 1, chances.shape[1], device=chances.device)
            found.append((chances * places).sum(1))
        return torch.stack(found, 1), self.label(self.late(features).mean((2, 3)))


def make_measure(recipe: Recipe) -> Callable[[], float]:
    """Returns what trains for some steps and returns images/s; its first call compiles."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.set_float32_matmul_precision("high")  # as TensorFlow multiplies on GPUs
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: Any = Network(recipe.alpha, recipe.last_stride, recipe.filters, recipe.classes)
    network = network.to(device, memory_format=torch.channels_last)
    shape = (recipe.batch_size, 3, recipe.height, recipe.width)
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    image = image.to(device, memory_format=torch.channels_last)
    bbox = torch.tensor([[0.2, 0.3, 0.7, 0.8]]).repeat(recipe.batch_size, 1).to(device)
    label = torch.randint(0, recipe.classes, (recipe.batch_size,)).to(device)
    kernels = [value for value in network.parameters() if value.dim() > 1]
    others = [value for value in network.parameters() if value.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": kernels, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        recipe.learning_rate,
        fused=True,
    )
    compiled = torch.compile(network)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bfloat16):
            box, logits = compiled(image.float())
        loss = functional.cross_entropy(
            logits.float(), label, label_smoothing=recipe.label_smoothing
        )
        loss = loss + 5 * (box - bbox).abs().mean() + 2 * (1 - _giou(bbox, box)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(recipe.steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return recipe.steps * recipe.batch_size / (time.perf_counter() - started)

    return measure


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, expansion: int):
        super().__init__()
        self.middle = middle = inside * expansion
        parts = [_conv(inside, middle, 1)] if expansion > 1 else []
        parts += [_conv(middle, middle, 3, stride, middle)]
        parts += [nn.Conv2d(middle, outside, 1, bias=False), nn.BatchNorm2d(outside, eps=1e-3)]
        self.body = nn.Sequential(*parts)
        self.adds = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _conv(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> Any:
    padding = (size - 1) // 2
    layer = nn.Conv2d(inside, outside, size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outside, eps=1e-3), nn.ReLU6())


def _divisible(filters: float) -> int:
    """Returns the nearest multiple of 8, not below 90 % of the number: as Keras rounds."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def _giou(true: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
    size = (pred[:, 2:] - pred[:, :2]).clamp(min=0).prod(1)
    true_size = (true[:, 2:] - true[:, :2]).prod(1)
    low, high = torch.maximum(true[:, :2], pred[:, :2]), torch.minimum(true[:, 2:], pred[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    union = size + true_size - both
    low, high = torch.minimum(true[:, :2], pred[:, :2]), torch.maximum(true[:, 2:], pred[:, 2:])
    hull = (high - low).clamp(min=1e-7).prod(1)
    return both / union.clamp(min=1e-7) - (hull - union) / hull


if __name__ == "__main__":
    _measure = make_measure(Recipe(**json.loads(sys.argv[1])))
    for _ in sys.stdin:
        print(_measure(), flush=True)
