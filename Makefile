# Everything runs in a virtual environment inside the checkout; `make demo` and `make test` set it up themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint types bench soak gpu clean

# Five methods on real digits, then the report. The budgets are made up as the published ones are: from about one backbone and 20
# images a class to five of them and as many images.
demo: $(READY)
	rm -rf demo
	$(BIN)/cilbench run --dataset digits --methods dgm,cim,memo,icarl,der --budget 24KiB,44KiB,68KiB --out demo/runs
	$(BIN)/cilbench report demo/runs --out demo/report
	@echo "the page: file://$(CURDIR)/demo/report/index.html"

test: lint types   ## what CI runs
	$(BIN)/python -m pytest -m "not gpu and not soak"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not see through an editable install of this folder mapping: it gets a tree of links.
types: $(READY)
	rm -rf build/types && mkdir -p build/types
	cp -rs "$(CURDIR)/benchmark" build/types/cilbench
	cp -rs "$(CURDIR)/methods" "$(CURDIR)/budgets" "$(CURDIR)/reports" build/types/cilbench/
	cd build/types && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p cilbench

bench: $(READY)  ## speed, as ratios measured in one run
	mkdir -p build
	$(BIN)/python -m cilbench.bench --out build/bench.json

soak: $(READY)   ## long tests
	$(BIN)/python -m pytest -m soak

gpu: $(READY)    ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cilbench needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo runs report *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
