"""How fast a GPU trains, and what it waits for; beside the same network in PyTorch.

    python -m benchmarks.gpu --data=data/cars [--batch_sizes=64,128,256,512] [--rounds=3]
        [--steps=20]

For each global batch size, in turn and in several rounds: float32 and bfloat16, with and without
XLA, one step and 16 steps in a call, on one batch kept in memory and on real records; and, where
PyTorch is installed, the same network with channels last, bfloat16 autocast and `torch.compile` on
one batch in memory (`benchmarks.torch_network`); it neither augments nor shares weights between
names, which ours does too. Each runs in a process of its own, which stays between the rounds. GPU
utilization and memory are what `nvidia-smi` says; without it the table leaves them out, so the
command can be tried on a CPU.

The table also says which share of two limits of the card a row reaches (`limits` derives them):
`--peak_tflops`, its dense arithmetic in bfloat16, and `--peak_tb_per_s`, its memory. The defaults
are those of an H100 SXM (NVIDIA H100 datasheet: 989 TFLOPS, half of it in TF32; 3.35 TB/s).
"""

import json
import math
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from absl import flags

from tfrecords import command
from tfrecords.errors import FlagError, UserError

FLAGS = flags.FlagValues()
command.DEFINE_path("data", "data/tfrecords", "data set to learn from", flag_values=FLAGS)
flags.DEFINE_list(
    "batch_sizes", ["64", "128", "256", "512"], "global batch sizes", flag_values=FLAGS
)
flags.DEFINE_integer("rounds", 3, "of measuring", 1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 20, "in each measurement, at least", 1, flag_values=FLAGS)
flags.DEFINE_enum(
    "cache", "none", ["none", "memory"], "memory keeps the decoded photos", flag_values=FLAGS
)
flags.DEFINE_float(
    "peak_tflops", 989.0, "of the card, dense, in bfloat16", 0.001, flag_values=FLAGS
)
flags.DEFINE_float("peak_tb_per_s", 3.35, "of the card's memory", 0.001, flag_values=FLAGS)
flags.DEFINE_string(
    "worker", None, "what to measure, as the command itself starts it", flag_values=FLAGS
)


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
    Row("torch", "mixed_bfloat16", "on", 1),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UserError: there is no data set, or a measurement failed.
    """
    command.parse(FLAGS, argv, usage=__doc__)
    if FLAGS.worker:
        work(**json.loads(FLAGS.worker))
        return
    if not all(size.isdigit() and int(size) for size in FLAGS.batch_sizes):
        given = ",".join(FLAGS.batch_sizes)
        raise FlagError(f"flag --batch_sizes={given}: it is not numbers, separated by commas.")
    for batch_size in map(int, FLAGS.batch_sizes):
        found = measure(batch_size)
        print(f"\nglobal batch size {batch_size}, median of {FLAGS.rounds} rounds\n")
        print(table(found), flush=True)


def measure(batch_size: int) -> dict[Row, list[dict[str, float]]]:
    """Runs every row's worker once a round, in turn."""
    workers = {row: start(row, batch_size) for row in ROWS}
    found: dict[Row, list[dict[str, float]]] = {}
    try:
        # The first answer says that a worker is warm, or cannot work here.
        for row, worker in list(workers.items()):
            ready = ask(worker)
            if "missing" in ready:
                print(f"{row}: left out, {ready['missing']}", flush=True)
                workers.pop(row).wait()
        for _ in range(FLAGS.rounds):
            for row, worker in workers.items():
                with Watch() as watch:
                    figures = ask(worker)
                found.setdefault(row, []).append(figures | watch.figures())
    finally:
        for worker in workers.values():
            worker.kill()
    return found


def start(row: Row, batch_size: int) -> subprocess.Popen:
    """Starts a row's worker."""
    what = json.dumps(asdict(row) | {"batch_size": batch_size})
    command = [sys.executable, "-m", "benchmarks.gpu", f"--data={FLAGS.data}", f"--worker={what}"]
    command += [f"--steps={FLAGS.steps}", f"--cache={FLAGS.cache}"]
    command += [f"--peak_tflops={FLAGS.peak_tflops}", f"--peak_tb_per_s={FLAGS.peak_tb_per_s}"]
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


def work(framework: str, **row: Any) -> None:
    """Answers each line of standard input with a measurement; the first is to warm up."""
    try:
        measurement = {"carbox": carbox, "torch": torch_network}[framework](**row)
    except ModuleNotFoundError as error:
        sys.stdin.readline()
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    for _ in sys.stdin:
        print(json.dumps(measurement()), flush=True)


def carbox(batch_size: int, precision: str, jit: str, steps_per_call: int) -> Any:
    """Returns what measures our own training step."""
    from benchmarks import train_step
    from tfrecords import manifest, reader
    from trainer import configs, model, strategy, train
    from trainer import input as inputs

    settings = {"batch_size": batch_size, "precision": precision, "jit": jit}
    config = configs.replace(configs.load("default"), settings)
    info = manifest.read(FLAGS.data)
    devices = strategy.make("mirrored", None)
    records = reader.Records(FLAGS.data, "train")
    split = inputs.open_split(records, info.image.height, info.image.width, FLAGS.cache)
    network = model.build(config, split.height, split.width, info.class_names, fresh=False)
    setup = train_step.make_setup(config, devices, split, network)
    run_steps = train.make_run_steps(setup)
    batches = inputs.training_batches(devices, split, config, 0, 10**9, steps_per_call)
    kept = next(batches)
    calls = -(-FLAGS.steps // steps_per_call)
    by_arithmetic, by_memory = limits(
        network, precision, FLAGS.peak_tflops * 1e12, FLAGS.peak_tb_per_s * 1e12
    )

    def images_per_second(real: bool) -> tuple[float, float]:
        waited, images, started = 0.0, 0, time.perf_counter()
        for _ in range(calls):
            before = time.perf_counter()
            group = next(batches) if real else kept
            waited += time.perf_counter() - before
            count = int(devices.experimental_local_results(group["label"])[0].shape[0])
            run_steps(group, 0, count)
            images += count * batch_size
        setup.state.step.numpy()
        seconds = time.perf_counter() - started
        return images / seconds, waited / seconds

    def measure() -> dict[str, float]:
        memory, _ = images_per_second(real=False)
        records, waited = images_per_second(real=True)
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


def torch_network(batch_size: int, precision: str, jit: str, steps_per_call: int) -> Any:
    """Returns what measures the same network, losses and AdamW in PyTorch."""
    from benchmarks import torch_network  # not `trainer`: see there
    from tfrecords import manifest

    info = manifest.read(FLAGS.data)
    recipe = torch_network.Recipe(
        batch_size,
        info.image.height,
        info.image.width,
        len(info.class_names),
        FLAGS.steps,
        bfloat16=precision == "mixed_bfloat16",
    )
    train = torch_network.make_measure(recipe)
    return lambda: {"in memory, images/s": train()}


if __name__ == "__main__":
    command.run(main)
