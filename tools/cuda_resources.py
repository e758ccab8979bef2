"""Writes docs/results/cuda-resources.md: registers, shared memory and waves of every CUDA kernel.

    python tools/cuda_resources.py

Takes nvcc, but no GPU: ptxas reports what a kernel takes of a multiprocessor, and the launchers run
under the emulator, dry, for their grids. ``--check`` compares the names of the kernels alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "cuda-resources.md"
COMMAND = "python tools/cuda_resources.py"
SIZES = (10**6, 10**7, 10**8)

# One multiprocessor of compute capability 9.0, and how many an H200 SXM has.
REGISTERS, REGISTER_UNIT, SCHEDULERS = 65_536, 256, 4  # a warp's are rounded up to the unit
SHARED, SHARED_RESERVED, SHARED_UNIT = 228 << 10, 1 << 10, 128
THREADS, BLOCKS, WARPS = 2048, 32, 64
MULTIPROCESSORS = 132


@dataclass
class Kernel:
    """What ptxas reports of one kernel, and its largest grid of each size."""

    name: str
    source: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    threads: int = 0  # of a block; 0: no case launches it
    blocks: dict[int, int] = field(default_factory=dict)

    def blocks_at_once(self) -> int:
        """Return how many blocks a multiprocessor holds."""
        warps = -(-self.threads // 32)
        of_a_warp = -(-self.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = REGISTERS // SCHEDULERS // of_a_warp * SCHEDULERS // warps
        shared = -(-(self.shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
        return min(by_registers, SHARED // shared, THREADS // self.threads, WARPS // warps, BLOCKS)


def declared() -> dict[str, str]:
    """Return every __global__ function of cuda/, and its file."""
    found = {}
    for path in sorted((ROOT / "cuda").glob("*.cu*")):
        pattern = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\("
        for name in re.findall(pattern, path.read_text()):
            found[name] = path.name
    return found


def named() -> set[str]:
    """Return the kernels that the page has."""
    return (
        set(re.findall(r"^\| `(\w+)", PAGE.read_text(), re.MULTILINE)) if PAGE.exists() else set()
    )


def flags() -> list[str]:
    """Return what cuda/CMakeLists.txt compiles with, where warnings are no errors."""
    text = (ROOT / "cuda" / "CMakeLists.txt").read_text()
    match = re.search(r"\$<\$<COMPILE_LANGUAGE:CUDA>:([^>]*)>", text)
    assert match is not None
    return ["-O3", "-DNDEBUG", "-std=c++17", *match[1].split()]


def compiled(source: Path) -> list[Kernel]:
    """Return the kernels of one .cu file, compiled for sm_90."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *flags(), "-arch=sm_90", "-Xptxas=-v", "-cubin", str(source)]
        done = subprocess.run(
            [*command, "-o", f"{folder}/out"], capture_output=True, text=True, check=True
        )
    kernels = []
    for block in done.stderr.split("Compiling entry function '")[1:]:
        demangled = subprocess.run(
            ["c++filt", block.split("'")[0]], capture_output=True, text=True, check=True
        ).stdout
        name = re.search(r"(\w+(?:<.*>)?)\(", demangled.replace("(anonymous namespace)::", ""))
        assert name is not None

        def number(pattern: str, text: str = block) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        kernels.append(
            Kernel(
                name[1].replace("gcext::", ""), source.name,
                number(r"Used (\d+) registers"), number(r"(\d+) bytes stack frame"),
                number(r"(\d+) bytes spill stores"), number(r"(\d+) bytes spill loads"),
                number(r"(\d+) bytes smem"),
            )
        )  # fmt: skip
    return kernels


def add_grids(kernels: list[Kernel]) -> None:
    """Enter the block and the largest grid with which a case of bench gpu-count launches each."""
    sys.path.insert(0, str(ROOT))
    from bench.gpu_cases import CASES
    from bench.gpu_kit import Kit, emulator

    for n in SIZES:
        for case in CASES:
            if "model" in case.name:  # of many tensors at once
                continue
            with emulator().counting(dry=True) as counted:
                case.run(Kit(counted, True), n)
                launches = counted.launches()
            for launch in launches:
                for kernel in kernels:
                    types = kernel.name.replace("long", "int64_t").replace("<int>", "<int32_t>")
                    if launch.name not in (kernel.name, types):
                        continue
                    kernel.threads = launch.threads
                    kernel.blocks[n] = max(kernel.blocks.get(n, 0), launch.blocks)


def page(kernels: list[Kernel]) -> str:
    """Return the table, with what it says before it."""
    release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"release [\d.]+, V([\d.]+)", release.stdout)
    titles = (
        "kernel", "file", "registers", "spills", "shared", "threads", "blocks/SM", "warps/SM",
        "blocks at 10^6, 10^7, 10^8", "waves",
    )  # fmt: skip
    lines = [
        "# Registers, shared memory and waves of the CUDA kernels",
        "",
        f"Written by `{COMMAND}`, with nvcc {version[1] if version else '?'} for sm_90 and the",
        "flags of `cuda/CMakeLists.txt`. No GPU took part: `-Xptxas -v` reports registers, spills",
        "(bytes stored + loaded) and static shared memory (bytes). Blocks for each multiprocessor",
        "(SM) follow from the rules of compute capability 9.0: 65,536 registers, a warp's rounded",
        "up to 256; 228 KiB of shared memory, 1 KiB of it reserved for each block; 2,048 threads,",
        "64 warps, 32 blocks. The grids are the launchers' own at 10^6, 10^7 and 10^8 elements,",
        "the largest of the cases of `python -m bench gpu-count` of one tensor that launch the",
        "kernel; waves are blocks over what 132 SMs (H200 SXM) hold at once. A kernel without a",
        "grid is launched by none of them: indices beyond 2^31, for example.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
    ]
    for each in sorted(kernels, key=lambda kernel: (kernel.source, kernel.name)):
        head = f"| `{each.name}` | {each.source} | {each.registers} | "
        head += f"{each.spill_stores} + {each.spill_loads} | {each.shared:,} | "
        if not each.threads:
            lines.append(head + "| | | | |")
            continue
        at_once = each.blocks_at_once()
        blocks = [each.blocks.get(n) for n in SIZES]
        grid = ", ".join("-" if b is None else f"{b:,}" for b in blocks)
        waves = ", ".join(
            "-" if b is None else f"{b / (at_once * MULTIPROCESSORS):.2f}" for b in blocks
        )
        warps = at_once * -(-each.threads // 32)
        lines.append(head + f"{each.threads} | {at_once} | {warps} | {grid} | {waves} |")
    return "\n".join(lines) + "\n"


def missing() -> str:
    """Return what is wrong with the page's names, '' if nothing is."""
    here, there = set(declared()), named()
    if here == there:
        return ""
    return (
        f"{PAGE.relative_to(ROOT)} lacks {sorted(here - there)} and has {sorted(there - here)}, "
        f"which cuda/ does not. Run {COMMAND}."
    )


def main() -> None:
    """Write the page, or check it."""
    if "--check" not in sys.argv[1:]:
        with ThreadPoolExecutor() as pool:
            files = sorted((ROOT / "cuda").glob("*.cu"))
            kernels = [kernel for found in pool.map(compiled, files) for kernel in found]
        add_grids(kernels)
        PAGE.write_text(page(kernels))
    if problem := missing():
        sys.exit(problem)


if __name__ == "__main__":
    main()
