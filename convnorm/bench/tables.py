"""A result as tables on the terminal."""

from __future__ import annotations

from typing import Any

from .._console import Out
from .figures import VERDICTS, duration, groups_of, losses, peer_groups, verdict_counts

STYLES = {"win": "green", "even": None, "loss": "red"}
MOST = 60  # rows; a longer table is not read


def _problem(row: dict[str, Any]) -> str:
    return f"{row['problem']} ({row['source']})" if row["source"] else row["problem"]


def _where(row: dict[str, Any]) -> str:
    return f"{row['layout']}, {row['threads']}t"


def _rows(out: Out, title: str, rows: list[dict[str, Any]]) -> None:
    out.heading(title)
    wide = out.width >= 120
    cells = []
    for r in rows:
        what = [r["op"], _problem(r), _where(r)]
        line = [duration(r["us"]), duration(r["torch_us"]), f"x{r['ratio']:.2f}"]
        quartiles = f"{r['ratio_low']:.2f}-{r['ratio_high']:.2f}"
        cells.append([*what, *line, quartiles, f"{r['ceiling_percent']:.0f} %", r["kernel"]] if wide
                     else [" ".join(what), *line])  # fmt: skip
    styles = [STYLES[r["verdict"]] for r in rows]
    if wide:
        head = ["op", "problem", "layout, threads", "convnorm", "torch", "ratio", "quartiles", "of ceiling", "kernel"]
        out.table(head, cells, left=3, styles=styles)
    else:
        out.table(["layer", "convnorm", "torch", "ratio"], cells, styles=styles, fold=0)


def _peers(out: Out, rows: list[dict[str, Any]], names: list[str]) -> None:
    out.heading("Geometric means of a peer's time / convnorm's; the best of all, each in its better layout")
    cells = []
    for op, threads, told, best in peer_groups(rows, names):
        ratios = [f"x{told[name]['ratio']:.2f}" if name in told else "" for name in ("torch", *names)]
        cells.append((f"{op}, {threads}t", *ratios, f"x{best:.2f}"))
    out.table(["", "torch", *names, "best"], cells, fold=0)


def show(result: dict[str, Any], out: Out) -> None:
    """Every row on a terminal (of long results, and in logs, the losses), the groups, and what failed."""
    rows = result["rows"]
    lost = losses(rows)
    if out.live and len(rows) <= MOST:
        _rows(out, "torch's time / convnorm's; above 1 convnorm is faster", rows)
    elif lost:
        _rows(out, f"The rows that convnorm loses, the worst first ({len(lost)} of {len(rows)})", lost[:MOST])
    if rows:
        out.heading("Geometric means of the ratio; times of all layers together")
        out.table(["", "rows", "won /\neven / lost", "convnorm", "torch", "ratio"],
                  [(f"{g['op']} {_where(g)}", str(g["rows"]), g["verdicts"], duration(g["us"]), duration(g["torch_us"]),
                    f"x{g['ratio']:.2f}") for g in groups_of(rows)], fold=0)  # fmt: skip
        counts = ", ".join(f"{n} {v}" for n, v in zip(verdict_counts(rows), VERDICTS, strict=True))
        out.print(f"{counts}; win and loss only where the middle half of the rounds agrees"
                  + ("; short races: a look, not a result" if result["quick"] else ""))
    raced = [row for row in rows if row.get("peers")]
    if raced:
        _peers(out, raced, list(result["peers"]))
    for failed in result["failed"]:
        out.print(f"failed: {failed['problem']}, {failed['layout']}, {failed['threads']} thread(s): {failed['error']}",
                  style="bold red")
