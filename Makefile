# make demo: install, train on drawn faces, evaluate.  make test: install, run the tests.
# make browser: the tests of the demo page, which need Chromium.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test browser lint clean

# Made anew when the packaging changes; current otherwise.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m qcs.train hydra.run.dir=$(DEMO)
	$(BIN)/python -m qcs.eval ckpt=$(DEMO)/checkpoints/best.ckpt hydra.run.dir=$(DEMO)/eval
	@echo "checkpoint $(DEMO)/checkpoints/best.ckpt, pictures and numbers in $(DEMO)/eval"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist loadscope -m 'not slow and not browser'

browser: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m browser

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
