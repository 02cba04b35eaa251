"""The report in a real browser, without a network: light, dark, on a phone, in MLflow's sandbox.

Screenshots go to $LATENTLM_SCREENSHOTS, or to pytest's folder.
"""

import html
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentlm_dashboards.report import write_report
from making_companions import start_chromium
from making_tracked_sweeps import LARGE_KEY, tracked_examples, tracked_large

pytestmark = pytest.mark.browser
PATIENCE_S = 60.0
SIZES = {"light": (1280, 900), "dark": (1280, 900), "phone": (360, 780)}
LARGE_FIRST_CHART_MS = 20_000  # on a busy machine; alone it takes less than a tenth


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chromium(
        tmp_path_factory.mktemp("profile"),
        "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever asks for a host fails
        logs=("browser", "performance"),
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    uri = tracked_examples().uri
    return {
        name: write_report(uri, key, folder / f"{name}.html").path
        for name, key in (("sweep", "ab12cd34"), ("run", "3f9a1111"), ("hostile", "beef0001"))
    }


def opened(browser: Any, path: Path, how: str = "light") -> None:
    width, height = SIZES[how]
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if how == "dark" else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": how == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(path.as_uri())


def waited(browser: Any, script: str) -> Any:
    """What the script returns, once that is true."""
    ends = time.monotonic() + PATIENCE_S
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < ends, f"never true: {script}"
        time.sleep(0.1)
    return found


def scrolled_through(browser: Any) -> None:
    """Open what is folded, pass every part, until every chart and picture is there."""
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    for position in range(2000):
        height = browser.execute_script(
            "scrollTo({top: arguments[0] * innerHeight * 0.9, behavior: 'instant'});"
            "return document.documentElement.scrollHeight / (innerHeight * 0.9)",
            position,
        )
        time.sleep(0.02)
        if position > height:
            break
    waited(browser, "return !document.querySelector('figure[data-chart]:not([data-drawn])')")
    waited(
        browser,
        "return [...document.images].filter((i) => i.closest('main'))"
        ".every((i) => i.complete && i.naturalWidth > 0)",
    )


def kept(browser: Any, name: str, folder: Path) -> None:
    place = Path(os.environ.get("LATENTLM_SCREENSHOTS", folder))
    place.mkdir(parents=True, exist_ok=True)
    browser.execute_script("scrollTo({top: 0, behavior: 'instant'})")
    browser.save_screenshot(str(place / f"report-{name}.png"))


def assert_quiet(browser: Any, path: Path) -> None:
    """Nothing in the console, no request but the page itself and data inside it."""
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    foreign = [url for url in urls if not url.startswith("data:") and url != path.as_uri()]
    assert path.as_uri() in urls
    assert foreign == []


MARKS = """
return [...document.querySelectorAll('figure[data-chart]')].map((figure) => [
  figure.querySelector('h3').textContent,
  figure.querySelectorAll('.scatterlayer .point, .scatterlayer path.js-line').length,
  figure.querySelector('.plot').getBoundingClientRect().height])
"""


@pytest.mark.parametrize("how", SIZES)
@pytest.mark.parametrize("name", ["sweep", "run", "hostile"])
def test_every_chart_has_marks_and_nothing_is_asked_for(
    browser: Any, reports: dict[str, Path], name: str, how: str, tmp_path: Path
) -> None:
    opened(browser, reports[name], how)
    waited(browser, "return performance.getEntriesByName('first-chart').length")
    scrolled_through(browser)
    marks = browser.execute_script(MARKS)
    assert len(marks) >= (2 if name == "run" else 5)
    for title, count, height in marks:
        assert count > 0, f"{title} is empty"
        assert height > 200, title
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= SIZES[how][0], "the page scrolls sideways"
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(paper.partition("(")[2].partition(",")[0])
    assert (red < 60) == (how == "dark")
    kept(browser, f"{name}-{how}", tmp_path)
    assert_quiet(browser, reports[name])


def test_the_answer_and_its_picture_are_on_the_first_screen(
    browser: Any, reports: dict[str, Path]
) -> None:
    opened(browser, reports["run"])
    waited(browser, "return performance.getEntriesByName('first-chart').length")
    found = browser.execute_script("""
      const low = (one) => document.querySelector(one).getBoundingClientRect();
      return [document.querySelector('.answer').textContent, low('.answer').bottom,
              low('.shot.best').bottom, low('figure[data-drawn] .plot').bottom, innerHeight]""")
    assert found[0].startswith("CFG 3 is best by generated_accuracy: 0.950")
    assert max(found[1:4]) <= found[4]


def test_the_keyboard_reaches_and_works_everything(browser: Any, reports: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        for key in keys:
            ActionChains(browser).send_keys(key).perform()

    opened(browser, reports["sweep"])
    waited(browser, "return performance.getEntriesByName('first-chart').length")
    press(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the answer"
    seen = set()
    for _ in range(120):
        press(Keys.TAB)
        active = browser.switch_to.active_element
        seen.add(active.get_attribute("aria-label") or active.text or active.tag_name)
    assert {"Answer", "Dark", "Do it again"} <= seen
    assert any(label.startswith("Enlarge samples of") for label in seen)
    browser.execute_script("document.querySelector('.shot button').focus()")
    press(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('dialog').open")
    first = browser.execute_script("return document.querySelector('dialog img').alt")
    press(Keys.ARROW_RIGHT)
    assert browser.execute_script("return document.querySelector('dialog img').alt") != first
    press(Keys.ARROW_LEFT, Keys.ESCAPE)
    waited(browser, "return !document.querySelector('dialog').open")
    assert browser.switch_to.active_element.get_attribute("aria-label").startswith("Enlarge")


def test_the_theme_button_repaints_charts(browser: Any, reports: dict[str, Path]) -> None:
    opened(browser, reports["run"])
    waited(browser, "return performance.getEntriesByName('first-chart').length")
    ink = "return getComputedStyle(document.querySelector('.xtick text')).fill"
    before = browser.execute_script(ink)
    browser.execute_script("document.querySelector('nav .theme').click()")
    waited(browser, f"return (() => {{ {ink} }})() !== '{before}'")
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"


def test_one_tile_of_every_trial_is_the_same_tile(browser: Any, reports: dict[str, Path]) -> None:
    opened(browser, reports["sweep"])
    waited(browser, "return !document.querySelector('select[data-gallery]').disabled")
    options = browser.execute_script(
        "return [...document.querySelector('select[data-gallery]').options].map((o) => o.text)"
    )
    assert options[:2] == ["all", "tile 1: class 0, seed 0"]
    assert len(options) == 11
    ends = browser.execute_script("""
      const pick = document.querySelector('select[data-gallery]');
      pick.value = '3';
      pick.dispatchEvent(new Event('change'));
      return [...document.querySelectorAll('#gallery-shots .frame')].map((frame) => {
        const box = frame.getBoundingClientRect();
        const image = frame.querySelector('img').getBoundingClientRect();
        return [(box.left - image.left) / image.width, box.width / image.width,
                box.width - box.height];
      })""")
    assert len(ends) == 18
    for left, width, off_square in ends:
        assert left == pytest.approx(0.3, abs=0.01)
        assert width == pytest.approx(0.1, abs=0.01)
        assert abs(off_square) < 1


def test_inside_mlflows_sandboxed_frame(
    browser: Any, reports: dict[str, Path], tmp_path: Path
) -> None:
    """MLflow shows an HTML artifact in an iframe that may run scripts and has no origin."""
    inside = html.escape(reports["sweep"].read_text(), quote=True)
    page = tmp_path / "viewer.html"
    page.write_text(
        "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'><title>viewer</title>"
        f'<iframe sandbox="allow-scripts" style="width:100%;height:850px" srcdoc="{inside}">'
        "</iframe>"
    )
    opened(browser, page)
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    waited(browser, "return performance.getEntriesByName('first-chart').length")
    assert browser.execute_script("return window.origin") == "null"
    scrolled_through(browser)
    assert all(count > 0 for _, count, _ in browser.execute_script(MARKS))
    browser.execute_script("document.querySelector('.shot button').click()")
    assert browser.execute_script("return document.querySelector('dialog').open")
    browser.switch_to.default_content()
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_a_large_report_draws_its_first_chart_at_once(
    browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_report(tracked_large().uri, LARGE_KEY, tmp_path / "large.html")
    times = []
    for _ in range(3):
        opened(browser, made.path)
        waited(browser, "return performance.getEntriesByName('first-chart').length")
        mark = "performance.getEntriesByName('first-chart')[0]"
        times.append(browser.execute_script(f"return {mark}.startTime"))
    with capsys.disabled():
        print(
            f"\n{made.images} pictures, {made.bytes / 1e6:.1f} MB, written in {made.seconds:.1f} s;"
            f" first chart after {', '.join(f'{t / 1000:.2f}' for t in times)} s"
        )
    assert statistics.median(times) < LARGE_FIRST_CHART_MS
    assert_quiet(browser, made.path)
