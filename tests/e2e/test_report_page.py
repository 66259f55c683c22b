"""The page of `wulewule report`, opened in a real browser without a screen."""

import shutil
from pathlib import Path

import pytest
from commands import WULEWULE, run
from work_dirs import EVIL, run_dir, work_dir


@pytest.fixture(scope="module")
def browser():
    """Chromium: the one that Playwright has installed, else that of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'xtuner-wulewule[test]'")
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
        path = own if Path(own).is_file() else shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("needs a browser: playwright install chromium, or the system's package chromium")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=["run", "plain"])
def report(request, tmp_path_factory):
    """The page about the folder of a run, and about one of XTuner's own."""
    folder = tmp_path_factory.mktemp("report") / "work"
    run_dir(folder) if request.param == "run" else work_dir(folder)
    result = run([WULEWULE, "report", folder], folder.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"report: {folder}/report.html\n") and result.stdout.startswith("verdict: ")
    return folder / "report.html"


@pytest.mark.parametrize(
    ("width", "locale", "theme", "other"), [(1280, "zh-CN", "light", "en"), (390, "en-US", "dark", "zh-CN")], ids=["desktop", "phone"]
)
def test_page_in_a_browser(width, locale, theme, other, browser, report, tmp_path):
    context = browser.new_context(viewport=dict(width=width, height=900), locale=locale, color_scheme=theme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.lang")[:2] == locale[:2]
    for _ in range(2):  # as it is by default, and in the other language
        for place in page.locator("summary").all():
            if place.is_visible() and not place.evaluate("node => node.parentNode.open"):
                place.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wide = "nodes => nodes.filter(node => node.getBoundingClientRect().right > innerWidth + 1).map(node => node.outerHTML.slice(0, 90))"
        assert page.locator("body *:visible").evaluate_all(wide) == []
        last = page.evaluate("document.documentElement.lang")
        assert page.locator(f".{'en' if last == 'zh-CN' else 'zh'}:visible").count() == 0
        assert page.locator(f".{last[:2]}:visible").count() > 20
        page.locator("#language").click()
    assert last == other
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    curve = page.locator("figure svg").first.bounding_box()
    assert curve["width"] > 300 and curve["height"] > 150
    assert EVIL in page.locator("main").inner_text()  # as text
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0
    assert page.screenshot(path=tmp_path / "page.png", full_page=True)[:4] == b"\x89PNG"
    assert said == [] and asked == [report.as_uri()]
    context.close()


def test_script_in_the_page_is_not_run_even_where_one_got_in(browser, report, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(report.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'taken'</script></main>"))
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.title() != "taken"
    page.close()
