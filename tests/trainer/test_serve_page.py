"""The page in a real browser, on a real server: dropped, pasted, chosen and broken photos."""

import contextlib
import re
import shutil

import pytest
from PIL import Image

from tests.preprocess import photo_sets
from tests.trainer import servers

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)

PLACES = 3
MAX_UPLOAD = 1 << 20
PHONE = {
    "viewport": {"width": 320, "height": 568},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    run = servers.tiny_run(tmp_path_factory.mktemp("served"))
    with servers.started(run, "--max_upload_mb=1", f"--queue={PLACES}") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page; at the end nothing may stand in the browser's console."""
    with contextlib.ExitStack() as stack:
        complaints: list[str] = []

        def open_with(**options):
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            # From the start, or a key that opens a chooser may come before someone listens.
            page.on("filechooser", lambda chooser: None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            # The browser notes by itself each answer that is an error, or none.
            page.on("console", lambda line: line.text.startswith("Failed to load resource")
                    or complaints.append(line.text))  # fmt: skip
            page.goto(server.url)
            sync_api.expect(page.locator("#about")).to_contain_text(": 3 names")
            return page

        yield open_with
        assert complaints == []


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "red car.jpg"
    path.write_bytes(photo_sets.photo(240, 320, seed=1))
    return path


def expect_answer(page, server, photo: bytes) -> None:
    """The page shows the box and the names that the server gives for a photo."""
    said = server.ask("POST", "/predict", photo).json
    expect = sync_api.expect
    expect(page.locator(".result")).to_be_visible()
    expect(page.locator("li")).to_have_count(len(said["names"]))
    for item, name in zip(page.locator("li").all(), said["names"], strict=True):
        expect(item).to_contain_text(name["name"])
        expect(item).to_contain_text(f"{100 * name['probability']:.1f} %")
    expect(page.get_by_role("status")).to_contain_text(said["names"][0]["name"])
    # The box lies on the picture where it lies in the photo.
    shown = page.locator("#photo").bounding_box()
    box = page.locator("rect.line").bounding_box()
    scale = shown["width"] / said["width"]
    assert shown["height"] == pytest.approx(said["height"] * scale, abs=1)
    edges = (box["x"] - shown["x"], box["y"] - shown["y"], box["width"], box["height"])
    xmin, ymin, xmax, ymax = said["box"].values()
    wanted = (xmin, ymin, xmax - xmin, ymax - ymin)
    assert edges == pytest.approx([scale * value for value in wanted], abs=2)


def drop(page, *paths) -> None:
    """Drops files as a desktop does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 200, "y": 150, "data": data}
        session.send("Input.dispatchDragEvent", event)


def test_a_chosen_photo_gets_its_box_and_names(open_page, server, photo):
    page = open_page()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a photo").click()
    chooser.value.set_files(photo)
    expect_answer(page, server, photo.read_bytes())
    sync_api.expect(page.locator("figcaption")).to_contain_text("red car.jpg, 320 × 240 pixels")


def test_a_dropped_photo_gets_its_box_and_names_one_after_the_other(open_page, server, tmp_path):
    page = open_page()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = Image.fromarray(photo_sets.pixels(200, 300, seed=4))
    for name, data in (
        ("plain.jpg", photo_sets.photo(300, 200, seed=2)),
        ("turned.jpg", photo_sets.encode(pixels, exif=exif)),
        ("clear.png", photo_sets.encode(pixels.convert("RGBA"), "PNG")),
    ):
        (tmp_path / name).write_bytes(data)
        drop(page, tmp_path / name)
        sync_api.expect(page.locator("figcaption")).to_contain_text(name)
        expect_answer(page, server, data)


def test_a_pasted_photo_gets_its_names(open_page, server):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(160, 120);
            canvas.getContext("2d").fillRect(40, 40, 80, 50);
            const blob = await canvas.convertToBlob({type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }"""
    )
    page.keyboard.press("Control+V")
    sync_api.expect(page.locator("figcaption")).to_contain_text("160 × 120 pixels")
    page.evaluate("() => navigator.clipboard.writeText('no photo')")
    page.keyboard.press("Control+V")
    sync_api.expect(page.get_by_role("status")).to_have_text("What was pasted holds no photo.")


def test_what_cannot_be_judged_gets_a_sentence_and_the_next_photo_its_names(
    open_page, server, photo, tmp_path
):
    page = open_page()
    for name, data, sentence in (
        (
            "text.jpg",
            b"I am no photo",
            "This file cannot be read as a photo. Not an image but text",
        ),
        ("cut.jpg", photo.read_bytes()[:3000], "This photo is damaged or cut off."),
        ("large.jpg", bytes(MAX_UPLOAD + 1), "This file is larger than 1 MB"),
        ("empty.jpg", b"", "The request holds no bytes of a photo"),
    ):
        (tmp_path / name).write_bytes(data)
        drop(page, tmp_path / name)
        status = page.get_by_role("status")
        sync_api.expect(status).to_contain_text(sentence)
        sync_api.expect(status).to_have_class("error")
        sync_api.expect(page.locator(".result")).to_be_hidden()
    drop(page, photo, tmp_path / "text.jpg")
    sync_api.expect(page.get_by_role("status")).to_have_text("One photo at a time, please.")
    drop(page, photo)
    expect_answer(page, server, photo.read_bytes())


def test_a_busy_server_is_asked_again(open_page, server, photo):
    page = open_page()
    with contextlib.ExitStack() as stack:
        for _ in range(PLACES):
            stack.enter_context(servers.half_sent(server, photo.read_bytes()))
        drop(page, photo)
        sync_api.expect(page.get_by_role("status")).to_contain_text("Trying again")
    expect_answer(page, server, photo.read_bytes())


def test_a_server_that_is_gone_is_told(open_page, photo):
    page = open_page()
    page.context.set_offline(True)
    page.locator("#file").set_input_files(photo)
    sync_api.expect(page.get_by_role("status")).to_contain_text("The server does not answer.")


def test_the_keyboard_is_enough(open_page, server, photo):
    page = open_page()
    for key in ("Enter", "Space"):
        page.reload()
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        sync_api.expect(focused).to_have_text("Choose a photo")
        assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press(key)
        chooser.value.set_files(photo)
        expect_answer(page, server, photo.read_bytes())
    page.keyboard.press("Tab")
    sync_api.expect(page.locator(":focus")).to_have_text("description of the API")


def test_a_phone_takes_a_photo_and_nothing_is_wider_than_its_screen(open_page, server, photo):
    page = open_page(**PHONE)
    button = page.get_by_role("button", name="Take a photo")
    with page.expect_file_chooser() as chooser:
        button.tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(photo)
    expect_answer(page, server, photo.read_bytes())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]
    picture, names = page.locator(".frame").bounding_box(), page.locator("ol").bounding_box()
    assert names["y"] >= picture["y"] + picture["height"]
    for one in page.get_by_role("button").all():
        assert one.bounding_box()["height"] >= 44  # what a finger hits


def test_a_desktop_has_no_button_for_a_camera(open_page):
    page = open_page()
    sync_api.expect(page.get_by_role("button", name="Take a photo")).to_be_hidden()


def test_names_of_files_and_classes_are_text(open_page, server, photo):
    page = open_page()
    evil = '<img src=x onerror="alert(1)">.jpg'
    file = {"name": evil, "mimeType": "image/jpeg", "buffer": photo.read_bytes()}
    page.locator("#file").set_input_files(file)
    sync_api.expect(page.locator("figcaption")).to_contain_text(evil)
    sync_api.expect(page.locator("ol")).to_contain_text(servers.CLASS_NAMES[1])
    assert page.locator("li i, figcaption img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(open_page, photo, scheme):
    page = open_page(color_scheme=scheme)
    page.locator("#file").set_input_files(photo)
    sync_api.expect(page.locator(".result")).to_be_visible()
    body = color_of(page, "body", "backgroundColor")
    assert (luminance(body) < 0.2) == (scheme == "dark")
    page.evaluate("say('An error.', 'error')")
    for text, ground in (
        ("header p", "body"),
        ("footer", "body"),
        ("footer a", "body"),
        ("#file-button", "#file-button"),
        ("#status", "#status"),
        ("li", "ol"),
        ("li", "li .bar"),
    ):
        pair = [color_of(page, text, "color"), color_of(page, ground, "backgroundColor")]
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)  # WCAG AA


def color_of(page, selector: str, what: str) -> list[int]:
    color = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    return [int(part) for part in re.findall(r"\d+", color)][:3]


def luminance(color: list[int]) -> float:
    """Relative luminance, as WCAG defines it."""
    linear = [
        c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
