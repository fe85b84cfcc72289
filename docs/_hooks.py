"""What the build of the site writes into its pages. mkdocs calls the functions ``on_*``.

A page asks by a comment on a line of its own:

    <!-- include: FILE -->             a file of the project, without its title
    <!-- include: FILE # HEADING -->   one section of it, without its heading
    <!-- comment: FILE -->             the comment that a C++ header begins with
    <!-- speed: OP ... -->             the rows measured for these ops, and for their backwards
    <!-- speed -->                     the summary and the losses of all ops
    <!-- set: NAME -->                 the tables of another set: peers, networks, scaling
    <!-- scratch -->                   the most work memory of every op
    <!-- errors -->                    the errors found while measuring

What was measured comes from _measured.py. Formulas become MathML, so that a page needs no script and no network to
show them; their font comes with the package ziamath.
"""

from __future__ import annotations

import html
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as mathml
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import _measured as measured  # noqa: E402

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
    answers = {"include": included, "comment": header_comment, "speed": measured.speed, "errors": measured.errors,
               "set": measured.other_set, "scratch": measured.scratch}  # fmt: skip

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
    return measured.folded(f"`{path}`", ["```text", *lines, "```"], "quote")
