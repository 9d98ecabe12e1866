"""A real browser for the tests of pages: Chromium, headless, by playwright."""

import contextlib
import importlib.resources
import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {
    "viewport": {"width": 375, "height": 667},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


@contextlib.contextmanager
def launched() -> Iterator:
    """Yields a browser; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, path, **options) -> Iterator:
    """Yields a page from a file. It may neither complain nor ask anything of a network.

    Args:
        browser: as `launched` yields it.
        path: of the file.
        options: of the browser's context: viewport, color scheme.
    """
    complaints, asked = [], []
    context = browser.new_context(**{**DESKTOP, **options})
    page = context.new_page()
    page.set_default_timeout(5_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{path}")
    yield page
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


def violations(page) -> list[str]:
    """Returns what axe-core finds wrong with a page, by WCAG 2.2 AA and good practice.

    The test is skipped where axe-core is not installed: `pip install axe-playwright-python`.
    """
    package = pytest.importorskip("axe_playwright_python")
    script = importlib.resources.files(package).joinpath("axe.min.js")
    page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]
