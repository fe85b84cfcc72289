"""What the site's pages say of measurements: tables from benchmarks/results, written by the build (_hooks.py).

Rows are those of the newest result of each machine.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import sets  # noqa: E402

Row = dict[str, Any]
Result = dict[str, Any]


def folded(title: str, lines: list[str], kind: str) -> str:
    return "\n".join([f'??? {kind} "{title}"', "", *(f"    {line}".rstrip() for line in lines)])


@cache
def results(kind: str = "layers") -> list[Result]:
    """All that was measured of a set, the newest first; quick looks only where there is nothing else."""
    found = [(path.name, json.loads(path.read_text())) for path in (ROOT / "benchmarks/results").glob("*.json")]
    found.sort(key=lambda f: (not f[1]["quick"], f[1]["machine"]["date"], f[0]), reverse=True)
    return [result for _, result in found if result["rows"] and sets.name(result) == kind]


def machine(result: Result) -> tuple[Any, ...]:
    """Results from before a processor's kernels for bfloat16 call its instruction set avx512."""
    told = result["machine"]
    return told["cpu"], told["cores"], "avx512" if told["isa"] in ("avx512bf16", "amx") else told["isa"]


def newest(ops: list[str]) -> list[tuple[Result, list[Row]]]:
    """Per machine the newest result that has most of these ops; of all ops, where none is named."""
    found: dict[tuple[Any, ...], list[tuple[Result, list[Row]]]] = {}
    for result in results():
        rows = [sets.with_kind(row) for row in result["rows"] if not ops or of_ops(row, ops)]
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
        text += [*provenance(result, rows), sets.LEGEND, "", *sets.summary(rows), ""]
        if ops:
            for (op,), same in sets.figures.grouped(rows, "op").items():
                text += [all_rows(op, same), ""]
        else:
            text += [*sets.loss_table(rows), ""]
    return "\n".join(text).replace("<details>", '<details markdown="1">')


def other_set(what: str, page: str) -> str:
    """Of each machine the newest result of a set."""
    found: dict[tuple[Any, ...], Result] = {}
    for result in results(what):
        found.setdefault(machine(result), result)
    text = [sets.report(result) for result in found.values()] or ["Not measured yet."]
    return "\n\n".join(text).replace("<details>", '<details markdown="1">')


def provenance(result: Result, rows: list[Row]) -> list[str]:
    return [line for paragraph in sets.provenance(result, rows) for line in (paragraph, "")]


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
                     sets.figures.size(r.get("scratch_bytes"))])  # fmt: skip
    won, even, lost = sets.figures.verdict_counts(rows)
    title = f"{op}: all {len(rows)} rows ({won} won, {even} even, {lost} lost)"
    return folded(title, sets.table(head, body), "abstract")


def scratch(what: str, page: str) -> str:
    """Of each machine; results before rows told it are passed over."""
    text = []
    for result, rows in newest([]):
        told = [row for row in rows if "scratch_bytes" in row]
        body = []
        for (op, threads), same in sets.figures.grouped(told, "op", "threads").items():
            most = max(same, key=lambda row: row["scratch_bytes"])
            share = f"{100 * most['scratch_bytes'] / most['bytes']:.0f} %"
            body.append([f"`{op}`", str(threads), sets.figures.size(most["scratch_bytes"]), share,
                         f"{most['problem']}, {most['layout']}"])  # fmt: skip
        if told:
            head = ["op", "threads", "work memory", "of the operands", "row"]
            text += [sets.provenance(result, rows)[0], "", *sets.table(head, body), ""]
    return "\n".join(text) or "Not measured yet."


def errors(what: str, page: str) -> str:
    text = []
    for result, rows in newest([]):
        body = []
        for (op, dtype), same in sets.figures.grouped(rows, "op", "dtype").items():
            figures = [f(r[key] for r in same) for f in (statistics.median, max) for key in ("error", "torch_error")]
            cells = [f"{figure:.1e}" if figure else "0" for figure in figures]
            body.append([f"`{op}`", dtype, *cells])
        head = ["op", "dtype", "median", "torch's median", "largest", "torch's largest"]
        text += [sets.provenance(result, rows)[0], "", *sets.table(head, body), ""]
    return "\n".join(text)
