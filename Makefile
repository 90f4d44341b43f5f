# `make demo` and `make test` are all that a newcomer needs; both set up what they need first.
PYTHON ?= python3.11
VENV := .venv/bin
# Bytecode is written whatever the environment says: each of the processes that tests start would compile all anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(VENV)/python -m pytest -q
# Tests that use one core each run side by side. They partly wait, for a term to end or a process to start: more
# workers than cores use that time. Those with a Ray cluster or an engine use several cores themselves and wait
# as often: two files of them run at a time, and the engines of tests/labeler/teacher stay in one worker.
IN_PAIRS := -n 2 --dist loadfile
SIDE_BY_SIDE := -n $(shell n=$$(($$(nproc) + 2)); echo $$((n < 8 ? n : 8)))
QUICK_SIDE_BY_SIDE := -n $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
# `make check` looks at the types of what differs from here.
BASE ?= $(or $(shell git merge-base HEAD main 2>/dev/null),HEAD)
BENCH_OUT ?= build/bench
# Logits to measure sizes on beside what the labeler makes; without any, a small packaged sample.
CAPTURE ?= $(wildcard ../shared/data/teacher_capture.npz)

.PHONY: help setup demo check style types quick quick-heavy quick-light test test-gpu bench bench-quick bench-check lint system-packages clean clean-env

help:
	@echo "make demo         label, store, verify, train and report with a real teacher (6 minutes on 2 cores)"
	@echo "make test         every test, real vLLM and Ray included (about 30 minutes on 2 cores)"
	@echo "make check        lint, types of changed files and the quick tests (BASE=COMMIT: changed since); PKG=labeler for one package's"
	@echo "make lint         lint and types of everything"
	@echo "make test-gpu     the tests that need a GPU"
	@echo "make bench        every measurement; rewrites benchmarks/RESULTS.md"
	@echo "make bench-quick  the same with small inputs, into $(BENCH_OUT)"
	@echo "make bench-check  small measurements against the committed ones; fails if a ratio lost 15%"
	@echo "make setup        only .venv and the demo's teacher, which the others make where they are missing"
	@echo "make clean        removes what demo, tests and benchmarks left, never labels or students of yours; clean-env also .venv"

setup:
	@PYTHON=$(PYTHON) tools/setup.sh
	@$(VENV)/penumbra bench teacher --out .demo/teacher

demo: setup
	$(VENV)/penumbra bench demo

check: setup
	@$(MAKE) --no-print-directory -j3 --output-sync=line style types quick

# Collecting the tests of trainer and benchmarks loads torch and transformers, 5 CPU seconds of each
# process: one process has them all, and the workers with the others load neither at once.
HEAVY := tests/trainer tests/benchmarks
QUICK := -m "not slow and not ray and not vllm and not s3 and not browser and not gpu"
ifdef PKG
quick:
	$(PYTEST) $(QUICK_SIDE_BY_SIDE) $(QUICK) $(PKG:%=tests/%)
else
quick: quick-heavy quick-light

quick-heavy:
	$(PYTEST) $(QUICK) $(HEAVY)

quick-light:
	$(PYTEST) $(QUICK_SIDE_BY_SIDE) $(QUICK) tests $(HEAVY:%=--ignore=%)
endif

lint: setup style
	$(VENV)/pyright

style:
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/shellcheck tools/*.sh .ci/run

# Types of everything cost as much as half of the quick tests; `make lint` has them, before a commit and in .ci/run.
types:
	@files=$$({ git diff --name-only --diff-filter=d $(BASE) -- '*.py'; git ls-files --others --exclude-standard -- '*.py'; } | sort -u); \
	if [ -n "$$files" ]; then $(VENV)/pyright $$files; else echo "types: no file differs from $(BASE)"; fi

test: setup system-packages
	@status=0; \
	$(PYTEST) $(SIDE_BY_SIDE) -m "not ray and not vllm and not gpu" --durations=25 || status=$$?; \
	$(PYTEST) $(IN_PAIRS) -m "(ray or vllm) and not gpu" --durations=25 || status=$$?; \
	exit $$status

test-gpu: setup
	$(PYTEST) -m gpu -rA

bench: setup
	$(VENV)/penumbra bench all --out benchmarks/results --page benchmarks/RESULTS.md --quotes \
		--reference benchmarks/results/quick $(if $(CAPTURE),--capture $(CAPTURE))

bench-quick: setup
	$(VENV)/penumbra bench all --quick --out $(BENCH_OUT)

bench-check: setup
	$(VENV)/penumbra bench check

system-packages:
	@tools/system_packages.sh

clean:
	rm -rf build/bench build/screenshots build/lib build/bdist.* .demo/labels .demo/student .demo/student-text .demo/student-start .demo/report .pytest_cache .ruff_cache .hypothesis *.egg-info

clean-env: clean
	rm -rf .venv .demo
