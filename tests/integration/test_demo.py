"""The page in a real browser: it loads, classifies, compares, and says what is wrong.

`make browser` runs these; they need Chromium (Debian: `apt-get install chromium`).
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which
from urllib.parse import urlsplit

import pytest
import skimage.data
import torch
from PIL import Image

from conftest import tiny_checkpoint
from qcs import demo
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.inference import demo_page
from qcs.inference.predictor import Predictor
from qcs.training import build

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


def predictor(folder: Path, **options) -> Predictor:
    return Predictor(load_checkpoint(tiny_checkpoint(folder / "model.ckpt", **options)))


def test_what_the_page_shows(tmp_path, photo):
    model = predictor(tmp_path)
    result = demo_page.analyse(model, str(photo), True, photo.parent)
    assert len(result.predictions) == len(result.crops) == 1
    assert Image.open(demo_page.attention_picture(model, result.crops[0], tmp_path)).width > 300
    pair = demo_page.comparison_picture(model, result.crops * 2, ["red", "blue"], tmp_path)
    assert Image.open(pair).width > 300
    for path, detect in demo_page.examples(tmp_path):
        assert demo_page.analyse(model, path, detect, tmp_path).predictions


@pytest.mark.parametrize("kind", ["none", "text", "empty"])
def test_a_bad_upload_is_a_sentence_without_a_path(kind, tmp_path, photo):
    (tmp_path / "text.png").write_text("no")
    Image.new("RGB", (99, 99)).save(tmp_path / "empty.png")
    path = None if kind == "none" else str(tmp_path / f"{kind}.png")
    with pytest.raises(UserError, match="no image|cannot read text.png|no face found") as error:
        demo_page.analyse(predictor(tmp_path), path, True, tmp_path)
    assert str(tmp_path) not in str(error.value)


def test_a_network_that_cannot_compare_says_so(tmp_path):
    crops = [Image.new("RGB", (20, 20))] * 2
    with pytest.raises(UserError, match="trained without cross similarity"):
        demo_page.comparison_picture(predictor(tmp_path, roles=1), crops, ["red", "red"], tmp_path)
    for few in (crops[:1], []):
        with pytest.raises(UserError, match="two faces or more"):
            demo_page.comparison_picture(predictor(tmp_path), few, ["red"] * len(few), tmp_path)


def test_the_page_of_no_checkpoint_shows_the_network_that_comes_with_the_package():
    config = {"ckpt": None, "device": None, "crop": None}
    config |= {"threshold": 0.5, "longest": 1280, "smallest": 12}
    shown, about = demo._predictor(config)
    assert shown.class_names[1] == "Happiness" and about.startswith("ferplus\\-light: Neutral, ")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, served as a user serves it."""
    folder = tmp_path_factory.mktemp("page")
    tiny_checkpoint(folder / "model.ckpt")
    command = [sys.executable, "-m", "qcs.demo", "ckpt=model.ckpt", "port=0", "hydra.run.dir=run"]
    env = os.environ | {"PYTHONPATH": str(Path(build.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env=env, **pipes) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"open (http\S+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield found[1]
        finally:
            process.terminate()


@pytest.fixture
def tab(address):
    """A tab of a headless Chromium, and all that it asked for."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(which, BROWSERS)), None)
    assert path, f"no browser found: install one of {', '.join(BROWSERS)}"
    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=path, args=QUIET)
        page = browser.new_page(viewport={"width": 1300, "height": 1400})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("text=Classify")
        yield page
        browser.close()


@pytest.mark.browser
def test_an_image_is_classified_and_nothing_leaves_the_machine(tab, address, photo):
    assert urlsplit(address).hostname == "127.0.0.1"
    tab.set_input_files("input[type=file] >> nth=0", photo)
    tab.wait_for_selector('button[aria-label*="emove"], button[aria-label*="lear"]')
    tab.get_by_role("button", name="Classify").click()
    text = tab.wait_for_selector("text=/^(red|green|blue)$/", timeout=60_000)
    assert text.is_visible()
    shares = [int(n) for n in re.findall(r"(\d+)%", tab.inner_text("body"))]
    assert len(shares) == 3 and abs(sum(shares) - 100) <= 2
    tab.wait_for_function("document.querySelectorAll('img[src*=\"/file=\"]').length >= 4")
    hosts = {urlsplit(url).hostname for url in tab.asked if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}


@pytest.mark.browser
def test_a_broken_upload_gets_a_message_and_the_page_goes_on(tab, photo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    tab.set_input_files("input[type=file] >> nth=0", tmp_path / "broken.png")
    tab.wait_for_timeout(1000)
    tab.get_by_role("button", name="Classify").click()
    tab.wait_for_selector("text=cannot read broken.png as an image (not an image)")
    tab.reload()
    tab.set_input_files("input[type=file] >> nth=0", photo)
    tab.wait_for_timeout(1000)
    tab.get_by_role("button", name="Classify").click()
    tab.wait_for_selector("text=/^(red|green|blue)$/", timeout=60_000)


@pytest.mark.browser
def test_two_faces_are_compared(tab, photo, tmp_path):
    Image.open(photo).rotate(15).save(tmp_path / "other.png")
    tab.get_by_role("tab", name="Compare faces").first.click()
    tab.locator("input[type=file]").last.set_input_files([photo, tmp_path / "other.png"])
    tab.wait_for_selector("text=/^other/")
    tab.locator('button:has-text("Compare")').last.click()
    shown = tab.locator('img[src*="/file="]:visible').last
    shown.wait_for(timeout=60_000)
    assert shown.bounding_box()["width"] > 200


def test_maps_are_drawn_for_the_faces_that_were_given(tmp_path, monkeypatch):
    """Labels decide what a map is: faces of one label are weighed by what they share."""
    given = {}
    monkeypatch.setattr(
        demo_page.plots, "pair_grid", lambda *a: given.update(maps=a[1], names=a[2])
    )
    model, crops = predictor(tmp_path), [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    demo_page.comparison_picture(model, crops, ["red", "red"], tmp_path)
    shared = given["maps"]
    demo_page.comparison_picture(model, crops, ["red", "blue"], tmp_path)
    assert given["names"] == ["red", "blue"] and shared.shape == (2, 2, 4)
    assert not torch.equal(shared[0, 1], given["maps"][0, 1])
    torch.testing.assert_close(shared[0, 0], given["maps"][0, 0])
