"""Writes the pinned requirements of the image, with hashes, from constraints.txt.

    uv and pip's index are needed:  python cluster/requirements/make.py [WHEEL of a CPU build of torch ...]

``common.txt`` is what both variants install, ``torch-cuda.txt`` is torch and what its CUDA build needs,
``torch-cpu.txt`` is torch alone, and also takes the given wheels. ``build.txt`` builds deepspeed, which is source.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CUDA = re.compile(r"^(torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==")
LIKE = ["--generate-hashes", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
BUILD = ("setuptools", "wheel", "packaging", "py-cpuinfo", "ninja")


def main() -> None:
    """Writes the four files."""
    blocks = compiled("pyproject.toml", "--extra", "mlflow")
    torch = [block for block in blocks if CUDA.match(block)]
    (HERE / "common.txt").write_text("".join(block for block in blocks if not CUDA.match(block)))
    (HERE / "torch-cuda.txt").write_text("".join(torch))
    [alone] = [block for block in torch if block.startswith("torch==")]
    wheels = [hashlib.sha256(Path(wheel).read_bytes()).hexdigest() for wheel in sys.argv[1:]]
    (HERE / "torch-cpu.txt").write_text(
        alone.rstrip("\n") + "".join(f" \\\n    --hash=sha256:{wheel}" for wheel in wheels) + "\n"
    )
    (HERE / "build.txt").write_text("".join(compiled("-", text="\n".join(BUILD))))


def compiled(source: str, *extra: str, text: str = "") -> list[str]:
    """A block of lines for each package: its version, and the hashes of its files."""
    command = ["uv", "pip", "compile", *LIKE, "--no-header", "--no-annotate", "-c", "constraints.txt", *extra, source]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=True)
    return re.findall(r"^\S.*\n(?:    .*\n)*", done.stdout, re.MULTILINE)


if __name__ == "__main__":
    main()
