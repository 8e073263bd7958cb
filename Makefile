# A menu. Longer work is in scripts/.

# `sudo make` and bare shells often lack rustup's directory; last, so that a
# cargo that is found already stays the one in use.
export PATH := $(PATH):$(HOME)/.cargo/bin

# For install and uninstall; the defaults are in scripts/install.sh. NAME counts
# only on make's command line: some systems have it in the environment.
NAME := nbd
export DESTDIR PREFIX prefix PLUGINDIR plugindir MANDIR mandir NAME

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PAGES := plugin plugin-examples

.PHONY: help deps build run check check-nbdkit check-compat lint bench bench-micro
.PHONY: bench-instructions man html install uninstall clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

deps: ## install what building, running and testing need (Debian)
	@scripts/deps.sh build run test lint

build: ## build the plugin: target/release/libnbdkit_nbd_plugin.so
	@scripts/deps.sh build
	cargo build --release --locked

run: ## try it: a server, the plugin before it, a verified copy (ONCE=1, UPSTREAM=SOCKET)
	@scripts/deps.sh build run
	@scripts/run.sh

check: deps ## run all tests, then lint
	@scripts/check.sh
	@$(MAKE) --no-print-directory lint

check-nbdkit: ## run nbdkit's own tests of its plugin (NBDKIT_SRC=DIR, PLUGIN=FILE)
	@scripts/deps.sh build run nbdkit
	@scripts/check-nbdkit.sh

check-compat: ## try the binary in Debian 12, 13 and unstable (root; PLUGIN=, COMPAT_DIR=)
	@scripts/deps.sh build compat
	@scripts/check-compat.sh

bench: ## measure beside the C plugin (QUICK=1, ONLY=, ROUNDS=, SECS=, OURS=A.so,B.so)
	@scripts/deps.sh build bench
	@scripts/bench.sh

lint: ## rustfmt, clippy, rustdoc, manual, citations, units, scripts
	@scripts/deps.sh build lint
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	podchecker *.pod
	systemd-analyze verify --man=no contrib/systemd/*
	scripts/spec.sh
	set -e; for script in scripts/*.sh .ci/run; do bash -n $$script; done

bench-micro: ## micro benchmarks of the pure parts
	@scripts/deps.sh build
	cargo bench --locked --bench micro

bench-instructions: ## instructions per request against the stored ones (STRICT=1: 3 %; UPDATE=1)
	@scripts/deps.sh build test
	cargo bench --locked --bench instructions

man: ## make the manual: target/nbdkit-nbd-plugin.1, target/nbdkit-nbd-plugin-examples.1
	@scripts/deps.sh lint
	@mkdir -p "$(TARGET_DIR)"
	set -e; for page in $(PAGES); do scripts/man.sh nbd "$(TARGET_DIR)/nbdkit-nbd-$$page.1" $$page; done

html: ## make the manual for browsers: target/html/nbdkit-nbd-plugin.html
	@scripts/deps.sh lint
	@mkdir -p "$(TARGET_DIR)/html"
	set -e; for page in $(PAGES); do scripts/man.sh nbd "$(TARGET_DIR)/html/nbdkit-nbd-$$page.html" $$page; done

install: ## install what `make build` built (NAME=nbd, DESTDIR=, PREFIX=, PLUGINDIR=, MANDIR=)
	@scripts/install.sh install

uninstall: ## remove it again, with the same variables
	@scripts/install.sh uninstall

clean: ## remove everything that was built
	cargo clean
