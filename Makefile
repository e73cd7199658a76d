# What an empty machine can do: python3 and make are enough, everything else goes into .venv.
# Verbs that are not here are Invoke's (tasks.py): `make train CONFIG=config/local.yaml ARGS='--bs 16'` is
# `invoke -f config/local.yaml train --bs 16`.
#
# Tools are called as `python -m`: the scripts in .venv/bin name the folder in which they were installed, and fail
# after the repository was moved or renamed.

PYTHON ?= python3
CONFIG :=
ARGS :=
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.complete
UV := uv==0.13.9
KERNEL := fastai-sagemaker
GIGABYTES := $(if $(filter Linux,$(shell uname)),10,4)

OWN := help setup kernel test test-local lint clean
VERBS := $(filter-out $(OWN) $(STAMP),$(MAKECMDGOALS))
.PHONY: $(OWN) $(VERBS)
.NOTPARALLEL:
.DEFAULT_GOAL := help

# A .venv whose Python is gone (the system's was upgraded, or it is another machine's): the set-up says what to do.
ifeq ($(shell test ! -e $(STAMP) || $(BIN)/python -c '' 2>/dev/null || echo gone),gone)
.PHONY: $(STAMP)
endif

help: ## List every verb
	@echo "make VERB [CONFIG=config/local.yaml] [ARGS='--bs 16']   (make predict ARGS=photos/)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo "and Invoke's (invoke VERB --help tells more):"
	@awk -F '"""' '/^@script_task/ {task = 1; text = ""} task {text = text $$0} \
		/^def / {split($$1, part, /[ (]/); name = part[2]; gsub("_", "-", name)} \
		task && /^    """/ {task = 0; here = 1; \
			while (match(text, /"[a-z_\/]+\.py"/)) { \
				if ((getline line < substr(text, RSTART + 1, RLENGTH - 2)) < 0) here = 0; \
				text = substr(text, RSTART + RLENGTH)} \
			if (here) printf "  %-12s %s\n", name, $$2}' tasks.py

setup: $(STAMP) ## Make .venv with everything in requirements.lock (once; about 8 GB on Linux)
	@echo "set up: try 'make test-local', or 'source .venv/bin/activate' and 'invoke --list'"
	@grep -qsF "$(CURDIR)/.venv" $(BIN)/activate || test -L .venv || echo "note: this folder was moved:" \
		"make works; for 'invoke' by name, remove .venv and repeat 'make setup'"

# The notebook names this kernel, so that Jupyter opens it in .venv without a question.
kernel: $(STAMP) ## Add .venv to your Jupyter as a kernel, for train/pets.ipynb
	@output=$$($(BIN)/python -m ipykernel install --user --name $(KERNEL) --display-name $(KERNEL) 2>&1) \
		|| { echo "error: the kernel could not be installed: $$(printf '%s\n' "$$output" | tail -n 1)" >&2; exit 3; }; \
		printf '%s\n' "$$output"
	@echo "open train/pets.ipynb in Jupyter; if it asks for a kernel, choose $(KERNEL)"
	@echo "after this folder was moved, repeat make kernel; to remove it: jupyter kernelspec remove $(KERNEL)"

test: $(STAMP) ## Run the tests, in as many processes as WORKERS says
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS)

test-local: CONFIG = config/local.yaml
test-local: $(STAMP) ## Train, package, serve and query, all on this machine
	@$(BIN)/python -m invoke -f '$(CONFIG)' train package --local test-local

lint: $(STAMP) ## Check style, formatting and types
	@failed=0; for check in 'ruff check .' 'ruff format --check .' mypy; do \
		$(BIN)/python -m $$check || failed=1; done; exit $$failed

clean: ## Remove what was built, except trained and handed-over Learners (build/*/train) and the set-up (.venv)
	@find build -mindepth 2 -maxdepth 2 -not -name train -exec rm -rf {} + 2>/dev/null || true
	@find build -type d -empty -delete 2>/dev/null || true
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VERBS): $(STAMP)
	@$(BIN)/python -m invoke $(if $(CONFIG),-f '$(CONFIG)') $@ $(ARGS)

# uv pip install, not sync: sync would remove what you installed into .venv yourself. What a newer lock no longer
# names stays, unused.
$(STAMP): requirements.lock
	@test ! -e $@ || $(BIN)/python -c '' 2>/dev/null \
		|| { echo "error: the Python that .venv was made with is gone: remove .venv and repeat" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
		|| { echo "error: $(PYTHON) is not Python 3.11 to 3.13: install one, or name it: make setup PYTHON=python3.13" >&2; exit 2; }
	@test $$(df -Pk . | awk 'NR == 2 {print int($$4 / 1000000)}') -ge $(GIGABYTES) || test -x $(BIN)/torchrun \
		|| { echo "error: the set-up needs $(GIGABYTES) GB on this disk: make room, or clone elsewhere" >&2; exit 3; }
	@echo "setting up .venv: some minutes, once"
	@output=$$($(PYTHON) -m venv .venv 2>&1) || { case "$$output" in \
		*"because ensurepip is not"* | *"No module named venv"* | *"No module named ensurepip"*) \
			echo "error: $(PYTHON) has no working venv module: on Debian and Ubuntu, apt install python3-venv";; \
		*) echo "error: $(PYTHON) -m venv .venv failed: $$(printf '%s\n' "$$output" | grep . | tail -n 1)";; \
		esac >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV) \
		&& $(BIN)/python -m uv pip install --python $(BIN)/python --no-deps --compile-bytecode -r requirements.lock \
		|| { echo "error: the packages could not be installed: check the network (or proxy) and repeat" >&2; exit 3; }
	@touch $@
