# Every command sets up what it needs in .venv, from the versions in constraints.txt.

PYTHON ?= python3
VENV   := .venv
RUN_PY := $(VENV)/bin/python

# Without INPUT the synthetic sample is made and used.
SAMPLE  := out/sample
RUNNER  ?= local
OUTPUT  ?= out/shards
SHARDS  ?= out/shards
RUN     ?= out/run
BACKEND ?= tensorflow

ifeq ($(origin INPUT),undefined)
  INPUT  := $(SAMPLE)/slices
  LABELS := $(SAMPLE)/labels.csv
  NEEDS_SAMPLE := sample
else ifneq ($(filter $(SAMPLE)/%,$(INPUT)),)
  NEEDS_SAMPLE := sample
endif

# The sample's shards, which their manifest tells from others, can be trained on any machine, offline
# and within minutes; real ones get the trainer's own defaults. MODEL, EPOCHS and the other variables
# win over the file, and so do flags in ARGS; a --config in ARGS takes its place.
SAMPLE_CONFIG = $(if $(shell grep -s '"input": ".*$(SAMPLE)/slices"' "$(SHARDS)/manifest.json"),examples/sample.toml)
SAY_CONFIG    = $(if $(SAMPLE_CONFIG),echo "$(SHARDS) holds the sample: training by $(SAMPLE_CONFIG).",:)

# Google's libraries are for Dataflow alone.
ifneq ($(filter dataflow dataflowrunner,$(shell echo "$(RUNNER)" | tr A-Z a-z)),)
  PIPELINE := $(VENV)/.gcp
else
  PIPELINE := $(VENV)/.pipeline
endif
RUNNER_FLAGS = $(if $(PROJECT),--project "$(PROJECT)") $(if $(REGION),--region "$(REGION)") \
  $(if $(TEMP),--temp_location "$(TEMP)") $(if $(IMAGE),--sdk_container_image "$(IMAGE)") \
  $(if $(JOB_ENDPOINT),--job_endpoint "$(JOB_ENDPOINT)") \
  $(if $(FLINK_MASTER),--flink_master "$(FLINK_MASTER)") \
  $(if $(SPARK_MASTER),--spark_master_url "$(SPARK_MASTER)") \
  $(if $(PRISM),--prism_location "$(PRISM)")

ifneq ($(filter-out tensorflow jax,$(BACKEND)),)
  $(error BACKEND=$(BACKEND): want tensorflow or jax)
endif
ifeq ($(BACKEND),jax)
  TRAINER := $(VENV)/.jax
  BACKEND_FLAGS := --backend jax
else
  TRAINER := $(VENV)/.trainer
endif

PREPROCESS_FLAGS = --input "$(INPUT)" $(if $(LABELS),--labels "$(LABELS)") --output "$(OUTPUT)" \
  --runner "$(RUNNER)" $(RUNNER_FLAGS) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)
TRAIN_FLAGS = --shards "$(SHARDS)" --run "$(RUN)" \
  $(if $(SAMPLE_CONFIG),--config $(SAMPLE_CONFIG)) $(if $(MODEL),--model $(MODEL)) \
  $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(EPOCHS),--epochs $(EPOCHS)) \
  $(if $(BATCH),--batch_size $(BATCH)) $(if $(IMAGE_SIZE),--image_size $(IMAGE_SIZE)) \
  $(BACKEND_FLAGS) $(ARGS)

# A mistyped variable would otherwise be ignored without a word.
VARIABLES := PYTHON ICH_REAL_DATA SAMPLE ARGS INPUT LABELS OUTPUT WORKERS RUNNER PROJECT REGION TEMP IMAGE \
  JOB_ENDPOINT FLINK_MASTER SPARK_MASTER PRISM SHARDS RUN FOLD MODEL WEIGHTS EPOCHS BATCH IMAGE_SIZE \
  BACKEND SUBMISSION EXPORT MODULE RUNS COMPARE
GIVEN     := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
MISTYPED  := $(firstword $(filter-out $(VARIABLES),$(GIVEN)))
ifneq ($(MISTYPED),)
  CLOSE := $(shell $(PYTHON) -c "import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1))" $(MISTYPED) $(VARIABLES))
  $(error $(MISTYPED)= is no variable of this Makefile$(if $(CLOSE), (did you mean $(CLOSE)=?)); 'make help' lists them)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help preprocess sample verify card train evaluate predict crossval report compare export demo bench bench-preprocess bench-planning bench-buckets bench-engines bench-costs bench-archives bench-reading bench-train bench-gpu bench-shards \
        test test-all test-engines coverage mutants lint clean

help: ## List the commands
	@echo "Commands (make NAME VARIABLE=value ...):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "Variables:"
	@echo "  preprocess    INPUT LABELS OUTPUT WORKERS ARGS"
	@echo "                RUNNER, and of other runners than 'local': PROJECT REGION TEMP IMAGE"
	@echo "                JOB_ENDPOINT FLINK_MASTER SPARK_MASTER PRISM"
	@echo "  verify, card  SHARDS ARGS"
	@echo "  train         SHARDS RUN FOLD MODEL WEIGHTS EPOCHS BATCH IMAGE_SIZE BACKEND ARGS"
	@echo "  evaluate      RUN BACKEND ARGS"
	@echo "  predict       RUN SHARDS SUBMISSION BACKEND ARGS"
	@echo "  crossval      as train, without FOLD"
	@echo "  report        RUN BACKEND ARGS"
	@echo "  compare       RUNS COMPARE ARGS"
	@echo "  export        RUN EXPORT ARGS"
	@echo "ARGS passes any other option on; ARGS=--help lists them."

preprocess: $(PIPELINE) $(NEEDS_SAMPLE) ## DICOM files to a shard directory (without INPUT: the sample)
	@$(RUN_PY) -m beam_pipeline $(PREPROCESS_FLAGS)

sample: $(VENV)/.pipeline ## Make the synthetic head-CT sample
	@echo "Using the synthetic sample in $(SAMPLE)."
	@$(RUN_PY) -m examples.sample --output $(SAMPLE)

verify: $(PIPELINE) ## Read a shard directory back and check all of it (ARGS="--source INPUT": pixels too)
	@$(RUN_PY) -m beam_pipeline.verify --shards "$(SHARDS)" $(ARGS)

card: $(PIPELINE) ## Make report.html for a shard directory that has none (ARGS="--input INPUT")
	@$(RUN_PY) -m beam_pipeline.card --shards "$(SHARDS)" $(ARGS)

train: $(TRAINER) ## Train on a shard directory; the same RUN resumes where it stopped
	@$(SAY_CONFIG)
	@$(RUN_PY) -m trainer train $(if $(FOLD),--fold $(FOLD)) $(TRAIN_FLAGS)

evaluate: $(TRAINER) ## Evaluate a run on its validation fold
	@$(RUN_PY) -m trainer evaluate --run "$(RUN)" $(BACKEND_FLAGS) $(ARGS)

SUBMISSION ?= $(RUN)/submission.csv
predict: $(TRAINER) ## Write a Kaggle submission for the test split of SHARDS
	@$(RUN_PY) -m trainer predict --run "$(RUN)" --shards "$(SHARDS)" --output "$(SUBMISSION)" $(BACKEND_FLAGS) $(ARGS)

crossval: $(TRAINER) ## Train once for each fold, and measure all slices out of fold
	@$(SAY_CONFIG)
	@$(RUN_PY) -m trainer crossval $(TRAIN_FLAGS)

report: $(TRAINER) ## Write a page with a run's curves, figures and worst mistakes
	@$(RUN_PY) -m trainer report --run "$(RUN)" $(BACKEND_FLAGS) $(ARGS)

COMPARE ?= out/compare.html
compare: $(TRAINER) ## Write a page that sets runs side by side (RUNS="out/a out/b"; COMPARE=page)
	@$(RUN_PY) -m trainer compare --runs $(RUNS) --output "$(COMPARE)" $(ARGS)

EXPORT ?= $(RUN)/export
export: $(VENV)/.onnx ## Write a run's model as .keras, SavedModel and ONNX
	@$(RUN_PY) -m trainer export --run "$(RUN)" --output "$(EXPORT)" $(ARGS)

demo: ## The whole line on the sample: preprocess, train, evaluate, predict
	@$(MAKE) --no-print-directory preprocess
	@$(MAKE) --no-print-directory train
	@$(MAKE) --no-print-directory evaluate
	@$(MAKE) --no-print-directory preprocess INPUT=$(SAMPLE)/test_slices OUTPUT=out/test-shards
	@$(MAKE) --no-print-directory predict SHARDS=out/test-shards

test: $(VENV)/.dev ## Run the tests (ICH_REAL_DATA names a folder of real data, if there is one)
	@$(RUN_PY) -m pytest --ignore tests/engines -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-all: $(VENV)/.dev ## Run all tests in their full number, those on Beam's runners too (an hour)
	@$(RUN_PY) -m pytest --full --ignore tests/engines -n auto --maxprocesses 8 --dist worksteal $(ARGS)
	@$(RUN_PY) -m pytest --full tests/engines $(ARGS)

coverage: $(VENV)/.dev ## Run the tests and print what lines and branches of both packages they reach
	@$(RUN_PY) -m pytest --ignore tests/engines -n auto --maxprocesses 8 --dist worksteal \
	  --cov --cov-report=term:skip-covered $(ARGS)

test-engines: $(VENV)/.dev ## Run the tests on Beam's runners, as far as they can be had here
	@$(RUN_PY) -m pytest tests/engines $(ARGS)

mutants: $(VENV)/.mutants ## Change pure modules a token at a time: which changes does no test notice?
	@$(RUN_PY) -m tests.mutants $(if $(MODULE),--module $(MODULE)) $(ARGS)

# Real slices where there are some, the sample's otherwise.
BENCH_INPUT  = $(if $(ICH_REAL_DATA),$(ICH_REAL_DATA)/rsna/slices,$(SAMPLE)/slices)
BENCH_LABELS = $(if $(ICH_REAL_DATA),$(ICH_REAL_DATA)/rsna/labels.csv,$(SAMPLE)/labels.csv)
BENCH_SHARDS = out/bench-$(if $(ICH_REAL_DATA),real,sample)-shards
bench: bench-preprocess bench-train ## Measure preprocessing and the trainer's input against their peers

bench-preprocess: $(VENV)/.trainer $(if $(ICH_REAL_DATA),,sample)
	@$(RUN_PY) -m tests.benchmarks.preprocess --input "$(BENCH_INPUT)" $(ARGS)

bench-planning: $(VENV)/.trainer
	@$(RUN_PY) -m tests.benchmarks.planning $(ARGS)

bench-buckets: $(VENV)/.dev $(if $(ICH_REAL_DATA),,sample)
	@$(RUN_PY) -m tests.benchmarks.buckets --input "$(BENCH_INPUT)" $(ARGS)

bench-engines: $(VENV)/.dev $(if $(ICH_REAL_DATA),,sample)
	@$(RUN_PY) -m tests.benchmarks.engines --input "$(BENCH_INPUT)" $(if $(PRISM),--prism "$(PRISM)") $(ARGS)

bench-costs: $(VENV)/.dev
	@$(RUN_PY) -m tests.benchmarks.costs $(ARGS)

bench-archives: $(VENV)/.pipeline $(if $(ICH_REAL_DATA),,sample)
	@$(RUN_PY) -m tests.benchmarks.archives --input "$(BENCH_INPUT)" $(ARGS)

bench-reading: $(VENV)/.pipeline $(if $(ICH_REAL_DATA),,sample)
	@$(RUN_PY) -m tests.benchmarks.random_access --input "$(BENCH_INPUT)" $(ARGS)

bench-train: $(VENV)/.trainer bench-shards
	@$(RUN_PY) -m tests.benchmarks.trainer_input --shards $(BENCH_SHARDS) --dicom "$(BENCH_INPUT)" $(ARGS)

bench-gpu: $(VENV)/.trainer $(VENV)/.jax bench-shards ## Measure training steps on this machine's GPU, with each backend there is
	@$(RUN_PY) -m tests.benchmarks.trainer_step --shards $(BENCH_SHARDS) $(ARGS)
	@KERAS_BACKEND=jax $(RUN_PY) -m tests.benchmarks.trainer_step --shards $(BENCH_SHARDS) $(ARGS)

bench-shards: $(VENV)/.pipeline $(if $(ICH_REAL_DATA),,sample)
	@$(RUN_PY) -m beam_pipeline --input "$(BENCH_INPUT)" --labels "$(BENCH_LABELS)" \
	  --output $(BENCH_SHARDS) --examples_per_shard 32 --max_reject_fraction 0.2

lint: $(VENV)/.dev ## Check style and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

clean: ## Remove the virtual environment and what the sample commands made
	rm -rf $(VENV) out

# The trainer's wheel for NVIDIA GPUs brings its CUDA libraries along.
$(VENV)/.trainer: EXTRAS = [$(if $(shell command -v nvidia-smi 2>/dev/null),cuda,trainer)]
$(VENV)/.jax: EXTRAS = [trainer,$(if $(shell command -v nvidia-smi 2>/dev/null),jax-cuda,jax)]
$(VENV)/.gcp: EXTRAS = [gcp]
$(VENV)/.onnx: EXTRAS = [trainer,onnx]
$(VENV)/.dev: EXTRAS = [trainer,dev]
$(VENV)/.mutants: EXTRAS = [trainer,dev,mutants]
$(VENV)/.pipeline $(VENV)/.gcp $(VENV)/.onnx $(VENV)/.trainer $(VENV)/.jax $(VENV)/.dev $(VENV)/.mutants: setup.py constraints.txt
	@echo "Setting up $(VENV) for '$(@F:.%=%)' (once) ..."
	@test -x $(RUN_PY) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e ".$(EXTRAS)"
	@touch $@
