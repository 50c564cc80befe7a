"""What headless Chromium finds wrong with a page that opens from disk and needs nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

# Width and height in pixels: a phone, a laptop.
SIZES = ((390, 844), (1280, 800))
SCHEMES = ("light", "dark")
View = tuple[tuple[int, int], str]
VIEWS: tuple[View, ...] = tuple(product(SIZES, SCHEMES))
# Each size and each scheme once: half the time, for a page that is looked at in two states.
LIGHT_PHONE, DARK_PHONE = VIEWS[::3], VIEWS[1:3]
# Of axe-core's four; the others are minor and moderate.
IMPACTS = ("serious", "critical")
AXE = {"resultTypes": ["violations"]}  # what is well is not listed
OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"
# Elements that scroll sideways, but show no edge or cannot be scrolled by keys.
UNSIGNED = """[...document.querySelectorAll("body *")].filter(each => {
  const style = getComputedStyle(each);
  return ["auto", "scroll"].includes(style.overflowX) && each.scrollWidth > each.clientWidth
    && (each.tabIndex < 0 || style.backgroundImage === "none");
}).map(each => each.outerHTML.slice(0, 80))"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; skips the test where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        try:
            yield browser
        finally:
            browser.close()


def faults_of_page(
    path: Path,
    screenshots: Path | None = None,
    views: Iterable[View] = VIEWS,
    visible: Iterable[str] = (),
) -> list[str]:
    """Looks at a page on disk as `faults_of_address` does, which has the arguments."""
    with chromium() as browser:
        return faults_of_address(browser, path.absolute().as_uri(), screenshots, views, visible)


def faults_of_address(
    browser: Any,
    address: str,
    screenshots: Path | None = None,
    views: Iterable[View] = VIEWS,
    visible: Iterable[str] = (),
    origin: str = "",
) -> list[str]:
    """Looks at a page at each size and in each color scheme; a line a fault, none when all is well.

    Sections that fold are open.

    Faults are: a console message of an error, a request for anything but the page, sideways
    scroll of the page, or of a part without a sign or keys, more or fewer than one h1, and what
    axe-core finds serious or critical.

    Args:
        browser: from `chromium`.
        address: URL of the page.
        screenshots: folder for a picture of each view, if they are wanted.
        views: sizes and color schemes, all by default.
        visible: Playwright's selectors; the first element of each must not need sideways scroll.
        origin: beginning of the URLs that the page may request; by default its own URL.
    """
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    faults = []
    for size, scheme in views:
        view = f"{size[0]} px, {scheme}"
        viewport = {"width": size[0], "height": size[1]}
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        found = watch(page, origin or address)
        page.goto(address)
        if screenshots:
            name = f"{Path(address).stem}-{size[0]}-{scheme}.png"
            page.screenshot(path=screenshots / name, full_page=True)
        page.evaluate(OPEN)
        found += layout_faults(page) + hidden(page, visible)
        found += axe_faults(axe.Axe().run(page, options=AXE).response)
        page.close()
        faults += [f"{view}: {each}" for each in found]
    return faults


def watch(page: Any, origin: str) -> list[str]:
    """A list that grows with each error and each request for something else."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on(
        "console",
        lambda message: (
            found.append(f"console: {message.text}") if message.type == "error" else None
        ),
    )

    def request(asked: Any) -> None:
        if not asked.url.startswith(("data:", origin)):
            found.append(f"requests {asked.url}")

    page.on("request", request)
    return found


def layout_faults(page: Any) -> list[str]:
    """Sideways scroll of the page, or without a sign, and a wrong number of h1."""
    overflow, titles = page.evaluate(OVERFLOW), page.locator("h1").count()
    found = [f"{overflow} px wider than the window"] if overflow > 0 else []
    found += [f"scrolls without a sign: {each}" for each in page.evaluate(UNSIGNED)]
    return found + ([f"{titles} h1"] if titles != 1 else [])


def hidden(page: Any, selectors: Iterable[str]) -> list[str]:
    """Selectors whose first element is absent, or not all within the window's width."""
    width = page.viewport_size["width"]
    boxes = {each: page.locator(each).first.bounding_box() for each in selectors}
    return [
        f"not visible: {each}"
        for each, box in boxes.items()
        if not box or box["x"] < 0 or box["x"] + box["width"] > width
    ]


def axe_faults(response: dict[str, Any]) -> list[str]:
    """What axe-core found that is serious or critical, and where."""
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: {each['nodes'][0]['html'][:120]}"
        for each in response["violations"]
        if each["impact"] in IMPACTS
    ]
