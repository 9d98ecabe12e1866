"""Tables, galleries and charts: what is written, and what a real browser makes of it."""

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from tests.tfrecords import browsers
from tfrecords import charts, pages
from tfrecords.errors import UserError

TEMPLATE = """{% extends "base.html" %}
{% import "macros.html" as macros %}
{% set sections = [("one", "One"), ("two", "Two")] %}
{% block content %}
{% call macros.section("one", "One") %}{{ one }}{% endcall %}
{% call macros.section("two", "Two") %}{{ two }}{% endcall %}
{% endblock %}"""
HOSTILE = "</script><script>alert(1)</script>"


def columns():
    return [pages.Column("name"), pages.Column("make"), pages.Column("photos", True, bar=[2]),
            pages.Column("right", True, digits=1, percent=True)]  # fmt: skip


def rows(count):
    return [
        [f"class {i}", f"make {i % 3}", i * 7 % count, None if i == 3 else i / count]
        for i in range(count)
    ]


def card(number):
    photo = pages.Photo(
        pages.jpeg_uri(np.full((30, 60, 3), number % 256, np.uint8), 40), 60, 30, "a photo",
        [pages.Box((0.25, 0.25, 0.75, 0.75)), pages.Box((0, 0, 0.5, 1), "predicted")],
    )  # fmt: skip
    split = "train" if number % 2 else "test"
    return pages.Card([photo], f"card {number}", [f"{split}/{number}.jpg"], [split], [split])


def render(folder, one="", two="", **values) -> str:
    (folder / "own.html").write_text(TEMPLATE)
    values = {"title": "A title", "subtitle": "", "made_by": "carbox x", **values}
    return pages.render("own.html", [str(folder)], one=one, two=two, **values)


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page with a table of 10,000 rows and a gallery of 60 cards."""
    folder = tmp_path_factory.mktemp("page")
    table = pages.table("Classes", columns(), rows(10_000), facets=[1], noun="classes")
    gallery = pages.gallery("Photos", [card(i) for i in range(60)], facets=["split"])
    path = folder / "page.html"
    pages.write(str(path), render(folder, table, gallery))
    return path


def test_text_is_escaped_everywhere(tmp_path):
    table = pages.table(HOSTILE, [pages.Column(HOSTILE)], [[HOSTILE]], noun=HOSTILE)
    chart = charts.lines({HOSTILE: [(0, 1)], "b": [(1, 2)]}, label=HOSTILE, x=HOSTILE, y=HOSTILE)
    text = render(tmp_path, table, chart, title=HOSTILE, subtitle=HOSTILE, made_by=HOSTILE)
    assert "<script>alert" not in text
    assert text.count("alert(1)") == 12


def test_a_page_refers_to_nothing_outside(tmp_path):
    text = render(
        tmp_path, pages.gallery("Photos", [card(0)]), charts.lines({}, label="", x="", y="")
    )
    assert not re.search(r"https?:|@import|src=|url\((?!data:)", text)
    assert re.findall("<link.*?>", text) == ['<link rel="icon" href="data:,">']


def test_all_scripts_together_stay_small():
    folder = pages.__file__.replace("pages.py", "templates/table.js")
    with open(folder, encoding="utf-8") as file:
        assert len(file.readlines()) < 300


def test_a_value_that_a_template_lacks_is_an_error(tmp_path):
    (tmp_path / "own.html").write_text("{{ absent }}")
    with pytest.raises(Exception, match="absent"):
        pages.render("own.html", [str(tmp_path)])


def test_a_number_that_json_lacks_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        pages.table("x", [pages.Column("a", True)], [[math.nan]])


def test_a_page_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/page\.html.* cannot be written"):
        pages.write(str(tmp_path / "file" / "page.html"), "")
    with pytest.raises(UserError, match="name a local file"):
        pages.write("gs://bucket/page.html", "")


def test_a_picture_keeps_its_shape_and_is_never_enlarged():
    def size(uri):
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size

    assert size(pages.jpeg_uri(np.zeros((300, 600, 3), np.uint8), 100)) == (100, 50)
    assert size(pages.jpeg_uri(np.zeros((30, 60, 3), np.uint8), 100)) == (60, 30)
    assert size(pages.jpeg_uri(Image.new("RGBA", (10, 500)), 100)) == (2, 100)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: charts.bars([], [0, 1], label="", x="", y=""),
        lambda: charts.bars([0, 0], [0, 1, 2], label="", x="", y=""),
        lambda: charts.bars([3, 1], [1e-9, 2e-9, 3e-9], label="", x="", y="", percent_x=True),
        lambda: charts.lines({}, label="", x="", y=""),
        lambda: charts.lines({"a": [(1, math.nan), (2, math.inf)]}, label="", x="", y=""),
        lambda: charts.lines({"a": [(1, 5)], "b": [(1, 5)]}, label="", x="", y=""),
        lambda: charts.lines({"a": [(1, 0), (2, 1e-5), (3, 1)]}, label="", x="", y="", log_y=True),
        lambda: charts.lines({"a": [(0, 1e9), (1e6, -1e9)]}, label="", x="", y="", mark=10),
        lambda: charts.heat(np.zeros((2, 3)), label="", aspect=1.5),
    ],
)
def test_charts_can_be_drawn_of_anything(drawn):
    text = drawn()
    assert "nan" not in text.lower().replace("nonan", "")
    assert "inf" not in text


def test_bars_are_as_high_as_their_values_and_say_them():
    text = charts.bars([1, 4, 2], [0, 1, 2, 3], label="", x="", y="", whole=True)
    heights = [float(value) for value in re.findall(r'bar-fill".*? height="([\d.]+)"', text)]
    assert heights[1] / heights[0] == pytest.approx(4, rel=0.01)
    assert re.findall(r"<title>(.*?)</title>", text) == ["0: 1", "1: 4", "2: 2"]


# In a real browser.


def cells(page, column):
    return page.locator(f"#one tbody tr > :nth-child({column})").all_inner_texts()


def test_headers_sort_numbers_names_and_what_is_absent(browser, page_file):
    with browsers.opened(browser, page_file) as page:
        header = page.locator("#one thead th")
        header.nth(2).get_by_role("button").click()
        assert cells(page, 3)[:3] == ["9,999", "9,998", "9,997"]
        assert header.nth(2).get_attribute("aria-sort") == "descending"
        header.nth(2).get_by_role("button").click()
        assert cells(page, 3)[:3] == ["0", "1", "2"]
        assert header.nth(2).get_attribute("aria-sort") == "ascending"
        header.nth(0).get_by_role("button").click()
        assert cells(page, 1)[:3] == ["class 0", "class 1", "class 2"]
        assert header.nth(2).get_attribute("aria-sort") == "none"
        for last in range(2):  # what is absent is last either way
            header.nth(3).get_by_role("button").click()
            page.locator("#one").get_by_role("button", name="Last page").click()
            assert cells(page, 4)[-1] == "–", last


def test_ten_thousand_rows_are_paged_searched_and_filtered(browser, page_file):
    with browsers.opened(browser, page_file) as page:
        one = page.locator("#one")
        status = one.get_by_role("status")
        assert page.locator("tr").count() == 26
        assert page.evaluate("document.querySelectorAll('*').length") < 1500
        assert status.inner_text() == "1–25 of 10,000 classes"
        one.get_by_role("button", name="Next page").click()
        assert status.inner_text() == "26–50 of 10,000 classes"
        one.get_by_label("Page of Classes", exact=True).fill("400")
        one.get_by_label("Page of Classes", exact=True).press("Enter")
        assert status.inner_text() == "9,976–10,000 of 10,000 classes"
        one.get_by_label("search").fill("999 CLASS")
        assert status.inner_text() == "1–19 of 19 classes, out of 10,000"
        assert one.get_by_role("navigation").is_hidden()
        one.get_by_label("make").select_option("make 0")
        assert set(cells(page, 2)) == {"make 0"}
        one.get_by_label("search").fill("no such class")
        assert status.inner_text() == "0 classes, out of 10,000"


def test_cards_are_filtered_paged_and_have_their_boxes(browser, page_file):
    with browsers.opened(browser, page_file) as page:
        two = page.locator("#two")
        assert two.locator("li.card").count() == 24
        two.get_by_label("split").select_option("train")
        two.get_by_role("button", name="Last page").click()
        assert two.get_by_role("status").inner_text() == "25–30 of 30 photos, out of 60"
        assert two.locator(".card .title").all_inner_texts()[-1] == "card 59"
        photo = two.locator("img").last.bounding_box()
        box = two.locator("rect.true").last.bounding_box()
        assert photo["width"] / photo["height"] == pytest.approx(2, rel=0.02)
        for side, whole in (("x", "width"), ("y", "height")):
            assert box[side] - photo[side] == pytest.approx(photo[whole] / 4, abs=2)
            assert box[whole] == pytest.approx(photo[whole] / 2, abs=4)
        loaded = "[...document.images].every((image) => image.complete && image.naturalWidth)"
        assert page.evaluate(loaded)


def test_everything_can_be_done_by_keyboard(browser, page_file):
    focused = (
        "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
    )
    with browsers.opened(browser, page_file) as page:
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Skip to the content"
        page.keyboard.press("Enter")
        page.locator("#one input[type=search]").focus()
        page.keyboard.type("class 12")
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(focused))
        assert reached[1:] == [
            "First page of Classes", "Previous page of Classes", "Page of Classes",
            "Next page of Classes", "Last page of Classes", "Classes", "name", "make", "photos",
            "right", "",
        ]  # fmt: skip
        page.locator("#one").get_by_role("button", name="Next page").focus()
        for _ in range(15):  # there are 12 pages: at the end the focus stays
            page.keyboard.press("Enter")
        assert page.evaluate(focused) == "Next page of Classes"
        assert page.locator("#one").get_by_role("status").inner_text().startswith("276–299 of 299")
        page.locator("#one").get_by_role("button", name="photos").focus()
        page.keyboard.press("Space")
        assert page.locator("#one thead th").nth(2).get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(browser, page_file, scheme):
    with browsers.opened(browser, page_file, **browsers.PHONE, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", back)[0])
        assert red < 64 if scheme == "dark" else red > 192


def test_controls_are_not_printed(browser, page_file):
    with browsers.opened(browser, page_file) as page:
        page.emulate_media(media="print")
        assert page.get_by_role("searchbox").count() == 0
        assert page.get_by_role("table").is_visible()


def test_flags_in_a_sentence_are_set_as_code_and_the_rest_stays_text(tmp_path):
    (tmp_path / "one.html").write_text("{{ sentence | flags }}")
    shown = pages.render(
        "one.html", [str(tmp_path)], sentence="Use --a_b=0.5, or <b>--first_class</b>. Or --c."
    )
    assert shown == (
        "Use <code>--a_b=0.5</code>, or &lt;b&gt;<code>--first_class</code>&lt;/b&gt;."
        " Or <code>--c</code>."
    )
