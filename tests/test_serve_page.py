"""The page in a real browser: fold, ask, see passages; by keyboard, on a phone, in the dark."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT
from servers import serving

import octavo

pytestmark = pytest.mark.browser
LETTER = Path(__file__).parents[1] / "examples" / "boiler-letter.txt"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    where = shutil.which("chromium")
    if where is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_document_is_folded_and_asked_on_the_page(
    chromium: Any, model: octavo.Model, tmp_path: Path, width: int, scheme: str
) -> None:
    with serving(model, tmp_path) as url:
        size = {"width": width, "height": 800}
        page = chromium.new_page(viewport=size, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url.removesuffix("v1"))
        page.wait_for_selector("#ratio option", state="attached")
        text = "𝕆ctavo <b>bold</b>\n" + TEXT * 2
        page.fill("#text", text)
        page.focus("#fold")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ask:enabled")
        assert page.inner_text("#numbers").split(" in ")[0].endswith("(4x)")
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("Who signed for the lamp oil?")
        page.check("#raw")
        page.focus("#question")
        page.keyboard.press("Enter")
        page.wait_for_selector("#timeraw:has-text('first word')", timeout=60_000)
        marked = page.inner_text("mark[data-best=yes]")
        assert "lamp oil" in marked
        assert "lamp" in page.locator("mark[data-best=yes] b").all_inner_texts()
        assert page.text_content("#shown") == text
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert said == []
        page.close()


@pytest.mark.slow
def test_a_picture_of_the_page(chromium: Any, smol: octavo.Model, tmp_path: Path) -> None:
    """Drawn where OCTAVO_PICTURE says, for the documentation."""
    with serving(smol, tmp_path) as url:
        page = chromium.new_page(viewport={"width": 1100, "height": 1150})
        page.goto(url.removesuffix("v1"))
        page.wait_for_selector("#ratio option", state="attached")
        page.fill("#text", LETTER.read_text(encoding="utf-8"))
        page.select_option("#ratio", "2")
        page.click("#fold")
        page.wait_for_selector("#ask:enabled", timeout=120_000)
        page.fill("#question", "Who will install the boiler?")
        page.click("#ask")
        page.wait_for_selector("#timelatents:has-text('first word')", timeout=120_000)
        page.screenshot(path=os.environ.get("OCTAVO_PICTURE", str(tmp_path / "page.png")))
        assert page.locator("mark").count() >= 1
        page.close()
