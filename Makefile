# joey: `make demo` shows a pod in a microVM, `make test` runs every test.
# Both install what they need (Debian 12, root) and cache what takes long outside
# the checkout, under JOEY_CACHE (default ~/.cache/joey).

FUZZ_SECONDS ?= 60
FAULT_SEED ?= 1
FAULT_FIRST ?= 1
FAULT_ROUNDS ?= 500
SOAK_PODS ?= 1000
DENSITY_PODS ?= 200
# Bounds of make density, in MiB of each sandbox.
DENSITY_SANDBOX_MIB ?= 12
DENSITY_PROCESSES_MIB ?= 5
GUEST_TARGET := x86_64-unknown-linux-gnu
# Built by `build` already: the test host need not do it again.
export JOEY_PARTS := $(CURDIR)/target/joey
TESTHOST := cargo run --quiet --release -p integration --bin testhost --

.PHONY: demo test matrix bench budget rate density critest differential conformance faults soak fuzz shell install clean build deps check

demo: build
	$(TESTHOST) demo

# The end-to-end suite runs with one combination of containerd and its ways, but for its
# bulk, and in brief with the others; `make matrix` runs the whole with each.
test: build
	scripts/test.sh all

matrix: build
	scripts/test.sh matrix

bench: build
	cargo build --release -p integration --bin bench
	$(TESTHOST) bench
	cp target/bench/sandbox_start.svg docs/

# A short bench, held against integration/perf/budget.toml; `make test` has it too.
budget: build
	cargo build --release -p integration --bin bench
	$(TESTHOST) budget

# The host's busy time for each sandbox of 1, 10 and 50 that start and end at once.
rate: build
	cargo build --release -p integration --bin bench
	$(TESTHOST) rate

# Many idle sandboxes at once, and what each takes of the host's memory.
density: build
	cargo build --release -p integration --bin density
	$(TESTHOST) density --pods $(DENSITY_PODS) --max-sandbox-mib $(DENSITY_SANDBOX_MIB) \
		--max-processes-mib $(DENSITY_PROCESSES_MIB)

# Kills what pods hang on at random moments, and looks for what that leaves.
faults: build
	cargo build --release -p integration --bin faults
	$(TESTHOST) faults --seed $(FAULT_SEED) --first $(FAULT_FIRST) --rounds $(FAULT_ROUNDS)

# Makes and removes many pods, ten at a time: nothing may grow.
soak: build
	cargo build --release -p integration --bin soak
	$(TESTHOST) soak --pods $(SOAK_PODS)

# The CRI's conformance tests, with runc and with joey (about an hour where the test
# host is emulated). CRITEST_FOCUS and CRITEST_HANDLERS choose less.
critest: build
	$(TESTHOST) critest

# The OCI's validation suite, with runc and with joey's OCI runtime.
# CONFORMANCE_FOCUS (names of its programs, with commas) and CONFORMANCE_HANDLERS choose
# less.
conformance: build
	$(TESTHOST) conformance

# The same OCI specs and commands under runc and under joey's command line.
# DIFFERENTIAL_CASE chooses those whose names have a text.
differential: build
	$(TESTHOST) differential $(if $(DIFFERENTIAL_CASE),--case $(DIFFERENTIAL_CASE))

fuzz: deps
	scripts/fuzz.sh $(FUZZ_SECONDS)

shell: build
	$(TESTHOST) shell

# Host binaries, the agent's archive and the guest kernel, in target/joey.
build: deps
	scripts/build.sh

deps:
	@scripts/deps.sh

# What a change must pass beside the tests.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets

install: build
	scripts/install.sh

clean:
	cargo clean
