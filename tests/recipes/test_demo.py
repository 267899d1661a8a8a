"""recipes/demo.py as a user runs it; the page itself in a real browser, where there is one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ENVIRONMENT
from tests.support.stand_in_hub import OWNER

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_cards" / "resnet8_cifar.r_le_digits"


@pytest.fixture
def digits(tmp_path):
    data = pytest.importorskip("sklearn.datasets").load_digits()
    (tmp_path / "digits").mkdir()
    for i in range(10, 16):
        Image.fromarray((data.images[i] * 255 / 16).round().astype(np.uint8)).save(tmp_path / "digits" / f"{data.target[i]}.png")
    return tmp_path / "digits"


def test_rocl_ls_lists_the_demo():
    done = subprocess.run([sys.executable, "-m", "rocl_transfer.command", "ls"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"^demo +A page in the browser that shows a perturbation grow", done.stdout, re.M)


def test_a_space_is_exported_and_sent(command, digits, hub, tmp_path):
    words = ("--model.name", MODEL, "--images", digits, "--epsilon", "0.1", "--export_space", "space")
    done = command("demo.py", *words, check=0)
    assert "recipes/publish.py --space space --repo_id USER/NAME sends it" in done.stderr
    send = ("publish.py", "--space", "space", "--repo_id", "user/demo")
    done = command(*send, "--dry_run", check=0)
    assert "nothing was sent" in done.stderr
    assert "note: it shows 6 of your images" in done.stderr
    environment = hub.environment(tmp_path / "home", OWNER)
    done = command(*send, check=0, environment=environment)
    assert "published: " in done.stderr
    there = hub.files("user/demo", type="space")
    mine = {path.relative_to(tmp_path / "space").as_posix(): path.read_bytes() for path in (tmp_path / "space").rglob("*") if path.is_file()}
    assert {name: data for name, data in there.items() if name != ".gitattributes"} == mine
    shutil.rmtree(tmp_path / "space" / "images")
    command(*send, check=0, environment=environment)
    assert not [name for name in hub.files("user/demo", type="space") if name.startswith("images/")]
    assert "the Hub held all of it already" in command(*send, check=0, environment=environment).stderr


MISTAKES = {
    "no model": ([], "--model.name is missing"),
    "no such model": (["--model.name", "./nothing"], "there is no folder nothing"),
    "no such image": (["--images", "nowhere.png"], "there is no file or folder nowhere.png"),
    "an epsilon in levels": (["--max_epsilon", "64"], "write 64/255 rather than 64"),
    "an epsilon above the largest": (["--epsilon", "0.5"], "give 0 or more, up to --max_epsilon 0.251"),
    "l2 without a radius": (["--norm", "l2"], "the default --max_epsilon is meant for linf"),
    "a norm that is none": (["--norm", "l3"], "--norm is l3: give linf or l2"),
    "no steps": (["--steps", "0"], "--steps is 0: give 1 to 100"),
    "a port that is none": (["--port", "70000"], "--port is 70000: give 1 to 65535"),
    "a hash without a name": (["--beside.sha256", "0" * 64], "--beside.sha256 has no effect without --beside.name"),
    "a host for a Space": (["--export_space", "s", "--host", "0.0.0.0"], "--host has no effect with --export_space"),  # noqa: S104
    "a folder in use": (["--export_space", "."], "is there already and not empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(command, tmp_path, mistake):
    (tmp_path / "file").touch()
    words, sentence = MISTAKES[mistake]
    model = [] if mistake in ("no model", "no such model") else ["--model.name", MODEL]
    done = command("demo.py", *model, *words, check=2)
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--space", ".", "--run", "."), "give either --run"),
        ((), "give either --run"),
        (("--space", "."), "has no app.py"),
        (("--space", ".", "--tag", "v1"), "--tag has no effect with --space"),
    ],
)
def test_publish_says_what_is_wrong_with_a_space(command, words, sentence):
    assert sentence in command("publish.py", "--repo_id", "user/demo", *words, check=2).stderr.splitlines()[-1]


def served(folder, *words):
    """The recipe as a process, and the address that it says."""
    environment = {**os.environ, **ENVIRONMENT, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"the demo is at (http\S+)", line):
            return process, found[1]
    raise AssertionError("".join(said))


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium ({str(error).splitlines()[0]}): playwright install chromium")
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_the_page_in_a_browser(browser, digits, tmp_path):
    pytest.importorskip("gradio")
    two = ("--model.name", MODEL, "--beside.name", MODEL)
    process, address = served(tmp_path, ROOT / "recipes" / "demo.py", *two, "--images", digits, "--epsilon", "0.1", "--steps", 5)
    try:
        drive(browser, address, digits, tmp_path)
    finally:
        process.terminate()
        process.wait(60)


# Thumbnails and charts, legends included, that reach beyond the box they are in.
CUT_OFF = """() => [...document.querySelectorAll(".vega-embed, .gallery img")].filter(part => {
    const [own, box] = [part, part.closest(".block")].map(node => node.getBoundingClientRect());
    return own.bottom > box.bottom + 1 || own.right > box.right + 1;
}).length"""


def drive(browser, address, digits, tmp_path):
    """The first image is shown at once for both models; another image, the slider and an upload change what is said; no image is a sentence."""
    assert address.startswith("http://127.0.0.1:")
    page, broken = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.set_default_timeout(120_000)  # on a busy machine a picture of the page alone takes more than the usual 30 seconds
    page.goto(address)
    page.get_by_text("Smallest epsilon").nth(1).wait_for()
    first = answers(page)
    assert len(first) == 2
    assert first[0] == first[1]
    assert first[0].startswith("0 (")
    assert page.locator("img").count() >= 6 + 6  # thumbnails, and three pictures of each model
    page.locator(".vega-embed").nth(1).wait_for()
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True, timeout=120_000)
    assert page.evaluate(CUT_OFF) == 0

    page.get_by_role("button", name=re.compile("Thumbnail 4")).first.click()
    changed(page, first)
    fourth = answers(page)
    assert fourth[0].startswith("3 (")

    page.locator("input[type=number]").first.fill("0")
    page.locator("input[type=number]").first.press("Enter")
    page.get_by_text("nothing changes").nth(1).wait_for()
    unperturbed = answers(page)
    assert "stays 3" in unperturbed[0]

    page.locator("input[type=file]").first.set_input_files(digits / "5.png")
    changed(page, unperturbed)
    assert answers(page)[0].startswith("5 (")

    (tmp_path / "no image.png").write_text("nothing")
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "no image.png")
    page.get_by_text("this file is not a readable image").first.wait_for()
    assert not broken


def answers(page):
    return page.locator("p").filter(has_text=re.compile(r"\) (stays|becomes) ")).all_inner_texts()


def changed(page, before):
    for _ in range(240):
        if len(answers(page)) == 2 and answers(page) != before:
            return
        page.wait_for_timeout(500)
    raise AssertionError(before)


@pytest.mark.slow
def test_an_exported_space_starts(command, digits, tmp_path):
    pytest.importorskip("gradio")
    command("demo.py", "--model.name", MODEL, "--images", digits, "--export_space", "space", check=0)
    process, address = served(tmp_path / "space", "app.py")
    process.terminate()
    process.wait(60)
    assert address.startswith("http://127.0.0.1:")
