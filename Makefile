# torch's OpenMP threads spin while they wait; beside any other busy process that is ruinous on few cores
export OMP_WAIT_POLICY := PASSIVE

PYTHON ?= python3
VENV := .venv
TESTS ?=
BIN := $(VENV)/bin

# Where torch comes from: `make demo TORCH_INDEX=URL` takes torch, and nothing else, from the package index at URL. torch's
# "Get started" page names one for its CPU build and one for each CUDA version. Without it, torch comes from wherever pip is
# configured to look; on Linux that is often the CUDA build, also on a machine without a GPU. It counts when .venv is made:
# after `make clean`, if there is one.
TORCH_INDEX ?=

# Newest releases of everything but torch: see test-newest
NEWEST := .venv-newest
NEWEST_TESTS ?= tests/solvers tests/cli tests/study tests/test_readme.py tests/test_docs.py
NEWEST_PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 \
	$$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-9].*/bin/python 2>/dev/null | sort -rV) $(PYTHON); do \
	$$p -c 'import ensurepip, venv' 2>/dev/null && echo $$p && break; done)

# mypy on the tests. Each is a module by its folder (test_region.py is there twice), and a run of its own: tests/nets.py and
# benchmarks/nets.py are both called nets. A test may leave its own signature bare; what it does is checked. What a torch
# module returns is Any to mypy, so to hand that on is no mistake. The package itself was checked before.
OF_TESTS := --explicit-package-bases --allow-untyped-defs --allow-incomplete-defs --no-warn-return-any \
	--follow-imports silent --cache-dir .mypy_cache/tests

.PHONY: demo test test-newest lint docs notebooks slow clean

demo: $(VENV)/.installed
	@echo "Running the demo: offline, about half a minute"
	$(BIN)/corgi-opt demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

# What pip brings today where nothing is pinned but torch, in environments of their own.
# Two of them, because of torch: for a Python that no CPU build of it is at hand for, pip brings the CUDA build, 2.6 GB to
# load and twice that on disk. So what needs torch runs on $(PYTHON), as `make test` does. The solvers need none: they
# run once more on the newest Python there is, where pip brings newer releases yet (PuLP 4 asks for Python 3.12).
# NEWEST_TESTS="tests/solvers" runs fewer tests; PYTHON=python3.13 takes another Python, and torch's CUDA build with it.
test-newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	grep '^torch==' constraints.txt > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -c $(NEWEST)/torch.txt -e '.[dev]'
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(NEWEST_TESTS)
ifneq ($(filter tests/solvers,$(NEWEST_TESTS)),)
	test -x $(NEWEST)/solvers/bin/python || $(NEWEST_PYTHON) -m venv $(NEWEST)/solvers
	$(NEWEST)/solvers/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		highspy pulp cvxpy clarabel numpy scipy pytest pytest-xdist
	PYTHONPATH=$(CURDIR)/solvers $(NEWEST)/solvers/bin/python -m pytest --noconftest -n 2 --dist loadfile tests/solvers
endif

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(OF_TESTS) tests

# The site, into site/: a warning is an error. Nothing is fetched, and site/index.html can be opened as a file.
# (The variable is for a notice of the theme's authors about another program.)
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet

# Runs the notebooks and keeps what they show; 03 needs the paper's data
notebooks: $(VENV)/.installed
	$(BIN)/python examples/run_notebooks.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once. pip loads torch (CPU build: about 200 MB; CUDA build: about 2.6 GB) and some 100 smaller"
	@echo "packages: about 2 GB on disk with the CPU build, and some minutes. TORCH_INDEX=URL chooses the build (see Makefile)."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps --index-url '$(TORCH_INDEX)' torch
endif
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) build dist site *.egg-info solvers/*.egg-info .pytest_cache .mypy_cache .ruff_cache
