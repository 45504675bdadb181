"""A headless Chromium for tests of the report, driven by Selenium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tql_lightning.testing.ports import quiet_port

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
REQUIRED = "TQL_REQUIRE_BROWSER"  # set where a missing browser is a failure, as in CI
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
PATIENCE = 300  # seconds for what takes one: a browser that waits for a core is slow, not broken
DESKTOP, PHONE = (1280, 900), (375, 812)


def browser_program() -> str:
    """Path of the browser; without one the test fails where it is required and else is skipped."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found and shutil.which(DRIVER):
        return found
    message = "the report's test needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
    if os.environ.get(REQUIRED):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver of a fresh browser.

    Args:
        profile: empty folder for what the browser writes.
    """
    program = browser_program()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")  # where the driver listens, whatever leads elsewhere
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(DRIVER), quiet_port()))
        driver.set_script_timeout(PATIENCE)
        try:
            yield driver
        finally:
            driver.quit()


def wait_until(driver: Any, condition: Callable[[Any], Any]) -> Any:
    """What the condition is once it is true of the page: a browser does much as tasks of its own, after the command."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 120, poll_frequency=0.05).until(condition)


def show_as(driver: Any, size: tuple[int, int], scheme: str = "light") -> None:
    """Makes the page's window so large, in pixels, and prefers a colour scheme."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    shown = "return innerWidth === arguments[0] && matchMedia(`(prefers-color-scheme: ${arguments[1]})`).matches"
    wait_until(driver, lambda _: driver.execute_script(shown, size[0], scheme))
