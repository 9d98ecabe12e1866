"""Small class-folder data sets, made on the spot."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("Audi TTS Coupe 2012", "Ram C/V Cargo Van Minivan 2012", "BMW M3, 2012")
FOLDERS = ("Audi TTS Coupe 2012", "Ram C-V Cargo Van Minivan 2012", "BMW M3, 2012")


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colors with some texture: uint8 [height, width, 3], not two alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(-12, 13, (height, width, 1))
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def photo(height: int = 60, width: int = 80, seed: int = 0, kind: str = "JPEG", **save) -> bytes:
    """The bytes of a photo."""
    return encode(Image.fromarray(pixels(height, width, seed)), kind, **save)


def encode(image: Image.Image, kind: str = "JPEG", **save) -> bytes:
    """The bytes of a Pillow image."""
    out = io.BytesIO()
    image.save(out, kind, **save)
    return out.getvalue()


def write(
    root: Path,
    train: int = 24,
    test: int = 6,
    height: int = 60,
    width: int = 80,
) -> Path:
    """Writes a folder with photos `00001.jpg` … in both splits, and its CSVs."""
    (root / "names.csv").parent.mkdir(parents=True, exist_ok=True)
    (root / "names.csv").write_text("".join(f'"{name}"\n' for name in CLASSES))
    for split, count in (("train", train), ("test", test)):
        rows = []
        for number in range(1, count + 1):
            label = number % len(CLASSES)
            folder = root / "car_data" / split / FOLDERS[label]
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{number:05d}.jpg"
            (folder / name).write_bytes(photo(height, width, number + 1000 * (split == "test")))
            rows.append(f"{name},{number % 9 + 1},5,{width - 10},{height - 5.5},{label + 1}\n")
        (root / f"anno_{split}.csv").write_text("".join(rows))
    return root


def path_of(root: Path, split: str, number: int) -> Path:
    """Where `write` puts a photo."""
    return root / "car_data" / split / FOLDERS[number % len(CLASSES)] / f"{number:05d}.jpg"


def zipped(root: Path, target: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Zips a folder."""
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def replace_row(csv: Path, row: int, *lines: str) -> None:
    """Puts other lines in the place of a row, counted from 1."""
    all_lines = csv.read_text().splitlines(keepends=True)
    all_lines[row - 1 : row] = [line + "\n" for line in lines]
    csv.write_text("".join(all_lines))


def flags(source: Path | str, output: Path | str, *more: str) -> list[str]:
    """Flags of `preprocess.run` for small stored photos."""
    return [
        f"--input={source}",
        f"--output={output}",
        "--image_height=24",
        "--image_width=32",
        *more,
    ]


def join_lines(lines: Iterable[str]) -> bytes:
    """UTF-8 lines."""
    return "".join(f"{line}\n" for line in lines).encode()
