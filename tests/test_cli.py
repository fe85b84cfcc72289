"""The command line, as a person calls it."""

import re
import subprocess
import sys

import pytest

import convnorm
from convnorm import cli
from convnorm._console import Out, plain_table
from convnorm.cli import check


def test_info_tells_versions_instruction_set_and_kernels(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"convnorm     {convnorm.__version__}" in text
    for part in (convnorm.backends.isa(), "threads", "CUDA", "conv_forward", "conv_im2col"):
        assert part in text


def test_python_m_convnorm():
    command = [sys.executable, "-m", "convnorm", "--version"]
    assert subprocess.check_output(command, text=True, timeout=300).strip() == f"convnorm {convnorm.__version__}"


def test_check_passes_here(capsys):
    assert cli.main(["check"]) == 0
    total = len(check.CASES) * len(check.DTYPES)
    assert f"{total} of {total} agree with torch" in capsys.readouterr().out


def test_check_finds_a_wrong_kernel(capsys, monkeypatch):
    right = convnorm.functional.conv2d
    monkeypatch.setattr(convnorm.functional, "conv2d", lambda *a, **k: right(*a, **k) + 0.1)
    assert check.run(Out(plain=True)) == 1
    text = capsys.readouterr().out
    assert "WRONG" in text and re.search(r"conv2d 1x1, torch\.float32: output .* error", text)


def test_check_needs_torch_only():
    blocked = ["rich", "matplotlib", "numpy", "scipy", "pytest", "hypothesis"]
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
    script += "from convnorm.cli import main; sys.exit(main(['check']))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "all is well" in run.stdout


def test_summary_of_a_named_model(capsys):
    assert cli.main(["summary", "convnorm.models:LeNet5", "1", "28", "28"]) == 0
    text = capsys.readouterr().out
    assert "20 x 28 x 28" in text and "6,522,000 multiply-adds" in text


@pytest.mark.parametrize(
    "model, message",
    [("convnorm.models", "must be MODULE:NAME"), ("nowhere:Net", "No module named"),
     ("convnorm.models:X", "no attribute"), ("convnorm.backends:isa", "gave a str, must be a torch.nn.Module")],
)  # fmt: skip
def test_summary_explains_what_it_cannot_load(capsys, model, message):
    assert cli.main(["summary", model, "1", "28", "28"]) == 2
    assert message in capsys.readouterr().err


def test_summary_explains_what_does_not_run(capsys):
    assert cli.main(["summary", "convnorm.models:LeNet5", "3", "28", "28"]) == 2
    text = capsys.readouterr().err
    assert "convnorm summary: convnorm.models:LeNet5 cannot run on an input of 3 x 28 x 28: " in text
    assert "--device cpu" in text and len(text.splitlines()) == 1
    assert cli.main(["summary", "convnorm.models:LeNet5", "0", "28", "28"]) == 2
    assert "must have sizes of at least 1" in capsys.readouterr().err


def test_an_interrupted_command_says_so(capsys, monkeypatch):
    def interrupted(out):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_check", interrupted)
    assert cli.main(["check"]) == 130
    assert capsys.readouterr().err == "convnorm check: interrupted\n"


def test_unknown_options_are_refused():
    with pytest.raises(SystemExit):
        cli.main(["info", "--fast"])


def test_plain_table():
    assert plain_table(["a", "long\nname"], [["x", "1"], ["yy", "22"]]).splitlines() == [
        "a   long name", "--  ---------", "x           1", "yy         22",
    ]  # fmt: skip
