# `make demo` and `make test` work on a fresh machine: they build the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
INSTALLED := $(VENV)/.installed
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -g

.PHONY: help demo test sanitize lint compare ablation furniture machine-code bench bench-report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	sys.exit(f"Python 3.10 or newer is needed, {v.major}.{v.minor} was found: make PYTHON=python3.12") if v < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## fine-tune a dual encoder on real images and captions (minutes on a CPU)
	$(BIN)/python -m examples.finetune

test: $(INSTALLED) ## the whole test suite; WORKERS=1 for one process
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# The interpreter is not instrumented, hence the preloaded runtimes; it never frees at exit,
# hence no leak check.
sanitize: $(INSTALLED) ## the native tests once, under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf $(SANITIZED)
	$(BIN)/python -m pip install --quiet --no-deps --target $(SANITIZED)/tree . \
	  -C build-dir=$(SANITIZED)/cmake -C cmake.build-type=RelWithDebInfo \
	  -C cmake.define.CMAKE_CXX_FLAGS="$(SANITIZERS)"
	ls $(SANITIZED)/tree/mxm_kernels/_native.*.so  # built, not left out
	cp -r reference bench tests pyproject.toml $(SANITIZED)/tree
	cd $(SANITIZED)/tree && \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 \
	  $(abspath $(BIN))/python -m pytest -q -p no:cacheprovider tests/backends/test_native.py

lint: $(INSTALLED) ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: $(INSTALLED) ## MFH against the CLIP baseline over 5 seeds, into examples/finetune/results
	$(BIN)/python -m examples.finetune.compare

ablation: $(INSTALLED) ## the paper's ablation on frozen encoders, into examples/ablation/results (minutes)
	$(BIN)/python -m examples.ablation

# Needs apt-get and dpkg (Debian, Ubuntu) and 0.6 GB; the models are CC-BY 3.0 and CC0.
FURNITURE := runs/furniture
$(FURNITURE)/usr:
	mkdir -p $(FURNITURE)
	cd $(FURNITURE) && apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb .

furniture: $(INSTALLED) $(FURNITURE)/usr ## the ablation on 820 rendered 3D models; downloads 120 MB with apt-get
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[furniture]'
	$(BIN)/python -m examples.ablation --data furniture --data_root $(FURNITURE) --epochs 40

machine-code: $(INSTALLED) ## registers, spills and shared memory of every Triton kernel
	$(BIN)/python -m bench.machine_code --out bench/results/machine_code.json

bench: $(INSTALLED) ## the benchmarks of this machine's CPU, at most 15 minutes, then bench-report
	$(BIN)/python -m pytest bench/test_speed.py bench/test_memory.py --bench-minutes 14 --timeout 900
	$(BIN)/python -m bench.report

bench-report: $(INSTALLED) ## tables and plots of bench/results, and the README's tables
	$(BIN)/python -m bench.report

clean: ## remove the virtual environment and build products
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
