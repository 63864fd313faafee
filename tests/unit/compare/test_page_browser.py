"""The report page in a real browser: light, dark, narrow and printed."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nodeagent.compare.page import write
from nodeagent.compare.page.look import MODES
from tests.unit.compare.browser import browser
from tests.unit.compare.sample import summary

# The page is written and looked at once, by whichever process runs these; a machine that has much
# else to do takes minutes for it.
pytestmark = [pytest.mark.xdist_group("page"), pytest.mark.timeout(600)]
PATIENCE = 500  # seconds

WIDTHS = (1200, 400)
OVERFLOWING = """
(() => {
  const width = document.documentElement.clientWidth;
  const cropped = element => { for (let at = element; at; at = at.parentElement) if (getComputedStyle(at).overflowX == 'auto') return true; return false; };
  return [...document.querySelectorAll('body *')]
    .filter(each => each.getClientRects().length && !cropped(each))
    .filter(each => { const box = each.getBoundingClientRect(); return box.width && (box.right > width + 1 || box.left < -1); })
    .map(each => each.tagName + ' ' + each.textContent.trim().slice(0, 40));
})()
"""  # noqa: E501
OUTSIDE_THEIR_CHART = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.right > frame.right + 3 || box.left < frame.left - 3 || box.bottom > frame.bottom + 3 || box.top < frame.top - 3;
  }).map(text => svg.querySelector('title').textContent + ': ' + text.textContent);
})
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Seen:
    """What a browser made of the page."""

    pictures: dict[str, Image.Image]
    overflowing: dict[str, Any]
    outside: dict[str, Any]
    styles: dict[str, Any]
    requests: list[str]
    complaints: list[str]
    pdf: bytes
    page: Path


async def look_at(page: Path, profile: Path) -> Seen:
    pictures, overflowing, outside, styles = {}, {}, {}, {}
    async with browser(profile) as tab:
        for theme in ("light", "dark"):
            for width in WIDTHS:
                way = f"{theme} {width}"
                await tab.visit(page, width=width, theme=theme)
                pictures[way] = Image.open(io.BytesIO(await tab.screenshot())).convert("RGB")
                overflowing[way] = await tab.evaluate(OVERFLOWING)
                outside[way] = await tab.evaluate(OUTSIDE_THEIR_CHART)
                styles[way] = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        # With everything unfolded, too.
        await tab.visit(page, width=1200)
        await tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        overflowing["unfolded"] = await tab.evaluate(OVERFLOWING)
        pdf = await tab.pdf()
        return Seen(pictures, overflowing, outside, styles, tab.requests, tab.complaints, pdf, page)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    directory = tmp_path_factory.mktemp("report")
    page = write(summary(), directory / "report")
    return asyncio.run(asyncio.wait_for(look_at(page, directory / "profile"), PATIENCE))


def test_nothing_is_fetched_and_nothing_complains(seen: Seen) -> None:
    assert set(seen.requests) == {seen.page.as_uri()}
    assert seen.complaints == []


def test_nothing_is_wider_than_the_page(seen: Seen) -> None:
    assert {way: found for way, found in seen.overflowing.items() if found} == {}
    assert len(seen.overflowing) == 5


def test_no_text_leaves_its_chart(seen: Seen) -> None:
    assert {way: found for way, found in seen.outside.items() if found} == {}
    assert len(seen.outside) == 4


def coloured(picture: Image.Image, colour: str) -> int:
    """Return how many pixels of *picture* are exactly *colour*."""
    wanted = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    found = picture.getcolors(maxcolors=1 << 24)
    assert found is not None
    return sum(count for count, each in found if each == wanted)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_drawn_in_the_colours_of_the_theme(seen: Seen, theme: str) -> None:
    picture = seen.pictures[f"{theme} 1200"]
    assert picture.size[0] == 1200
    assert picture.size[1] > 5000
    ground = "#ffffff" if theme == "light" else "#14171b"
    assert coloured(picture, ground) > picture.size[0] * picture.size[1] // 2
    for mode in MODES.values():
        assert coloured(picture, getattr(mode, theme)) > 1000, mode.name


def test_it_prints_in_light_on_a4(seen: Seen, tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    file.write_bytes(seen.pdf)
    told = subprocess.run(["pdfinfo", str(file)], capture_output=True, text=True, check=True).stdout
    pages = int(re.search(r"Pages:\s+(\d+)", told)[1])  # type: ignore[index]
    width, height = map(float, re.search(r"Page size:\s+([\d.]+) x ([\d.]+)", told).groups())  # type: ignore[union-attr]
    assert (round(width), round(height)) == (595, 842)
    assert 5 <= pages <= 40
    text = subprocess.run(["pdftotext", "-layout", str(file), "-"], capture_output=True, text=True, check=True).stdout
    for wanted in (
        "One agent per node, or a sidecar in every pod",
        "Goals and ratios",
        "99.99 %",
        "Test data: measured nowhere.",
    ):
        assert wanted in text
    subprocess.run(["pdftoppm", "-r", "40", "-png", str(file), str(tmp_path / "sheet")], check=True)
    sheets = [Image.open(path).convert("L") for path in sorted(tmp_path.glob("sheet*.png"))]
    assert len(sheets) == pages
    for sheet in sheets:
        shades = sheet.histogram()
        assert sum(shades[240:]) > sheet.size[0] * sheet.size[1] // 2, "paper is white"
        assert sum(shades[:160]) > 100, "no page is empty"
