"""The page: complete, safe, and working in a real browser without a network."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import bench_reports
import pytest

from moelstrom.collectives_bench.report import html, plots
from moelstrom.collectives_bench.schema import BenchReport, Skip

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
HOSTILE = "</script><script>document.title='owned'</script><b>&$x"


class Page(HTMLParser):
    """What a page holds, by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def analysed() -> BenchReport:
    report = bench_reports.collectives()
    report.analysis = {
        "suspects": [
            {"kind": "link", "ranks": [1, 3], "slowdown": 3.0, "text": "link 1-3 is 3 times slower"}
        ],
        "notes": ["a note"],
    }
    return report


@pytest.mark.parametrize("make", [analysed, bench_reports.hardware])
def test_the_page_holds_the_whole_report(make: Any) -> None:
    report = make()
    page = Page(html.page(report))
    assert json.loads(page.data) == asdict(report)
    drawn = [attrs["id"] for tag, attrs in page.tags if tag == "figure"]
    if report.kind == "collectives":
        assert drawn == ["bandwidth", "time", "ranks", "at-once", "links"]
    else:
        assert drawn == ["memory", "gemm", "attention", "copy", "devices"]
    rows = sum(tag == "tr" for tag, _ in page.tags)
    assert rows > len(report.collectives) + len(report.hardware)


@pytest.mark.parametrize("make", [analysed, bench_reports.hardware])
def test_plots_take_the_pages_colours(make: Any) -> None:
    """Else a dark page has black text on black."""
    text = html.page(make())
    assert "var(--ink)" in text and "var(--paper)" in text
    assert plots.INK not in text and plots.PAPER not in text


@pytest.mark.parametrize("make", [analysed, bench_reports.hardware])
def test_nothing_is_fetched(make: Any) -> None:
    text = html.page(make())
    for tag, attrs in Page(text).tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attrs.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, name, target)
    style = re.findall(r"url\(([^)]*)\)|@import", text)
    assert all(target.startswith("#") for target in style)


def test_names_are_text_and_no_markup() -> None:
    report = analysed()
    report.command = report.ended = report.hosts[0].__dict__["name"] = HOSTILE
    report.skipped.append(Skip(HOSTILE, 1, HOSTILE))
    report.analysis["suspects"][0]["text"] = HOSTILE
    text = html.page(report)
    assert HOSTILE not in text and "<b>&" not in text
    page = Page(text)
    assert json.loads(page.data)["command"] == HOSTILE
    assert sum(tag == "script" for tag, _ in page.tags) == 2


def test_an_empty_run_has_a_page() -> None:
    report = bench_reports.collectives()
    report.collectives, report.skipped, report.ended = [], [], "failed: rank 1 died"
    assert "failed: rank 1 died" in html.page(report)


PROBE = """
<script>
addEventListener("load", () => {
  const tables = [...document.querySelectorAll("table")];
  const table = tables.find((t) => t.tHead.textContent.startsWith("opsettingranks"));
  const values = (i) => [...table.tBodies[0].rows].map((row) => Number(row.cells[i].dataset.v));
  const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "busbw");
  const head = table.tHead.rows[0].cells[column].firstElementChild;
  head.click(); const up = values(column);
  head.click(); const down = values(column);
  const search = table.closest("details").querySelector("input");
  search.value = "ALL_TO_ALL_V zipf"; search.dispatchEvent(new Event("input"));
  const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden).length;
  const ink = () => getComputedStyle(document.body).color;
  const before = ink(); document.getElementById("theme").click();
  const svg = document.querySelector("#bandwidth svg");
  const fits = document.documentElement.scrollWidth <= innerWidth;
  document.title = JSON.stringify({up, down, shown, themed: before !== ink(), fits,
    width: svg.getBoundingClientRect().width, requests: performance.getEntries()
      .filter((e) => e.entryType === "resource" && !e.name.startsWith("data:")).length});
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_and_sorts_it(tmp_path: Path) -> None:
    report = analysed()
    path = tmp_path / "report.html"
    html.write(report, path)
    path.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    dom, log = in_chromium(tmp_path, path, "--dump-dom")
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1].replace("&quot;", '"'))  # type: ignore[index]
    speeds = sorted(c.busbw for c in report.collectives)
    assert found["up"] == speeds and found["down"] == speeds[::-1]
    assert found["shown"] == len(bench_reports.SIZES) and found["themed"] and found["fits"]
    assert found["width"] > 300 and found["requests"] == 0
    assert "CONSOLE" not in log, log


def in_chromium(folder: Path, page: Path, *options: str) -> tuple[str, str]:
    """Open the page in a browser that reaches nothing; returns its output and its log."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--enable-logging=stderr", "--disable-dev-shm-usage", "--window-size=1280,900"]
    command += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    ran = subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, ran.stderr
