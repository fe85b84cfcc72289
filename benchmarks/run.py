"""Times convnorm against torch, into benchmarks/results/<name>.json; report.py makes README's table of it.

    python benchmarks/run.py --quick --ops conv --filter 3x3
    python benchmarks/run.py --threads 1,all --layout channels_last

The same as `convnorm bench` on convnorm's own workloads, but for where the result goes and that it is JSON only.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convnorm.cli.bench import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(prog="benchmarks/run.py", folder=ROOT / "benchmarks/results", pages=False))
