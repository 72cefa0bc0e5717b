# Everything a user or a developer types. Each target does its own set-up.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
BENCH := $(CARGO) run --release --quiet --package simloop-benchmarks --bin bench --

.PHONY: help libtorch libero build bench smoke test doctor fmt lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

libtorch: ## install libtorch 2.11.0 into .simloop/ (at once when it is there; an exported LIBTORCH is respected)
	@scripts/libtorch.sh

libero: ## install the pinned LIBERO stack into .simloop/libero, then say where its assets are looked for
	@scripts/apt-gl.sh || true
	@scripts/libero.sh

build: libtorch ## build every program, optimised
	$(CARGO) build --release --workspace --bins

bench: build ## the scripted expert on PushT, 100 episodes, with report and videos in outputs/
	$(BENCH) pusht --policy scripted --episodes 100 $(ARGS)

smoke: build ## train everything that learns for a moment and ask whether it learned: about a minute on 2 cores
	$(BENCH) smoke $(ARGS)

test: ## everything that can be tested on this machine
	@scripts/test.sh

doctor: libtorch ## what is installed, what is wrong, and the line that fixes it
	@$(BENCH) doctor

fmt: ## format the sources
	$(CARGO) fmt --all

lint: libtorch ## formatting, clippy and rustdoc, warnings as errors
	@scripts/test.sh lint

clean: ## delete build products and results; .simloop/ (installed software) stays
	rm -rf target outputs
