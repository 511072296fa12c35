# Every target sets up what it needs, says so in a line, and starts at once the next time.
# Debian packages are installed by root only; anybody else is told which.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

DEMO_PACKAGES := tgt qemu-utils qemu-block-extra
GUEST_PACKAGES := user-mode-linux mmdebstrap e2fsprogs
TEST_PACKAGES = $(DEMO_PACKAGES) $(GUEST_PACKAGES) libiscsi-bin groff-base zsh fish openssh-client
DEB_PACKAGES := build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools \
    python3-argcomplete
STORY_PACKAGES = $(DEB_PACKAGES) $(GUEST_PACKAGES) lintian zsh fish
BENCH_PACKAGES = $(GUEST_PACKAGES) qemu-system-x86
AGENT := tests/guest/inside/agent
CHECKED := volattachd demo docgen tests bench


.PHONY: help demo test test-agent test-package soak mutants bench lint format docs docs-check guest-test guest-shell deb clean
.PHONY: demo-packages test-packages story-packages bench-packages deb-packages suite-packages python-packages
.NOTPARALLEL:

help:
	@echo "make demo           one volume through the six calls, with a real initiator"
	@echo "make test           lint, generated documents, the tests (ARGS='-k words' for some of them)"
	@echo "make test-agent     the agent on hosts with a real initiator, in guests"
	@echo "make test-package   build the Debian packages, install and use them under a real systemd"
	@echo "make soak           the long versions of the fault, power and model tests: hours (ARGS='--parts 8 --only 3')"
	@echo "make mutants        change the code of the named modules line by line: do the tests notice? (ARGS=service.transition)"
	@echo "make bench          volattachd beside its peers in a guest: docs/performance (ARGS='--sizes 0,100' for less)"
	@echo "make lint           ruff and mypy"
	@echo "make format         ruff mends what it can"
	@echo "make docs           write the generated documents again"
	@echo "make guest-test     one test in a guest with a kernel of its own: T=path::name"
	@echo "make guest-shell    a shell in such a guest"
	@echo "make deb            the Debian packages, into dist/debian (SUITE=trixie for another release: dist/trixie)"
	@echo "make clean          remove what the others made here"

demo: demo-packages $(READY)
	@$(RUN) -m demo

test: test-packages lint docs-check
	@echo "==> pytest"
	@$(RUN) -m pytest --durations=5 --ignore=$(AGENT) --ignore=tests/package $(ARGS)

test-agent: test-packages $(READY)
	@echo "==> pytest: the agent in guests"
	@$(RUN) -m pytest $(AGENT) --durations=5 $(ARGS)

test-package: story-packages $(READY)
	@echo "==> pytest: the packages are built, installed and used in a guest with systemd"
	@$(RUN) -m pytest tests/package --durations=5 $(ARGS)

soak: test-packages $(READY)
	@echo "==> pytest, the long way: a part on each processor"
	@$(RUN) -m tests.soak $(ARGS)

mutants: $(READY)
	@echo "==> mutants: every small change of a named module, each with the tests that execute it"
	@$(RUN) -m tests.mutation $(ARGS)

bench: bench-packages $(VENV)/.bench-ready
	@echo "==> bench: two guests, the measurements, docs/performance"
	@$(RUN) -m bench $(ARGS)

lint: $(READY)
	@echo "==> ruff and mypy"
	@$(RUN) -m ruff check --quiet $(CHECKED) packaging
	@$(RUN) -m ruff format --quiet --check $(CHECKED) packaging
	@$(RUN) -m mypy --strict $(CHECKED)

format: $(READY)
	@$(RUN) -m ruff check --fix $(CHECKED) packaging
	@$(RUN) -m ruff format $(CHECKED) packaging

docs: $(READY)
	@$(RUN) -m docgen.reference
	@$(RUN) -m docgen

docs-check: $(READY)
	@echo "==> generated documents"
	@$(RUN) -m docgen.reference --check
	@$(RUN) -m docgen --check

guest-test: test-packages $(READY)
	@test -n "$(T)" || { echo "say which: make guest-test T=tests/guest/inside/test_calls.py::NAME" >&2; exit 2; }
	@$(RUN) -m pytest $(T)

guest-shell: test-packages $(READY)
	@$(RUN) -m tests.guest.harness shell

DEBS := dist/$(or $(SUITE),debian)

deb: deb-packages $(if $(SUITE),suite-packages) $(READY)
	@PYTHON=$(abspath $(RUN)) packaging/build-deb$(if $(SUITE),-in $(SUITE)) $(abspath $(DEBS))
	@ls $(DEBS)/*.deb

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than pyproject.toml: the environment has what that asks for.
$(READY): pyproject.toml | python-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "volattachd needs Python 3.10 or newer; $(PYTHON) is older or missing: make PYTHON=python3.11" >&2; exit 1; }
	@echo "==> virtual environment $(VENV): the project with its test tools"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[test]'
	@touch $@

$(VENV)/.bench-ready: $(READY)
	@echo "==> what the plots are drawn with"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[bench]'
	@touch $@

# Debian's python3 makes virtual environments only with python3-venv; others bring ensurepip along.
PYTHON_PACKAGES = $(if $(wildcard $(READY)),,$(if $(shell command -v $(PYTHON)),\
    $(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null || echo python3-venv),python3 python3-venv))

# $(call install,PACKAGES): install those that are missing; apt's own words are shown only where it fails.
define install
	@missing=; \
	for package in $(1); do \
	    dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; \
	done; \
	test -n "$$missing" || exit 0; \
	command -v apt-get >/dev/null || { echo "this host is no Debian: install what Debian calls$$missing" >&2; exit 1; }; \
	test "$$(id -u)" = 0 || { echo "as root: apt-get install --no-install-recommends$$missing" >&2; exit 1; }; \
	echo "==> apt-get install$$missing"; \
	log=$$(mktemp); \
	{ apt-get update && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; } </dev/null >$$log 2>&1 \
	    || { tail -n 30 $$log >&2; rm -f $$log; exit 1; }; \
	rm -f $$log
endef

demo-packages:
	$(call install,$(PYTHON_PACKAGES) $(DEMO_PACKAGES))

test-packages:
	$(call install,$(PYTHON_PACKAGES) $(TEST_PACKAGES))

story-packages:
	$(call install,$(PYTHON_PACKAGES) $(STORY_PACKAGES))

bench-packages:
	$(call install,$(PYTHON_PACKAGES) $(BENCH_PACKAGES))

deb-packages:
	$(call install,$(PYTHON_PACKAGES) $(DEB_PACKAGES))

suite-packages:
	$(call install,mmdebstrap)

python-packages:
	$(call install,$(PYTHON_PACKAGES))
