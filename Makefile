# make demo   environment, build, and projected STC against STC and FedAvg on handwritten digits
# make test   every test, JOBS=auto at once; make lint, make bench, make format as they say
# make race   as root or with user namespaces: three trainings over links of 10 Mbit/s, side by side
# make drill   lost and altered messages, kill -9, full disks, 10,000 rounds, poisoned clients: all of it, half an hour
# make docs   the user's guide and the API reference, in build/docs/index.html; every warning is an error
# make wheels   an sdist and manylinux wheels of this Python in dist/: docs/install.md
# make fuzz SECONDS=600   hostile packets against the decoder and the aggregating kernels, under sanitizers: docs/testing.md
# make cuda-race   every kernel under the emulator, every access checked for races; make cuda-removals: docs/cuda-race.md
# make gpu-test, make gpu-bench   on a machine with nvcc and a GPU; make fake-gpu-test: with nvcc, without one: docs/cuda.md
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA_TORCH ?= torch==2.11.0
JOBS ?= auto
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc cuda -type f)
CPP := $(shell find csrc cuda tests/emu tests/fakegpu tests/fuzz -name '*.h' -o -name '*.inl' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format docs bench drill race fuzz threads mutants gpu-test gpu-bench fake-gpu-test wheels cuda-race cuda-removals clean
demo: $(VENV)/installed
	@mkdir -p demo
	$(BIN)/python -m gcext fl --data digits --method fedavg --method stc --method pstc \
	  --json demo/digits.json --plot demo/digits.png
	@echo "Every figure is in demo/digits.json, the picture in demo/digits.png."

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -E -b html -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "The documentation is in build/docs/index.html."

bench: $(VENV)/installed
	$(BIN)/python -m bench stc --n 10M --p 0.001,0.01,0.1

drill: $(VENV)/installed
	for what in faults kill soak poison; do $(BIN)/python -m tests.drill $$what || exit 1; done

race: $(VENV)/installed
	$(BIN)/python -m bench race

# Needs a compiler alone; ENGINE=libfuzzer needs clang. `make threads`: ThreadSanitizer over the CPU kernels.
SECONDS ?= 60
ENGINE ?= own
fuzz:
	$(PYTHON) tests/fuzz/run.py --seconds $(SECONDS) --engine $(ENGINE)

threads:
	$(PYTHON) tests/fuzz/run.py --threads 3

# One check of the wire format removed or inverted at a time: which the tests notice.
mutants: $(VENV)/installed
	$(BIN)/python tests/fuzz/mutants.py

# Data races in the kernels, which run on the CPU; then each barrier, fence and __syncwarp removed in turn.
CUDA_TESTS := $(filter-out %_emulator.py %_race.py %_traffic.py, \
  $(wildcard tests/test_cuda_*.py) \
  $(shell grep -l '^from emu' $(wildcard $(patsubst cuda/%.cu,tests/test_%.py,$(wildcard cuda/*.cu)))))
cuda-race: $(VENV)/installed
	PYTHONPATH=tests GCEXT_EMU_HOOKS=race $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
	  -p emu.race -m "not cuda" $(CUDA_TESTS)

cuda-removals: $(VENV)/installed
	PYTHONPATH=tests $(BIN)/python -m emu.removal

# Every test, where to have no CUDA is a failure; then the kernels' own under compute-sanitizer; what torch
# asks CUDA in vain is torch's.
gpu-test: $(VENV)/installed
	GCEXT_DEMAND_CUDA=1 $(BIN)/python -m pytest --junitxml=build/gpu-test.xml
	for tool in memcheck racecheck synccheck initcheck; do \
	  GCEXT_DEMAND_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --report-api-errors no --kernel-name kns=gcext \
	  $(BIN)/python -m pytest \
	  -m cuda -k "same_bytes or many_are_each or refuses" $(CUDA_TESTS) || exit 1; done

gpu-bench: $(VENV)/installed
	$(BIN)/python -m bench gpu --json gpu.json
	@echo "Chip, driver, versions and figures are in gpu.json."

# Every GPU test without a GPU: torch's CUDA build, gigabytes of it, over a runtime that runs on the CPU.
FAKE := build/fakegpu/venv/bin/python
fake-gpu-test: $(VENV)/installed
	$(PYTHON) -m venv build/fakegpu/venv
	$(FAKE) -m pip install --quiet "$(CUDA_TORCH)"
	GCEXT_CUDA=OFF $(FAKE) -m pip install --quiet '.[test]'
	$(FAKE) tests/fakegpu/run.py

wheels: $(VENV)/installed-wheels
	$(BIN)/python tools/wheels.py

# torch first: the build looks for its headers there, and an unpinned torch may be another build.
$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

$(VENV)/installed-wheels: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[wheels]'
	@touch $@

clean:
	rm -rf build demo dist $(VENV) gcext/*.so gcext/_build.json
