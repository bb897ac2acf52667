# Two commands on a fresh machine: `make demo` shows what this does, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin

# Other tools' packages that exchange with them is tested with. They ask for other versions of what ours stands on, so
# they have an environment of their own, with those of our requirements that core and tests import.
PEERS := sae-lens==6.54.12
BESIDE := torch==2.13.0 numba scipy tyro lazy-loader jaxtyping beartype rich platformdirs filelock pytest pytest-timeout \
	natsort schedulefree matplotlib tabulate
# These ask for older versions of nearly all of the above and run with the new ones: each is installed alone, with what
# it imports besides
ALONE := eai-sparsify==1.3.3 dictionary-learning==0.1.0 nnsight==0.3.7 python-socketio python-engineio bidict \
	websocket-client zstandard sae-dashboard==0.8.0 eindex-callum dataclasses-json marshmallow typing-inspect \
	mypy-extensions sae-bench==0.6.0 sae-probes==0.4.2 scikit-learn==1.9.1 threadpoolctl xgboost narwhals \
	eai-delphi==0.1.3 blobfile orjson lxml pycryptodomex

# Tests for the inner loop: formulas, TopK's laws, pure functions and pages, without processes or a browser
FAST := tests/test_layout.py tests/docs/test_pages.py tests/docs/test_reference.py \
	$(addprefix tests/sae/test_,laws.py code.py relu.py matching.py render.py show.py comparison.py) \
	$(addprefix tests/activations/test_,attribution.py text.py tokens.py token_text.py) \
	$(addprefix tests/app/test_,charts.py rows.py run_charts.py)

.PHONY: demo test test-fast test-all test-peers check format docs bench install browser clean

demo: install  ## the whole job on a real model and text: about 10 minutes on two cores (ARGS="--tokens 100000 …")
	$(BIN)/sae demo $(ARGS)

test: check browser  ## all tests but those that take minutes, the browser's too
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-fast: install  ## the inner loop: a minute or so on two cores
	$(BIN)/python -m pytest -n 2 --dist load $(FAST) -k "(topk or not test_laws) and not (batchtopk or abstopk or multi or importing or public_name)" $(ARGS)

# Before Python 3.12 coverage traces every line, which lengthens the run by about a third; from 3.12 on it costs next to nothing.
COVERAGE = $$($(BIN)/python -c 'import sys; print("--cov" if sys.version_info >= (3, 12) else "")')

test-all: check browser  ## the same and what takes minutes: more kills, more damage; prints the coverage on Python 3.12 or newer
	COVERAGE_CORE=sysmon $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow" $(COVERAGE) $(ARGS)

test-peers: .venv-peers/.installed  ## files of other tools, read and written beside their own packages
	.venv-peers/bin/python -c 'import sae_lens, sparsify, dictionary_learning.utils, sae_dashboard.sae_vis_runner, sae_bench.evals.core.main, sae_probes.run_sae_evals, delphi, blobfile, orjson'  # else their tests would be skipped
	.venv-peers/bin/python -m pytest tests/peers -m peers $(ARGS)

.venv-peers/.installed: Makefile pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS) $(BESIDE)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(ALONE)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

check: install  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## the documentation as a site, into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: install  ## the quick set of benchmarks/, ours alone: about 3 minutes
	$(BIN)/python -m benchmarks.step --only "naive torch" --shapes 576x8192 --repeats 5
	$(BIN)/python -m benchmarks.exact --shapes 128x2048
	$(BIN)/python -m benchmarks.selection --repeats 3
	$(BIN)/python -m benchmarks.memory --quick
	$(BIN)/python -m benchmarks.scaling --repeats 3 --largest 16384

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@echo "installing into .venv, which takes 1 to 5 minutes; pip says nothing meanwhile"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,app,dev]"
	@touch $@

browser: install  ## Chromium for the browser tests: found on the PATH, or installed with apt
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| { echo "the browser tests need Chromium: install it (Debian: apt-get install chromium)"; exit 1; }

clean:
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .hypothesis
