"""How fast a GPU trains, and what it waits for; beside the same network in PyTorch.

    python -m benchmarks.gpu --data=data/cars [--batch_sizes=64,128,256,512] [--rounds=3]
        [--steps=20]

For each global batch size, in turn and in several rounds: float32 and bfloat16, with and without
XLA, one step and 16 steps in a call, on one batch kept in memory and on real records; and, where
PyTorch is installed, the same network with channels last, bfloat16 autocast and `torch.compile` on
one batch in memory; it neither augments nor shares weights between names, which ours does too.
Each runs in a process of its own, which stays between the rounds. GPU utilisation and memory are
what `nvidia-smi` says; without it the table leaves them out, so the command can be tried on a CPU.

The table also says which share of two limits of the card a row reaches (`limits` derives them):
`--peak_tflops`, its dense arithmetic in bfloat16, and `--peak_tb_per_s`, its memory. The defaults
are those of an H100 SXM (NVIDIA H100 datasheet: 989 TFLOPS, half of it in TF32; 3.35 TB/s).
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from tfrecords.errors import UserError, run_command


@dataclass(frozen=True)
class Row:
    """One thing that is measured."""

    framework: str
    precision: str
    jit: str
    steps_per_call: int

    def __str__(self) -> str:
        """Returns its name in the table."""
        if self.framework == "torch":
            return f"PyTorch, {self.precision}, torch.compile"
        xla = "XLA" if self.jit == "on" else "no XLA"
        return f"carbox, {self.precision}, {xla}, {self.steps_per_call} steps a call"


ROWS = (
    Row("carbox", "float32", "off", 1),
    Row("carbox", "float32", "on", 1),
    Row("carbox", "mixed_bfloat16", "off", 1),
    Row("carbox", "mixed_bfloat16", "on", 1),
    Row("carbox", "mixed_bfloat16", "on", 16),
    Row("torch", "bfloat16", "on", 1),
)


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", allow_abbrev=False)
    parser.add_argument("--data", default="data/tfrecords")
    parser.add_argument("--batch_sizes", default="64,128,256,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="in each measurement, at least")
    parser.add_argument("--cache", choices=("none", "memory"), default="none")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="dense, bfloat16")
    parser.add_argument("--peak_tb_per_s", type=float, default=3.35, help="of the memory")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.worker:
        work(flags, **json.loads(flags.worker))
        return
    for batch_size in map(int, flags.batch_sizes.split(",")):
        found = measure(flags, batch_size)
        print(f"\nglobal batch size {batch_size}, median of {flags.rounds} rounds\n")
        print(table(found), flush=True)


def measure(flags: argparse.Namespace, batch_size: int) -> dict[Row, list[dict[str, float]]]:
    """Runs every row's worker once a round, in turn."""
    workers = {row: start(flags, row, batch_size) for row in ROWS}
    found: dict[Row, list[dict[str, float]]] = {}
    try:
        # The first answer says that a worker is warm, or cannot work here.
        for row, worker in list(workers.items()):
            ready = ask(worker)
            if "missing" in ready:
                print(f"{row}: left out, {ready['missing']}", flush=True)
                workers.pop(row).wait()
        for _ in range(flags.rounds):
            for row, worker in workers.items():
                with Watch() as watch:
                    figures = ask(worker)
                found.setdefault(row, []).append(figures | watch.figures())
    finally:
        for worker in workers.values():
            worker.kill()
    return found


def start(flags: argparse.Namespace, row: Row, batch_size: int) -> subprocess.Popen:
    """Starts a row's worker."""
    what = json.dumps(asdict(row) | {"batch_size": batch_size})
    command = [sys.executable, "-m", "benchmarks.gpu", f"--data={flags.data}", f"--worker={what}"]
    command += [f"--steps={flags.steps}", f"--cache={flags.cache}"]
    command += [f"--peak_tflops={flags.peak_tflops}", f"--peak_tb_per_s={flags.peak_tb_per_s}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen) -> dict[str, Any]:
    """Lets a worker do one measurement, and returns what it found."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise UserError(f"a measurement failed (see above): {worker.args!r}")


def table(found: dict[Row, list[dict[str, float]]]) -> str:
    """Returns a Markdown table of medians."""
    keys = list(dict.fromkeys(key for figures in found.values() for key in figures[0]))
    lines = [f"| | {' | '.join(keys)} |", "|---|" + "---:|" * len(keys)]
    for row, figures in found.items():
        cells = [
            f"{statistics.median(one[key] for one in figures):,.3g}" if key in figures[0] else ""
            for key in keys
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Watch:
    """Asks `nvidia-smi`, while something runs, how busy the GPU is."""

    def __enter__(self) -> "Watch":
        self._seen: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        query = "--query-gpu=utilization.gpu,memory.used"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        while not self._done.wait(0.2):
            line = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
            busy, memory = map(float, line.split(","))
            self._seen.append((busy, memory))

    def figures(self) -> dict[str, float]:
        """Returns what was seen; nothing without `nvidia-smi`."""
        if not self._seen:
            return {}
        return {
            "GPU busy, %": statistics.median(busy for busy, _ in self._seen),
            "memory in use, MB, all processes": max(memory for _, memory in self._seen),
        }


def work(flags: argparse.Namespace, framework: str, **row: Any) -> None:
    """Answers each line of standard input with a measurement; the first is to warm up."""
    try:
        measurement = {"carbox": carbox, "torch": torch_network}[framework](flags, **row)
    except ModuleNotFoundError as error:
        sys.stdin.readline()
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    for _ in sys.stdin:
        print(json.dumps(measurement()), flush=True)


def carbox(
    flags: argparse.Namespace, batch_size: int, precision: str, jit: str, steps_per_call: int
) -> Any:
    """Returns what measures our own training step."""
    from benchmarks import train_step
    from tfrecords import manifest, reader
    from trainer import config as configs
    from trainer import input as inputs
    from trainer import loop, model, strategy

    settings = {
        "weights": "none",
        "batch_size": str(batch_size),
        "precision": precision,
        "jit": jit,
    }
    config = configs.apply_settings(configs.named("default"), settings)
    info = manifest.read(flags.data)
    devices = strategy.make("mirrored", None)
    records = reader.Records(flags.data, "train")
    source = inputs.open_source(records, info.image.height, info.image.width, flags.cache)
    network = model.build(config, source.height, source.width, info.class_names)
    job = train_step.make_job(config, devices, source, network)
    run_steps = loop.make_run_steps(job)
    batches = inputs.training_batches(devices, source, config, 0, 10**9, steps_per_call)
    kept = next(batches)
    calls = -(-flags.steps // steps_per_call)
    by_arithmetic, by_memory = limits(
        network, precision, flags.peak_tflops * 1e12, flags.peak_tb_per_s * 1e12
    )

    def train(real: bool) -> tuple[float, float]:
        waited, images, started = 0.0, 0, time.perf_counter()
        for _ in range(calls):
            before = time.perf_counter()
            group = next(batches) if real else kept
            waited += time.perf_counter() - before
            count = int(devices.experimental_local_results(group["label"])[0].shape[0])
            run_steps(group, count, False)
            images += count * batch_size
        job.state.step.numpy()
        seconds = time.perf_counter() - started
        return images / seconds, waited / seconds

    def measure() -> dict[str, float]:
        memory, _ = train(real=False)
        records, waited = train(real=True)
        return {
            "in memory, images/s": memory,
            "real records, images/s": records,
            "ratio": records / memory,
            "waiting for data": waited,
            "of the arithmetic limit": memory / by_arithmetic,
            "of the memory limit": memory / by_memory,
        }

    return measure


def limits(network: Any, precision: str, flops: float, bandwidth: float) -> tuple[float, float]:
    """Returns how many images/s of training the card's arithmetic and its memory would allow.

    Arithmetic: a convolution or dense layer costs its multiply-adds once forward and twice
    backward (for the gradients of its input and of its kernel), two operations each. Memory: in
    each of these three passes one array of the size of the layer's input and one of its output
    are read or written; all else (normalization, activations, the optimizer) is taken to be fused
    into them, and kernels to stay in the cache. Real training is slower than either.

    Args:
        network: a model from `trainer.model.build`.
        precision: of the config; float32 has half the arithmetic (TF32) and twice the bytes.
        flops: of the card, in bfloat16, operations/s.
        bandwidth: of its memory, bytes/s.
    """
    import keras

    operations = values = 0.0
    for layer in [*network.layers, *network.get_layer("backbone").layers]:
        if not hasattr(layer, "kernel") or isinstance(layer, keras.Model):
            continue
        given, made = layer.input.shape[1:], layer.output.shape[1:]
        cells = math.prod(made[:-1])  # 1 for a dense layer
        operations += 3 * 2 * cells * math.prod(layer.kernel.shape)
        values += 3 * (math.prod(given) + math.prod(made))
    full = precision == "float32"
    return flops / (2 if full else 1) / operations, bandwidth / values / (4 if full else 2)


def torch_network(
    flags: argparse.Namespace, batch_size: int, precision: str, jit: str, steps_per_call: int
) -> Any:
    """Returns what measures the same network, losses and AdamW in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    from tfrecords import manifest

    info = manifest.read(flags.data)
    height, width, classes = info.image.height, info.image.width, len(info.class_names)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def conv(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
        padding = (size - 1) // 2
        layer = nn.Conv2d(inside, outside, size, stride, padding, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outside), nn.ReLU6())

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int, expand: int):
            super().__init__()
            middle = inside * expand
            parts = [conv(inside, middle, 1)] if expand > 1 else []
            parts += [conv(middle, middle, 3, stride, middle)]
            parts += [nn.Conv2d(middle, outside, 1, bias=False), nn.BatchNorm2d(outside)]
            self.body = nn.Sequential(*parts)
            self.adds = stride == 1 and inside == outside

        def forward(self, x):  # type: ignore[no-untyped-def]
            return x + self.body(x) if self.adds else self.body(x)

    # (expansion, channels, blocks, stride): table 2 of Sandler et al. 2018.
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    stages += [(6, 160, 3, 2), (6, 320, 1, 1)]
    layers, channels = [conv(3, 32, 3, 2)], 32
    for expand, outside, blocks, stride in stages:
        for number in range(blocks):
            layers.append(Block(channels, outside, stride if number == 0 else 1, expand))
            channels = outside
    layers.append(conv(channels, 1280, 1))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            expand, *rest = layers[14].body
            self.early = nn.Sequential(*layers[:14], expand)
            self.late = nn.Sequential(*rest, *layers[15:])
            self.edges = nn.Sequential(conv(576, 256, 1), nn.Conv2d(256, 4, 1, bias=False))
            self.label = nn.Linear(1280, classes)

        def forward(self, image):  # type: ignore[no-untyped-def]
            features = self.early(image / 127.5 - 1)
            edges = self.edges(features).float()
            found = []
            for edge, axis in enumerate((2, 1, 2, 1)):  # as in `trainer.model.soft_argmax`
                chances = edges[:, edge].mean(3 - axis).softmax(1)
                places = torch.linspace(0, 1, chances.shape[1], device=chances.device)
                found.append((chances * places).sum(1))
            return torch.stack(found, 1), self.label(self.late(features).mean((2, 3)))

    def giou(true, pred):  # type: ignore[no-untyped-def]
        size = (pred[:, 2:] - pred[:, :2]).clamp(min=0).prod(1)
        true_size = (true[:, 2:] - true[:, :2]).prod(1)
        low, high = torch.maximum(true[:, :2], pred[:, :2]), torch.minimum(true[:, 2:], pred[:, 2:])
        both = (high - low).clamp(min=0).prod(1)
        union = size + true_size - both
        low, high = torch.minimum(true[:, :2], pred[:, :2]), torch.maximum(true[:, 2:], pred[:, 2:])
        hull = (high - low).clamp(min=1e-7).prod(1)
        return both / union.clamp(min=1e-7) - (hull - union) / hull

    network = Network().to(device, memory_format=torch.channels_last)
    image = torch.randint(0, 256, (batch_size, 3, height, width), dtype=torch.uint8)
    image = image.to(device, memory_format=torch.channels_last)
    bbox = torch.tensor([[0.2, 0.3, 0.7, 0.8]]).repeat(batch_size, 1).to(device)
    label = torch.randint(0, classes, (batch_size,)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    compiled = torch.compile(network)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            box, logits = compiled(image.float())
        loss = functional.cross_entropy(logits.float(), label, label_smoothing=0.1)
        loss = loss + 5 * (box - bbox).abs().mean() + 2 * (1 - giou(bbox, box)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def measure() -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(flags.steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return {"in memory, images/s": flags.steps * batch_size / seconds}

    return measure


if __name__ == "__main__":
    run_command(main)
