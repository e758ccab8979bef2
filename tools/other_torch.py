"""Tries gcext with another torch: `python tools/other_torch.py TORCH FOLDER [COMMAND ...]`.

TORCH is a requirement such as torch==2.10.0, FOLDER a virtual environment to make or to use again,
COMMAND what its Python runs there, such as `-m pytest tests/test_codec.py` (by default one packet);
gcext itself is taken from the current folder or from what is installed in FOLDER.

pip's torch for Linux is a CUDA build, whose CUDA packages take gigabytes. It is installed without
them. torch then cannot be imported, since its libraries link to theirs; so libraries of the same
names are made, with functions that return an error. CPU tensors need none of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

NEEDS = ["numpy", "xxhash", "typing_extensions", "sympy", "networkx", "jinja2", "filelock"]
NEEDS += ["fsspec", "setuptools"]
SYSTEM = r"ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp|z|quadmath|util|numa)\.so.*"
ONE_PACKET = "import torch, gcext; print(gcext.build_info(), gcext.stc(torch.randn(9)))"
CUDA_ERROR = 100  # cudaErrorNoDevice


def lines(*command: str | Path) -> list[str]:
    """Return what a command prints."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    return done.stdout.splitlines()


def symbols(library: Path, kind: str) -> set[str]:
    """Return a library's dynamic symbols with their versions: name@library."""
    listed = lines("nm", "-D", f"--{kind}-only", "--with-symbol-versions", library)
    return {line.split()[-1].replace("@@", "@") for line in listed}


def stand_ins(libraries: list[Path], to: Path) -> None:
    """Make the libraries that these need beside themselves and the system."""
    listed = "\n".join(line for each in libraries for line in lines("readelf", "-d", each))
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", listed)) - {each.name for each in libraries}
    defined = {name.split("@")[0] for each in libraries for name in symbols(each, "defined")}
    undefined = {name for each in libraries for name in symbols(each, "undefined")}
    missing = [name.split("@") for name in undefined if name.split("@")[0] not in defined]
    to.mkdir(exist_ok=True)
    for library in sorted(name for name in needed if not re.fullmatch(SYSTEM, name)):
        base = library.removeprefix("lib").split(".")[0].split("_")[0].lower()
        named = sorted((n[0], n[1]) for n in missing if len(n) == 2)
        mine = [(n, node) for n, node in named if node == library or node.lower() == base]
        loose = [
            n[0] for n in missing if len(n) == 1 and n[0].lower().startswith(base)
        ]  # no versions
        source, script = to / f"{library}.c", to / f"{library}.map"
        names = sorted({name for name, _ in mine} | set(loose))
        functions = [f"int {name}(void) {{ return {CUDA_ERROR}; }}\n" for name in names]
        source.write_text("".join(functions) or "int gcext_nothing;\n")
        nodes = {node: [n for n, at in mine if at == node] for _, node in mine}
        texts = [f"{node} {{ global: {'; '.join(each)}; }};\n" for node, each in nodes.items()]
        script.write_text("".join(texts) or "{ global: *; };\n")
        flags = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
        version = f"-Wl,--version-script={script}"
        subprocess.run(["cc", *flags, version, source, "-o", to / library], check=True)


def main() -> None:
    """Make the environment where it is missing, and run the command in it."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    requirement, folder, command = sys.argv[1], Path(sys.argv[2]).absolute(), sys.argv[3:]
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", requirement], check=True)
    subprocess.run([*pip, *NEEDS], check=True)
    path = lines(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))")[0]
    libraries = sorted((Path(path) / "torch" / "lib").glob("*.so*"))
    stand_ins(libraries, folder / "stand-ins")
    env = {**os.environ, "LD_LIBRARY_PATH": str(folder / "stand-ins")}
    sys.exit(subprocess.run([python, *(command or ["-c", ONE_PACKET])], env=env).returncode)


if __name__ == "__main__":
    main()
