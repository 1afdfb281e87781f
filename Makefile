# make demo   a portrait and a recorded voice become demo.mp4, by the miniature alone (left) and with its experts (right)
# make test   the test suite
# make lint   ruff and pyright
# make clean  removes what these commands made, except the virtual environment
#
# Needs Python >= 3.11 and a package registry. PYTHON=python3.12 chooses the interpreter, VENV=DIR the virtual environment
# (an existing one is used as it is), WORKERS=4 how many processes test, PYTEST_ARGS="-m slow" passes on to pytest.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
WORKERS ?= 2
ASSETS := fantasy_core/miniature/assets
WEIGHTS := fantasy_core/miniature/weights
ANIMATE = $(BIN)/python -m fantasy_core.animate --portrait $(ASSETS)/portrait.png --audio $(ASSETS)/voice.flac
TLPO := --expert mn=$(WEIGHTS)/mn.safetensors ls=$(WEIGHTS)/ls.safetensors vq=$(WEIGHTS)/vq.safetensors --gate $(WEIGHTS)/gate.safetensors
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

.DELETE_ON_ERROR:
.PHONY: demo test lint clean

demo: $(VENV)/.installed-core
	$(ANIMATE) --out demo_base.mp4
	$(ANIMATE) $(TLPO) --out demo_tlpo.mp4
	$(BIN)/python -m fantasy_core.beside demo_base.mp4 demo_tlpo.mp4 --out demo.mp4
	$(BIN)/python -m fantasy_core.sheet demo_base.mp4 demo_tlpo.mp4 --out demo.png
	@echo "demo: $(CURDIR)/demo.mp4 has sound, the miniature alone on the left and with experts and gate on the right;"
	@echo "demo: $(CURDIR)/demo.png shows both at a glance, one row below the other"

test: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf demo*.mp4 demo.png build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Each stamp is the record of a finished installation; it is made anew when what is to be installed changes.
$(VENV)/.installed-core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: installing the library into $(VENV) (once; a few minutes)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: installing the library and its test tools into $(VENV) (once; a few minutes)"
	$(PIP) --editable ".[train,lips,dev]"
	@touch $@ $(VENV)/.installed-core

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here. Install Python >= 3.11 or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version) is too old, 3.11 or newer is needed. Name another one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
