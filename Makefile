# Everything a developer runs. `make help` lists it.

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python that is new enough; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
INSTALLED := $(VENV)/.installed
# How often `make test-random` runs all tests.
REPEAT ?= 1
# What `make lowest` and `make newest` run.
VERSIONS_TESTS ?= tests/protocol tests/client tests/transport tests/langchain tests/llama_index tests/enclave tests/cli tests/proxy

.DEFAULT_GOAL := help
# A folder has this name too.
.PHONY: help setup demo test test-random notebooks docs fuzz soak record lint types format bench compat package lowest newest build sbom clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(INSTALLED)  ## Make .venv and install the package with all that its tests need

$(INSTALLED): pyproject.toml constraints.txt prem_core/_version.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; say PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt -e ".[all]" --group dev
	@touch $@

demo: $(INSTALLED)  ## Chat, an agent, an extraction and a recording on the embedded enclave; no API key
	@$(BIN)/python examples/demo.py

test: $(INSTALLED)  ## Run all tests, on all processors
	$(BIN)/pytest -n auto --dist loadfile tests

test-random: $(INSTALLED)  ## Run all tests in random order, with random examples; REPEAT=10 does it ten times
	for run in $$(seq $(REPEAT)); do \
		$(BIN)/pytest -q -n auto --dist loadfile -p randomly --hypothesis-profile=random tests || exit 1; done

notebooks: $(INSTALLED)  ## Run the notebooks from top to bottom
	$(BIN)/pytest --nbmake --nbmake-timeout=300 -W default notebooks

docs: $(INSTALLED)  ## Build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

fuzz: $(INSTALLED)  ## Feed changed and broken input to every parser, for a minute
	PYTHONPATH=tests $(BIN)/python -m support.fuzzing.fuzz

soak: $(INSTALLED)  ## 10,000 requests from 50 threads and 200 tasks, a fifth of them with faults; some minutes
	PYTHONPATH=tests $(BIN)/python -m support.faults.soak

record: $(INSTALLED)  ## Record the cassettes anew, from the embedded enclave; with PREM_API_KEY, from the live service
	PREM_RECORD=1 $(BIN)/pytest -q tests/langchain/test_cassette.py
	rm -f tests/data/cassettes/TestIntegration.test_stream_time.yaml
	$(BIN)/pytest -q -W default --record-mode=once tests/langchain/test_standard_integration.py -k stream_time

lint: $(INSTALLED)  ## Check style, layout and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(INSTALLED)  ## Check the types, strictly
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/consumer.py

format: $(INSTALLED)  ## Lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## Measure beside the peers: chunks, calls, recordings, imports
	$(BIN)/python benchmarks/chat_overhead.py
	$(BIN)/python benchmarks/llama_index_overhead.py
	$(BIN)/python benchmarks/audio_overhead.py
	$(BIN)/python benchmarks/proxy_overhead.py
	$(BIN)/python benchmarks/attestation.py
	$(BIN)/python benchmarks/import_time.py

compat: $(INSTALLED)  ## Try real clients of the proxy, each in an environment of its own; CLIENT=name for some of them
	PYTHONPATH=tests $(BIN)/python tests/compat/matrix.py $(CLIENT)

newest: $(INSTALLED)  ## Run the tests with the newest versions there are
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-newest
	UV_LINK_MODE=copy $(BIN)/uv pip install --quiet --python .venv-newest/bin/python --upgrade -e ".[all]" --group dev
	.venv-newest/bin/python -m pytest -q -W default $(VERSIONS_TESTS)

build: $(INSTALLED)  ## Build the sdist and the wheel into dist/
	$(BIN)/uv build --build-constraints constraints.txt

sbom: $(INSTALLED)  ## Write build/prem-encrypted.cdx.json, the bill of materials of an installation with all extras
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/packaging/make_sbom.py

package: $(INSTALLED)  ## Build, and install the wheel alone and with each extra into empty environments
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/packaging/check_installs.py

lowest: $(INSTALLED)  ## Run the tests with the oldest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	UV_LINK_MODE=copy $(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct \
		-e ".[all]" --group dev
	.venv-lowest/bin/python -m pytest -q -W default $(VERSIONS_TESTS)

clean:  ## Remove what was made, .venv included
	rm -rf $(VENV) .venv-lowest .venv-newest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
