"""What the build of the site writes into its pages. mkdocs calls the functions ``on_*``.

A page asks by a comment on a line of its own:

    <!-- include: FILE -->             a file of the project, without its title
    <!-- include: FILE # HEADING -->   one section of it, without its heading
    <!-- comment: FILE -->             the comment that a C++ header begins with
    <!-- speed: OP ... -->             the rows measured for these ops, and for their backwards
    <!-- speed -->                     the summary and the losses of all ops
    <!-- set: NAME -->             the tables of another set: peers, networks, scaling
    <!-- scratch -->                      the most work memory of every op
    <!-- errors -->                    the errors found while measuring

Measured rows are those of the newest result of each machine in benchmarks/results. Formulas become MathML, so that a
page needs no script and no network to show them; their font comes with the package ziamath.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as mathml
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402
import sets  # noqa: E402

Row = dict[str, Any]
Result = dict[str, Any]
PAGES = {"README.md": "docs/index.md", "CONTRIBUTING.md": "docs/contributing.md", "CHANGELOG.md": "docs/changelog.md"}


FONTS = importlib.util.find_spec("ziamath")  # found, not imported: all that is wanted is its font
assert FONTS and FONTS.origin
FONT = Path(FONTS.origin).parent / "fonts/STIXTwoMath-Regular.ttf"  # SIL Open Font License
SHIM = re.compile(r'<script src="https://unpkg.com/iframe-worker/shim"></script>')


# --- pages --------------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any, **_: Any) -> Any:
    files.append(File.generated(config, f"assets/{FONT.name}", abs_src_path=str(FONT)))
    return files


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """The theme would fetch from the network what lets search run in pages on disk."""
    return SHIM.sub(f'<script src="{"../" * page.url.count("/")}worker.js"></script>', output)


def on_post_template(output_content: str, **_: Any) -> str:
    return SHIM.sub("", output_content)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its comments answered and its links made those of the site."""
    here = f"docs/{page.file.src_uri}"
    text = relinked(markdown, os.path.dirname(here), here)
    answers = {"include": included, "comment": header_comment, "speed": speed, "errors": errors, "set": other_set,
               "scratch": scratch}  # fmt: skip

    def answer(found: re.Match[str]) -> str:
        return answers[found[1]]((found[2] or "").strip(), here)

    return re.sub(r"^<!-- (include|comment|speed|errors|set|scratch)(?::(.*?))? -->$", answer, text, flags=re.M)


def on_page_content(html: str, **_: Any) -> str:
    """The page with its formulas as MathML."""
    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: formula(m[1], "inline"), html, flags=re.S)
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda m: formula(m[1], "block"), html,
                  flags=re.S)  # fmt: skip


def formula(tex: str, display: str) -> str:
    found = mathml(html.unescape(tex).strip(), display=display)
    if "\\" in found:  # a command that it does not know is left as it is
        raise ValueError(f"no MathML for {tex.strip()}")
    return f'<div class="formula">{found}</div>' if display == "block" else found


def relinked(text: str, folder: str, page: str) -> str:
    """Links of a file in ``folder`` as ``page`` has to write them; of files that are not on the site only the text."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        path = os.path.normpath(os.path.join(folder, target))
        path = PAGES.get(path, re.sub(r"^convnorm/(\w+)/__init__\.py$", r"docs/api/\1.md", path))
        if not path.startswith("docs/"):
            return label
        if label == target:  # a file's name says little here
            label = (ROOT / path).read_text().split("\n")[0].removeprefix("# ")
        return f"[{label}]({os.path.relpath(path, os.path.dirname(page))}{anchor})"

    parts = re.split(r"(```.*?```)", text, flags=re.S)  # code is left alone
    parts[::2] = [re.sub(r"(?<!!)\[([^][]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)", link, part) for part in parts[::2]]
    return "".join(parts)


def included(what: str, page: str) -> str:
    path, _, heading = (part.strip() for part in what.partition("#"))
    text = (ROOT / path).read_text()
    if heading:
        found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
        if not found:
            raise ValueError(f"{page}: {path} has no section {heading!r}")
        text = found[1]
    else:
        text = re.sub(r"\A# .*\n", "", text)
    return relinked(text.strip(), os.path.dirname(path), page)


def header_comment(path: str, page: str) -> str:
    """As text in a fold: loop orders are drawn with spaces."""
    lines: list[str] = []
    for line in (ROOT / path).read_text().splitlines():
        if not line.startswith("//"):
            break
        lines.append(line[3:])
    if not lines:
        raise ValueError(f"{page}: {path} begins with no comment")
    return folded(f"`{path}`", ["```text", *lines, "```"], "quote")


def folded(title: str, lines: list[str], kind: str) -> str:
    return "\n".join([f'??? {kind} "{title}"', "", *(f"    {line}".rstrip() for line in lines)])


# --- measurements -------------------------------------------------------------------------------------------------


@cache
def results(kind: str = "layers") -> list[Result]:
    """All that was measured of a set, the newest first; quick looks only where there is nothing else."""
    found = [(path.name, json.loads(path.read_text())) for path in (ROOT / "benchmarks/results").glob("*.json")]
    found.sort(key=lambda f: (not f[1]["quick"], f[1]["machine"]["date"], f[0]), reverse=True)
    return [result for _, result in found if result["rows"] and sets.name(result) == kind]


def machine(result: Result) -> tuple[Any, ...]:
    return tuple(result["machine"][key] for key in ("cpu", "cores", "isa"))


def newest(ops: list[str]) -> list[tuple[Result, list[Row]]]:
    """Per machine the newest result that has most of these ops; of all ops, where none is named."""
    found: dict[tuple[Any, ...], list[tuple[Result, list[Row]]]] = {}
    for result in results():
        rows = [report.with_kind(row) for row in result["rows"] if not ops or of_ops(row, ops)]
        if rows:
            found.setdefault(machine(result), []).append((result, rows))
    return [max(several, key=lambda one: len({row["op"] for row in one[1]})) for several in found.values()]


def of_ops(row: Row, ops: list[str]) -> bool:
    """batch_norm stands for batch_norm, batch_norm_eval and batch_norm_relu_backward."""
    return any(re.fullmatch(rf"{op}(_relu|_eval)?(_backward)?", row["op"]) for op in ops)


def speed(what: str, page: str) -> str:
    ops = what.split()
    measured = newest(ops)
    if not measured:
        return "Not measured yet."
    text = []
    for result, rows in measured:
        if len(measured) > 1:
            text += [f"**{result['machine']['cpu']}, {result['machine']['isa']}**", ""]
        text += [*provenance(result, rows), report.LEGEND, "", *report.summary(rows), ""]
        if ops:
            for (op,), same in report.figures.grouped(rows, "op").items():
                text += [all_rows(op, same), ""]
        else:
            text += [*report.loss_table(rows), ""]
    return "\n".join(text).replace("<details>", '<details markdown="1">')


def other_set(what: str, page: str) -> str:
    """Of each machine the newest result of a set."""
    found: dict[tuple[Any, ...], Result] = {}
    for result in results(what):
        found.setdefault(machine(result), result)
    text = [sets.report(result) for result in found.values()] or ["Not measured yet."]
    return "\n\n".join(text).replace("<details>", '<details markdown="1">')


def provenance(result: Result, rows: list[Row]) -> list[str]:
    return [line for paragraph in report.provenance(result, rows) for line in (paragraph, "")]


def all_rows(op: str, rows: list[Row]) -> str:
    head = ["problem", "layout", "threads", "kernel", "us", "torch us", "ratio", "verdict", "of ceiling",
            "work memory"]  # fmt: skip
    body = []
    for r in sorted(rows, key=lambda r: r["threads"]):
        name = f"{r['problem']} ({r['source']})" if r["source"] else r["problem"]
        kernel = " + ".join(f"`{name}`" for name in r["kernel"].split(" + ") if name)
        times = [f"{r['us']:.0f}", f"{r['torch_us']:.0f}", f"x{r['ratio']:.2f}"]
        verdict = f'<span class="{r["verdict"]}">{r["verdict"]}</span>'
        body.append([name, r["layout"], str(r["threads"]), kernel, *times, verdict, f"{r['ceiling_percent']:.0f} %",
                     report.figures.size(r.get("scratch_bytes"))])  # fmt: skip
    won, even, lost = report.figures.verdict_counts(rows)
    title = f"{op}: all {len(rows)} rows ({won} won, {even} even, {lost} lost)"
    return folded(title, report.table(head, body), "abstract")


def scratch(what: str, page: str) -> str:
    """Of each machine; results before rows told it are passed over."""
    text = []
    for result, rows in newest([]):
        told = [row for row in rows if "scratch_bytes" in row]
        body = []
        for (op, threads), same in report.figures.grouped(told, "op", "threads").items():
            most = max(same, key=lambda row: row["scratch_bytes"])
            share = f"{100 * most['scratch_bytes'] / most['bytes']:.0f} %"
            body.append([f"`{op}`", str(threads), report.figures.size(most["scratch_bytes"]), share,
                         f"{most['problem']}, {most['layout']}"])  # fmt: skip
        if told:
            head = ["op", "threads", "work memory", "of the operands", "row"]
            text += [report.provenance(result, rows)[0], "", *report.table(head, body), ""]
    return "\n".join(text) or "Not measured yet."


def errors(what: str, page: str) -> str:
    text = []
    for result, rows in newest([]):
        body = []
        for (op, dtype), same in report.figures.grouped(rows, "op", "dtype").items():
            figures = [f(r[key] for r in same) for f in (statistics.median, max) for key in ("error", "torch_error")]
            cells = [f"{figure:.1e}" if figure else "0" for figure in figures]
            body.append([f"`{op}`", dtype, *cells])
        head = ["op", "dtype", "median", "torch's median", "largest", "torch's largest"]
        text += [report.provenance(result, rows)[0], "", *report.table(head, body), ""]
    return "\n".join(text)
