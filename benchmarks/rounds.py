"""Measures things side by side: in turn, several rounds, medians and ratios.

Machines are noisy and drift. What is compared is therefore run in turn, A B C A B C …, and a ratio
is the median of the ratios of each round.
"""

import statistics
from collections.abc import Callable, Mapping


def measure(things: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls each thing once a round and collects what it returns.

    Args:
        things: by name; each does its work and returns its figure, for example images/s.
        rounds: how often; one more, not counted, goes first to warm up.
    """
    found: dict[str, list[float]] = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            value = thing()
            if number:
                found[name].append(value)
    return found


def ratio(found: Mapping[str, list[float]], name: str, base: str) -> float:
    """Returns the median over the rounds of one figure divided by another."""
    return statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))


def table(found: Mapping[str, list[float]], base: str, unit: str) -> str:
    """Returns a Markdown table: median, range, and the ratio to `base`."""
    lines = [f"| | median {unit} | range | ratio to {base} |", "|---|---|---|---|"]
    for name, values in found.items():
        lines.append(
            f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f}"
            f" | {ratio(found, name, base):.2f} |"
        )
    return "\n".join(lines)
