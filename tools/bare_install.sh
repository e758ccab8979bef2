#!/bin/sh
# Installs gcext from its sources, an sdist and a wheel where there is nothing but Python, pip, make and a compiler
# (no git, no nvcc, an empty home), and runs it outside of the sources. Then `make demo` and `make test` in the unpacked
# sdist: tools/bare_install.sh FOLDER [PYTHON], best as a new user. FOLDER takes 5 GB.
# pip's own settings (PIP_*) are kept. TORCH: what is installed as torch, by default what the Makefile names.
set -eu
sources=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/bin"
folder=$(cd "$1" && pwd)
python=$(command -v "${2:-python3}")
torch=${TORCH:-$(sed -n 's/^TORCH ?= //p' "$sources/Makefile")}

for tool in sh env make mount umount cc c++ gcc g++ as ld ar nm addr2line ranlib strip cat chmod cp dirname find grep gzip ls mkdir mv rm sed sleep tar touch uname; do
  ln -sf "$(command -v $tool)" "$folder/bin/$tool"
done
ln -sf "$python" "$folder/bin/python3"
pip_settings=$(env | grep '^PIP_' | grep -v ' ' || true)
bare() { # FOLDER COMMAND...: run it there with the tools above only
  (cd "$1" && shift && env -i HOME="$folder/home" PATH="$folder/bin" LANG=C.UTF-8 $pip_settings "$@")
}
one_line='import gcext, torch; packet = gcext.stc(torch.randn(9)); print(gcext.__file__, gcext.__version__, packet)'
environment() { # NAME: make a virtual environment that holds torch
  bare "$folder" python3 -m venv "$1"
  bare "$folder" "$1/bin/pip" install --quiet "$torch"
}
installs() { # NAME WHAT...: install it, and run it outside of the sources
  echo "== $1: pip install $2 ${3:-}"
  name=$1 && shift
  environment "$name"
  bare "$folder/clone" "$folder/$name/bin/pip" install --quiet "$@"
  bare "$folder/home" "$folder/$name/bin/python" -c "$one_line"
  bare "$folder/home" "$folder/$name/bin/gcext" --version
}

mkdir -p "$folder/home" "$folder/clone"
# What git would check out: no outputs of a build.
(cd "$sources" && tar cf - --exclude='*.so' --exclude=_build.json --exclude=__pycache__ --exclude=.git --exclude='./build' \
  --exclude='./dist' --exclude='./.venv' --exclude='*.egg-info' --exclude='./.*_cache' --exclude='./.hypothesis' .) | tar xf - -C "$folder/clone"

environment tools
bare "$folder" tools/bin/pip install --quiet build
bare "$folder" env VIRTUAL_ENV="$folder/tools" tools/bin/python -m build --outdir made clone >"$folder/build.log" 2>&1
ls "$folder/made"
installs sdist "$folder"/made/*.tar.gz
installs wheel "$folder"/made/*.whl
installs sources '.[fl]'
echo "== the sources hide the installed package"
bare "$folder/clone" "$folder/sources/bin/python" -c "$one_line" 2>&1 | tail -1
bare "$folder/clone" "$folder/sources/bin/gcext" --version
installs editable -e '.[fl]'
bare "$folder/clone" "$folder/editable/bin/python" -c "$one_line"
bare "$folder/clone" "$folder/editable/bin/python" -m gcext bench stc --n 1K --rounds 1 --no-compile --no-peak | tail -1

echo "== the unpacked sdist: make demo, make test"
bare "$folder" tar xzf "$(ls "$folder"/made/*.tar.gz)"
tree=$(ls -d "$folder"/gcext-*)
bare "$tree" make demo PYTHON=python3 TORCH="$torch"
bare "$tree" make test PYTHON=python3 TORCH="$torch"
