# A newcomer needs two of these: `make demo` and `make test`. The rest is for contributors.
#
# The first run makes .venv and installs what constraints.txt pins; the stamp keeps later runs from doing it again.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: simulate help install demo test again faults benchmark-tests coverage coverage-report chaos lint format states modules picture clean

help:
	@echo "make demo     train a real model with three local volunteers, and watch it happen"
	@echo "make test     run the test suite, four files at a time (JOBS=4)"
	@echo "make again    run once more, one at a time, what has just failed"
	@echo "make faults   break farms, simulated and of real processes, at every named place, and compare the weights"
	@echo "make benchmark-tests  see that each benchmark runs, and counts what it says (they measure on a quiet machine only)"
	@echo "make coverage run test, faults and benchmark-tests measured; fails below the floor that pyproject.toml names"
	@echo "make simulate run 20,000 seeded schedules of faults against the coordinator (SEEDS=0-20000 JOBS=2)"
	@echo "make chaos    break a farm of real processes for two minutes, and see that no work is lost (ARGS=--seed 1)"
	@echo "make lint     ruff, mypy and the import contract"
	@echo "make format   let ruff rewrite the code in the house style"
	@echo "make states   redraw docs/reference/states.md from the state tables"
	@echo "make modules  redraw docs/reference/modules.md from the modules' docstrings"
	@echo "make picture  take docs/images/watch.svg anew from a real training"
	@echo "make clean    remove .venv, caches and the demo's output"

install: $(STAMP)
	@echo "farm, farm-server and farm-client are in $(BIN). Put them on the PATH of this shell: source $(BIN)/activate"

demo: $(STAMP)
	@$(BIN)/farm demo

# Faults take longer than all the rest: simulated ones, clients that die in mid-round, the matrix on real processes. The
# benchmarks run whole farms to see that they measure something. Both have targets of their own; CI runs all three.
FAULT_TESTS := tests/faults tests/chaos tests/farm_server/test_kills.py tests/farm_server/transfers/test_upload_kills.py \
               tests/farm_server/test_full_disk.py tests/simulation tests/e2e/test_training.py tests/e2e/test_slow_links.py
BENCHMARK_TESTS := tests/benchmarks
# A file's tests stay together: the farms that they share are started once. More files than cores: tests also wait.
JOBS ?= 4
# A worker that a hung test ends is replaced, twice.
SIDE_BY_SIDE := -n $(JOBS) --dist loadfile --max-worker-restart 2
# Two farms at once: they wait for deadlines, windows and dead processes more than they compute.
TWO_FARMS := -n 2 --dist loadfile --max-worker-restart 2
# MEASURED=1: what the tests and the processes that they start reach is added to .coverage/, for coverage-report.
COVERAGE := $(BIN)/python -m coverage
PYTEST := $(if $(MEASURED),$(COVERAGE) run,$(BIN)/python) -m pytest --durations=10

test: $(STAMP)
	@echo "==> pytest"
	@$(PYTEST) $(if $(ARGS),$(ARGS),$(SIDE_BY_SIDE) $(FAULT_TESTS:%=--ignore=%) $(BENCHMARK_TESTS:%=--ignore=%))

faults: $(STAMP)
	@echo "==> pytest, faults on real processes"
	@$(PYTEST) $(FAULT_TESTS) $(if $(ARGS),$(ARGS),$(TWO_FARMS))

benchmark-tests: $(STAMP)
	@echo "==> pytest, the benchmarks themselves"
	@$(PYTEST) $(BENCHMARK_TESTS) $(if $(ARGS),$(ARGS),$(TWO_FARMS))

# What has just failed, once more, with nothing beside it. No limit is wider here: a defect fails twice.
again: $(STAMP)
	@echo "==> pytest, once more, one at a time: what has just failed"
	@$(PYTEST) --last-failed --last-failed-no-failures none $(ARGS)

coverage: $(STAMP)
	@rm -rf .coverage
	@$(MAKE) --no-print-directory test faults benchmark-tests coverage-report MEASURED=1

# The floor is `fail_under` in pyproject.toml; whoever adds tests raises it to what is measured then.
coverage-report: $(STAMP)
	@echo "==> coverage of lines and branches"
	@$(COVERAGE) combine --quiet
	@$(COVERAGE) report --sort=cover --skip-covered > .coverage/report.txt; status=$$?; \
	  echo "The ten least covered modules (all: .coverage/report.txt):"; \
	  head -12 .coverage/report.txt; tail -4 .coverage/report.txt; exit $$status

chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos --seconds 120 $(ARGS)

simulate: SEEDS ?= 0-20000
simulate: $(STAMP)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs $(JOBS)

lint: $(STAMP)
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> lint-imports"
	@$(BIN)/lint-imports

format: $(STAMP)
	@$(BIN)/ruff check --fix --exit-zero .
	@$(BIN)/ruff format .

states: $(STAMP)
	@$(BIN)/python docs/generate_states.py

modules: $(STAMP)
	@$(BIN)/python docs/generate_modules.py

picture: $(STAMP)
	@$(BIN)/python docs/capture_watch.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage demo-output build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip learned --group in 25.1 and a fresh venv may carry an older one, so pip itself comes first.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or say which: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "AI Farm needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1 | cut -d" " -f2)." \
	       "Say which to use: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) comes without the venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "==> creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@echo "==> installing the pinned packages (torch is the large one: some minutes the first time)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	@touch $@
