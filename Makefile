# The two commands: `make demo` and `make test`. Each sets up what it needs in .venv first; nothing by hand.
#
#   make demo     segment the bundled clip: figures on the terminal, out/demo.png, out/demo.json
#   make test     all tests
#   make check    ruff and mypy
#   make readme   write the README's table of models anew from their cards
#   make lock     resolve all versions anew and write requirements.lock (Python 3.11 on x86-64 Linux)

PYTHON ?= python3
RUN := .venv/bin/python

# A 32-bit Raspberry Pi OS on its usual 64-bit kernel says aarch64, whose wheels it cannot run; so pip is told armv8l.
LINUX32 := $(shell $(PYTHON) -c "import platform, struct; \
	platform.machine() == 'aarch64' and struct.calcsize('P') == 4 and print('setarch linux32')" 2>/dev/null)
PIP := $(LINUX32) $(RUN) -m pip --disable-pip-version-check -q

# OpenCV comes as two wheels that own the same folder, so there must be one only: the one with windows where the
# libraries load that it needs and does not bring.
OPENCV := $(shell $(PYTHON) -c "import ctypes, sys; \
	sys.platform == 'linux' and [ctypes.CDLL(name) for name in ('libGL.so.1', 'libgthread-2.0.so.0')]" 2>/dev/null \
	&& echo window || echo headless)
OTHER := $(if $(filter window,$(OPENCV)),opencv-python-headless,opencv-python)

# picamera2 exists only as a Debian package, built for Debian's NumPy: where it is, .venv sees it and keeps that NumPy.
NUMPY := $(shell $(PYTHON) -c "import importlib.util, numpy; \
	importlib.util.find_spec('picamera2') and print('numpy==' + numpy.__version__)" 2>/dev/null)

# The versions that were tested together, where they were resolved; elsewhere the newest that fit.
LOCK := $(if $(NUMPY),,$(shell $(PYTHON) -c "import platform, sys; \
	here = sys.version_info[:2], platform.system(), platform.machine(); \
	print('-c requirements.lock' if here == ((3, 11), 'Linux', 'x86_64') else '')"))

RUNTIME := .venv/runtime-$(OPENCV)
EVERYTHING := .venv/everything-$(OPENCV)

.PHONY: demo test check readme lock clean

demo: $(RUNTIME)
	$(RUN) run_demo.py --source assets/sample.mp4 --save out/demo.png --report out/demo.json

test: $(EVERYTHING)
	$(RUN) -m pytest

check: $(EVERYTHING)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

readme: $(RUNTIME)
	$(RUN) run_demo.py models --readme README.md

$(RUNTIME): pyproject.toml requirements.lock
	@$(PYTHON) -c "import sys; sys.version_info < (3, 11) and \
		sys.exit(f'error: Python {sys.version.split()[0]} is too old: name a newer one, make PYTHON=python3.11')"
	$(PYTHON) -m venv $(if $(NUMPY),--system-site-packages) .venv
	$(PIP) uninstall --yes $(OTHER) 2>/dev/null
	$(PIP) install $(LOCK) -e '.[$(OPENCV)]' $(NUMPY)
	@rm -f .venv/runtime-* .venv/everything-*; touch $@

$(EVERYTHING): $(RUNTIME)
	$(PIP) install $(LOCK) -e '.[$(OPENCV),web,convert,dev]' $(NUMPY)
	@touch $@

lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip --disable-pip-version-check -q install '.[headless,web,convert,dev]'
	echo '# Made by `make lock`: versions that were resolved and tested together, Python 3.11 on x86-64 Linux' > requirements.lock
	build/lock/bin/python -m pip freeze --exclude edge-segmenter >> requirements.lock
	sed -n 's/^opencv-python-headless==/opencv-python==/p' requirements.lock >> requirements.lock

clean:
	rm -rf .venv build out
