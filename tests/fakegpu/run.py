"""Runs the tests marked cuda on a machine without a GPU: `PYTHON tests/fakegpu/run.py [pytest's]`.

PYTHON has a CUDA build of torch and what `.[test]` names; `make fake-gpu-test` makes one. gcext is
built in place, for whatever torch: its operators are bound to the stable ABI. nvcc's headers must
be there, but no driver. All of it goes to build/fakegpu: a copy of the sources, and in it
gcext/_cuda.so, the operators of cuda/ over kernels that tests/emu/cuemu.h runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TO = ROOT / "build" / "fakegpu"
SOURCES = (
    "gcext", "csrc", "cuda", "tests", "bench", "docs", "examples", "pyproject.toml", "README.md",
)  # fmt: skip
FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-w", "-ffp-contract=off", "-fvisibility=hidden",
    "-fno-strict-aliasing", "-DGCEXT_CUEMU", "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
]  # fmt: skip

# What the copied tree includes as cuemu.h.
CUEMU = """#pragma once
#include "tests/emu/cuemu.h"
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
extern "C" void fakegpu_enqueue(void* stream, const std::function<void()>* work);
inline const bool fakegpu_takes_launches = [] {
  cuemu::enqueue = [](cudaStream_t stream, std::function<void()> work) {
    fakegpu_enqueue(stream, &work);
  };
  return true;
}();
"""


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def toolkit() -> Path:
    """Return the folder of nvcc's headers."""
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        sys.exit("fakegpu: needs the headers of CUDA, found no nvcc. Put it on PATH.")
    # Not beside the command itself, which may be a script that calls another.
    done = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    if top is None:
        sys.exit(f"fakegpu: {nvcc} --dryrun must name its folder, got {done.stderr!r:.200}.")
    return Path(top[1]) / "include"


def build_runtime(include: Path) -> Path:
    """Build the runtime, and a driver of which torch asks only whether it is there."""
    runtime = TO / "libfakegpu.so"
    run("c++", "-std=c++17", "-O2", "-fPIC", "-shared", f"-I{include}", HERE / "runtime.cpp",
        "-o", runtime)  # fmt: skip
    names = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)\s*\(", (include / "cuda.h").read_text()))
    names -= {"cuDevicePrimaryCtxGetState"}
    driver = TO / "driver.c"
    driver.write_text(
        "int cuDevicePrimaryCtxGetState(int d, unsigned* f, int* on) "
        "{ (void)d; *f = 0; *on = 1; return 0; }\n"
        + "".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names))
    )
    run("cc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", driver,
        "-o", TO / "libcuda.so.1")  # fmt: skip
    return runtime


def build_operators(tree: Path, runtime: Path) -> None:
    """Build gcext/_cuda.so of the copied tree."""
    import torch

    (tree / "cuemu.h").write_text(CUEMU)
    torch_dir = Path(torch.__file__).parent
    flags = [*FLAGS, f"-I{tree}", "-isystem", torch_dir / "include"]
    sources = sorted([*(tree / "cuda").glob("*.cu"), *(tree / "cuda").glob("*_ops.cpp")])
    objects = [TO / f"{source.name}.o" for source in sources]

    def build(source: Path, to: Path) -> None:
        run("c++", *flags, "-x", "c++", "-c", source, "-o", to)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, sources, objects))
    libraries = [runtime, f"-L{torch_dir / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    run("c++", "-shared", *objects, *libraries, "-o", tree / "gcext" / "_cuda.so")


def main() -> None:
    """Copy, build, test."""
    if not list((ROOT / "gcext").glob("_ops*.so")):
        sys.exit("fakegpu: gcext is not built in place. Run `make test` first.")
    include, tree = toolkit(), TO / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    record = tree / "gcext" / "_build.json"  # the build in place may be without CUDA
    record.write_text(json.dumps({**json.loads(record.read_text()), "cuda_why": ""}))
    runtime = build_runtime(include)
    build_operators(tree, runtime)
    environment = {
        **os.environ, "LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": str(TO),
        "FAKEGPU_RUNTIME": str(runtime), "PYTHONPATH": "tests", "GCEXT_DEMAND_CUDA": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-p", "fakegpu.plugin", "-m", "cuda", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=tree, env=environment).returncode)


if __name__ == "__main__":
    main()
