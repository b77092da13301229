# The only list of commands: README and .ci/run call these.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run setup image image-r toolchain agent build check test test-python test-clients test-images conformance clients chaos bench soak

export CARGO_TARGET_DIR ?= $(CURDIR)/target
# In CI the lock file is the law; elsewhere cargo may add a dependency that somebody has just written down.
LOCKED := $(if $(CI),--locked)
TRIPLE := x86_64-unknown-linux-gnu
# Named outright for tests and benchmarks: a `cargo test` of the workspace puts a dynamically linked agent beside the server's binary.
AGENT := $(CARGO_TARGET_DIR)/$(TRIPLE)/agent/greenroom-agent
SCRIPTS := $(wildcard scripts/*) sandbox-images/python/pin integration/curl/examples .ci/run

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: setup build ## set this host up where it is not, build, and serve MCP on http://127.0.0.1:8484/mcp
	@exec "$(CARGO_TARGET_DIR)/release/greenroom" serve

setup: ## a Docker engine, a current runsc, the base image and the Python image: each only if it is missing
	@scripts/docker-engine ensure
	@scripts/runsc ensure
	@$(MAKE) --no-print-directory image

image: ## the base image and the Python image, again if their inputs changed
	@scripts/base-image
	@scripts/python-image

image-r: image ## the image with R: on request, nothing else needs it
	@scripts/r-image

toolchain:
	@command -v cargo >/dev/null || { echo "make: there is no Rust — install it with rustup (rustup.rs), then type: make $(MAKECMDGOALS)" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "make: there is no C linker for Rust — type: apt-get install build-essential" >&2; exit 1; }

# Linked statically, since it goes into any image, whatever C library that has. Through the environment, which would
# otherwise win over --config where somebody has set RUSTFLAGS.
agent: toolchain ## the static agent that goes into every sandbox, laid beside the server
	RUSTFLAGS="$${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build $(LOCKED) -p greenroom-agent --bin greenroom-agent --profile agent --target $(TRIPLE)
	@install -D -m 0755 "$(AGENT)" "$(CARGO_TARGET_DIR)/release/greenroom-agent"
	@install -D -m 0755 "$(AGENT)" "$(CARGO_TARGET_DIR)/debug/greenroom-agent"

build: toolchain agent ## the server, in release
	cargo build $(LOCKED) --release -p greenroom --bin greenroom

check: toolchain ## formatting, lints, documentation, shell scripts: what must be clean before a push
	cargo fmt --all --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --workspace --no-deps --document-private-items
	for script in $(SCRIPTS); do bash -n "$$script"; done
	! command -v shellcheck >/dev/null || shellcheck -x $(SCRIPTS)

# For the kernels' tests; those of the sandboxes use the image's.
test-python:
	@scripts/test-python

# Real MCP clients and the official conformance suite, for the tests that put them in front of the server.
test-clients:
	@scripts/test-clients

# Images of others, for the tests that run them.
test-images: setup
	@scripts/test-images

test: setup agent test-python test-clients test-images ## every test of every level, on real Docker and real gVisor
	cargo build $(LOCKED) -p greenroom --bin greenroom
	GREENROOM_AGENT="$(AGENT)" cargo test $(LOCKED) --workspace --no-fail-fast

conformance: setup agent test-clients ## the official conformance suite, on 2025-11-25 and 2026-07-28
	cargo build $(LOCKED) -p greenroom --bin greenroom
	GREENROOM_AGENT="$(AGENT)" cargo test $(LOCKED) -p greenroom-integration --test conformance -- --nocapture

clients: setup agent test-clients ## real MCP clients in Python and TypeScript, each telling the same story, timed
	cargo build $(LOCKED) -p greenroom --bin greenroom
	GREENROOM_AGENT="$(AGENT)" cargo test $(LOCKED) -p greenroom-integration --test clients -- --nocapture

bench: setup build ## the README's numbers, as a table and as JSON (options: BENCH="…")
	GREENROOM_AGENT="$(AGENT)" cargo run $(LOCKED) --release -p greenroom-integration --bin greenroom-bench -- $(BENCH)

chaos: setup agent ## servers, sandboxes and an engine broken by a seeded schedule (CHAOS_SEED, CHAOS_SECONDS)
	cargo build $(LOCKED) -p greenroom --bin greenroom
	GREENROOM_AGENT="$(AGENT)" CHAOS_SEED="$${CHAOS_SEED:-0}" cargo test $(LOCKED) -p greenroom-integration --test chaos -- --nocapture

soak: setup build ## the long loops: repetitions of the lifecycle tests, and what the suite ignores for its length
	for round in $$(seq 100); do cargo test $(LOCKED) --quiet -p greenroom --tests; done
	PROPTEST_CASES=50000 cargo test $(LOCKED) -p greenroom --test fuzz_edges
	GREENROOM_AGENT="$(AGENT)" cargo test $(LOCKED) --release -p greenroom-integration -- --ignored --nocapture
	GREENROOM_AGENT="$(AGENT)" CHAOS_SEED="$${CHAOS_SEED:-0}" CHAOS_SECONDS="$${CHAOS_SECONDS:-3600}" cargo test $(LOCKED) --release -p greenroom-integration --test chaos -- --nocapture
