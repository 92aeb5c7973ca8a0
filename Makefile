# make demo: install, train on drawn faces, evaluate, label a photo.  make test: install, run the tests.
# make lint: ruff and mypy.  make docs: build the site.  make browser: the tests of the demo page.
# make slow: the tests that take minutes each.
# make test-lowest, test-newest: the tests with the oldest and the newest versions that are allowed.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
TESTS := -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m 'not slow and not browser'

.PHONY: demo test test-lowest test-newest slow browser lint docs clean

# Brought up to date when the packaging changes; left alone otherwise.
.venv/.installed: INSTALL := -c constraints.txt
.venv-lowest/.installed: INSTALL := -c constraints-lowest.txt
.venv-newest/.installed: INSTALL := --upgrade --upgrade-strategy eager
.venv/.installed: constraints.txt
.venv-lowest/.installed: constraints-lowest.txt
%/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(INSTALL) -e '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/python -m qcs.train hydra.run.dir=$(DEMO)
	$(BIN)/python -m qcs.eval ckpt=$(DEMO)/checkpoints/best.ckpt hydra.run.dir=$(DEMO)/eval
	@echo "checkpoint $(DEMO)/checkpoints/best.ckpt, pictures and numbers in $(DEMO)/eval"
	$(BIN)/python -c "from skimage import data, io; io.imsave('$(DEMO)/astronaut.png', data.astronaut())"
	@echo "and a real photo: the astronaut Eileen Collins (NASA, public domain; scikit-image carries it)"
	$(BIN)/python -m qcs.predict input=$(DEMO)/astronaut.png hydra.run.dir=$(DEMO)/photo

test: .venv/.installed
	$(BIN)/python $(TESTS)

test-lowest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/python $(TESTS)

slow: .venv/.installed
	$(BIN)/python -m pytest -q -m 'slow and not gpu'

browser: .venv/.installed
	$(BIN)/python -m pytest -q -m browser

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-lowest .venv-newest build runs .pytest_cache .ruff_cache .mypy_cache
