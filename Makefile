# Everything runs in a virtual environment inside the checkout; `make demo` and `make test` set it up themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LIGHT  := $(VENV)/.light
READY  := $(VENV)/.ready

LOCKED := build/locked
LOWEST := build/lowest
UV     := build/uv
# Numbers (golden runs, published sizes), the boundary, data sets and reports: where a release can change something.
PART   := tests/benchmark/test_golden.py tests/budgets tests/benchmark/test_protocol.py tests/benchmark/test_data_cache.py \
	tests/benchmark/test_data_import.py tests/reports/test_reports_files.py tests/reports/test_load.py tests/reports/test_report_tables.py

.PHONY: demo docs test test-long test-locked test-lowest test-slurm lock lint types bench soak campaign campaign-status gpu test-cuda parity reproduction clean

# The environment of the demo has the package alone; what the tests need comes with `make test`.
demo: $(LIGHT)
	$(BIN)/cilbench demo

# A process a core, a thread each: torch's own threads bring little on networks as small as those of the tests. Each
# process begins with a run of neighbours, so that what a file makes for all its tests is hardly ever made twice.
RUN := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: lint types   ## what is run after every change: some nine minutes on two cores
	$(RUN) -m "not long and not gpu and not soak and not slurm"

test-long: $(READY)   ## the rest of what CI runs: tests that are long, as CONTRIBUTING.md has it
	$(RUN) -m "long and not gpu and not soak and not slurm" --durations=20

# The newest releases are tested by `make test`; these are the ones that requirements.lock names, to the byte: a part of the suite.
test-locked:       ## the same for the locked releases, in an environment of their own; CI runs it too
	$(PYTHON) -m venv --clear $(LOCKED)
	$(LOCKED)/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(LOCKED)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(LOCKED)/bin/python -m pytest -m "not gpu and not soak and not slurm" $(PART)

# The lowest releases that pyproject.toml allows, the same part of the suite and the frozen help.
test-lowest:       ## the same for the lowest releases that pyproject.toml allows; CI runs it too
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) -m venv $(UV) && $(UV)/bin/python -m pip install --quiet uv
	$(UV)/bin/uv pip compile pyproject.toml --extra dev --resolution lowest-direct --no-annotate --no-header --quiet \
		--output-file $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(LOWEST)/bin/python -m pytest -m "not gpu and not soak and not slurm" tests/test_frozen.py $(PART)

# Names, versions and hashes of every release that pyproject.toml leads to, on CPython from 3.11 on, whatever the system; no
# addresses, so that it can be installed from any index: `pip install --require-hashes -r requirements.lock`.
lock:              ## requirements.lock anew, from the newest releases
	$(PYTHON) -m venv $(UV)
	$(UV)/bin/python -m pip install --quiet uv
	$(UV)/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-annotate --no-emit-index-url --no-emit-find-links --quiet \
		--custom-compile-command "make lock (the package and its extra dev, which is what the tests need; other extras are not locked)" \
		--output-file requirements.lock

# On a machine without a GPU: torch's own CUDA code over a pretended runtime (tests/cuda/pretend), arithmetic by the CPU.
CUDA_TESTS ?= tests/gpu tests/cuda
test-cuda: $(READY)   ## GPU tests on two pretended devices, and every method whole; skipped, with a reason, where it cannot be built
	$(BIN)/python tests/cuda/pretend/start.py $(BIN)/python -m pytest -n auto -m gpu $(CUDA_TESTS)

# Debian's SLURM and munge, started for the tests alone on one node; as root, they are installed if need be.
test-slurm: $(READY)   ## `cilbench submit` on a real SLURM; skipped, with a reason, where there is none
	tests/cluster/one-node.sh install || true
	$(BIN)/python -m pytest -rs -m slurm tests/cluster

docs: $(READY)   ## the documentation site, in build/site; warnings are errors
	$(BIN)/python -c 'import material, mkdocstrings, nbclient, ipykernel' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not see through an editable install of this folder mapping: it gets a tree of links.
types: $(READY)
	rm -rf build/types && mkdir -p build/types
	cp -rs "$(CURDIR)/benchmark" build/types/cilbench
	cp -rs "$(CURDIR)/methods" "$(CURDIR)/budgets" "$(CURDIR)/reports" build/types/cilbench/
	cp -rs "$(CURDIR)/tools" build/types/
	cd build/types && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p cilbench -p tools

# On a quiet machine; docs/bench.md says what the rows mean. `make bench BENCH="--only herding,codecs"` is a part of it.
bench: $(READY)  ## speed, as ratios measured in one run
	mkdir -p build
	$(BIN)/python -m tools bench --out build/bench.json $(BENCH)

soak: $(READY)   ## inputs that no run has tried, kills, a simulation: CI does not run it
	$(RUN) -m soak --durations=30

# tools/campaign.toml says what is run. `make campaign CAMPAIGN="--work DIR --threads 2"`; SIGTERM keeps a checkpoint.
campaign: $(READY)   ## the queue of published configurations: goes on where it stopped
	exec $(BIN)/python -m tools campaign run $(CAMPAIGN)

campaign-status: $(READY)   ## where each of its runs stands; `make campaign-status CAMPAIGN="--work DIR"`
	@$(BIN)/python -m tools campaign status $(CAMPAIGN)

# The same queue on a GPU, after the tests that need one, for as long as it is at hand. From a tree of links, so that a
# machine without a network needs nothing installed: make gpu GPU_PYTHON=python3 GPU_MINUTES=9 CAMPAIGN="--work DIR"
# Tests are run once for a state of the code, passed or failed: build/gpu-tested has its hash and how they ended. One run at
# a time; without MPS several would only take turns. What was measured of the machine is kept in build/gpu-measured.
GPU_PYTHON ?= $(BIN)/python
GPU_MINUTES ?= 9
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))   ## GPU tests, then the queue on the GPU
	rm -rf build/gpu && mkdir -p build/gpu
	cp -rs "$(CURDIR)/benchmark" build/gpu/cilbench
	cp -rs "$(CURDIR)/methods" "$(CURDIR)/budgets" "$(CURDIR)/reports" build/gpu/cilbench/
	export PYTHONPATH="$(CURDIR)/build/gpu:$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"; \
	export CILBENCH_CACHE="$(CURDIR)/build/gpu-measured"; ends=$$(($$(date +%s) + 60 * $(GPU_MINUTES))); \
	for_now="timeout --signal=TERM --kill-after=60"; \
	hash=$$(find benchmark methods budgets tests -name "*.py" | LC_ALL=C sort | xargs cat | sha256sum | cut -d " " -f 1); \
	code=$$(sed -n "s/^$$hash //p" build/gpu-tested 2>/dev/null); \
	if [ -n "$$code" ]; then \
		echo "the GPU tests of this code ended with $$code; they are run again without build/gpu-tested"; \
	else \
		$$for_now $$((ends - $$(date +%s))) $(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider -rs \
			$$(grep -rl "mark.gpu" tests --include="test_*.py"); code=$$?; \
		[ $$code -eq 124 ] || echo "$$hash $$code" > build/gpu-tested; \
	fi; \
	left=$$((ends - $$(date +%s))); [ $$left -gt 0 ] || exit $$code; \
	$$for_now $$left $(GPU_PYTHON) -m tools campaign run --device cuda $(CAMPAIGN) || [ $$? -eq 124 ] || code=1; exit $$code

# A clone of LAMDA-CL/PyCIL outside the checkout, and what it imports (tools/parity/reference.py) in .venv; skipped with a
# reason where they are not. Runs as long as asked are `python -m tools.parity.runs --help`.
REFERENCE ?= ../PyCIL
parity: $(READY)   ## ours and the reference implementation, step by step from the same weights and batches
	$(BIN)/python -m tools.parity.steps --reference $(REFERENCE) $(PARITY)

reproduction: $(READY)   ## REPRODUCTION.md from results/
	$(BIN)/python -m tools reproduction write --results results --out REPRODUCTION.md

# torch is most of it. PyPI's wheel for Linux brings CUDA along; the one for a CPU is on PyTorch's own index, which pip takes
# from the environment: PIP_INDEX_URL=<PyTorch's CPU index> PIP_EXTRA_INDEX_URL=<PyPI's> make demo
$(LIGHT): WHAT = .
$(READY): WHAT = .[dev]
$(LIGHT) $(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cilbench needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing cilbench and what it needs into $(VENV); most of the download is torch: 200 MB for a CPU, 3 GB with CUDA"
	$(BIN)/python -m pip install --quiet --progress-bar on --editable "$(WHAT)"
	touch $@

clean:
	rm -rf $(VENV) build demo runs report *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
