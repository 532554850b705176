# What one does with a checkout of distft; `make` alone lists it. Only Python 3.10 to 3.13 has to be there:
# the first target that needs it makes .venv and installs the pinned versions of constraints.txt.

PYTHON :=
PORT := 8000
ARGS :=
# Two files of tests at a time, each lane with a Ray of its own: half of a run is waiting. LANES= runs them in turn.
LANES := -n 2 --dist loadfile

JOB := jobs/quickstart.yaml
RUN := runs/quickstart
BIN := .venv/bin
STAMP := .venv/.installed

# Where Python is looked for, and what ends with 0 for one that can make .venv (Debian packs ensurepip apart).
CANDIDATES := $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11 python3.10)
SUITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

.DEFAULT_GOAL := help
.PHONY: help run serve test proof check lint format k8s sbom clean again

help:
	@echo 'make run      a small job on a made-up shop, from event logs to one answer of the service'
	@echo 'make serve    the service of that job on port $(PORT) until Ctrl-C (PORT=...)'
	@echo 'make test     unit and integration tests, below 10 minutes (ARGS="-k name" for some of them)'
	@echo 'make proof    slow proofs: kills, many ranks, a browser; below 50 minutes (ARGS=...)'
	@echo 'make check    lint, format and types, without changing anything'
	@echo 'make format   format the code and mend what lint can mend'
	@echo 'make k8s      write the Kubernetes objects of the shipped jobs into k8s/ (after a change of either)'
	@echo 'make sbom     list what an installation holds, as CycloneDX: sbom.json'
	@echo 'make clean    remove .venv, caches and runs/quickstart'

run: $(STAMP)
	$(BIN)/distft run $(JOB)
	$(BIN)/distft serve $(RUN)/bundle --probe

serve: $(STAMP)
	@test -f $(RUN)/bundle/manifest.json || { echo 'There is no bundle yet: running $(JOB) first.'; \
		$(BIN)/distft run $(JOB); }
	$(BIN)/distft serve $(RUN)/bundle --port $(PORT) --no-auth

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not proof' $(LANES) $(ARGS)

proof: $(STAMP)
	$(BIN)/python -m pytest -m proof $(LANES) $(ARGS)

check: lint
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

lint: $(STAMP)
	$(BIN)/python -m ruff check .

format: $(STAMP)
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

k8s: $(STAMP)
	@for job in jobs/*.yaml; do $(BIN)/distft k8s render "$$job" --in-image "/app/$$job" --suspended > "k8s/base/$$job"; done
	@{ sed '/^resources:/q' k8s/base/jobs/kustomization.yaml; ls jobs | sed 's/^/  - /'; } > k8s/base/jobs/.new
	@mv k8s/base/jobs/.new k8s/base/jobs/kustomization.yaml
	$(BIN)/distft k8s render $(JOB) --kind service --suspended > k8s/base/service.yaml
	$(BIN)/distft k8s render jobs/nightly.yaml --kind cron --schedule '0 2 * * *' --in-image /app/jobs/nightly.yaml > k8s/overlays/alpha/nightly.yaml

# In an environment of its own: what lists an installation must not be part of it.
sbom: $(STAMP)
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(BIN)/python -m venv "$$dir" && \
		"$$dir/bin/pip" install --disable-pip-version-check -q -c constraints.txt cyclonedx-bom && \
		"$$dir/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json $(BIN)/python
	@echo 'sbom.json'

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis $(RUN)

# The stamp is written when an installation is complete, and names the folder it was made for: a changed pin, an
# interrupted installation and a checkout that was copied or moved are all installed again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(shell pwd -P))
$(STAMP): again
endif
again:

$(STAMP): pyproject.toml constraints.txt
	@rm -f $(STAMP)
	@$(BIN)/python -c '$(SUITS)' 2>/dev/null || { \
		for python in $(CANDIDATES) none; do "$$python" -c '$(SUITS)' 2>/dev/null && break; done; \
		if test "$$python" = none; then \
			echo 'distft needs Python 3.10, 3.11, 3.12 or 3.13 with its venv module, and found none as' \
				$(CANDIDATES)'. Install one (on Debian: apt install python3 python3-venv),' \
				'or name it: make PYTHON=/path/to/python3' >&2; \
			exit 1; \
		fi; \
		"$$python" -m venv --clear .venv; }
	@echo 'Installing distft and the versions of constraints.txt into .venv: this takes minutes and a few GB.'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,excel,mlflow]'
	@pwd -P > $(STAMP)
