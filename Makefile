# What an empty machine can do: python3 and make are enough, everything else goes into .venv.
# Verbs that are not here are Invoke's (tasks.py): `make train CONFIG=config/local.yaml ARGS='--bs 16'` is
# `invoke -f config/local.yaml train --bs 16`.

PYTHON ?= python3
CONFIG :=
ARGS :=
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.complete
UV := uv==0.13.9
GIGABYTES := $(if $(filter Linux,$(shell uname)),10,4)

OWN := help setup test test-local lint clean
VERBS := $(filter-out $(OWN) $(STAMP),$(MAKECMDGOALS))
.PHONY: $(OWN) $(VERBS)
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## List every verb
	@echo "make VERB [CONFIG=config/local.yaml] [ARGS='--bs 16']   (make predict ARGS=photos/)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo "and Invoke's (invoke VERB --help tells more):"
	@awk -F '"""' '/^def / {split($$1, part, /[ (]/); name = part[2]; gsub("_", "-", name)} /^@task/ {task = 1} \
		task && /^    """/ {printf "  %-12s %s\n", name, $$2; task = 0}' tasks.py

setup: $(STAMP) ## Make .venv with everything in requirements.lock (once; about 8 GB on Linux)
	@echo "set up: try 'make test-local', or 'source .venv/bin/activate' and 'invoke --list'"

test: $(STAMP) ## Run the tests, in as many processes as WORKERS says
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS)

test-local: CONFIG = config/local.yaml
test-local: $(STAMP) ## Train, package, serve and ask, all on this machine
	@$(BIN)/invoke -f $(CONFIG) train package --local test-local

lint: $(STAMP) ## Check style and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean: ## Remove what was built (the set-up stays: remove .venv by hand)
	@rm -rf build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VERBS): $(STAMP)
	@$(BIN)/invoke $(if $(CONFIG),-f $(CONFIG)) $@ $(ARGS)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
		|| { echo "error: $(PYTHON) is not Python 3.11 to 3.13: install one, or name it: make setup PYTHON=python3.13" >&2; exit 2; }
	@test $$(df -Pk . | awk 'NR == 2 {print int($$4 / 1000000)}') -ge $(GIGABYTES) || test -x $(BIN)/torchrun \
		|| { echo "error: the set-up needs $(GIGABYTES) GB on this disk: make room, or clone elsewhere" >&2; exit 3; }
	@echo "setting up .venv: some minutes, once"
	@$(PYTHON) -m venv .venv >/dev/null \
		|| { echo "error: $(PYTHON) has no working venv module: on Debian and Ubuntu, apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV) \
		&& $(BIN)/uv pip sync --python $(BIN)/python --compile-bytecode requirements.lock \
		|| { echo "error: the packages could not be installed: check the network (or proxy) and repeat" >&2; exit 3; }
	@touch $@
