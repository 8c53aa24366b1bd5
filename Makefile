# `make` alone lists the targets
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LINT_PATHS := sb3_klip tests benchmarks

ENV ?= CartPole-v1
ALGO ?= klip_ppo
PENALTY ?= hard
# Number of timesteps (the hyperparameter file's if empty) and random seed
N ?=
SEED ?= 0
# What the RL Zoo calls the folder and the model of an environment
RUN_NAME = $(subst /,-,$(ENV))

# One thread a process: small networks gain nothing from more, and two test workers would share two cores
export OMP_NUM_THREADS ?= 1

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,mujoco,box2d,plots]"
	@touch $@

install: $(STAMP) ## set up .venv with all that training and the tests need

train: $(STAMP) ## train and replay: make train ENV=Pendulum-v1 PENALTY=none N=20000
	$(BIN)/sb3-klip train --algo $(ALGO) --env $(ENV) --seed $(SEED) --progress --eval-freq 10000 \
		$(if $(N),--n-timesteps $(N)) -params penalty:"'$(PENALTY)'"
	$(BIN)/sb3-klip enjoy --algo $(ALGO) --env $(ENV) --no-render --n-timesteps 1000
	@run="$$(ls -td logs/$(ALGO)/$(RUN_NAME)_*/ | head -n 1)"; echo "Everything is in $$run:"; \
		for file in $(RUN_NAME).zip best_model.zip $(RUN_NAME)/config.yml evaluations.npz; do \
			if [ -e "$$run$$file" ]; then echo "  $$file"; fi; done

test: $(STAMP) ## run the tests, a few minutes on two cores
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(STAMP) ## run the slow tests
	$(BIN)/python -m pytest -m slow --numprocesses 2 $(PYTEST_ARGS)

lint: $(STAMP) ## check style
	$(BIN)/ruff check $(LINT_PATHS)
	$(BIN)/ruff format --check $(LINT_PATHS)

format: $(STAMP) ## mend style
	$(BIN)/ruff check --fix $(LINT_PATHS)
	$(BIN)/ruff format $(LINT_PATHS)

type: $(STAMP) ## check types
	$(BIN)/mypy sb3_klip

check: lint type test ## all of the above checks

bench-speed: $(STAMP) ## compare the speed with SB3's, some minutes on a quiet machine
	$(BIN)/python -W ignore benchmarks/speed.py

figures: $(STAMP) ## draw the figures of README and docs again
	$(BIN)/sb3-klip plot penalties -o docs/images/penalties.png
	$(BIN)/sb3-klip plot penalty sigmoid --kwargs softness:0.05 -o docs/images/sigmoid.png

clean: ## remove what builds and tests leave behind (logs and .venv stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage

.PHONY: help install train test test-slow lint format type check bench-speed figures clean
