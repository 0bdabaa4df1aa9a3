# All commands for people, hooks and CI. `make run` and `make test` do all the set-up on a fresh machine.
# The environment is .venv. It is made once, and again only when pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter with a version that all dependencies support.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
# torch from PyPI includes gigabytes of CUDA; this index has builds without it. Another mirror: make run TORCH_INDEX=...
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WATERMARK := $(shell sed -n 's/^watermark = \["\(.*\)"\]$$/\1/p' pyproject.toml)
TORCH := $(shell sed -n 's/^cpu = \["\(torch[^"]*\)"\]$$/\1/p' pyproject.toml)
# Programs that some tests and checks start, as program:package where Debian's package has another name. To skip the tests,
# set SYSTEM_PROGRAMS=
SYSTEM_PROGRAMS ?= chromium curl docker-compose exiftool:libimage-exiftool-perl firefox-esr haproxy node:nodejs npm openssl \
  prometheus promtool:prometheus systemd-analyze:systemd
# A folder. Until it is complete it has another name.
FULL_SIZE := build/full-size/sdxl-turbo
CLIENTS := build/clients
PLAYGROUND := build/playground-node
PLAYGROUND_TESTS := tests/playground/node

.DEFAULT_GOAL := help
.PHONY: help run system-programs pull test test-service test-cli test-models test-npu test-core test-api test-deploy test-playground test-long test-full-size test-clients coverage lint lint-playground check-pins check-deploy audit sbom licences docs format full-size bench soak train-demo eval-demo clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: $(VENV)/.run pull ## Set up, and serve on 127.0.0.1:8000; passes all TURBO_* variables on
	@echo "==> serving; stop with Ctrl-C"
	@exec $(BIN)/python -m app serve

pull: $(VENV)/.run ## Set up, and download the weights that TURBO_MODEL (default: the demo model), TURBO_VAE and TURBO_LORA name
	@$(BIN)/python -m app pull

# Threads of torch that wait in a busy loop would take the cores from the other parts.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: $(VENV)/.test ## Set up, and run the tests: eight parts, three at once, which fits two cores
	-@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(PLAYGROUND)/.made; fi
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target test-npu test-cli test-models test-service test-api test-deploy test-core test-playground

MODELS := tests/benchmarks tests/pipelines tests/training tests/weights
CORE := tests/images tests/inference tests/api/openai tests/api/hugging_face
OTHERS := $(MODELS) $(CORE) tests/api tests/cli tests/deploy tests/playground

test-service:
	$(BIN)/pytest $(OTHERS:%=--ignore=%)

test-cli:
	$(BIN)/pytest tests/cli

test-core:
	$(BIN)/pytest $(CORE)

test-api:
	$(BIN)/pytest tests/api $(CORE:%=--ignore=%)

test-models:
	$(BIN)/pytest $(MODELS)

test-npu:
	$(BIN)/pytest tests/npu

test-deploy:
	$(BIN)/pytest tests/deploy

test-playground:
	$(BIN)/pytest tests/playground

test-long: $(VENV)/.test ## Run the fuzzing, shutdown and disconnect tests many more times, and tune on the simulated NPU
	$(BIN)/pytest --long --timeout=3600 -m long
	$(BIN)/pytest --long -m long tests/npu

test-full-size: full-size ## Build the model of full-size, and run the service on it (about 16 minutes, 12 GB of memory, 20 GB of disk)
	$(BIN)/pytest -s --timeout=1800 tests/full_size

# Each environment is made again when its list of packages changes.
test-clients: $(VENV)/.test $(CLIENTS)/programs/.made $(CLIENTS)/litellm/.made $(CLIENTS)/node/.made ## Install other programs' clients, and test the service with them
	$(BIN)/pytest --timeout=300 tests/clients

$(CLIENTS)/node/.made: tests/clients/node/package.json tests/clients/node/package-lock.json
	@command -v npm >/dev/null || { echo "npm is needed: apt-get install npm"; exit 1; }
	@echo "==> installing the programs for Node in $(@D)"
	@mkdir -p $(@D) && cp $^ $(@D)
	@npm ci --prefix $(@D) --silent
	@touch $@

$(CLIENTS)/%/.made: tests/clients/python/%.txt
	@echo "==> installing the Python programs of $< in $(@D)"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --requirements $<
	@touch $@

coverage: $(VENV)/.test ## Run the tests, and report which lines of app/ they run, also in the services that they start
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage run -m pytest tests/npu
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The programs find their packages in a folder that is beside their configuration or above it, so a link is there.
$(PLAYGROUND)/.made: $(PLAYGROUND_TESTS)/package.json $(PLAYGROUND_TESTS)/package-lock.json | $(PLAYGROUND_TESTS)/node_modules
	@command -v npm >/dev/null || { echo "npm is needed: apt-get install npm"; exit 1; }
	@echo "==> installing the checks of the playground's JavaScript in $(@D)"
	@mkdir -p $(@D) && cp $^ $(@D)
	@npm ci --prefix $(@D) --silent --engine-strict
	@touch $@

$(PLAYGROUND_TESTS)/node_modules:
	@ln -sfn ../../../$(PLAYGROUND)/node_modules $@

lint: $(VENV)/.test lint-playground ## Check style, types, layers, the playground's JavaScript and the Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

lint-playground: $(PLAYGROUND)/.made
	$(PLAYGROUND)/node_modules/.bin/tsc --project $(PLAYGROUND_TESTS)/tsconfig.page.json
	$(PLAYGROUND)/node_modules/.bin/tsc --project $(PLAYGROUND_TESTS)
	$(PLAYGROUND)/node_modules/.bin/eslint --config $(PLAYGROUND_TESTS)/eslint.config.js --max-warnings 0 app/api/playground/static $(PLAYGROUND_TESTS)

# uv does not read pip's configuration. So it gets pip's index (or uses its default), and trusts the system's certificates.
check-pins test-clients: export UV_DEFAULT_INDEX ?= $(or $(PIP_INDEX_URL),$(shell $(BIN)/python -m pip config get global.index-url 2>/dev/null))
check-pins test-clients: export UV_SYSTEM_CERTS ?= true
check-pins: $(VENV)/.test ## Check that wheels exist for all packages of the Ascend image; queries the index, installs nothing
	@for python in 3.11 3.12; do for machine in x86_64 aarch64; do \
	  pins=$$($(BIN)/uv pip compile --quiet --extra npu --only-binary :all: --python-version $$python \
	    --python-platform $$machine-manylinux_2_28 pyproject.toml) \
	  || { echo "The npu extra of pyproject.toml cannot be installed with Python $$python on $$machine."; exit 1; }; \
	  echo "Python $$python, $$machine: $$(echo "$$pins" | grep '^torch' | xargs)"; \
	done; done

check-deploy: $(VENV)/.test ## Render deploy/kubernetes, and check it against Kubernetes' schemas and the service; needs no cluster
	@$(BIN)/python -m tools.kubernetes

# AUDIT passes options to pip-audit: make audit AUDIT="--vulnerability-service osv"
audit: $(VENV)/.test ## Check the service's packages for known vulnerabilities; queries PyPI
	@$(BIN)/python -m tools.audit $(AUDIT)

sbom: $(VENV)/.test ## List the service's packages as CycloneDX: build/sbom.cdx.json
	@$(BIN)/python -m tools.dependencies only build/sbom
	@$(BIN)/cyclonedx-py environment --pyproject build/sbom/pyproject.toml --validate --output-reproducible \
	  --output-file build/sbom.cdx.json build/sbom
	@echo "build/sbom.cdx.json"

licences: $(VENV)/.test ## Write the table of THIRD_PARTY.md
	@$(BIN)/python -m tools.dependencies licences

docs: $(VENV)/.test ## Write the API reference, docs/api.md, from the OpenAPI document
	@$(BIN)/python -m tools.api_reference
	@$(BIN)/python -m tools.architecture

format: $(VENV)/.test ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

full-size: $(FULL_SIZE) ## Build a model of SDXL-Turbo's size with random weights in build/full-size (7 GB, about 3 minutes)

$(FULL_SIZE): | $(VENV)/.test
	@$(BIN)/python -m benchmarks.full_size

# make bench SCOPE=full uses a model of SDXL-Turbo's size instead of a nano SDXL.
SCOPE ?= nano
bench: export TORCH_INDEX := $(TORCH_INDEX)
bench: $(VENV)/.test ## Compare the service with its peers, and write benchmarks/RESULTS.md (15 minutes; SCOPE=full: full size, 35)
	@$(BIN)/python -m benchmarks.compare --scope $(SCOPE)

soak: $(VENV)/.test ## Load the service with ten times its capacity, and write benchmarks/SOAK.md (about 5 minutes)
	@$(BIN)/python -m benchmarks.soak

train-demo: $(VENV)/.test ## Train the demo model from the beginning, in stages that can be resumed (hours on 2 cores)
	$(BIN)/python -m training train

eval-demo: $(VENV)/.test ## Measure the demo model on held-out captions, and print the table
	$(BIN)/python -m training evaluate

clean: ## Remove the environment
	rm -rf $(VENV)

$(VENV)/.run: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 1; }
	@echo "==> making the environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@echo "==> installing $(TORCH) for CPU from $(TORCH_INDEX)"
	@$(BIN)/python -m pip install --quiet --retries 1 --index-url $(TORCH_INDEX) "$(TORCH)" \
	  || { echo "No CPU build of torch was found. Name a mirror: make $(MAKECMDGOALS) TORCH_INDEX=https://..."; exit 1; }
	@echo "==> installing the service and its packages"
	@$(BIN)/python -m pip install --quiet --editable ".[cpu]"
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "==> installing the packages of the tests and checks"
	@$(BIN)/python -m pip install --quiet --editable ".[cpu,mcp,ray,training]" --group dev
	@$(BIN)/python -m pip install --quiet --no-deps "$(WATERMARK)" # it requires OpenCV with windows, which requires libGL
	@$(BIN)/python -m pip install --quiet --no-deps --group vocabulary
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/oracle --group oracle
	@$(MAKE) --no-print-directory system-programs
	@touch $@

# PyPI has no browser, ExifTool or Prometheus. Without root, this prints the command, and the tests that need them are skipped.
system-programs:
	@missing=; packages=; for entry in $(SYSTEM_PROGRAMS); do \
	  program=$${entry%:*}; command -v $$program >/dev/null || { missing="$$missing $$program"; packages="$$packages $${entry#*:}"; }; \
	done; \
	test -z "$$missing" && exit 0; \
	install="apt-get install --yes --no-install-recommends$$packages"; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  echo "==> installing from Debian's packages:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$install >/dev/null; \
	else echo "Not found:$$missing. The tests that need them are skipped. To install them: sudo $$install"; fi
