"""The tables of results: layers in a dtype, layers beside more peers than torch, networks, scaling."""

from __future__ import annotations

import statistics
from typing import Any

from text import Row, details, figures, provenance, table, with_kind

LEGEND = (
    "torch's time / convnorm's time, geometric mean over the set; above 1 convnorm is faster. A row is a "
    "win or a loss only where the spread of the race agrees; the last column is a median."
)


def summary(rows: list[Row]) -> list[str]:
    head = [
        "op",
        "threads",
        "contiguous",
        "channels_last",
        "better layout of each",
        "win / even / loss",
        "of ceiling",
    ]
    body = []
    for (op, count), same in figures.grouped(rows, "op", "threads").items():
        by_layout = {layout: figures.mean_ratio(part) for (layout,), part in figures.grouped(same, "layout").items()}
        ceiling = statistics.median(r["ceiling_percent"] for r in same)
        cells = [f"x{by_layout[layout]:.2f}" if layout in by_layout else "" for layout in head[2:4]]
        better = f"x{figures.against_better_layout(same):.2f}"
        counts = " / ".join(map(str, figures.verdict_counts(same)))
        body.append([f"`{op}`", str(count), *cells, better, counts, f"{ceiling:.0f} %"])
    return table(head, body)


def loss_table(rows: list[Row]) -> list[str]:
    lost = figures.losses(rows)
    if not lost:
        return ["convnorm loses no row of this set."]
    body = [
        [
            f"`{r['op']}`",
            f"{r['problem']} ({r['source']})",
            r["layout"],
            str(r["threads"]),
            f"{r['us']:.0f}",
            f"{r['torch_us']:.0f}",
            f"x{r['ratio']:.2f}",
        ]
        for r in lost
    ]
    head = ["op", "problem", "layout", "threads", "us", "torch us", "ratio"]
    title = f"Rows where convnorm loses ({len(lost)} of {len(rows)}), the worst first"
    return details(title, table(head, body))


def layers(result: dict[str, Any], rows: list[Row]) -> list[str]:
    return [LEGEND, "", *summary(rows), "", *loss_table(rows)]


PEERS_LEGEND = (
    "A peer's time / convnorm's time in the same layout, geometric mean over its rows (won / even / lost); above 1 "
    "convnorm is faster. In the last column each takes the layout it is fastest in, against the fastest of all. "
    "ONNX Runtime and OpenVINO pack weights when they load a layer, which is not timed; convnorm and torch pack them "
    "in every call. ONNX has no channels_last: ONNX Runtime races in contiguous rows only, OpenVINO by its own "
    "conversion. Pools and norms in training record for a backward in convnorm, torch and torch.compile only."
)


def name(result: dict[str, Any]) -> str:
    """What was raced: layers, or another set."""
    return result.get("set", "layers")


def report(result: dict[str, Any]) -> str:
    rows = [with_kind(row) for row in result["rows"]]
    lines = [line for paragraph in provenance(result, rows) for line in (paragraph, "")]
    return "\n".join([*lines, *_TABLES[name(result)](result, rows)])


def peers(result: dict[str, Any], rows: list[Row]) -> list[str]:
    names = ["torch", *result["peers"]]
    rows = [row for row in rows if row.get("peers")]
    body = []
    for op, threads, told, best in figures.peer_groups(rows, names[1:]):
        cells = []
        for peer in names:
            counts = "/".join(map(str, told[peer]["verdicts"])) if peer in told else ""
            cells.append(f"x{told[peer]['ratio']:.2f} ({counts})" if peer in told else "")
        body.append([f"`{op}`", str(threads), *cells, f"x{best:.2f}"])
    lost = figures.beaten_by_peers(rows)
    title = f"Where another is faster in the same layout ({len(lost)} of {sum(len(figures.rivals(r)) for r in rows)})"
    return [
        PEERS_LEGEND,
        "",
        *table(["op", "threads", *names, "fastest of all"], body),
        "",
        *details(f"{title}, the worst first", _lost(lost)),
        "",
        *details(f"All {len(rows)} rows, us, and errors against float64", _all(rows, names)),
    ]


def _problem(row: Row) -> list[str]:
    problem = f"{row['problem']} ({row['source']})" if row["source"] else row["problem"]
    return [f"`{row['op']}`", problem, row["layout"], str(row["threads"])]


def _lost(lost: list[tuple[Row, str, Row]]) -> list[str]:
    head = ["op", "problem", "layout", "threads", "us", "by", "its us", "ratio"]
    return table(head, [[*_problem(row), f"{row['us']:.0f}", name, f"{peer['us']:.0f}", f"x{peer['ratio']:.2f}"]
                        for row, name, peer in lost])  # fmt: skip


def _all(rows: list[Row], names: list[str]) -> list[str]:
    body = []
    for row in rows:
        told = figures.rivals(row)
        cells = [f"{told[n]['us']:.0f} ({told[n]['error']:.0e})" if n in told else "" for n in names]
        body.append([*_problem(row), f"{row['us']:.0f} ({row['error']:.0e})", *cells])
    refused = {(n, row["op"], row["layout"]): p["refused"] for row in rows for n, p in row["peers"].items()
               if "refused" in p}  # fmt: skip
    said = [f"- {n}, `{op}`, {layout}: {words}" for (n, op, layout), words in refused.items()]
    lines = table(["op", "problem", "layout", "threads", "convnorm", *names], body)
    return [*lines, *(["", "Not raced:", "", *said] if said else [])]


MEMORY = ("saved_bytes", "peak_bytes")
NETWORKS_LEGEND = (
    "A training step is forward, loss, backward and SGD; torch trains the model as it is, convnorm the converted one "
    "(LeNet-5 with batch norm, ReLU and max pool in one layer). Inference is torch's own fold beside convnorm's fuse. "
    "A ratio is another's time / convnorm's, with the middle half of its rounds. Saved: what autograd holds after the "
    "forward, without parameters. Peak: how much the memory of a process grows at most in its first three steps, "
    "gradients and work memory included."
)


def networks(result: dict[str, Any], rows: list[Row]) -> list[str]:
    peers = list(result.get("peers", {}))
    body = []
    for row in rows:
        what = [f"{row['source']}, {row['op'].replace('_', ' ')}", row["problem"], row["layout"], str(row["threads"])]
        times = [figures.duration(row["us"]), figures.duration(row["torch_us"])]
        ratio = f"x{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        told = figures.rivals(row)
        others = [f"x{told[name]['ratio']:.2f}" if name in told else "" for name in peers]
        memory = [" / ".join(figures.size(row.get(f"{side}{key}")) for side in ("", "torch_")) for key in MEMORY]
        body.append([*what, *times, ratio, *others, *(m if m != " / " else "" for m in memory)])
    head = ["network", "input", "layout", "threads", "convnorm", "torch", "ratio", *peers, "saved, ours / torch's",
            "peak, ours / torch's"]  # fmt: skip
    return [NETWORKS_LEGEND, "", *table(head, body)]


SCALING_LEGEND = (
    "GFLOP/s by the number of images (N), and in brackets torch's time / convnorm's. The last column is the rate over "
    "that of one thread, of the fewest and of the most images."
)


def scaling(result: dict[str, Any], rows: list[Row]) -> list[str]:
    def images(row: Row) -> int:
        return int(row["problem"].split("x")[0])

    batches = sorted({images(row) for row in rows})
    alone = {(r["op"], r["source"], r["layout"], images(r)): r["rate"] for r in rows if r["threads"] == 1}
    body = []
    for (op, source, layout, threads), same in figures.grouped(rows, "op", "source", "layout", "threads").items():
        found = {images(row): row for row in same}
        cells = [f"{found[n]['rate']:.0f} (x{found[n]['ratio']:.2f})" if n in found else "" for n in batches]
        gains = [f"x{found[n]['rate'] / alone[op, source, layout, n]:.2f}" for n in (min(found), max(found))
                 if (op, source, layout, n) in alone]  # fmt: skip
        body.append([f"`{op}` {source}", layout, str(threads), *cells, " / ".join(gains)])
    body.sort(key=lambda cells: cells[:2])
    head = ["layer", "layout", "threads", *(f"N={n}" for n in batches), "over one thread"]
    return [SCALING_LEGEND, "", *table(head, body)]


_TABLES = {"layers": layers, "bfloat16": layers, "float16": layers, "float64": layers, "peers": peers,
           "networks": networks, "scaling": scaling}  # fmt: skip
