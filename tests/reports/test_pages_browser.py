"""Report pages in a real browser: no requests, no console messages, no overflow, readable text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bertcli.commands.pretrain import pretrain
from bertcli.errors import TrainingError
from bertcli.experiments.suite import finetune_suite
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.recipe.suite import load_suite
from bertcli.reports.comparison import write_page
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
TASKS = ("inference", "similarity", "topics", "entities", "open-questions", "choices")
WIDTHS = {"desktop": 1280, "phone": 390}
MEASURE = """() => {
  const channels = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (let node = element; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!color.startsWith("rgba(")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = element => {
    const style = getComputedStyle(element);
    const colors = [element.closest("svg") ? style.fill : style.color, background(element)];
    const [first, second] = colors.map(channels).map(luminance);
    return (Math.max(first, second) + 0.05) / (Math.min(first, second) + 0.05);
  };
  const texts = [...document.querySelectorAll("h1, a, p, dt, dd, td, th, b, mark, figcaption, svg text, li, pre")];
  const visible = texts.filter(element => element.getBoundingClientRect().width && element.textContent.trim());
  const size = element => parseFloat(getComputedStyle(element).fontSize) *
    (element.closest("svg") ? element.closest("svg").getBoundingClientRect().width / 360 : 1);
  return {
    overflow: document.documentElement.scrollWidth - innerWidth,
    contrast: Math.min(...visible.map(contrast)),
    size: Math.min(...visible.map(size)),
    clipped: [...document.querySelectorAll("svg text")].filter(text => {
      const [inner, outer] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
      return inner.left < outer.left - 1 || inner.right > outer.right + 1;
    }).map(text => text.textContent),
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind of run, and a comparison."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = ["training.max_steps=20", "data.max_train_examples=200", "data.max_eval_examples=60"]
    overrides += ["training.learning_rate=2e-3", "model.vocab_size=400", "evaluation.every_steps=5"]
    overrides += ["hardware.log_every_steps=1", "model.size=tiny"]
    for task in TASKS:
        finetune(load_recipe(f"sample/{task}", overrides), folder / task, RunOptions(console=QUIET))
    finetune(
        load_recipe("sample/inference", [*overrides, "training.seed=[1,2]"]),
        folder / "seeds",
        RunOptions(console=QUIET),
    )
    pretrain(
        load_pretrain_recipe("pretrain/tiny", ["training.max_steps=6"]),
        folder / "pretrained",
        RunOptions(console=QUIET),
    )
    Path(folder, "suite.yaml").write_text(
        "suite: [sample/sentiment, gone.yaml]\ntraining: {learning_rate: [1e-3, 2e-3]}\n"
    )
    Path(folder, "gone.yaml").write_text(
        "task: {files: {train: gone.csv}, text_columns: [text]}\nmodel: {size: tiny}\n"
    )
    suite = load_suite(
        str(folder / "suite.yaml"), ["training.max_steps=10", *overrides[1:3], "evaluation.every_steps=5"]
    )
    assert suite is not None
    with pytest.raises(TrainingError):
        finetune_suite(suite, folder / "suite", RunOptions(console=QUIET))
    compared = folder / "compared.html"
    write_page([str(folder / name) for name in ("inference", "seeds")], compared)
    pages = {path.parent.name: path for path in folder.rglob("report.html") if not path.parent.name.startswith("seed-")}
    return pages | {"compared": compared}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_page_layout_and_contrast(
    browser: Any, pages: dict[str, Path], tmp_path: Path, device: str, scheme: str
) -> None:
    for name, path in pages.items():
        context = browser.new_context(viewport={"width": WIDTHS[device], "height": 900}, color_scheme=scheme)
        page = context.new_page()
        requests: list[str] = []
        messages: list[str] = []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.on("console", lambda message, messages=messages: messages.append(message.text))
        page.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
        page.goto(path.as_uri())
        page.screenshot(path=tmp_path / f"{name}-{device}-{scheme}.png", full_page=True)
        measured = page.evaluate(MEASURE)
        context.close()
        assert requests == [path.as_uri()]
        assert messages == []
        assert measured["overflow"] <= 0, name
        assert measured["contrast"] >= 4.5, (name, measured)
        assert measured["size"] >= 10, (name, measured)
        assert measured["clipped"] == [], name


def test_page_is_the_same_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    screenshots = []
    for enabled in (True, False):
        context = browser.new_context(java_script_enabled=enabled)
        page = context.new_page()
        page.goto(pages["entities"].as_uri())
        screenshots.append(page.screenshot(full_page=True))
        context.close()
    assert screenshots[0] == screenshots[1]
