"""The page in headless Chromium: it renders at phone and desktop widths, light and dark, and its controls work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2
import numpy as np
import pytest

from tests.browser import DESKTOP, PHONE, chromium, show_as, wait_until
from tests.report.runs import NUMBERS, make_run
from tql_lightning.report.page import write_report
from tql_lightning.run.folder import METRICS_FILE, VIDEO_FOLDER

HOVER = """
const svg = document.querySelector("figure.chart svg"), box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 60, clientY: box.top + 20}));
return document.querySelector("figure.chart .legend").textContent;
"""
# Charts are drawn when the browser says that their place has a size, before the next picture.
EVERY_CHART_SHOWN_IS_AS_WIDE_AS_ITS_PLACE = """
return [...document.querySelectorAll("figure.chart svg")].filter((svg) => svg.checkVisibility())
    .every((svg) => svg.viewBox.baseVal && svg.viewBox.baseVal.width === Math.max(svg.clientWidth, 200));
"""
MOVE = """
const slider = document.querySelector("#attention_map input");
slider.value = arguments[0];
slider.dispatchEvent(new Event("input"));
const shown = [...document.querySelectorAll("#attention_map img")].filter((image) => image.checkVisibility());
return [document.querySelector("#attention_map output").textContent,
        shown.map((image) => [image.dataset.update, image.naturalWidth])];
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that shows a report of two methods."""
    folder = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        make_run(folder / "runs" / "tql" / f"seed_{seed}", seed, 0.5 + 0.4 * seed, pictures=True)
    other = make_run(folder / "runs" / ("long_" * 30) / "seed_0", 0, 0.2, discount=0.9)
    (other / VIDEO_FOLDER).mkdir()
    for name in ("update_000000000_episode_0", "update_000000200_episode_0", "best"):
        frames = np.zeros((5, 32, 32, 3), dtype=np.uint8)
        imageio.v2.mimwrite(other / VIDEO_FOLDER / f"{name}.mp4", frames, fps=5)
    written = write_report([folder / "runs"], folder / "report.html")
    with chromium(folder / "profile") as driver:
        driver.get(written.as_uri())
        yield driver


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_overflows_and_every_chart_is_drawn(size: tuple[int, int], scheme: str, page: Any) -> None:
    show_as(page, size, scheme)
    wait_until(page, lambda _: page.execute_script(EVERY_CHART_SHOWN_IS_AS_WIDE_AS_ITS_PLACE))
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]
    widths = page.execute_script(
        "return [...document.querySelectorAll('section > .charts figure.chart')]"
        ".map((each) => [each.querySelectorAll('path.line').length, each.getBoundingClientRect().right])"
    )
    assert len(widths) == 4
    assert all(lines >= 1 and right <= size[0] for lines, right in widths)
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(",")) / 3
    assert (brightness > 128) == (scheme == "light")


def test_the_slider_moves_every_runs_picture(page: Any) -> None:
    assert page.execute_script(MOVE, 0) == ["0", [["0", 4], ["0", 4]]]
    assert page.execute_script(MOVE, 1) == ["100", [["100", 4], ["100", 4]]]
    assert page.execute_script(MOVE, 2) == ["200", [["200", 4], ["200", 4]]]


def test_the_slider_of_the_videos_chooses_what_is_seen_and_they_can_be_played(page: Any) -> None:
    chosen = """
        const done = arguments[1], section = document.querySelector("#videos"), slider = section.querySelector("input");
        slider.value = arguments[0];
        slider.dispatchEvent(new Event("input"));
        const shown = [...section.querySelectorAll("video")].filter((video) => video.checkVisibility());
        const seen = () => done(shown.map((video) => [video.dataset.update, video.videoWidth]));
        if (shown[0].readyState) seen(); else shown[0].addEventListener("loadedmetadata", seen);
    """
    assert page.execute_async_script(chosen, 0) == [["0", 32]]
    assert page.execute_async_script(chosen, 1) == [["200", 32]]
    assert page.execute_script("return document.querySelectorAll('#other-videos video').length") == 1


def test_values_are_read_by_pointer_by_keys_and_as_a_table(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    assert "update 0" in page.execute_script(HOVER)
    svg = page.find_element(By.CSS_SELECTOR, "figure.chart svg")
    svg.send_keys(Keys.END)
    assert "update 200" in svg.get_attribute("aria-label")
    svg.send_keys(Keys.ARROW_LEFT)
    assert "update 100" in svg.get_attribute("aria-label")
    assert "35 [25, 45]" in svg.get_attribute("aria-label")
    page.find_element(By.CSS_SELECTOR, "figure.chart summary").click()
    # "toggle", which makes the table, comes some time after the click.
    rows = wait_until(page, lambda driver: driver.find_elements(By.CSS_SELECTOR, "figure.chart tbody tr"))
    assert [row.text.split()[0] for row in rows] == ["0", "100", "200"]


def test_a_legends_entry_hides_its_line(page: Any) -> None:
    from selenium.webdriver.common.by import By

    button = page.find_element(By.CSS_SELECTOR, "figure.chart .legend button")
    lines = "return document.querySelectorAll('figure.chart')[0].querySelectorAll('path.line').length"
    before = page.execute_script(lines)
    button.click()
    assert page.execute_script(lines) == before - 1
    button.click()
    assert page.execute_script(lines) == before


def test_many_methods_hide_no_other_with_their_bands_and_runs_that_ended_are_told_of(page: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    for method in range(17):
        make_run(tmp_path / f"method_{method}" / "seed_0", 0, 0.5, discount=0.9 + method / 1000)
    metrics = make_run(tmp_path / "method_0" / "seed_1", 1, 0.7, discount=0.9) / METRICS_FILE
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:-1]) + "\n")
    page.get(write_report([tmp_path], tmp_path / "page.html").as_uri())
    bands = "return document.querySelector('figure.chart').querySelectorAll('path.band').length"
    entries = page.find_elements(By.CSS_SELECTOR, "figure.chart .legend button")
    assert entries[0].text.split("\n") == ["method_0 (2 runs)", "50, 1 of them"]
    assert page.execute_script(bands) == 0
    entries[16].click()
    assert page.execute_script(bands) == 1


def test_an_axis_over_a_narrow_range_names_its_ticks_where_they_stand(page: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / METRICS_FILE).write_text("step,train/q_loss\n100,1.0\n200,0.9991\n")
    page.get(write_report([run], tmp_path / "page.html").as_uri())
    script = (
        "return [...document.querySelectorAll('figure.chart text[text-anchor=end]')].map((each) => each.textContent)"
    )
    labels = wait_until(page, lambda driver: driver.execute_script(script))
    assert labels == ["0.99925", "0.9995", "0.99975", "1", "200"]


def test_the_script_writes_numbers_as_tables_do(page: Any) -> None:
    assert page.execute_script("return arguments[0].map((value) => number(value))", [*NUMBERS]) == [*NUMBERS.values()]


def test_the_console_stays_empty(page: Any) -> None:
    assert page.get_log("browser") == []
