# Everything runs in .venv, which is made on first use. Ways to change what runs:
#   make nback ARGS="--config.seeds=0,1,2"       more flags for the program
#   make nback CONFIG=configs/nback.py:smoke     another config or variant
#   make nback PYTHON=python3.12                 another interpreter (delete .venv first)
#   make nback EXTRAS=cuda                       with the GPU build of JAX
#   make accelerator RUN=python3                 an interpreter that has all it needs: nothing is installed
#   make compile-tpu PYTHON=python3.13 COMPILERS=newest   another environment for a compiler, beside the first: .venv-tpu-newest
PYTHON ?= python3
EXTRAS ?=
CONFIG ?= configs/nback.py
WORKDIR ?= runs/nback
ARGS ?=
WORKERS ?= auto
COMPILERS ?=
OUT ?= runs/accelerator

VENV := .venv
RUN := $(VENV)/bin/python
comma := ,
installed := $(VENV)/.installed$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))
tested := $(VENV)/.installed-test
linted := $(VENV)/.installed-lint
installed_notebooks := $(VENV)/.installed-notebooks
installed_docs := $(VENV)/.installed-docs
compilers_tpu := .venv-tpu$(if $(COMPILERS),-$(COMPILERS))
compilers_gpu := .venv-gpu$(if $(COMPILERS),-$(COMPILERS))
pytest = $(RUN) -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help nback test test-slow test-quick test-full test-oldest test-faults wheel notebooks tutorials mutate mutate-contract compile-tpu compile-gpu accelerator sequence plans nightly lint format constraints audit docs figures clean
.DELETE_ON_ERROR:

help:
	@echo "make nback      train the n-back benchmark and print its table (1 to 2 minutes on two CPU cores)"
	@echo "make test       the tests (6 to 15 minutes on two cores, by how fast they are; what is compiled is kept for the next run)"
	@echo "make test-slow  whole commands, and runs that are ended and gone on with (6 to 13 minutes); needs Chromium, see .ci/browser"
	@echo "make test-quick unit tests and the reference contract (under a minute)"
	@echo "make test-oldest the tests with the oldest version that pyproject.toml allows of every library (PYTHON=python3.11)"
	@echo "make test-faults kill, starve and damage runs 50 times, and compare them with undisturbed ones (10 minutes)"
	@echo "make wheel      build the wheel, install it into a fresh environment and use it in an empty folder (2 minutes)"
	@echo "make test-full  all of these, the contract on every three settings, and longer tests (15 minutes)"
	@echo "make notebooks  execute the notebooks in a shortened form (under 3 minutes)"
	@echo "make tutorials  execute them in full and store their outputs and figures (6 minutes)"
	@echo "make docs       build the site into site/; a warning or a link that leads nowhere is an error (1 minute)"
	@echo "make figures    draw the figures of docs/results anew"
	@echo "make mutate     apply each committed fault and check that the tests notice"
	@echo "make mutate-contract  break every rule and see which check of the contract notices (4 minutes); writes docs/reference/mutations.md"
	@echo "make compile-tpu compile every kernel and the large training steps for v5e, v5p and v6e, without one (20 minutes, a minute with ARGS=--quick: kernels alone, for a v5e)"
	@echo "make compile-gpu the same for an H100 (5 minutes). Their environments take 1 and 2 GB"
	@echo "make sequence   time split over 8 CPU devices, on windows of 131,072 tokens (half an hour)"
	@echo "make plans      plans of large runs through the compilers of TPUs and GPUs (an hour)"
	@echo "make accelerator measure everything on this machine's GPU or TPU (9 minutes); ARGS=--tiny rehearses it, also on a CPU"
	@echo "make nightly    what takes too long for every commit: audit, test-full, test-oldest, test-faults, mutate, tutorials, docs, compile-tpu, compile-gpu, sequence, plans (hours)"
	@echo "make lint       ruff, the arrows between rooms, types by pyright, and the files of launch/ (1 minute)"
	@echo "make constraints find the versions of constraints/ anew"
	@echo "make audit      look for known vulnerabilities in them"
	@echo "make format     apply ruff's fixes"
	@echo "make clean      remove .venv and its like, and caches, never runs/"

nback: $(installed)
	$(RUN) -m bdh_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

# With ARGS, which select, nothing is left out but the longest.
test: $(tested)
	$(pytest) $(if $(ARGS),,-m "not full and not slow") $(ARGS)

test-slow: $(tested)
	$(pytest) -m "slow and not full" $(ARGS)

test-quick: $(tested)
	$(pytest) -m "quick and not full" $(ARGS)

test-full: $(tested)
	$(pytest) -m "full or not full" $(ARGS)

# Few steps, and these documents as text, so that nothing is downloaded.
notebooks: $(installed_notebooks)
	BDH_JAX_TEXT="$(CURDIR)/README.md,$(CURDIR)/docs/*/*.md" BDH_JAX_STEPS=60 $(RUN) -m pytest --nbmake --nbmake-timeout=900 -p no:cacheprovider notebooks

tutorials: $(installed_notebooks)
	$(RUN) notebooks/execute.py $(ARGS)

test-faults: $(tested)
	$(RUN) -m tests.faults.kills $(ARGS)

# In an environment of its own. The newest versions are those that every other fresh environment gets.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

wheel:
	PYTHON="$(PYTHON)" .ci/wheel

mutate: $(tested)
	$(RUN) tests/mutations/run.py $(ARGS)

mutate-contract: $(tested)
	$(RUN) -m tests.mutations.contract --write docs/reference/mutations.md $(ARGS)

nightly: audit test-full test-oldest test-faults mutate tutorials docs compile-tpu compile-gpu sequence plans

# Time over 8 CPU devices, on windows of 131,072 tokens.
sequence: $(installed)
	$(RUN) benchmarks/sequence_axis.py $(ARGS)

# Large runs, planned, and compiled for TPUs and GPUs.
plans: $(installed) $(compilers_tpu)/.installed $(compilers_gpu)/.installed
	$(RUN) benchmarks/plans.py --json=runs/plans.json --tpu=$(compilers_tpu)/bin/python --gpu=$(compilers_gpu)/bin/python $(ARGS)

compile-tpu: $(compilers_tpu)/.installed
	$(compilers_tpu)/bin/python -m benchmarks.compilers tpu $(ARGS)

compile-gpu: $(compilers_gpu)/.installed
	$(compilers_gpu)/bin/python -m benchmarks.compilers gpu $(ARGS)

# Nothing is installed for an interpreter that is named: the machine may have no network.
accelerator: $(if $(filter $(VENV)/bin/python,$(RUN)),$(installed))
	$(RUN) -m benchmarks.accelerator --out=$(OUT) $(ARGS)

lint: $(linted)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(RUN) -m pyright --pythonpath $(RUN)
	$(RUN) launch/check.py

# The versions that an image or a machine of launch/ gets, the same on every day.
constraints: $(linted)
	@for version in 3.11 3.12 3.13; do \
	  $(RUN) -m uv pip compile --quiet pyproject.toml --extra text --extra plot --extra notebooks --extra cuda --extra tpu --upgrade \
	    --python-version $$version --python-platform x86_64-manylinux_2_31 --no-header --no-annotate --no-emit-index-url \
	    --output-file constraints/python$$version.txt || exit 1; done

audit: $(linted)
	$(RUN) constraints/audit.py $(ARGS)

format: $(linted)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(installed_docs)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --clean $(ARGS)

figures: $(installed_docs)
	$(RUN) -m docs.tools.figures $(ARGS)

clean:
	rm -rf $(VENV) .venv-* .compiled site .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps depend on pyproject.toml, so nothing is installed again until it changes.
$(installed): pyproject.toml | $(RUN)
	@echo "installing bdh_jax into $(VENV) (a minute or two, once)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".$(if $(EXTRAS),[$(EXTRAS)])"
	@touch $@

$(tested): pyproject.toml | $(RUN)
	@echo "installing bdh_jax and its test tools into $(VENV) (a minute or two, once)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@ $(VENV)/.installed

$(linted): pyproject.toml | $(RUN)
	@echo "installing bdh_jax, its test tools and linters into $(VENV) (a minute or two, once)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	@touch $@ $(tested) $(VENV)/.installed

$(installed_notebooks): pyproject.toml | $(RUN)
	@echo "installing bdh_jax and what notebooks need into $(VENV) (a minute or two, once)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[test,notebooks]"
	@touch $@ $(tested) $(VENV)/.installed

$(installed_docs): pyproject.toml | $(RUN)
	@echo "installing bdh_jax and what builds its site into $(VENV) (a minute or two, once)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@ $(VENV)/.installed

.venv-oldest/.installed: pyproject.toml tests/oldest.py | .venv-oldest/bin/python
	@echo "installing bdh_jax and the oldest libraries that it allows into .venv-oldest (minutes, once)"
	.venv-oldest/bin/python tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e ".[test]"
	@touch $@

# A compiler an environment: libtpu and CUDA do not go together.
.venv-%/.installed: pyproject.toml | .venv-%/bin/python
	@echo "installing bdh_jax and the compiler into .venv-$* (minutes, once)"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -e ".[compile-$(firstword $(subst -, ,$*))]"
	@touch $@

.PRECIOUS: .venv-%/bin/python
.venv-%/bin/python:
	$(make_venv)

$(RUN):
	$(make_venv)

define make_venv
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; name a Python >= 3.11: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bdh_jax needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) -V 2>&1); use make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(@D:/bin=) || { rm -rf $(@D:/bin=); exit 1; }
endef
