# The project's front door. `make help` lists what there is; every target sets up what it needs.

PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin

# A target names the extras of pyproject.toml that it needs; each is installed once and leaves a marker.
LOCAL := $(VENV)/.installed-local
DEV := $(VENV)/.installed-dev
TORCH := $(VENV)/.installed-torch
WHY_local := PostgreSQL, an AWS emulator, Dagster and OpenVINO (1.5 GB), which the local stack consists of
WHY_dev := the tools and tests of this repository (0.5 GB)
WHY_torch = PyTorch and Ultralytics (5 GB): $(FOR)
FOR = GPUs, .pt checkpoints, ByteTrack and BoT-SORT need them

# The lock file is complete, so nothing is resolved: --no-deps.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps
# pip's several hundred lines as a few that show how far it is; the rest is in the log.
SHOW_PIP = /^Collecting/ { n++; if (n % 20 == 0) { print "  " n " packages fetched"; fflush() } } \
	/^Installing collected/ { print "  " n " packages fetched, unpacking them"; fflush() }

.DEFAULT_GOAL := help
.PHONY: help demo dev observe torch test examples soak chaos load fuzz bench image image-test lint docs lock clean

help:  ## show this list
	@echo "make demo                    one video's whole way on this machine: upload to events (VIDEO=path for yours)"
	@echo "make dev                     the same stack with Dagster's UI, until Ctrl-C (FRESH=1 forgets everything first)"
	@echo "make observe                 the same with Prometheus, Alertmanager and exporters, where they are installed"
	@echo "make torch                   add PyTorch and Ultralytics: for a GPU, .pt checkpoints, ByteTrack, BoT-SORT"
	@echo "make test                    the whole test suite"
	@echo "make examples                the tests of docs/examples/, as docs/testing.md shows them"
	@echo "make soak                    10,000 messages with crashes at every point of intake, many seeds: some minutes"
	@echo "make chaos                   faults while clips are analysed on the local stack: 25 minutes (MINUTES=20 SEED=1)"
	@echo "make load                    20 users and a burst of 200 clips on the local stack into bench/RESULTS.md: 30 minutes"
	@echo "make fuzz                    decode randomly damaged videos: ten minutes (SECONDS=60 SEED=1)"
	@echo "make bench                   speed, memory and accuracy of the engine into bench/RESULTS.md: some minutes"
	@echo "make image                   the container image, by docker, podman or buildah; see docs/container.md"
	@echo "make image-test              build it without a registry and work in it: root, buildah, 30 GB of disk"
	@echo "make lint                    style, types, CloudFormation templates"
	@echo "make docs                    renew the parts of the documentation that the code knows"
	@echo "make lock                    renew requirements.lock after a change in pyproject.toml"
	@echo "make clean                   remove .venv and .capstone (the local stack's data)"
	@echo
	@echo "After the first of them, .venv/bin/capstone --help lists the commands."

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: requirements.lock pyproject.toml infra/locked.py | $(BIN)/python
	@echo "Installing, once, $(WHY_$*)."
	@$(BIN)/python infra/locked.py $* > $(VENV)/$*.lock
	@$(PIP) --require-hashes -r $(VENV)/$*.lock 2>&1 | tee $(VENV)/install.log | awk '$(SHOW_PIP)' \
		|| { tail -n 20 $(VENV)/install.log; echo "Installing failed; the whole log is $(VENV)/install.log"; exit 1; }
	@$(PIP) --quiet --no-build-isolation -e .
	@touch $@

# A .pt checkpoint is exported by PyTorch; a video of your own is analysed with one unless you name a model.
CHECKPOINT = $(if $(filter %.pt,$(CAPSTONE_MODEL) $(if $(VIDEO),$(or $(CAPSTONE_MODEL),yolo11n.pt))),$(TORCH))
demo dev observe: FOR = the model is a .pt checkpoint, which they run on a GPU or export to OpenVINO
demo: $(LOCAL) $(CHECKPOINT)
	@$(BIN)/capstone demo $(if $(VIDEO),"$(VIDEO)")

dev: $(LOCAL) $(CHECKPOINT)
	@$(BIN)/capstone dev $(if $(FRESH),--fresh)

observe: $(LOCAL) $(CHECKPOINT)
	@$(BIN)/capstone dev --observe $(if $(FRESH),--fresh)

torch: $(LOCAL) $(TORCH)

test: FOR = the tests compare our engine with them
test: $(DEV) $(TORCH)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

examples: $(DEV)
	cd docs/examples && ../../$(BIN)/python -m pytest -p no:cacheprovider .

soak: $(DEV)
	@$(BIN)/python -m tests.intake.soak --messages 10000 --seeds 1 2 3 4 5 --minutes 20

chaos: $(DEV)
	@$(BIN)/python -m bench.chaos --seed $(or $(SEED),1) --minutes $(or $(MINUTES),20)

load: $(DEV)
	@$(BIN)/python -m bench.load --rows --record
	@$(BIN)/python -m bench.load --record

fuzz: $(DEV)
	@$(BIN)/python -m tests.analysis.fuzz --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1)

# Real footage, where CAPSTONE_TEST_DATA names it, for what synthetic scenes cannot tell.
FOOTAGE = $(CAPSTONE_TEST_DATA)/data/eval/vtest
TEACHER = $(CAPSTONE_TEST_DATA)/models/yolo11n_int8_openvino_model
bench: FOR = our engine is measured against them
bench: $(DEV) $(TORCH)
	$(BIN)/python -m bench.throughput --every-frame --record
	$(BIN)/python -m bench.memory --record
	$(BIN)/python -m bench.accuracy --worlds 4 --record
ifdef CAPSTONE_TEST_DATA
	$(BIN)/python -m bench.accuracy $(FOOTAGE).mp4 $(FOOTAGE)_gt.txt --model $(TEACHER) --record
	$(BIN)/python -m bench.sampling $(FOOTAGE).mp4 --model $(TEACHER) --record
endif

# BASE_IMAGE, MODEL, MODEL_SHA256, DATABASE_CA, PIP_CONFIG, IMAGE: docs/container.md.
image:
	@BASE_IMAGE="$(BASE_IMAGE)" MODEL="$(MODEL)" MODEL_SHA256="$(MODEL_SHA256)" DATABASE_CA="$(DATABASE_CA)" \
		PIP_CONFIG="$(PIP_CONFIG)" IMAGE="$(or $(IMAGE),capstone:latest)" infra/image/build

image-test: $(DEV)
	@$(BIN)/python -m tests.image $(if $(BASE_IMAGE),--base "$(BASE_IMAGE)") $(if $(MODEL),--model "$(MODEL)") \
		$(if $(RECORD),--record)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cfn-lint --regions ap-northeast-2 -- infra/*.yaml

docs: $(DEV)
	$(BIN)/python docs/render.py

lock: | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/lock/bin/uv pip compile pyproject.toml --extra dev --extra torch --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .capstone
