"""The benchmark harness runs and reports; no test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(name, *arguments):
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmarks") / "result.json"
    done = script("run", "--quick", "--ops", "conv", "--filter", "64x3x32x32", "--threads", "1,2", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_rows_say_everything(result):
    read = json.loads(result.read_text())
    assert {"cpu", "isa", "torch", "convnorm", "commit", "load", "date"} <= read["machine"].keys()
    assert {(r["op"], r["layout"], r["threads"]) for r in read["rows"]} == {
        (op, layout, threads)
        for op in ("conv", "conv_backward")
        for layout in ("contiguous", "channels_last")
        for threads in (1, 2)
    }
    for row in read["rows"]:
        assert row["kernel"].startswith("conv_")
        assert row["verdict"] in ("win", "even", "loss")
        assert row["error"] < 1e-4
        assert row["flops"] > row["bytes"] > 0 and row["scratch_bytes"] > 0
        assert row["us_min"] <= row["us"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_report_writes_between_the_markers(result, tmp_path):
    readme = tmp_path / "README.md"
    targets = "<!-- targets:begin -->\n<!-- targets:end -->\n"
    readme.write_text(f"before\n<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\n{targets}after\n")
    done = script("report", result, "--readme", readme)
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith("before\n<!-- benchmark:begin -->\n")
    assert text.endswith("<!-- targets:end -->\nafter\n")
    assert "| of the set | met | missed | why |" in text
    assert "| `conv` | 1 |" in text
    assert "old" not in text
    readme.write_text("no markers")
    assert script("report", result, "--readme", readme).returncode == 1


def test_a_result_with_peers_has_a_table_of_its_own(result, tmp_path):
    raced = json.loads(result.read_text())
    told = {"contiguous": {"us": 5.0, "us_min": 5.0, "ratio": 0.5, "verdict": "loss", "error": 1e-7},
            "channels_last": {"refused": "no channels_last"}}  # fmt: skip
    rows = [{**r, "peers": {"onnxruntime": told[r["layout"]]}} for r in raced["rows"] if r["op"] == "conv"]
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({**raced, "set": "peers", "peers": {"onnxruntime": "1.2.3"}, "rows": rows}))
    done = script("report", path, "--print")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime 1.2.3" in done.stdout
    assert "| op | threads | torch | onnxruntime | fastest of all |" in done.stdout
    assert done.stdout.count("| onnxruntime | 5 | x0.50 |") == 2, "losses are listed"
    assert "- onnxruntime, `conv`, channels_last: no channels_last" in done.stdout


def test_networks_have_a_table_in_the_readme(result, tmp_path):
    raced = json.loads(result.read_text())
    rows = [{**r, "op": "training_step", "source": "Net", "saved_bytes": 1_500_000, "torch_saved_bytes": 3_000_000,
             "peak_bytes": None, "torch_peak_bytes": None} for r in raced["rows"]]  # fmt: skip
    (tmp_path / "n.json").write_text(json.dumps({**raced, "set": "networks", "rows": rows}))
    readme = tmp_path / "README.md"
    other = "<!-- benchmark:begin -->\nkept\n<!-- benchmark:end -->\n"
    readme.write_text(f"{other}<!-- networks:begin --><!-- networks:end -->\n")
    done = script("report", tmp_path / "n.json", "--readme", readme)
    assert done.returncode == 0, done.stderr
    assert "kept" in readme.read_text() and "| Net, training step | 64x3x32x32" in readme.read_text()
    assert "| 1.50 MB / 3.00 MB |  |" in readme.read_text()


def test_scaling_has_a_table_by_images(result, tmp_path):
    raced = json.loads(result.read_text())
    rows = [{**r, "source": "3x3", "rate": n * r["threads"], "ratio": 1.5, "problem": f"{n}x3x8x8 4x3x3x3"}
            for n in (2, 16) for r in raced["rows"]]  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps({**raced, "set": "scaling", "rows": rows}))
    done = script("report", tmp_path / "s.json", "--print")
    assert done.returncode == 0, done.stderr
    assert "| layer | layout | threads | N=2 | N=16 | over one thread |" in done.stdout
    assert "| `conv` 3x3 | channels_last | 2 | 4 (x1.50) | 32 (x1.50) | x2.00 / x2.00 |" in done.stdout


def test_every_workload_line_is_a_problem():
    done = subprocess.run(
        [sys.executable, "-c", "from baselines import *; print([len(problems(op)) for op in ROOMS])"],
        cwd=ROOT / "benchmarks",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[34, 6, 3, 2, 8, 5, 5, 5, 4, 3]", done.stderr
