"""convnorm bench on a person's own model and layers: what is raced, what is written, what is refused. No times."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import convnorm
from convnorm import cli
from convnorm.bench import figures, layers, machine, memory, networks, peers, roofline, work
from convnorm.bench.contests import ROOMS, problems
from convnorm.bench.page import page
from convnorm.bench.problem import ProblemError, parse, read
from convnorm.bench.race import relative_error, scratch

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["--quick", "--seconds", "0.001", "--threads", "1"]

NETS = """
import torch
from torch import nn

class Odd(nn.Conv2d):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.body = nn.Sequential(*(nn.Conv2d(8, 8, (1, 3), padding=(0, 1)) for _ in range(3)))
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.back = nn.MaxUnpool2d(2)
        self.unused = nn.AvgPool2d(2)
        self.odd = Odd(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.body(self.odd(self.stem(x))))
        pooled, indices = self.pool(x)
        return self.head(self.back(pooled, indices).mean((2, 3)))

def breaks():
    raise OSError("no weights here")

def number():
    return 3

size = 3
"""


@pytest.fixture()
def nets(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("my_nets", None)


def test_a_model_layer_by_layer(nets, capsys):
    command = ["bench", "my_nets:Net", "3", "8", "6", "--batch", "2", *SHORT]
    assert cli.main([*command, "--out", "out/net.json"]) == 0
    text = capsys.readouterr().out
    odd = "odd (a subclass of torch's Conv2d, which may compute something else)"
    assert f"not raced: {odd}, unused (did not run)" in text
    assert all((nets / "out" / f"net.{suffix}").stat().st_size > 1000 for suffix in ("json", "png", "html"))
    assert (nets / "out/net-roofline.png").read_bytes().startswith(b"\x89PNG")
    assert (nets / "out/net.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((nets / "out/net.json").read_text())
    assert result["target"] == "my_nets:Net, input 2 x 3 x 8 x 6" and result["failed"] == []
    rows = result["rows"]
    assert {(r["op"], r["problem"], r["source"], r["count"]) for r in rows if not r["op"].endswith("_backward")} == {
        ("conv", "2x3x8x6 8x3x3x3 padding=1", "stem", 1),
        ("conv", "2x8x8x6 8x8x1x3 padding=0x1", "body.0 and 2 more", 3),
        ("batch_norm", "2x8x8x6", "norm", 1),
        ("batch_norm_eval", "2x8x8x6", "norm", 1),
        ("max_pool", "2x8x8x6 kernel_size=2 stride=2", "pool", 1),
        ("max_unpool", "2x8x4x3 kernel_size=2 stride=2", "back", 1),
    }
    assert {r["layout"] for r in rows} == {"contiguous", "channels_last"}
    assert {r["op"] for r in rows if r["op"].endswith("_backward")} == {
        f"{op}_backward" for op in ("conv", "batch_norm", "max_pool", "max_unpool")}  # fmt: skip
    for row in rows:
        stem = row["op"].removesuffix("_backward").removesuffix("_eval")
        assert stem == "max_unpool" or stem in row["kernel"], "un-pooling has one kernel, which nothing chooses"
        assert row["error"] <= 2 * row["torch_error"] + torch.finfo(torch.float32).eps
    groups = figures.groups_of(rows)
    three = next(r for r in rows if r["count"] == 3)
    conv = next(g for g in groups if (g["op"], g["layout"]) == ("conv", "contiguous"))
    assert conv["rows"] == 2 and conv["us"] > 3 * three["us"]


def test_a_list_of_layers(tmp_path):
    lines = tmp_path / "mine.txt"
    lines.write_text("conv 1x4x9 6x4x3 stride=2  # sequence\n\nmax_pool 1x3x4x6x6 kernel_size=1x2x2\n# nothing\n")
    out = tmp_path / "r.json"
    arguments = [*SHORT, "--no-backward", "--layout", "contiguous", "--out", str(out)]
    assert cli.main(["bench", str(lines), *arguments]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(r["op"], r["problem"], r["source"]) for r in rows] == [
        ("conv", "1x4x9 6x4x3 stride=2", "sequence"), ("max_pool", "1x3x4x6x6 kernel_size=1x2x2", "")]  # fmt: skip


def test_a_layer_that_both_refuse_is_listed(tmp_path, capsys):
    lines = tmp_path / "conv.txt"
    lines.write_text("1x4x9x9 6x5x3x3 # five channels are not four\n1x2x5x5 2x2x1x1\n")
    out = tmp_path / "r.json"
    assert cli.main(["bench", str(lines), *SHORT, "--layout", "contiguous", "--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert [f["problem"] for f in result["failed"]] == ["conv 1x4x9x9 6x5x3x3"]
    assert len(result["rows"]) == 2, "the other one was raced"
    assert "failed: conv 1x4x9x9 6x5x3x3, contiguous" in capsys.readouterr().out
    assert 'id="failed"' in out.with_suffix(".html").read_text()


@pytest.mark.parametrize("arguments, words", [
    (["my_nets:Net"], "a model needs the size of one sample"),
    (["my_nets:Net", "3", "0", "6"], "all of at least 1"),
    (["my_nets:Net", "4", "8", "6"], "my_nets:Net cannot run on an input of 4 x 4 x 8 x 6: RuntimeError"),
    (["my_nets:Nets", "3", "8", "6"], "my_nets has no attribute 'Nets'; is Net meant?"),
    (["my_nets:number", "3"], "my_nets:number gave a int, must be a torch.nn.Module"),
    (["my_nets:size", "3"], "my_nets:size is a int, must be a torch.nn.Module or make one"),
    (["my_nets:breaks", "3"], "called without arguments, but raised OSError: no weights here"),
    (["my_net:Net", "3"], "my_net cannot be imported: ModuleNotFoundError: No module named 'my_net'"),
    (["my_nets:", "3"], "'my_nets:' must be MODULE:NAME"),
    (["layers.txt"], "'layers.txt' is no file here, and a model must be MODULE:NAME"),
    (["my_nets.py", "3"], "a list of layers has no input size, but 3 was given"),
    (["torch.nn:ReLU", "3"], "nothing to race: no layer of torch.nn:ReLU, input 4 x 3 that convnorm computes"),
    (["--filter", "5000x5000"], "contains '5000x5000'"),
])  # fmt: skip
def test_errors_say_what_to_do(nets, capsys, arguments, words):
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [
    (["--threads", "0"], "'0' must be numbers of at least 1, all or doubling"), (["--threads", "two"], "'two' must be"),
    (["--ops", "conv,convs"], "convs must be of conv,"), (["--layout", "nhwc"], "nhwc must be of contiguous,"),
    (["--peers", "tvm"], "tvm must be of torch.compile,"),
    (["--seconds", "-1"], "'-1' must be a number above 0"), (["--filter", "("], "must be a regular expression"),
])  # fmt: skip
def test_options_are_checked(capsys, arguments, words):
    with pytest.raises(SystemExit):
        cli.main(["bench", *arguments])
    assert words in capsys.readouterr().err


def test_problem_lines(tmp_path):
    problem = parse("4x3x8x8 kernel_size=2x3 ceil_mode=True divisor_override=None", "here")
    assert problem.shapes == ((4, 3, 8, 8),)
    assert problem.arguments == {"kernel_size": (2, 3), "ceil_mode": True, "divisor_override": None}
    assert str(problem) == "4x3x8x8 kernel_size=2x3 ceil_mode=True divisor_override=None"
    for text, words in (("4x3 stride=two", "'stride=two' must be stride=INTEGER"), ("4xx3", "must be a shape"),
                        ("stride=2", "must start with a shape"), ("4x0", "sizes of at least 1")):  # fmt: skip
        with pytest.raises(ProblemError, match=re.escape(words)):
            parse(text)
    lines = tmp_path / "unknown.txt"
    lines.write_text("# a comment\n4x3x8x8\n")
    with pytest.raises(ProblemError, match=r"unknown.txt:2: the line names no op, nor does the file"):
        read(lines, ["conv"])
    lines.write_text("cnv 4x3x8x8")
    with pytest.raises(ProblemError, match=r"unknown.txt:1: op 'cnv' must be of conv"):
        read(lines, ["conv"])


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found, others = layers.layers_of(model, [torch.randn(2, 2, 6, 6)])
    for layer in found:
        for contest in layers.contests(layer, "channels_last", torch.float64):
            contest.ours(), contest.theirs()
    assert not others and model.training and not model[0]._forward_hooks
    assert type(model[0]) is nn.Conv2d and model[0].weight.is_contiguous()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_converted_model_races_torch_too():
    model = convnorm.convert(nn.Sequential(nn.Conv2d(2, 3, 3)))
    found, _ = layers.layers_of(model, [torch.randn(1, 2, 6, 6)])
    fused = nn.Sequential(convnorm.nn.BatchNormAct2d(2), model)
    assert layers.layers_of(fused, [torch.randn(1, 2, 6, 6)])[1] == ["0 (torch has no BatchNormAct2d)"]
    contest = next(layers.contests(found[0], "contiguous", torch.float32))
    assert convnorm.explain(contest.theirs).calls == () and len(convnorm.explain(contest.ours).calls) == 1


# --- peers ------------------------------------------------------------------------------------------------------


PEER_LINES = """conv 1x3x8x8 4x3x3x3 padding=1
max_pool 1x3x8x8 kernel_size=2 stride=2
"""


@pytest.mark.parametrize("name", peers.NAMES)
def test_a_peer_races_and_is_right(tmp_path, name):
    if absent := peers.missing([name]):
        pytest.skip(f"{', '.join(absent)} is not installed ({peers.EXTRA})")
    lines, out = tmp_path / "mine.txt", tmp_path / "r.json"
    lines.write_text(PEER_LINES)
    assert cli.main(["bench", str(lines), *SHORT, "--peers", name, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["set"] == "peers" and list(result["peers"]) == [name]
    rows = result["rows"]
    assert [(r["op"], r["layout"]) for r in rows] == [
        (op, layout) for op in ("conv", "max_pool") for layout in ("contiguous", "channels_last")]  # fmt: skip
    for row in rows:
        peer = row["peers"][name]
        if name == "onnxruntime" and row["layout"] == "channels_last":
            assert peer == {"refused": "ONNX has no channels_last"}
        else:
            assert peer["error"] < 1e-5 and peer["us_min"] <= peer["us"] and peer["ratio"] > 0
    assert name in out.with_suffix(".html").read_text()


def test_a_peer_that_refuses_is_told(tmp_path, monkeypatch, capsys):
    def refuse(forward):
        raise RuntimeError("\x1b[96mno such op.\nsecond line")

    monkeypatch.setitem(peers._MAKERS, "torch.compile", refuse)
    lines, out = tmp_path / "mine.txt", tmp_path / "r.json"
    lines.write_text(PEER_LINES)
    command = ["bench", str(lines), *SHORT, "--layout", "contiguous", "--peers", "torch.compile", "--out", str(out)]
    assert cli.main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["peers"] for r in rows] == [{"torch.compile": {"refused": "RuntimeError: no such op."}}] * 2
    assert "refused: RuntimeError: no such op." in capsys.readouterr().out


def test_a_peer_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "--peers", "torch.compile,openvino"]) == 2
    words = "--peers torch.compile,openvino needs openvino, onnx, onnxscript: pip install convnorm[peers]"
    assert words in capsys.readouterr().err


def test_the_extra_and_the_requirements_have_what_peers_need():
    listed = re.search(r"^peers = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    lines = (ROOT / "requirements-peers.txt").read_text().splitlines()
    needed = {package for packages in peers._NEEDS.values() for package in packages}
    assert set(json.loads(listed)) == needed == {line for line in lines if not line.startswith("#")}


def test_figures_of_peers():
    def raced(layout, torch_us, peer_us):
        ratio = peer_us / 100
        peer = {"us": peer_us, "us_min": peer_us, "ratio": ratio, "verdict": "loss" if ratio < 1 else "win", "error": 0}
        return row(1, torch_us / 100, "win", layout=layout, us_min=100.0, torch_us_min=torch_us, peers={"p": peer})

    rows = [raced("contiguous", 300.0, 80.0), raced("channels_last", 200.0, 400.0),
            row(2, 3.0, "win", us_min=100.0, torch_us_min=300.0, peers={"p": {"refused": "no"}})]  # fmt: skip
    ((op, threads, told, best),) = figures.peer_groups(rows, ["p"])
    assert (op, threads, told["torch"]["rows"], told["p"]["rows"]) == ("conv", 1, 3, 2)
    assert told["p"]["verdicts"] == [1, 0, 1] and told["p"]["ratio"] == pytest.approx((0.8 * 4) ** 0.5)
    assert best == pytest.approx((0.8 * 3) ** 0.5), "80 us of p beside 100; 300 of torch beside 100"
    assert [(name, peer["ratio"]) for _, name, peer in figures.beaten_by_peers(rows)] == [("p", 0.8)]


# --- networks -----------------------------------------------------------------------------------------------------


def test_a_network_trains_and_tells_its_memory(tmp_path):
    out = tmp_path / "n.json"
    command = ["bench", "--set", "networks", "--filter", "LeNet", "--layout", "contiguous", *SHORT, "--out", str(out)]
    assert cli.main(command) == 0
    result = json.loads(out.read_text())
    (found,) = result["rows"]
    assert (result["set"], found["op"], found["source"], found["unit"]) == (
        "networks", "training_step", "LeNet-5", "GFLOP/s")  # fmt: skip
    assert found["error"] < 1e-5 and found["torch_error"] < 1e-5
    images, activations = 64 * 28 * 28 * 4, 64 * (20 * 28 * 28 + 50 * 14 * 14) * 4
    assert images + activations < found["saved_bytes"] < found["torch_saved_bytes"] < 3 * activations
    if sys.platform == "linux":
        assert found["peak_bytes"] > found["saved_bytes"] and found["torch_peak_bytes"] > found["torch_saved_bytes"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_both_sides_of_a_network_agree(monkeypatch, layout):
    nets = [networks.Network("ResNet-18", op, (2, 3, 32, 32), lambda: convnorm.models.resnet18(10, width=8))
            for op in ("training_step", "inference")]  # fmt: skip
    monkeypatch.setattr(networks, "peak", lambda *_: None)
    for net in nets:
        (contest,) = networks.contests(net, layout, torch.float32)
        assert contest.flops > 0
        for side in (contest.ours, contest.theirs):
            assert relative_error(side(), contest.reference()) < 1e-4
        told = contest.extra()
        assert told["peak_bytes"] is None and ("saved_bytes" in told) == (net.op == "training_step")
        forward = contest.forward()
        assert forward.trains == (net.op == "training_step")
        before = [p.clone() for p in forward.module.parameters()]
        forward.player(forward.module)()
        moved = any(not torch.equal(a, b) for a, b in zip(before, forward.module.parameters(), strict=True))
        assert moved == forward.trains


def test_saved_bytes_are_storages_without_parameters():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.ReLU())
    x = torch.randn(1, 1, 4, 4)
    assert memory.saved_for_backward(model, [x]) == (16 + 32 + 32) * 4, "x; a storage of conv and ReLU; the last"


# --- scaling ------------------------------------------------------------------------------------------------------


def test_scaling_is_by_images_and_threads(tmp_path):
    out = tmp_path / "s.json"
    command = ["bench", "--set", "scaling", "--filter", r"\b[12]x256", "--no-backward", "--layout", "contiguous"]
    assert cli.main([*command, "--quick", "--seconds", "0.001", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["set"] == "scaling"
    assert [(r["problem"].split()[0], r["source"], r["threads"]) for r in told["rows"]] == [
        (f"{n}x256x14x14", "1x1", threads) for threads in (1, 2) for n in (1, 2)]  # fmt: skip


@pytest.mark.parametrize("every, counts", [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_doubling_threads(every, counts):
    torch.set_num_threads(every)
    assert machine.thread_counts("doubling") == counts and machine.thread_counts("1,all") == sorted({1, every})


@pytest.mark.parametrize(
    "model, name",
    [
        ("model name\t: AMD EPYC 7763", "AMD EPYC 7763"),
        ("model name\t: AMD EPYC", "AMD EPYC, family 25, model 1"),
        ("BogoMIPS\t: 50.00", None),
    ],
)
def test_a_processor_that_hides_its_number(model, name):
    first = f"processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\n{model}\nflags\t:\n"
    assert machine.name_in_cpuinfo(f"{first}\n{first.replace(': 25', ': 26')}") == name


# --- work memory ------------------------------------------------------------------------------------------------


def test_work_memory_of_a_call():
    torch.set_num_threads(1)
    weight = torch.randn(256, 256, 1, 1)

    def needed(batch, module=convnorm.functional):
        x = torch.randn(batch, 256, 14, 14)
        return scratch(lambda: module.conv2d(x, weight))

    assert needed(2, nn.functional) == 0, "torch has its own"
    packed = weight.numel() * weight.element_size()
    assert packed <= needed(2) <= packed + (1 << 20), "docs/performance.md: the weights once, and 1 MB for each thread"
    assert needed(2) == needed(16), "the batch changes nothing"


# --- the roofline -----------------------------------------------------------------------------------------------


def test_the_work_of_memory_bound_ops():
    assert work.arithmetic("batch_norm", 100, 100) == 500 and work.arithmetic("batch_norm_backward", 100, 100) == 1000
    window = work.window_size({"kernel_size": 3}, 2)
    assert window == 9 and work.window_size({"kernel_size": (2, 3)}, 2) == 6 and work.window_size({}, 2) == 1
    assert work.arithmetic("max_pool", 100, 25, window) == 225
    assert work.arithmetic("adaptive_avg_pool", 100, 4) == 100, "every value once"


def test_every_workload_has_a_place_in_the_roofline():
    for op in ROOMS:
        for contest in ROOMS[op](min(problems(op), key=lambda p: math.prod(p.shapes[0])), "contiguous", torch.float32):
            assert contest.flops > 0 and contest.bytes > 0, contest.op


def test_the_roofline(tmp_path):
    rows = [row(1, 2.0, "win", flops=1e9, bytes=1e7), row(2, 0.5, "loss", op="conv_backward", flops=2e9, bytes=2e7),
            row(3, 1.0, "even", op="max_pool", unit="GB/s", flops=1e6, bytes=4e6, layout="channels_last"),
            row(4, 1.0, "even", threads=2, flops=1e6, bytes=4e6), row(5, 1.0, "even")]  # fmt: skip
    drawn = roofline.points(rows)
    assert [(p[0], p[1], p[2]) for p in drawn[:2]] == [(100.0, 1e4, 5e3), (100.0, 1e4, 2e4)]
    assert [roofline.kind(r) for *_, r in drawn] == ["convolution", "convolution", "pooling", "convolution"]
    whole = result(rows)
    whole["ceilings"]["2"] = {"GFLOP/s": 200.0, "GB/s": 30.0}
    assert roofline.draw(whole, tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert roofline.draw(result(rows[4:]), tmp_path / "none.png") is None


# --- the page ---------------------------------------------------------------------------------------------------


def row(i, ratio, verdict, **changes):
    text = {"op": "conv", "dtype": "float32", "layout": "contiguous", "problem": f"1x{i}x8x8 4x{i}x3x3",
            "source": "<b>", "kernel": "conv_igemm", "unit": "GFLOP/s", "verdict": verdict}  # fmt: skip
    times = {"us": 100.0 * i, "us_min": 90.0, "torch_us": 100.0 * i * ratio, "torch_us_min": 90.0, "rate": 1.0,
             "torch_rate": 1.0, "ceiling_percent": 50.0, "ratio": ratio, "ratio_low": 0.9 * ratio,
             "ratio_high": 1.1 * ratio}  # fmt: skip
    return {**text, **times, "count": 1, "threads": 1, "error": 1e-7, "torch_error": 1e-7, "rounds": 5, **changes}


def result(rows):
    names = ("cpu", "cores", "isa", "system", "python", "torch", "convnorm", "compiler", "commit", "date")
    return {"machine": dict.fromkeys(names, "X"), "target": "a <script>alert(1)</script> model", "quick": False,
            "seconds": 1.0, "rows": rows, "failed": [],
            "ceilings": {"1": {"GFLOP/s": 100.0, "GB/s": 20.0}}}  # fmt: skip


ROWS = [row(3, 0.5, "loss"), row(1, 2.0, "win"), row(2, 1.0, "even", op="conv_backward"), row(12, 40.0, "win")]


def test_the_page_needs_nothing_else():
    html = page(result(ROWS))
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\(|https?://""", html)
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html and "<b></small>" not in html
    assert "prefers-color-scheme: dark" in html
    losses = html[html.index('id="losses"') :]
    assert "1 of 4 rows" in losses and "x0.50" in losses[: losses.index("<h2>")]
    assert "In no row of this run." in page(result([ROWS[1]]))


def chromium(url, *options):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium: neither chromium nor google-chrome is installed (Debian: apt install chromium)")
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run([browser, *always, *options, url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console


CLICKS = """<script>{
const column = i => [...document.querySelectorAll("#rows tbody tr")].map(row => row.cells[i].textContent.trim());
const told = {rows: column(0).length, buttons: document.querySelectorAll("th button").length};
document.querySelectorAll("#rows th button")[6].click(); told.up = column(6);
document.querySelectorAll("#rows th button")[6].click(); told.down = column(6);
const sorted = document.querySelectorAll("#rows th")[6].getAttribute("aria-sort"); told.sorted = sorted;
document.querySelectorAll("#rows th button")[4].click(); told.times = column(4);
const search = document.getElementById("search"); search.value = "backward"; search.dispatchEvent(new Event("input"));
told.searched = document.getElementById("shown").textContent;
search.value = ""; document.querySelector("input[data-verdict=win]").click();
told.unwon = document.getElementById("shown").textContent;
told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title += " " + JSON.stringify(told);
}</script></body>"""


def test_the_page_in_a_browser(tmp_path):
    html = page(result(ROWS))
    (tmp_path / "page.html").write_text(html.replace("</body>", CLICKS))
    dom, console = chromium(f"file://{tmp_path}/page.html", "--dump-dom")
    assert not console, console
    title = re.search(r"<title>(.*?)</title>", dom, re.S).group(1)
    assert title.startswith("convnorm bench: a &lt;script&gt;")
    told = json.loads(title[title.index(" {") :])
    assert told["rows"] == 4 and told["buttons"] == 8 + 11
    assert told["up"] == ["x0.50", "x1.00", "x2.00", "x40.00"] and told["down"] == told["up"][::-1]
    assert told["sorted"] == "descending"
    assert told["times"] == ["100 us", "200 us", "300 us", "1.20 ms"], "by value, not by text"
    assert (told["searched"], told["unwon"]) == ("1 rows", "2 rows")
    assert told["wide"] <= 0, "the page does not scroll sideways"


def test_the_browser_test_would_see_an_error(tmp_path):
    (tmp_path / "bad.html").write_text("<!doctype html><title>x</title><script>nothing.here()</script>")
    assert len(chromium(f"file://{tmp_path}/bad.html", "--dump-dom")[1]) == 1


def test_benchmarks_folder_and_package_are_one():
    source = {name: (ROOT / f"benchmarks/{name}.py").read_text() for name in ("run", "baselines", "text")}
    assert all(re.search(r"convnorm\.|convnorm/bench/", text) for text in source.values())
    assert not re.search(r"def race|def contest", "".join(source.values()))


def test_an_installation_has_the_workloads_and_the_page():
    listed = re.search(r"^convnorm = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    package = ROOT / "convnorm"
    shipped = {path for pattern in json.loads(listed) for path in package.glob(pattern)}
    needed = {package / "bench/page.html", *(package / "bench/workloads").iterdir()}
    assert len(needed) > 5 and needed <= shipped


@pytest.mark.parametrize("us, text", [(0.5, "0.50 us"), (12.34, "12.3 us"), (123.4, "123 us"), (999.6, "1.00 ms"),
                                      (99_960, "100 ms"), (2.5e6, "2.50 s"), (3e9, "3000 s")])  # fmt: skip
def test_durations(us, text):
    assert figures.duration(us) == text
