"""Programs that tests of pages need beside Python: Chromium and PostgreSQL, as Debian has them.

Where one is missing the test fails and says what to install: pages that nobody looked at are not
shown to work.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def start_chromium(profile: Path, *flags: str, logs: tuple[str, ...]) -> Any:
    """A selenium driver of headless Chromium with a new profile, keeping these logs whole."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", package="chromium")
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", dict.fromkeys(logs, "ALL"))
    driver = _program("chromedriver", package="chromium-driver")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def patiently(do: Any, what: str) -> Any:
    """What is wanted may not be there yet, or be below a notice that goes away."""
    from selenium.common.exceptions import WebDriverException

    deadline_s = time.monotonic() + 60
    while True:
        try:
            return do()
        except (IndexError, WebDriverException):
            assert time.monotonic() < deadline_s, what
            time.sleep(0.3)


def postgresql_programs() -> Path:
    """The folder of initdb and pg_ctl, of the newest version there is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if not found:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql", pytrace=False)
    return found[-1].parent


def _version(initdb: Path) -> int:
    return int(initdb.parents[1].name)


def _program(name: str, *, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: apt-get install {package}", pytrace=False)
    return path
