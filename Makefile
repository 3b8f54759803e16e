# `make demo` and `make test` work on a fresh machine: they build the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
CALLS ?= 2000
INSTALLED := $(VENV)/.installed
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g1

.PHONY: help demo tour test fuzz sanitize lint compare cma cma-rows ablation curves furniture stamps \
  machine-code bench bench-report report surface dist supported docs clean

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

tour: $(INSTALLED) ## the loss, its rounds, a training and retrieval on 300 emoji (a minute on a CPU)
	$(BIN)/python -m examples.tour

test: $(INSTALLED) ## the whole test suite; WORKERS=1 for one process
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

fuzz: $(INSTALLED) ## thousands of calls with arguments of any kind; CALLS=... of every function
	FUZZ_EXAMPLES=$(CALLS) $(BIN)/python -m pytest -n $(WORKERS) tests/test_fuzz.py --timeout 3600

# The interpreter is not instrumented, hence the preloaded runtimes; it never frees at exit,
# hence no leak check. Python starts with -S, so that it reads no .pth file: an editable
# installation would put its own build before the one that is tested here.
sanitize: $(INSTALLED) ## the native tests once, under AddressSanitizer and UndefinedBehaviorSanitizer
	@command -v c++ > /dev/null || { echo "make sanitize: no C++ compiler, c++ was not found"; exit 1; }
	@for name in libasan.so libubsan.so; do test -e "$$(c++ -print-file-name=$$name)" || \
	  { echo "make sanitize: c++ is without $$name; GCC's package brings it"; exit 1; }; done
	rm -rf $(SANITIZED)
	$(BIN)/python -m pip install --quiet --no-deps --target $(SANITIZED)/tree . \
	  -C build-dir=$(SANITIZED)/cmake -C cmake.build-type=Sanitized \
	  -C cmake.define.CMAKE_CXX_FLAGS="$(SANITIZERS)"
	cp -r reference bench tests pyproject.toml $(SANITIZED)/tree
	cd $(SANITIZED)/tree && \
	  export PYTHONPATH="$$PWD:$$($(abspath $(BIN))/python -c 'import sys; print(*filter(None, sys.path), sep=":")')" && \
	  export LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" && \
	  export ASAN_OPTIONS=detect_leaks=0 OMP_WAIT_POLICY=passive && \
	  python="$(abspath $(BIN))/python -S" && \
	  $$python -c 'import mxm_kernels._native as n; assert n.__file__.startswith("'$$PWD'"), n' && \
	  { { $$python tests/support/overrun.py 2>&1 || true; } | grep -q "heap-buffer-overflow" || \
	    { echo "make sanitize: a deliberate overrun went unseen"; exit 1; }; } && \
	  $$python -m pytest -q -p no:cacheprovider -m "not new_process" -k native \
	    tests/backends/test_native.py tests/backends/test_native_rows.py tests/backends/test_native_rules.py \
	    tests/ops/test_draw.py \
	    tests/backends/test_kept.py::test_backward_leaves_what_is_kept_as_it_was \
	    tests/backends/test_kept.py::test_rows_of_zeros

lint: $(INSTALLED) ## linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: $(INSTALLED) ## MFH against the CLIP baseline over 5 seeds, into examples/studies/compare
	$(BIN)/python -m examples.studies.compare

cma: $(INSTALLED) ## CMA-CLIP with and without its parts over 5 seeds, into examples/studies/cma_clip
	$(BIN)/python -m examples.studies.cma_clip.study

cma-rows: $(INSTALLED) ## one modality, prompts, noisy images, class names put into captions, beside `make cma`
	$(BIN)/python -m examples.studies.cma_clip.rows

ablation: $(INSTALLED) ## the paper's ablation on frozen encoders, into examples/studies/ablation (40 minutes)
	$(BIN)/python -m examples.studies.ablation

curves: $(INSTALLED) ## the same over batch sizes, views and captions, hard_weight and decay (two hours)
	$(BIN)/python -m examples.studies.ablation --study batch_size
	$(BIN)/python -m examples.studies.memory
	$(BIN)/python -m examples.studies.ablation --study observations
	$(BIN)/python -m examples.studies.ablation --study curves

# Needs apt-get and dpkg (Debian, Ubuntu) and 0.6 GB; the models are CC-BY 3.0 and CC0.
FURNITURE := runs/furniture
$(FURNITURE)/usr:
	mkdir -p $(FURNITURE)
	cd $(FURNITURE) && apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb .

furniture: $(INSTALLED) $(FURNITURE)/usr ## the ablation on 820 rendered 3D models; downloads 120 MB with apt-get
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[furniture]'
	$(BIN)/python -m examples.studies.ablation --data furniture --data_root $(FURNITURE) --epochs 40

# Needs apt-get and dpkg (Debian, Ubuntu) and 0.4 GB; the stamps are GPL-2.
STAMPS := runs/stamps
$(STAMPS)/usr:
	mkdir -p $(STAMPS)
	cd $(STAMPS) && apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb .

stamps: $(INSTALLED) $(STAMPS)/usr ## recall in languages never trained on, 538 stamps (an hour); downloads 161 MB with apt-get
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[stamps]'
	$(BIN)/python -m examples.studies.stamps --data_root $(STAMPS)
	$(BIN)/python -m examples.studies.stamps --data_root $(STAMPS) --voices True

machine-code: $(INSTALLED) ## what the compiler makes of every Triton kernel, and what a Hopper GPU could do
	$(BIN)/python -m bench.models.machine_code --out bench/results/machine_code.json
	$(BIN)/python -m bench.models.predict --out bench/results/predicted.md

bench: $(INSTALLED) ## the benchmarks of this machine's CPU, at most 15 minutes, then bench-report
	$(BIN)/python -m pytest bench/test_speed.py bench/test_memory.py --bench-minutes 14 --timeout 900
	$(BIN)/python -m bench.report
	$(BIN)/python -m docs.figures time_and_memory docs/figures
	$(BIN)/python -m bench.models.scaling_model

bench-report: $(INSTALLED) ## tables and plots of bench/results, the README's, the scaling model
	$(BIN)/python -m bench.report
	$(BIN)/python -m docs.figures time_and_memory docs/figures
	$(BIN)/python -m bench.models.scaling_model

report: $(INSTALLED) ## versions, devices, backends, and a self-check of seconds
	$(BIN)/python -m mxm_kernels

surface: $(INSTALLED) ## write the public signatures to docs/public_surface.txt
	$(BIN)/python -m tests.support.surface

# LEND=.venv/lib/python3.12/site-packages lends installed packages and saves the download.
dist: $(INSTALLED) ## wheel and source archive into dist/, tested in a clean environment
	$(BIN)/python -m nox -s build dist -- $(if $(LEND),--lend $(LEND))

# WITH=3.12 takes that Python for both instead of the oldest and the newest.
supported: $(INSTALLED) ## the oldest and the newest supported Python and packages (11 GB, an hour)
	$(BIN)/python -m nox -s build
	$(BIN)/python -m nox -s supported_oldest supported_newest $(if $(WITH),--force-python $(WITH))

docs: $(INSTALLED) ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove the virtual environment and build products
	rm -rf $(VENV) build dist site .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis
