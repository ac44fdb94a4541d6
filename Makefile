# Paperlab. `make help` lists the commands; every one of them works on a fresh clone with Python 3.11+ and make.

PAPER    ?=
PROFILE  ?= default
SET      ?=
LAUNCHER ?= joblib
FROM     ?=
TITLE    ?=
PORT     ?=
OUT      ?=
TESTS    ?= tests
NAME     ?= serving
RECORD   ?=
export PAPER PROFILE SET LAUNCHER FROM TITLE PORT OUT TESTS NAME RECORD PYTHON

# What is given stays as it was typed: SET='seeds=${paper.requests}' speaks to Hydra, and make, which would expand it on
# its way to a recipe (and run a $(shell ...) within), must not touch it. Recipes take it from the environment, "$$SET".
GIVEN := PAPER PROFILE SET LAUNCHER FROM TITLE PORT OUT TESTS NAME RECORD PYTHON
GIVEN += $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(sort $(GIVEN)),$(if $(filter undefined,$(origin $(name))),,$(eval override $(name) := $$(value $(name)))))

ifeq ($(strip $(PYTHON)),)
override PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
endif
# a user's own settings of Python: by these no interpreter of ours is started (common/lab/surroundings.py has the rest)
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS PYTHONUSERBASE

VENV := .venv
PY   := $(VENV)/bin/python
LAB  := $(PY) -m common.lab
READY := $(VENV)/.stamp-core
PAPER_ARGUMENTS = "$$PAPER" --profile "$$PROFILE" --set "$$SET"

.DEFAULT_GOAL := help
.PHONY: help reproduce falsify record refresh confirm abuse sweep smoke scoreboard lab ui data new test config check gpu-profile bakeoff

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo '  PAPER=<slug>  PROFILE=smoke|default|full|cuda  SET="paper.requests=500 seeds=8"  DEBUG=1 (show traces)'

reproduce: paper-extras ## execute PAPER's notebook, judge its claims, write outputs/<slug>/
	@$(LAB) reproduce $(PAPER_ARGUMENTS)

falsify: paper-extras ## run every control, placebo, free end and setting; fails where one that broke its claim no longer does
	@$(LAB) falsify $(PAPER_ARGUMENTS)

record: paper-extras ## reproduce and falsify PAPER, write papers/<slug>/results.json (FROM=observations.json of a bare run)
	@$(LAB) record $(PAPER_ARGUMENTS) --from "$$FROM"

refresh: all-extras ## judge or record again what is stale (PAPER=, LAUNCHER=slurm); a value that moved is an error unless ACCEPT=1
	@$(LAB) refresh $(if $(PAPER),"$$PAPER") --launcher "$$LAUNCHER"

confirm: all-extras ## run PAPER (or PAPER=all) beside its record on this machine, kept in confirmations.json
	@$(LAB) confirm $(if $(PAPER),"$$PAPER")

abuse: all-extras ## odd values for every field of PAPER's config (all papers without PAPER=): refused in one line, or a sane run
	@$(LAB) abuse $(if $(PAPER),"$$PAPER")

sweep: paper-extras ## PAPER over lists of values: SET="paper.rate=1,2,4" LAUNCHER=joblib|slurm|local
	@$(LAB) sweep $(PAPER_ARGUMENTS) --launcher "$$LAUNCHER"

bakeoff: all-extras ## systems of several papers on equal terms, one table (NAME=serving; RECORD=1 keeps it)
	@$(LAB) bakeoff "$$NAME" --set "$$SET" --record "$$RECORD"

smoke: all-extras ## every paper under the smoke profile, in parallel, one table at the end
	@$(LAB) smoke

scoreboard: $(READY) ## rebuild the scoreboard in README.md from the committed records
	@$(LAB) scoreboard

lab: all-extras ## JupyterLab on the repository, open at notebooks/ (PORT=)
	@$(LAB) lab $(if $(PORT),--port "$$PORT")

ui: $(READY) ## the MLflow UI on the local store (PORT=)
	@$(LAB) ui $(if $(PORT),--port "$$PORT")

data: $(READY) ## fetch and verify PAPER's data sets
	@$(LAB) data "$$PAPER"

new: $(READY) ## scaffold a paper: PAPER=slug TITLE="..."
	@$(LAB) new "$$PAPER" --title "$$TITLE"

config: $(READY) ## write the config.json with which a bare machine runs PAPER (PROFILE=cuda)
	@$(LAB) config $(PAPER_ARGUMENTS)

check: $(READY) ## whether all cards, configs, notebooks and records are in order
	@$(LAB) check

test: $(READY) ## lint, types, import rules and the whole test suite (TESTS=path for a part)
	@"$$PYTHON" -I common/lab/bootstrap.py test $$($(LAB) extras)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	$(PY) -m mypy common papers bakeoffs
	$(PY) -c 'import os, pytest, shlex, sys; sys.exit(pytest.main(["-q", "-n", "2", *shlex.split(os.environ["TESTS"])]))'

gpu-profile: $(READY) ## measure operator and copy tables of this machine's GPU (OUT=folder)
	@$(PY) -m common.serving.profile_gpu $(if $(OUT),"$$OUT")

.PHONY: paper-extras all-extras
paper-extras: $(READY)
	@extras=$$($(LAB) extras "$$PAPER") && "$$PYTHON" -I common/lab/bootstrap.py $$extras

all-extras: $(READY)
	@extras=$$($(LAB) extras) && "$$PYTHON" -I common/lab/bootstrap.py $$extras

# bootstrap.py decides by content, not by time, what has to be installed
$(READY): pyproject.toml requirements.lock
	@"$$PYTHON" -I common/lab/bootstrap.py
