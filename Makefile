# Every command sets up what it needs in VENV, from the versions in constraints.txt.

ifeq ($(wildcard pyproject.toml),)
  $(error want the folder of this Makefile: make -C $(dir $(lastword $(MAKEFILE_LIST))) $(MAKECMDGOALS))
endif

# The variables that each command takes. All others are refused: one that is mistyped, or of another
# command, would change nothing without a word.
CLUSTER          := RUNNER PROJECT REGION TEMP IMAGE JOB_ENDPOINT FLINK_MASTER SPARK_MASTER PRISM
takes.preprocess := INPUT LABELS OUTPUT WORKERS $(CLUSTER) SAMPLE ARGS
takes.sample     := SAMPLE
takes.inspect    := INPUT LABELS PAGE SAMPLE ARGS
takes.verify     := SHARDS ARGS
takes.card       := SHARDS ARGS
takes.browse     := SHARDS RUN ARGS
takes.convert    := SHARDS FORMAT CONVERTED ARGS
takes.train      := SHARDS RUN FOLD MODEL WEIGHTS EPOCHS BATCH IMAGE_SIZE BACKEND SAMPLE ARGS
takes.train-scans := RUN SHARDS BACKEND ARGS
takes.crossval   := $(filter-out FOLD,$(takes.train))
takes.evaluate   := RUN RUNS SHARDS ENSEMBLE BACKEND ARGS
takes.predict    := RUN RUNS SHARDS INPUT SUBMISSION BACKEND ARGS
takes.report     := RUN SHARDS BACKEND ARGS
takes.compare    := RUNS COMPARE ARGS
takes.export     := RUN EXPORT SHARDS ARGS
takes.demo       := BACKEND SAMPLE
takes.mutants    := MODULE ARGS
TESTS            := test test-system test-pipeline test-all test-engines coverage
BENCHES          := bench bench-preprocess bench-cores bench-planning bench-buckets bench-engines bench-costs \
  bench-archives bench-reading bench-train bench-gpu bench-gpu-kit bench-shards
$(foreach name,$(TESTS),$(eval takes.$(name) := ICH_REAL_DATA ARGS))
$(foreach name,$(BENCHES),$(eval takes.$(name) := ICH_REAL_DATA SAMPLE ARGS))
takes.bench-engines += PRISM
takes.bench-gpu += KIT
takes.bench-gpu-kit += KIT
$(foreach name,help lint clean,$(eval takes.$(name) :=))
ALL_TAKE         := VENV PYTHON

# Only the command line counts: a RUN, TEMP or MODEL in the environment is meant for something else.
override GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
COMMANDS := $(or $(MAKECMDGOALS),help)
unique    = $(if $1,$(firstword $1) $(call unique,$(filter-out $(firstword $1),$1)))
TAKEN    := $(strip $(call unique,$(foreach name,$(COMMANDS),$(takes.$(name))) $(ALL_TAKE)))
UNKNOWN  := $(firstword $(filter-out $(TAKEN),$(GIVEN)))
EMPTY    := $(firstword $(foreach name,$(filter-out ARGS,$(GIVEN)),$(if $(value $(name)),,$(name))))
comma     = ,
quote     = '$(subst ','\'',$1)'

PYTHON ?= python3
export PYTHON
# Hints name the next command of make.
export HEADCT_STARTED_BY := make
# make itself says which command there is not.
ifneq ($(filter undefined,$(foreach name,$(COMMANDS),$(origin takes.$(name)))),)
else ifneq ($(UNKNOWN),)
  ifeq ($(MAKECMDGOALS),)
    $(error $(UNKNOWN)= without a command: 'make' alone lists the commands and their variables)
  endif
  MEANT := $(shell $(call quote,$(value PYTHON)) make.py meant $(call quote,$(UNKNOWN)) \
    $(call quote,$(value $(UNKNOWN))) "$(COMMANDS)" $(TAKEN) 2>/dev/null)
  $(error $(UNKNOWN)= is no variable of 'make $(COMMANDS)'$(if $(MEANT), (did you mean $(MEANT)?)); \
it takes $(TAKEN))
else ifneq ($(EMPTY),)
  $(error $(EMPTY)= is empty: give it a value, or leave it out)
endif

# A value is text, whatever signs it has: make does not expand it (`value`), and recipes read it from
# the environment in quotes ("$$INPUT"), so that no shell parses it.
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)
MAKEOVERRIDES =

# A variable's value or its default: as a word of a recipe, and as text of make's.
arg  = $(if $(filter $1,$(GIVEN)),"$$$1",$(default.$1))
text = $(if $(filter $1,$(GIVEN)),$($1),$(default.$1))
# --flag=value, if there is one; with the "=", since a value may begin with "-".
flag = $(if $(filter $2,$(GIVEN))$(default.$2),$1=$(call arg,$2))
# NAME=value for another make, of those that were given.
pass = $(foreach name,$1,$(if $(filter $(name),$(GIVEN)),$(name)="$$$(name)"))

default.OUTPUT     := out/shards
default.SHARDS      = $(call arg,OUTPUT)
default.RUN        := out/run
default.RUNNER     := local
default.BACKEND    := tensorflow
default.ENSEMBLE   := out/ensemble
default.SUBMISSION  = $(if $(filter RUNS,$(GIVEN)),out,$(call arg,RUN))/$(if $(filter INPUT,$(GIVEN)),predictions,submission.csv)
default.EXPORT      = $(call arg,RUN)/export
default.COMPARE    := out/compare.html
default.PAGE       := out/inspect.html
default.FORMAT     := parquet
default.CONVERTED  := out/converted
default.KIT        := out/gpu-kit
default.SAMPLE     := out/sample
default.VENV       := .venv
# Without INPUT the synthetic sample is made and used.
ifeq ($(filter INPUT,$(GIVEN))$(filter --input --input=%,$(call text,ARGS)),)
  default.INPUT     = $(call arg,SAMPLE)/slices
  default.LABELS    = $(call arg,SAMPLE)/labels.csv
  NEEDS_SAMPLE     := sample
else ifneq ($(filter $(call text,SAMPLE)/%,$(call text,INPUT)),)
  NEEDS_SAMPLE     := sample
endif

# The only path that make itself has to read, in names of targets.
override VENV := $(patsubst ~/%,$(HOME)/%,$(call text,VENV))
SIGNS := $$ \# % : ; , * ? ! = ~ ' " ` & | < > ( ) [ ] { } \ ^
ifneq ($(words $(VENV))$(strip $(foreach sign,$(SIGNS),$(findstring $(sign),$(VENV)))),1)
  $(error VENV=$(VENV): want a path of letters, digits and . _ - + @ /)
endif

# ARGS and RUNS hold several words, with quotes where a word has spaces. make.py splits them as a shell
# would; nothing in them is run.
split  = $(if $(filter $1,$(GIVEN)),-I -S make.py split $1 "$2" "$$$1")
RUN_PY = $(VENV)/bin/python $(call split,ARGS)
# Several runs as one: RUNS in place of RUN.
ifeq ($(words $(filter RUN RUNS,$(GIVEN))),2)
  $(error RUN= and RUNS=: give one of them)
endif
ONE_RUN = $(if $(filter RUNS,$(GIVEN)),,$(call flag,--run,RUN))

# Google's libraries are for Dataflow alone.
ifneq ($(filter dataflow dataflowrunner,$(shell printf %s $(call quote,$(call text,RUNNER)) | tr A-Z a-z)),)
  PIPELINE := $(VENV)/.gcp
else
  PIPELINE := $(VENV)/.pipeline
endif
ifneq ($(filter-out tensorflow jax,$(call text,BACKEND)),)
  $(error BACKEND=$(BACKEND): want tensorflow or jax)
endif
TRAINER := $(if $(filter jax,$(call text,BACKEND)),$(VENV)/.jax,$(VENV)/.trainer)

PREPROCESS_FLAGS = $(call flag,--input,INPUT) $(call flag,--labels,LABELS) $(call flag,--output,OUTPUT) \
  $(call flag,--runner,RUNNER) $(call flag,--project,PROJECT) $(call flag,--region,REGION) \
  $(call flag,--temp_location,TEMP) $(call flag,--sdk_container_image,IMAGE) \
  $(call flag,--job_endpoint,JOB_ENDPOINT) $(call flag,--flink_master,FLINK_MASTER) \
  $(call flag,--spark_master_url,SPARK_MASTER) $(call flag,--prism_location,PRISM) \
  $(call flag,--workers,WORKERS)
TRAIN_FLAGS = $(call flag,--shards,SHARDS) $(call flag,--run,RUN) $(call flag,--fold,FOLD) \
  $(call flag,--model,MODEL) $(call flag,--weights,WEIGHTS) $(call flag,--epochs,EPOCHS) \
  $(call flag,--batch_size,BATCH) $(call flag,--image_size,IMAGE_SIZE) $(BACKEND_FLAG)
BACKEND_FLAG = $(if $(filter jax,$(call text,BACKEND)),--backend=jax)
OTHER_SHARDS = $(if $(filter SHARDS,$(GIVEN)),$(call flag,--shards,SHARDS))
TO_PREDICT = $(if $(filter INPUT,$(GIVEN)),$(call flag,--input,INPUT) $(OTHER_SHARDS),$(call flag,--shards,SHARDS))

# The sample's shards, which their manifest tells from others, can be trained on any machine, offline
# and within minutes; real ones get the trainer's own defaults. MODEL, EPOCHS and the other variables
# win over the file, and so do flags in ARGS; a --config in ARGS takes its place.
BY_SAMPLE = if grep -s '"input":' -- $(call arg,SHARDS)/manifest.json | grep -qF -e $(call arg,SAMPLE)/slices'"'; \
  then set -- --config examples/sample.toml; \
  printf '%s holds the sample: training by %s.\n' $(call arg,SHARDS) "$$2"; fi

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help preprocess inspect sample verify card browse convert train train-scans evaluate predict crossval report compare export demo bench bench-preprocess bench-cores bench-planning bench-buckets bench-engines bench-costs bench-archives bench-reading bench-train bench-gpu bench-gpu-kit bench-shards \
        test test-system test-pipeline test-all test-engines coverage mutants lint clean

help: ## List the commands
	@echo "Commands (make NAME VARIABLE=value ...):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "Variables:"
	@$(foreach name,preprocess inspect sample verify card browse convert train train-scans crossval evaluate predict report compare export demo, \
	  printf '  %-12s  %s\n' $(name) "$(takes.$(name))";) true
	@echo "  all commands  $(ALL_TAKE)"
	@echo "They come from the command line alone; of the environment only PYTHON and ICH_REAL_DATA are read."
	@echo "ARGS passes any other option on; ARGS=--help lists them."

preprocess: $(PIPELINE) $(NEEDS_SAMPLE) ## DICOM files to a shard directory (without INPUT: the sample)
	@$(RUN_PY) -m beam_pipeline $(PREPROCESS_FLAGS)

inspect: $(PIPELINE) $(NEEDS_SAMPLE) ## Say what preprocess would do with INPUT and LABELS, on a page
	@$(RUN_PY) -m beam_pipeline.inspection $(call flag,--input,INPUT) $(call flag,--labels,LABELS) \
	  $(call flag,--output,PAGE)

sample: $(VENV)/.pipeline ## Make the synthetic head-CT sample
	@printf 'Using the synthetic sample in %s.\n' $(call arg,SAMPLE)
	@$(VENV)/bin/python -m examples.sample $(call flag,--output,SAMPLE)

verify: $(PIPELINE) ## Read a shard directory back and check all of it (ARGS="--source INPUT": pixels too)
	@$(RUN_PY) -m beam_pipeline.verify $(call flag,--shards,SHARDS)

card: $(PIPELINE) ## Make report.html for a shard directory that has none (ARGS="--input INPUT")
	@$(RUN_PY) -m beam_pipeline.card $(call flag,--shards,SHARDS)

browse: $(PIPELINE) ## Look through slices in a browser; with RUN at its model's mistakes
	@$(RUN_PY) -m headct.browse $(call flag,--shards,SHARDS) $(if $(filter RUN,$(GIVEN)),$(call flag,--run,RUN))

convert: $(PIPELINE) ## Write shards as Parquet files or WebDataset's tar files, for hubs
	@$(RUN_PY) -m headct.convert $(call flag,--shards,SHARDS) $(call flag,--to,FORMAT) \
	  $(call flag,--output,CONVERTED)

train: $(TRAINER) ## Train on a shard directory; the same RUN resumes where it stopped
	@$(BY_SAMPLE); $(RUN_PY) -m trainer train "$$@" $(TRAIN_FLAGS)

train-scans: $(TRAINER) ## Train a model of whole scans on the network of RUN (or per fold of a crossval), in RUN/scans
	@$(RUN_PY) -m trainer train_scans $(call flag,--run,RUN) $(OTHER_SHARDS) $(BACKEND_FLAG)

evaluate: $(TRAINER) ## Evaluate a run, or RUNS as an ensemble, on the validation fold (SHARDS: of other shards)
	@$(RUN_PY) $(call split,RUNS,--run) -m trainer evaluate $(ONE_RUN) $(OTHER_SHARDS) \
	  $(if $(filter RUNS ENSEMBLE,$(GIVEN)),$(call flag,--output,ENSEMBLE)) $(BACKEND_FLAG)

predict: $(TRAINER) ## Write a submission for the test split of SHARDS, or a page and tables for INPUT
	@$(RUN_PY) $(call split,RUNS,--run) -m trainer predict $(ONE_RUN) $(TO_PREDICT) \
	  $(call flag,--output,SUBMISSION) $(BACKEND_FLAG)

crossval: $(TRAINER) ## Train once for each fold, and measure all slices out of fold
	@$(BY_SAMPLE); $(RUN_PY) -m trainer crossval "$$@" $(TRAIN_FLAGS)

report: $(TRAINER) ## Write a page with a run's curves, figures and worst mistakes
	@$(RUN_PY) -m trainer report $(call flag,--run,RUN) $(OTHER_SHARDS) $(BACKEND_FLAG)

compare: $(TRAINER) ## Write a page that sets runs side by side (RUNS="out/a out/b"; COMPARE=page)
	@$(RUN_PY) $(call split,RUNS,--runs) -m trainer compare $(call flag,--output,COMPARE)

export: $(VENV)/.onnx ## Write a run's model as .keras, SavedModel and ONNX
	@$(RUN_PY) -m trainer export $(call flag,--run,RUN) $(call flag,--output,EXPORT) $(OTHER_SHARDS)

demo: ## The whole line on the sample: preprocess, train, evaluate, predict
	@$(MAKE) --no-print-directory preprocess $(call pass,VENV SAMPLE)
	@$(MAKE) --no-print-directory train $(call pass,VENV SAMPLE BACKEND)
	@$(MAKE) --no-print-directory evaluate $(call pass,VENV BACKEND)
	@$(MAKE) --no-print-directory preprocess INPUT=$(call arg,SAMPLE)/test_slices OUTPUT=out/test-shards $(call pass,VENV SAMPLE)
	@$(MAKE) --no-print-directory predict SHARDS=out/test-shards $(call pass,VENV BACKEND)

test: $(VENV)/.dev ## Run the tests (ICH_REAL_DATA names a folder of real data, if there is one)
	@$(RUN_PY) -m pytest --ignore tests/engines -m "not system" -n auto --maxprocesses 8 --dist worksteal

test-system: $(VENV)/.dev ## Run the tests of whole commands, notebooks, web pages, kills and faulty stores
	@$(RUN_PY) -m pytest --ignore tests/engines -m system -n auto --maxprocesses 8 --dist worksteal

test-pipeline: $(VENV)/.test-pipeline ## Run the pipeline's tests, without TensorFlow
	@$(RUN_PY) -m pytest tests/headct tests/beam_pipeline -n auto --maxprocesses 8 --dist worksteal

test-all: $(VENV)/.dev ## Run all tests in their full number, those on Beam's runners too (an hour)
	@$(RUN_PY) -m pytest --full --ignore tests/engines -n auto --maxprocesses 8 --dist worksteal
	@$(RUN_PY) -m pytest --full tests/engines

coverage: $(VENV)/.dev ## Run the tests and print what lines and branches of both packages they reach
	@$(RUN_PY) -m pytest --ignore tests/engines -n auto --maxprocesses 8 --dist worksteal \
	  --cov --cov-report=term:skip-covered

test-engines: $(VENV)/.dev ## Run the tests on Beam's runners, as far as they can be had here
	@$(RUN_PY) -m pytest tests/engines

mutants: $(VENV)/.mutants ## Change pure modules a token at a time: which changes does no test notice?
	@$(RUN_PY) -m tests.mutants $(call flag,--module,MODULE)

# Real slices where there are some, the sample's otherwise.
REAL         := $(value ICH_REAL_DATA)
BENCH_FOLDER  = $(if $(REAL),"$$ICH_REAL_DATA"/rsna,$(call arg,SAMPLE))
BENCH_INPUT   = --input=$(BENCH_FOLDER)/slices
BENCH_SHARDS := out/bench-$(if $(REAL),real,sample)-shards
BENCH_SAMPLE := $(if $(REAL),,sample)
bench: bench-preprocess bench-train ## Measure preprocessing and the trainer's input against their peers

bench-preprocess: $(VENV)/.trainer $(BENCH_SAMPLE)
	@$(RUN_PY) -m tests.benchmarks.preprocess $(BENCH_INPUT)

bench-cores: $(VENV)/.trainer ## Simulate preprocessing with 2 to 64 workers, which only sleep
	@$(RUN_PY) -m tests.benchmarks.cores

bench-planning: $(VENV)/.trainer
	@$(RUN_PY) -m tests.benchmarks.planning

bench-buckets: $(VENV)/.dev $(BENCH_SAMPLE)
	@$(RUN_PY) -m tests.benchmarks.buckets $(BENCH_INPUT)

bench-engines: $(VENV)/.dev $(BENCH_SAMPLE)
	@$(RUN_PY) -m tests.benchmarks.engines $(BENCH_INPUT) $(call flag,--prism,PRISM)

bench-costs: $(VENV)/.dev
	@$(RUN_PY) -m tests.benchmarks.costs

bench-archives: $(VENV)/.pipeline $(BENCH_SAMPLE)
	@$(RUN_PY) -m tests.benchmarks.archives $(BENCH_INPUT)

bench-reading: $(VENV)/.pipeline $(BENCH_SAMPLE)
	@$(RUN_PY) -m tests.benchmarks.random_access $(BENCH_INPUT)

bench-train: $(VENV)/.trainer bench-shards
	@$(RUN_PY) -m tests.benchmarks.trainer_input --shards $(BENCH_SHARDS) --dicom=$(BENCH_FOLDER)/slices

bench-gpu: $(if $(filter KIT,$(GIVEN)),,$(VENV)/.trainer $(VENV)/.jax bench-shards) ## Measure training steps on this machine's GPU, with each backend there is
ifneq ($(filter KIT,$(GIVEN)),)
	@"$$PYTHON" $(call split,ARGS) -m tests.benchmarks.gpu_kit measure "$$KIT"
else
	@$(RUN_PY) -m tests.benchmarks.trainer_step --shards $(BENCH_SHARDS)
	@KERAS_BACKEND=jax $(RUN_PY) -m tests.benchmarks.trainer_step --shards $(BENCH_SHARDS)
endif

bench-gpu-kit: bench-shards ## Pack what bench-gpu needs on a GPU machine without internet, in KIT
	@$(RUN_PY) -m tests.benchmarks.gpu_kit pack $(call arg,KIT) --shards $(BENCH_SHARDS)

bench-shards: $(VENV)/.pipeline $(BENCH_SAMPLE)
	@$(VENV)/bin/python -m beam_pipeline $(BENCH_INPUT) --labels=$(BENCH_FOLDER)/labels.csv \
	  --output $(BENCH_SHARDS) --examples_per_shard 32 --max_reject_fraction 0.2

lint: $(VENV)/.lint ## Check style and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

clean: ## Remove the virtual environment and what the sample commands made
	@test ! -e $(VENV) || test -f $(VENV)/pyvenv.cfg || { echo "VENV=$(VENV) is no virtual environment" >&2; exit 2; }
	rm -rf $(VENV) out

# setuptools' egg-info goes to VENV, too: a clone may be read-only.
# TensorFlow for NVIDIA GPUs brings its CUDA libraries along; where there is no GPU, the build
# without them takes 0.6 GB less. The two are one package: what VENV has stays.
GPU        = $(shell command -v nvidia-smi 2>/dev/null)
TENSORFLOW = $(if $(GPU),cuda,$(if $(wildcard $(VENV)/lib/python*/site-packages/tensorflow-[0-9]*),trainer,cpu))
$(VENV)/.trainer: EXTRAS = [$(TENSORFLOW)]
$(VENV)/.jax: EXTRAS = [$(if $(GPU),trainer$(comma)jax-cuda,$(TENSORFLOW)$(comma)jax)]
$(VENV)/.gcp: EXTRAS = [gcp]
$(VENV)/.onnx: EXTRAS = [$(TENSORFLOW),onnx]
$(VENV)/.lint: EXTRAS = [lint]
$(VENV)/.test-pipeline: EXTRAS = [test-pipeline]
$(VENV)/.dev: EXTRAS = [$(TENSORFLOW),dev]
$(VENV)/.mutants: EXTRAS = [$(TENSORFLOW),dev,mutants]
ENVIRONMENTS = pipeline gcp onnx trainer jax lint test-pipeline dev mutants
$(ENVIRONMENTS:%=$(VENV)/.%): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for '$(@F:.%=%)' (once) ..."
	@test -x $(VENV)/bin/python || "$$PYTHON" -m venv $(VENV)
	@printf '[egg_info]\negg_base = %s\n' "$$(cd $(VENV) && pwd)" > $(VENV)/setup.cfg
	@DIST_EXTRA_CONFIG=$(VENV)/setup.cfg $(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e ".$(EXTRAS)"
	@touch $@
