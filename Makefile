PYTHON ?= python
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -g

.PHONY: sanitize
# The native tests once, on an extension built with AddressSanitizer and
# UndefinedBehaviorSanitizer. The interpreter is not instrumented, hence the preloaded
# runtimes; it never frees at exit, hence no leak check.
sanitize:
	rm -rf $(SANITIZED)
	$(PYTHON) -m pip install --quiet --no-deps --target $(SANITIZED)/tree . \
	  -C build-dir=$(SANITIZED)/cmake -C cmake.build-type=RelWithDebInfo \
	  -C cmake.define.CMAKE_CXX_FLAGS="$(SANITIZERS)"
	ls $(SANITIZED)/tree/mxm_kernels/_native.*.so  # built, not left out
	cp -r reference bench tests pyproject.toml $(SANITIZED)/tree
	cd $(SANITIZED)/tree && \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 \
	  $(PYTHON) -m pytest -q -p no:cacheprovider tests/backends/test_native.py
