"""What can be said of the CUDA kernels without a GPU; `make cuda-check`.

1. Every .cu file compiles without a warning, for every architecture, and the shared object with all of them imports
   under the torch that is installed here, also one without CUDA, and answers on the CPU.
2. ptxas' table of registers, shared memory, stack and spills is the one in csrc/cuda/resources.txt: no spill, no
   stack, no kernel with more registers than it had. `--update` writes the table anew.
3. Kernels over vectors of elements move 16 bytes per instruction (LDG.E.128, STG.E.128 in the machine code).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import astuple, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import nvcc  # noqa: E402

FOLDER = ROOT / "build/cuda_check"
TABLE = ROOT / "csrc/cuda/resources.txt"
HEADER = "arch registers shared stack spills load128 store128 kernel"
LOOKED_AT = "sm_90a"  # machine code of one architecture is enough to see vectors


@dataclass
class Row:
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int
    load128: str  # "-": machine code was not looked at
    store128: str
    kernel: str

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))


def plain(symbol: str) -> str:
    """The kernel's name with template arguments; nvcc puts a hash of the file into anonymous namespaces."""

    def anonymous(found: re.Match[str]) -> str:
        rest = symbol[found.end() :]
        return "12_GLOBAL__N_1" + rest[int(found.group(1)) - len("_GLOBAL__N_") :]

    found = re.search(r"(\d+)_GLOBAL__N_(?=_)", symbol)
    if found:
        symbol = symbol[: found.start()] + anonymous(found)
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|convnorm::|^void ", "", name)
    return re.sub(r"\(.*\)$", "", name).replace(" ", "")


def rows_of(log: str) -> list[Row]:
    """What ptxas -v said of one file."""
    rows = []
    entry = r"Compiling entry function '(\w+)' for '(\w+)'"
    parts = re.split(entry, log)[1:]
    for symbol, arch, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        used = re.search(r"Used (\d+) registers", text)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        shared = re.search(r"(\d+) bytes smem", text)
        cumulative = re.search(r"(\d+) bytes cumulative stack", text)
        assert used and frame, text
        stack = max(int(frame[1]), int(cumulative[1]) if cumulative else 0)
        spills = int(frame[2]) + int(frame[3])
        rows.append(Row(arch, int(used[1]), int(shared[1]) if shared else 0, stack, spills, "-", "-", plain(symbol)))
    return rows


def disassembler() -> str | None:
    """cuobjdump of PATH, beside nvcc, or of the package nvidia-cuda-cuobjdump."""
    compiler = nvcc.find()
    places = [Path(shutil.which("cuobjdump") or "/nowhere"), Path(compiler or "/nowhere").parent / "cuobjdump"]
    packages = os.environ.get("CONVNORM_CUOBJDUMP_PACKAGES") or sysconfig.get_paths()["purelib"]
    places += sorted((Path(packages) / "nvidia").glob("*/bin/cuobjdump"))
    return next((str(p) for p in places if p.is_file()), None)


def count_vectors(tool: str, objects: list[Path]) -> dict[str, tuple[int, int]]:
    """{kernel: (128-bit loads, 128-bit stores)} from memory, in machine code."""
    counts = {}
    path = f"{Path(tool).parent}{os.pathsep}{os.environ['PATH']}"
    for target in objects:
        command = [tool, "-sass", "-arch", LOOKED_AT, str(target)]
        said = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
        for part in said.stdout.split("Function : ")[1:]:
            symbol = part.split(None, 1)[0]
            loads, stores = (len(re.findall(rf"\b{word}\.E[.\w]*\.128", part)) for word in ("LDG", "STG"))
            counts[plain(symbol)] = (loads, stores)
    return counts


def log_of(target: Path) -> str:
    """What the compiler said of an object; its own command is the first line."""
    return target.with_suffix("").with_suffix(".cu.log").read_text().split("\n", 1)[1]


def warnings(objects: list[Path]) -> list[str]:
    return [line for o in objects for line in log_of(o).splitlines() if re.search(r"\bwarning\b", line)]


def table(objects: list[Path]) -> list[Row]:
    rows = [row for o in objects for row in rows_of(log_of(o))]
    tool = disassembler()
    if tool is None:
        print("machine code is not looked at: no cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    elif any(row.arch == LOOKED_AT for row in rows):
        counts = count_vectors(tool, objects)
        for row in rows:
            if row.arch == LOOKED_AT:
                row.load128, row.store128 = map(str, counts[row.kernel])
    return sorted(rows, key=lambda row: (row.kernel, row.arch))


def read_table() -> dict[tuple[str, str], Row]:
    if not TABLE.is_file():
        return {}
    rows = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("sm_"):
            arch, *numbers, kernel = line.split()
            row = Row(arch, *map(int, numbers[:4]), *numbers[4:], kernel)  # type: ignore[arg-type]
            rows[kernel, arch] = row
    return rows


def complaints(rows: list[Row]) -> list[str]:
    """What is worse than in the table, or must not be at all."""
    known, found = read_table(), []
    for row in rows:
        if row.stack or row.spills:
            found.append(f"{row.arch} {row.kernel}: {row.stack} bytes of stack, {row.spills} of spills")
        vectors = re.search(r"[,<](4|8)(,\w+)*>$", row.kernel)
        if vectors and row.load128 == "0":
            found.append(f"{row.arch} {row.kernel}: vectors, but no 128-bit load")
        before = known.get((row.kernel, row.arch))
        if before is None:
            found.append(f"{row.arch} {row.kernel}: is not in {TABLE.name}")
        elif row.registers > before.registers or row.shared > before.shared:
            found.append(
                f"{row.arch} {row.kernel}: {row.registers} registers and {row.shared} bytes of shared memory, "
                f"were {before.registers} and {before.shared}"
            )
    built = {row.arch for row in rows}
    gone = known.keys() - {(row.kernel, row.arch) for row in rows}
    return found + [f"{arch} {kernel}: is in {TABLE.name} only" for kernel, arch in sorted(gone) if arch in built]


def build_shared_object() -> list[Path]:
    """The package with CUDA kernels in a folder of its own; C++ objects are those of the build without."""
    library = FOLDER / "lib"
    environment = os.environ | {"CONVNORM_CUDA": "1"}
    shutil.rmtree(library, ignore_errors=True)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(FOLDER), "--build-lib", str(library)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-20000:] + done.stderr)
    listing = re.findall(r"^objects: (.+)$", done.stdout, re.M)
    return sorted(Path(listing[-1]).glob("*.cu.o"))


IMPORT = """
import torch, convnorm, convnorm.functional as ours, torch.nn.functional as theirs
assert convnorm._C.build_info()["cuda"], "built without CUDA"
cuda = [k for k in convnorm.backends.kernels() if k["device"] == "cuda"]
assert cuda, "no kernel for CUDA is registered"
x = torch.randn(2, 8, 9, 9)
for t in (x, x.contiguous(memory_format=torch.channels_last)):
    for f in (lambda o: o.max_pool2d(t, 3, 2, 1), lambda o: o.batch_norm(t, None, None, training=True)):
        torch.testing.assert_close(f(ours), f(theirs))
print(f"imports under torch {torch.__version__}, CUDA {torch.version.cuda}; {len(cuda)} rows of kernels for CUDA")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table anew")
    update, began = parser.parse_args().update, time.monotonic()
    if nvcc.find() is None:
        sys.exit("cuda-check needs nvcc: put it on PATH or set CUDA_HOME")
    objects = build_shared_object()
    compiled = time.monotonic() - began
    subprocess.run([sys.executable, "-c", IMPORT], cwd=FOLDER / "lib", check=True)
    rows = table(objects)
    if update:
        TABLE.write_text("\n".join([HEADER, *map(str, rows)]) + "\n")
    found = warnings(objects) + complaints(rows)
    most = max(rows, key=lambda row: row.registers)
    print(
        f"{len(rows)} kernels of {len(objects)} files in {compiled:.0f} s; at most {most.registers} registers "
        f"({most.kernel}, {most.arch}), {sum(r.spills for r in rows)} bytes of spills, "
        f"{sum(r.stack for r in rows)} of stack"
    )
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
