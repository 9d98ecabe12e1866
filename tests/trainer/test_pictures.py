"""Pictures, judged by their pixels: photos are gray, so every blue, red and white one is ours."""

import math

import matplotlib.pyplot
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import pictures

BLUE, RED, WHITE = (20, 80, 230), (214, 24, 24), (255, 255, 255)
TRAINING, VALIDATION = (31, 119, 180), (255, 127, 14)  # matplotlib's C0 and C1
CENTRE = (0.45, 0.48, 0.55, 0.52)
NAMES = [
    "Audi",
    "Ram C/V Cargo Van Minivan 2012",
    "Chevrolet Silverado 2500HD Regular Cab 2012",
    "Citroën C4 Grand Picasso with every extra that money buys, the long wheelbase and a tow bar",
    "W" * 300,
]


def gray(width, height):
    return np.full([height, width, 3], 90, np.uint8)


def count(picture, color):
    return int((np.asarray(picture) == color).all(-1).sum())


def extent(picture, color):
    """Left, top, right and bottom of the pixels of a color, right and bottom exclusive."""
    rows, columns = np.nonzero((np.asarray(picture) == color).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(
    "size", [(128, 96), (640, 480), (480, 640), (4000, 3000), (73, 39), (900, 30)]
)
def test_lines_are_where_the_boxes_are_at_every_size(size):
    photo = gray(*size)
    picture = pictures.draw_boxes(
        photo, ((0.2, 0.4, 0.6, 0.8), "A"), ((0.3, 0.3, 0.9, 0.7), "B", 1)
    )
    assert min(picture.size) >= 320
    scale = picture.width / size[0]
    height = size[1] * scale  # of the photo, without the margin of a strip
    sides = [picture.width, height] * 2
    for box, color in (((0.2, 0.4, 0.6, 0.8), BLUE), ((0.3, 0.3, 0.9, 0.7), RED)):
        xmin, ymin, xmax, ymax = (round(s * side) for s, side in zip(box, sides, strict=True))
        on_lines = [(xmin + 1, (2 * ymin + ymax) // 3), (xmax - 2, (2 * ymin + ymax) // 3)]
        on_lines += [((xmin + 2 * xmax) // 3, ymin + 1), ((xmin + 2 * xmax) // 3, ymax - 2)]
        seen = [picture.getpixel(point) for point in on_lines]
        # Where a label of the other box stands on a line, or the lines cross, another color shows.
        assert seen.count(color) >= 2, seen
        assert picture.getpixel((xmin - 2, (ymin + ymax) // 2)) != color


def test_boxes_drawn_alone_are_outlined_to_the_pixel():
    picture = pictures.draw_boxes(gray(640, 480), ((0.25, 0.5, 0.75, 1), ""), None)
    assert extent(picture, BLUE)[0] == 160
    assert extent(picture, BLUE)[2:] == (480, 480)
    assert picture.getpixel((159, 400)) == (90, 90, 90)
    assert picture.getpixel((320, 400)) == (90, 90, 90)
    assert count(picture, RED) == 0


def test_coinciding_boxes_show_both_colors():
    box = (0.25, 0.25, 0.75, 0.75)
    picture = pictures.draw_boxes(gray(640, 480), (box, "A"), (box, "A", 0.9))
    across = [picture.getpixel((x, 240)) for x in range(158, 168)]
    assert across.index(RED) == 2
    assert BLUE in across
    assert across.index(BLUE) > across.index(RED)


coordinates = st.floats(-0.2, 1.2) | st.sampled_from([0.0, 0.5, 1.0])
any_box = st.tuples(*[coordinates] * 4)


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([(320, 320), (128, 96), (640, 480), (300, 700), (1000, 20), (20, 1000)]),
    true=st.tuples(any_box, st.sampled_from(NAMES)),
    predicted=st.tuples(any_box, st.sampled_from(NAMES), st.floats(0, 1)),
)
def test_names_are_whole_inside_the_picture_and_never_on_one_another(size, true, predicted):
    photo = gray(*size)
    # With a small box in the middle, and nothing else to draw, a label is certainly whole.
    whole_true = count(pictures.draw_boxes(photo, (CENTRE, true[1]), None), WHITE)
    whole_predicted = count(pictures.draw_boxes(photo, None, (CENTRE, *predicted[1:])), WHITE)
    both = pictures.draw_boxes(photo, true, predicted)
    assert count(both, WHITE) == whole_true + whole_predicted
    assert whole_true > 100
    assert whole_predicted > 200


@pytest.mark.parametrize("size", [(73, 39), (640, 480), (1500, 3000), (4000, 3000)])
def test_letters_are_legible_at_every_size(size):
    picture = pictures.draw_boxes(gray(*size), ((0.2, 0.2, 0.8, 0.8), "Hg"), None)
    _, top, _, bottom = extent(picture, WHITE)
    assert bottom - top >= 12
    assert 0.02 * min(picture.size) < bottom - top < 0.08 * min(picture.size)


@pytest.mark.parametrize("name", NAMES)
def test_a_long_name_is_cut_but_its_probability_is_not(name):
    font = pictures._font(20)
    text = pictures._fit("predicted: ", name, " (50 %)", font, 400)
    lines = text.split("\n")
    assert len(lines) <= 2
    assert all(font.getlength(line) <= 400 for line in lines)
    shown = " ".join(lines).removeprefix("predicted: ").replace("\N{NO-BREAK SPACE}", " ")
    assert shown.endswith(" (50 %)")
    shown = shown.removesuffix(" (50 %)")
    assert shown == name or (shown.endswith("…") and name.startswith(shown[:-1]))
    assert (shown == name) == (len(name) < 50)


def test_names_beyond_ascii_have_letters():
    drawn = [
        np.asarray(pictures.draw_boxes(gray(320, 320), (CENTRE, name), None))
        for name in ("Citroën", "Citroén", "Škoda", "Škodä", "Лада", "Лава")
    ]
    assert all((a != b).any() for a, b in zip(drawn[::2], drawn[1::2], strict=True))


def test_a_box_that_is_not_finite_leaves_its_name():
    nowhere = [math.nan] * 4
    picture = pictures.draw_boxes(gray(640, 480), (CENTRE, "A"), (nowhere, "B", math.nan))
    assert count(picture, WHITE) > 200
    left, top, right, bottom = extent(picture, RED)
    assert bottom - top < 60  # a label and no box
    assert right - left < 320


def test_a_box_inside_out_is_drawn_around_its_corners():
    turned = pictures.draw_boxes(gray(640, 480), ((0.8, 0.9, 0.3, 0.4), "A"), None)
    straight = pictures.draw_boxes(gray(640, 480), ((0.3, 0.4, 0.8, 0.9), "A"), None)
    assert turned.tobytes() == straight.tobytes()


def test_photos_come_as_arrays_or_pictures_and_stay_as_they_are():
    random = np.random.default_rng(0).integers(0, 255, [400, 500, 3], np.uint8)
    before = random.copy()
    marks = (((0.1, 0.1, 0.5, 0.5), "A"), ((0.2, 0.2, 0.6, 0.6), "B", 0.5))
    picture = Image.fromarray(random)
    drawn = pictures.draw_boxes(picture, *marks)
    assert drawn.tobytes() == pictures.draw_boxes(random, *marks).tobytes()
    assert (random == before).all()
    assert (np.asarray(picture) == before).all()
    assert (np.asarray(pictures.draw_boxes(random, None, None)) == before).all()
    assert pictures.draw_boxes(picture.convert("L"), *marks).mode == "RGB"


def test_gallery_lays_pictures_out_row_by_row():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    sizes = [(480, 360), (100, 300), (4000, 1000), (50, 50), (640, 480)]
    sheet = pictures.gallery(
        [Image.new("RGB", size, c) for size, c in zip(sizes, colors, strict=True)], 3
    )
    assert sheet.size == (3 * 490 + 10, 2 * 370 + 10)
    for i, color in enumerate(colors):
        center = (10 + 490 * (i % 3) + 240, 10 + 370 * (i // 3) + 180)
        assert sheet.getpixel(center) == color
        left, top, right, bottom = extent(sheet, color)
        assert (right - left) / (bottom - top) == pytest.approx(sizes[i][0] / sizes[i][1], rel=0.02)
        assert right - left == 480 or bottom - top == 360
    assert pictures.gallery([Image.new("RGB", (8, 8))], 4).width == 500


@pytest.mark.parametrize(("number", "columns"), [(0, 3), (2, 0)])
def test_gallery_of_nothing_is_refused(number, columns):
    with pytest.raises(ValueError, match="gallery"):
        pictures.gallery([Image.new("RGB", (8, 8))] * number, columns)


def history(epochs):
    keys = ["loss", "box_loss", "label_loss", "mean_iou", "top1", "top5"]
    keys += [f"val_{key}" for key in keys] + ["learning_rate"]
    return [
        {"epoch": e} | {k: 1 / (i + e) for i, k in enumerate(keys)} for e in range(1, epochs + 1)
    ]


def draw_curves(records, path):
    pictures.curves(records, str(path))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


def test_curves_show_training_and_validation(tmp_path):
    whole = draw_curves(history(10), tmp_path / "curves.png")
    assert whole.size == (1650, 792)  # three panels by two
    assert count(whole, TRAINING) > 2000
    assert count(whole, VALIDATION) > 2000
    assert matplotlib.pyplot.get_fignums() == []


def test_a_single_epoch_shows_as_points(tmp_path):
    # Each point is some 20 pixels; a legend of two lines is not enough to reach this count.
    two = draw_curves([{"epoch": 1, "loss": 1.0}], tmp_path / "a.png")
    none = draw_curves([{"epoch": 1, "loss": math.nan}], tmp_path / "b.png")
    assert count(two, TRAINING) - count(none, TRAINING) >= 10


def test_absent_keys_and_panels_are_left_out(tmp_path):
    records = [{"epoch": e, "loss": 1 / e, "unknown": 3.0} for e in (1, 2, 3)]
    one = draw_curves(records, tmp_path / "one.png")
    assert one.size == (550, 396)
    assert count(one, VALIDATION) == 0
    records[1]["val_loss"] = 0.7  # as when validation runs every other epoch
    assert count(draw_curves(records, tmp_path / "two.png"), VALIDATION) > 10
    records[2]["loss"] = math.inf
    draw_curves(records, tmp_path / "three.png")


@pytest.mark.parametrize("records", [[], [{"epoch": 1, "speed": 3.0}]])
def test_curves_of_nothing_are_refused(records, tmp_path):
    with pytest.raises(ValueError, match="none of the values"):
        pictures.curves(records, str(tmp_path / "curves.png"))
