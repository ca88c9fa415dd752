# Every target sets itself up: the virtual environment is made from requirements*.txt and rebuilt when they change.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
CACHE := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5

.PHONY: demo demo-seeds sft-study test lint format bench clean

demo: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.demo --workdir runs/demo

demo-seeds: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.demo.seeds --workdir runs/demo-seeds

test: $(VENV)/.dev
	$(CACHE) $(PY) -m pytest -n 2

# SFT_STUDY="--seeds 0 --tokens 1e6" for a short one
sft-study: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.latent_sft.study --workdir runs/sft-study $(SFT_STUDY)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.run
	$(CACHE) $(PY) -m benchmarks --out runs/bench

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
