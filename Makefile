PYTHON ?= python
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g

.PHONY: sanitize
# The native tests once, on an extension built with AddressSanitizer and
# UndefinedBehaviorSanitizer, in a copy of the sources beside it. The interpreter is not
# instrumented, hence the preloaded runtime; it never frees at exit, hence no leak check.
sanitize:
	cmake -S . -B $(SANITIZED)/cmake -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_FLAGS="$(SANITIZERS)" -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	cmake --build $(SANITIZED)/cmake --parallel 2
	rm -rf $(SANITIZED)/tree && mkdir -p $(SANITIZED)/tree
	cp -r mxm_kernels reference bench tests pyproject.toml $(SANITIZED)/tree
	rm -f $(SANITIZED)/tree/mxm_kernels/*.so
	cmake --install $(SANITIZED)/cmake --prefix $(SANITIZED)/tree
	cd $(SANITIZED)/tree && \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 $(PYTHON) -m pytest -q -p no:cacheprovider tests/backends/test_native.py
