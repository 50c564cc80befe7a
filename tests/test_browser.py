"""The browser check finds each fault that it is for."""

from pathlib import Path

import pytest

from tests.browser import LIGHT_PHONE, VIEWS, faults_of_page

pytestmark = pytest.mark.system

GOOD = '<!doctype html><html lang="en"><title>t</title><main><h1>A page</h1><p>Text.</p></main>'
BAD = {
    "requests http": '<img src="http://127.0.0.1:9/a.png" alt="a">',
    "console:": "<script>console.error('broken')</script>",
    "error: ": "<script>throw new Error('broken')</script>",
    "px wider": '<div style="width: 2000px">wide</div>',
    "scrolls without a sign": '<div tabindex="0" style="width: 9em; overflow: auto">'
    '<div id="far" style="margin-left: 1500px; width: 9em">far</div></div>',
    "2 h1": "<h1>Another</h1>",
    "not visible: #far": "",
    "color-contrast (serious)": '<p style="color: #ccc; background: #fff">pale</p>',
    "image-alt (critical)": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
}


def test_faults_of_pages(tmp_path: Path, full: bool) -> None:
    views = VIEWS if full else LIGHT_PHONE
    good, bad = tmp_path / "good.html", tmp_path / "bad.html"
    good.write_text(GOOD)
    bad.write_text(GOOD.replace("<p>", f"{''.join(BAD.values())}<p>"))
    assert faults_of_page(good, views=LIGHT_PHONE) == []
    found = faults_of_page(bad, views=views, visible=["#far"])
    for each in BAD:
        if not any(each in fault for fault in found):
            pytest.fail(f"{each!r} was not found: {found}")
    assert {fault.split(":")[0] for fault in found} == {
        f"{width} px, {scheme}" for (width, _), scheme in views
    }
