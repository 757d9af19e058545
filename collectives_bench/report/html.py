"""A report as one page that opens anywhere: no request leaves it, its data lies inside."""

import json
from dataclasses import asdict
from html import escape
from pathlib import Path

from ..schema import BenchReport
from .grid import Cell, TextTable
from .plots import everything, svgs
from .tables import details, findings

STATIC = Path(__file__).parent / "static"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p class="ended {tone}">{ended}</p>
<button id="theme" type="button" title="light or dark">&#9680;</button></header>
<main>
{body}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def write(report: BenchReport, path: Path) -> None:
    """Write the page of `report` to `path`, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page(report), encoding="utf-8")
    partial.replace(path)


def page(report: BenchReport) -> str:
    """The page: how the run ended, where it ran, findings, plots, sortable tables, the JSON."""
    found = [_facts(report), *findings(report)]
    figures = "\n".join(_figure(name, svg) for name, svg in svgs(report).items())
    rest = details(report)
    return _PAGE.format(
        title=escape(f"moelstrom bench {report.kind}, {report.started}"),
        tone="good" if report.ended == "complete" else "bad",
        ended=escape(report.ended),
        style=(STATIC / "page.css").read_text(encoding="utf-8"),
        script=(STATIC / "page.js").read_text(encoding="utf-8"),
        body="\n".join([*map(_table, found), f"<section>{figures}</section>", *map(_table, rest)]),
        data=_data(report),
    )


def _data(report: BenchReport) -> str:
    # In a script element only `</` and `<!--` would end or change what follows.
    return json.dumps(asdict(report)).replace("<", "\\u003c")


def _facts(report: BenchReport) -> TextTable:
    grid = TextTable("this run", ("", "what"))
    grid.add("command", report.command)
    grid.add("ranks", f"{report.world_size} over {report.backend}")
    for host in report.hosts:
        grid.add(host.name, f"{host.devices} x {host.device}")
    grid.add("versions", ", ".join(f"{name} {text}" for name, text in report.versions.items()))
    grid.add("config", json.dumps(report.config))
    return grid


def _figure(name: str, svg: str) -> str:
    title = escape(everything()[name][0])
    return f'<figure id="{name}"><figcaption>{title}</figcaption>{svg}</figure>'


def _table(grid: TextTable) -> str:
    right = [' class="n"' if grid.numeric(i) else "" for i in range(len(grid.columns))]
    head = "".join(
        f'<th{kind}><button type="button">{escape(name.strip())}</button></th>'
        for kind, name in zip(right, grid.columns, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(_cell(cell, kind) for cell, kind in zip(row, right, strict=True))}</tr>"
        for row in grid.rows
    )
    summary = f"<summary>{escape(grid.title)} <small>{len(grid.rows)}</small></summary>"
    search = '<input type="search" placeholder="filter rows" aria-label="filter rows">'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    return f'<details open>{summary}{search}<div class="wide">{table}</div></details>'


def _cell(cell: Cell, kind: str) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value!r}"'
    tone = f"<b class={cell.tone!r}>{escape(cell.text)}</b>" if cell.tone else escape(cell.text)
    return f"<td{kind}{value}>{tone}</td>"
