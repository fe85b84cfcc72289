# make demo, make test: each makes .venv, builds convnorm in it and runs. The second time only what changed is built.
#
# PYTHON=python3.12    the interpreter that .venv is made with
# VENV=                no virtual environment: use PYTHON as it is, with the torch that is installed there

PYTHON ?= python3
VENV ?= .venv
NATIVE := setup.py pyproject.toml scripts/nvcc.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

ifeq ($(strip $(VENV)),)
RUN := $(PYTHON)
BIN :=
STATE := build/stamps
else
RUN := $(VENV)/bin/python
BIN := $(VENV)/bin/
STATE := $(VENV)/stamps
endif
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test test-models cuda-check aarch64-check bench results docs lint format clean check-python check-tools
.DEFAULT_GOAL := help

help:
	@echo "make demo     train LeNet-5 on digits with torch's layers and with convnorm's, side by side"
	@echo "make test     all tests"
	@echo "make test-models  whole models of transformers, MONAI and diffusers, which it installs"
	@echo "make cuda-check   what can be said of the CUDA kernels without a GPU; needs nvcc"
	@echo "make aarch64-check  the kernels on another processor family, emulated; needs a cross compiler and qemu"
	@echo "make bench    benchmarks against torch (BENCH='options of convnorm bench')"
	@echo "make results  measures all that README and docs show, and writes the tables (RESULTS='options', --quick for one)"
	@echo "make docs     the documentation site, in site/ (needs no build)"
	@echo "make lint     ruff, mypy, clang-format in checking mode"
	@echo "make format   ruff and clang-format, in place"
	@echo "make clean    remove .venv, build products and caches"
	@echo "PYTHON=python3.12 chooses the interpreter; VENV= uses it as it is, with its own torch"

# Says what is missing before anything is downloaded.
check-python:
	@command -v $(PYTHON) >/dev/null || { echo "convnorm needs Python 3.10 or newer; '$(PYTHON)' is not there. Set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "convnorm needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/a/newer/python3"; exit 1; }
	@test -z "$(strip $(VENV))" || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt install python3-venv)"; exit 1; }

check-tools: check-python
	@$(PYTHON) -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file())' || { echo "Python.h of $(PYTHON) is missing: install its development package (Debian: apt install python3-dev)"; exit 1; }
	@echo 'int main() { return []<class T>(T x) { return x; }(0); }' | $${CXX:-c++} -std=c++20 -x c++ -fsyntax-only - 2>/dev/null || { echo "convnorm needs a C++20 compiler (GCC 11 or Clang 14, or newer); '$${CXX:-c++} -std=c++20' does not work. Install one (Debian: apt install g++) or set CXX"; exit 1; }

$(STATE)/venv: | check-python
	@echo "convnorm: environment"
	@test -z "$(strip $(VENV))" || test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STATE) && touch $@

$(STATE)/requirements: requirements.txt requirements-data.txt $(STATE)/venv | check-tools
	@echo "convnorm: installing torch and what the build needs (once)"
ifeq ($(strip $(VENV)),)
	@$(RUN) -c 'import torch' || { echo "VENV= uses the torch of $(PYTHON), but it has none"; exit 1; }
	@$(INSTALL) "setuptools>=77" wheel ninja "pybind11>=2.13" rich matplotlib
else
	@$(INSTALL) -r requirements.txt
endif
	@$(INSTALL) --no-deps -r requirements-data.txt
	@touch $@

$(STATE)/build: $(NATIVE) $(STATE)/requirements
	@echo "convnorm: building (about ten CPU minutes the first time, then only changed files)"
	@$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(STATE)/requirements-dev: requirements-dev.txt $(STATE)/requirements
ifeq ($(strip $(VENV)),)
	@$(INSTALL) pytest pytest-xdist hypothesis numpy scipy onnx onnxscript onnxruntime ruff mypy clang-format
else
	@$(INSTALL) -r requirements-dev.txt
endif
	@touch $@

demo: $(STATE)/build
	@$(RUN) -m convnorm demo $(DEMO)

test: $(STATE)/build $(STATE)/requirements-dev
	@$(RUN) -m pytest -n 2 $(TEST)

$(STATE)/requirements-models: requirements-models.txt $(STATE)/requirements-dev
	@echo "convnorm: installing transformers, MONAI and diffusers (once)"
	@$(INSTALL) -r requirements-models.txt
	@touch $@

test-models: $(STATE)/build $(STATE)/requirements-models
	@$(RUN) -m pytest -n 2 tests/test_published_models.py $(TEST)

$(STATE)/requirements-cuda: requirements-cuda.txt $(STATE)/requirements
	@$(INSTALL) -r requirements-cuda.txt
	@touch $@

cuda-check: $(STATE)/build $(STATE)/requirements-cuda
	@$(RUN) scripts/cuda_check.py $(CUDA_CHECK)

aarch64-check: check-python
	@$(PYTHON) scripts/aarch64_check.py

bench: $(STATE)/build $(STATE)/requirements-dev
	@$(RUN) -m convnorm bench $(BENCH)

$(STATE)/requirements-peers: requirements-peers.txt $(STATE)/requirements-dev
	@echo "convnorm: installing ONNX Runtime and OpenVINO (once)"
	@$(INSTALL) -r requirements-peers.txt
	@touch $@

RESULTS ?= --seconds 0.2
results: $(STATE)/build $(STATE)/requirements-peers
	@$(RUN) benchmarks/run.py $(RESULTS)
	@$(RUN) benchmarks/run.py --peers torch.compile,onnxruntime,openvino $(RESULTS)
	@$(RUN) benchmarks/run.py --set networks --peers torch.compile,onnxruntime,openvino $(RESULTS)
	@$(RUN) benchmarks/run.py --set scaling $(RESULTS)
	@$(RUN) benchmarks/report.py

$(STATE)/requirements-docs: requirements-docs.txt $(STATE)/venv
	@echo "convnorm: installing mkdocs (once)"
	@$(INSTALL) -r requirements-docs.txt
	@touch $@

# Sources are read, not imported; links and anchors that lead nowhere are errors.
docs: $(STATE)/requirements-docs
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "convnorm: site/index.html"

lint: $(STATE)/requirements-dev
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@$(BIN)clang-format --dry-run --Werror $(CXX_FILES)

format: $(STATE)/requirements-dev
	@$(RUN) -m ruff check --fix .
	@$(BIN)clang-format -i $(CXX_FILES)

clean:
	rm -rf .venv build dist *.egg-info convnorm/_C*.so demo_output bench_output site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find convnorm tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
