# A menu. Longer work is in scripts/.

# `sudo make` and bare shells often lack rustup's directory; last, so that a
# cargo that is found already stays the one in use.
export PATH := $(PATH):$(HOME)/.cargo/bin

# For install and uninstall; the defaults are in scripts/install.sh. NAME counts
# only on make's command line: some systems have it in the environment.
NAME := nbd
export DESTDIR PREFIX prefix PLUGINDIR plugindir MANDIR mandir BINDIR bindir NAME

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PAGES := plugin plugin-examples

.PHONY: help deps build run check check-nbdkit check-bare check-compat check-packages lint bench
.PHONY: check-long check-valgrind bench-micro bench-instructions torture soak fuzz man html dist deb rpm
.PHONY: install uninstall clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

deps: ## install what building, running and testing need (Debian)
	@scripts/deps.sh build run test lint

build: ## build the plugin and nbdkit-nbdctl: target/release/libnbdkit_nbd_plugin.so
	@scripts/deps.sh build
	scripts/cargo.sh build --release --locked

run: ## try it: a server, the plugin before it, a verified copy (ONCE=1, UPSTREAM=SOCKET)
	@scripts/deps.sh build run
	@scripts/run.sh

check: deps ## run all tests, then lint (JOBS=)
	@scripts/check.sh
	@$(MAKE) --no-print-directory lint

check-nbdkit: ## run nbdkit's own tests of its plugin (NBDKIT_SRC=DIR, PLUGIN=FILE)
	@scripts/deps.sh build run nbdkit
	@scripts/check-nbdkit.sh

check-compat: ## try binary and packages in Debian 12, 13, unstable (root; PLUGIN=, DEBS=, COMPAT_DIR=)
	@scripts/deps.sh build compat
	@scripts/check-compat.sh

check-bare: ## type `make run ONCE=1` and `make check` in bare systems (root; hours; BARE_SUITES=)
	@scripts/deps.sh compat
	@scripts/check-bare.sh

bench: ## measure beside the C plugin (QUICK=1, ONLY=, ROUNDS=, SECS=, OURS=A.so,B.so)
	@scripts/deps.sh build bench
	@scripts/bench.sh

check-packages: ## make and try the release and its packages (root; minutes)
	@scripts/deps.sh build run dist deb rpm compat
	@scripts/check-packages.sh

check-long: ## the tests with more of all that is drawn or counted, and torture and soak (two hours; KILLS=, MINUTES=)
	@scripts/deps.sh build run test
	@scripts/check-long.sh

torture: ## random writers, and fio, before servers that are killed (KILLS=300, TORTURE_SEED=)
	@scripts/deps.sh build test
	@scripts/torture.sh

soak: ## clients of all kinds before servers that are killed, for long (MINUTES=20)
	@scripts/deps.sh build test
	SOAK=$$(($(or $(MINUTES),20) * 60)) cargo test --locked --test soak -- --nocapture --test-threads=3

fuzz: ## fuzz URIs, handshake, replies, connection, journal (SECONDS=60 each, TARGETS=)
	@scripts/deps.sh build
	SECONDS_EACH=$(or $(SECONDS),60) TARGETS="$(TARGETS)" scripts/fuzz.sh

check-valgrind: build ## a smoke test under valgrind: no error, no leak (PLUGIN=)
	@scripts/deps.sh build test
	@scripts/check-valgrind.sh

lint: ## rustfmt, clippy, rustdoc, manual, citations, units, scripts, licences of all crates
	@scripts/deps.sh build lint
	@scripts/lint.sh

bench-micro: ## micro benchmarks of the pure parts
	@scripts/deps.sh build
	scripts/cargo.sh bench --locked --bench micro

bench-instructions: ## instructions per request against the stored ones (STRICT=1: 3 %; UPDATE=1)
	@scripts/deps.sh build test
	scripts/cargo.sh bench --locked --bench instructions

man: ## make the manual: target/nbdkit-nbd-plugin.1, two more beside it
	@scripts/deps.sh lint
	@mkdir -p "$(TARGET_DIR)"
	set -e; for page in $(PAGES); do scripts/man.sh nbd "$(TARGET_DIR)/nbdkit-nbd-$$page.1" $$page; done
	scripts/man.sh nbd "$(TARGET_DIR)/nbdkit-nbdctl.1" nbdctl

html: ## make the manual for browsers: target/html/nbdkit-nbd-plugin.html
	@scripts/deps.sh lint
	@mkdir -p "$(TARGET_DIR)/html"
	set -e; for page in $(PAGES); do scripts/man.sh nbd "$(TARGET_DIR)/html/nbdkit-nbd-$$page.html" $$page; done
	scripts/man.sh nbd "$(TARGET_DIR)/html/nbdkit-nbdctl.html" nbdctl

dist: ## make the source release, with all crates and a list of them: target/dist
	@scripts/deps.sh build dist
	@scripts/dist.sh

deb: ## make Debian packages of it: target/deb
	@scripts/deps.sh build dist deb
	@scripts/deb.sh

rpm: ## make RPM packages of it: target/rpm
	@scripts/deps.sh build dist rpm
	@scripts/rpm.sh

install: ## install what `make build` built (NAME=nbd, DESTDIR=, PREFIX=, PLUGINDIR=, MANDIR=, BINDIR=)
	@scripts/install.sh install

uninstall: ## remove it again, with the same variables
	@scripts/install.sh uninstall

clean: ## remove everything that was built
	cargo clean
