# SPDX-License-Identifier: GPL-2.0-or-later
# The one entry to everything. `make help` lists the targets.
#
# Variables: JOBS=N (parallel compiles), PREFIX= and DESTDIR= (install), SUITE= (bench),
# QEMU_TARBALL=, LINUX_TARBALL= (source tarballs of QEMU 10.0, Linux 6.12 instead of Debian's),
# FUZZ_SECONDS= (fuzz), TESTS= (arguments for pytest in the parts that it runs),
# RELEASE= (of Debian, for deb and test-deb; this machine's by default),
# KERNEL_CONFIG= (a fragment more, for kernel), DEB_CONFIG= (a .config, for kernel-deb),
# FORCE=1 (qemu-tree, linux-tree).

PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 600
SUITE ?=
RELEASE ?=
TESTS ?=
PYTHON := /usr/bin/python3
PYTEST := $(PYTHON) -B -m pytest -o cache_dir=$(CURDIR)/build/pytest
export JOBS FUZZ_SECONDS KERNEL_CONFIG DEB_CONFIG

# Parts depend on each other through build/; each part is parallel inside.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := all

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^## /{print "\n" substr($$0, 4)} \
	    /^[a-z][a-z0-9-]*:.*## /{printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Build

.PHONY: all deps lib memserver write-meter qemu-tree qemu-refresh qemu qemu-stock
all: lib memserver qemu write-meter ## library, memory server, QEMU, its plugin (the default)

deps: ## install the Debian packages that are missing (root or sudo)
	@scripts/deps.sh

lib: deps ## libkintsugi, and build/cmake/kintsugi.pc for QEMU's meson
	@scripts/cmake-build.sh cmake kintsugi
	@scripts/kintsugi-pc.sh build/cmake

memserver: deps ## the memory server and everything else of CMake's
	@scripts/cmake-build.sh cmake

write-meter: deps qemu-tree ## a plugin for QEMU that measures writes to memory: build/cmake/tools
	@scripts/cmake-build.sh cmake write_meter

qemu-tree: deps ## make or update build/qemu: upstream, our series, our overlay
	@scripts/source_tree.py tree $(if $(FORCE),--force)

qemu-refresh: deps ## write what was edited in build/qemu back to qemu/
	@scripts/source_tree.py refresh

qemu: lib qemu-tree ## build/qemu-build/qemu-system-x86_64
	@scripts/qemu-build.sh

qemu-stock: lib ## the same QEMU without our changes, as rival for the benchmarks
	@scripts/source_tree.py stock
	@scripts/qemu-build.sh stock

.PHONY: linux-tree linux-refresh linux-prefixes kernel kernel-debug kernel-deb selftests
linux-tree: deps ## make or update build/linux: upstream and our series
	@scripts/source_tree.py tree --project linux $(if $(FORCE),--force)

linux-refresh: deps ## write what was committed in build/linux back to linux-patches/
	@scripts/source_tree.py refresh --project linux

linux-prefixes: linux-tree ## build the kernel after each patch of the series
	@scripts/linux-prefixes.py

kernel: linux-tree ## build/kernel/bzImage, the kernel of the emulated hosts
	@scripts/kernel-build.sh

kernel-debug: linux-tree ## the same with KASAN, lockdep and the like: build/kernel-debug
	@scripts/kernel-build.sh debug

kernel-deb: linux-tree ## Debian packages for real hosts, of defconfig with linux-patches/config
	@scripts/kernel-deb.sh

selftests: kernel ## the kernel's selftests named in tests/hosts/selftests.txt
	@scripts/selftests-build.py

## Test

.PHONY: check check-asan check-tsan fuzz-smoke fuzz test-house test-model test-e2e test-hosts
.PHONY: test-guest test-qemu test-hosts-debug test-kernel-deb test test-long
check: deps ## unit tests: no root, no network, under two minutes
	@scripts/check.sh cmake

check-asan: deps ## unit tests under ASan and UBSan
	@scripts/check.sh asan

check-tsan: deps ## unit tests under TSan
	@scripts/check.sh tsan

fuzz-smoke: deps ## a bounded run of the fuzz targets
	@scripts/fuzz.sh smoke

fuzz: deps ## a longer run: FUZZ_SECONDS=600 for each target
	@scripts/fuzz.sh long

test-house: deps ## tests of the build machinery itself
	@mkdir -p build/results
	@$(PYTEST) -q tests/house --junitxml=build/results/test-house.xml $(TESTS)

test-model: deps ## the protocol's model, searched by spin: under two minutes
	@mkdir -p build/results
	@$(PYTEST) -q -n 2 tests/model -m "not long" --junitxml=build/results/test-model.xml $(TESTS)

test-e2e: all ## end-to-end tests with real guests; TESTS="-k name" picks
	@mkdir -p build/results
	@$(PYTEST) -v -n 2 tests/e2e -m "not long" --junitxml=build/results/test-e2e.xml $(TESTS)

test-guest: all ## a whole Debian guest under load, split; root the first time; 17 minutes
	@mkdir -p build/results
	@$(PYTEST) -v tests/debian -m "not long" --junitxml=build/results/test-guest.xml $(TESTS)

test-qemu: lib qemu-tree ## QEMU's own tests: migration, QMP, HMP, objects; what fails, on stock too
	@mkdir -p build/results
	@scripts/qemu-build.sh tests
	@$(PYTEST) -v -n 2 tests/qemu --junitxml=build/results/test-qemu.xml $(TESTS)

test-hosts: all kernel selftests ## emulated hosts, and the kernel's selftests in them
	@mkdir -p build/results
	@$(PYTEST) -v -n 2 tests/hosts -m "not long" --junitxml=build/results/test-hosts.xml $(TESTS)

test-hosts-debug: all kernel-debug selftests ## the same on the kernel that checks itself
	@mkdir -p build/results
	@KINTSUGI_HOST_KERNEL=build/kernel-debug/bzImage $(PYTEST) -v -n 2 tests/hosts \
	    --junitxml=build/results/test-hosts-debug.xml $(TESTS)

test-kernel-deb: all kernel-deb selftests ## that what kernel-deb packs boots and works
	@$(PYTEST) -v tests/hosts/kernel_deb.py --junitxml=build/results/test-kernel-deb.xml $(TESTS)

test: deps ## everything; the last line is "N passed, N failed, N skipped"
	@scripts/test-all

test-long: all kernel selftests ## what takes too long for test: the whole model, tests marked long
	@mkdir -p build/results
	@$(PYTEST) -v -n 2 tests/model tests/e2e tests/hosts -m long \
	    --junitxml=build/results/test-long.xml $(TESTS)

## Demo and benchmarks

.PHONY: demo demo-tiering bench bench-check
demo: all ## split a running VM over three hosts, live, and check every byte
	@scripts/demo

demo-tiering: all kernel ## pages of an emulated hybrid memory move, live: P4's figures 5 and 6
	@scripts/demo-tiering

bench: all qemu-stock kernel ## all benchmarks, or SUITE=paging|migration|placement|kernel|tiering
	@scripts/bench $(if $(SUITE),--suite $(SUITE))

bench-check: ## name each figure of build/bench/results.json that misses its goal
	@scripts/bench-check

## Style

.PHONY: lint format tidy
lint: lib qemu-tree linux-tree ## clang-format, clang-tidy, both checkpatches, shellcheck
	@scripts/lint.py

format: deps ## lay out the C++ with clang-format
	@scripts/lint.py --format

tidy: ## what no other linter sees: long lines, orphan files, dead links
	@scripts/tidy.py

## Install and clean

.PHONY: install deb test-deb clean distclean
# What is installed is built, but no tests.
install: lib qemu ## QEMU with the suffix -kintsugi, memory server, units, rule: PREFIX=, DESTDIR=
	@scripts/cmake-build.sh cmake memserver
	@DESTDIR="$(DESTDIR)" scripts/install.sh "$(PREFIX)"

# Of another release in a root of it, where `make deb` runs; the tests' guest is built here.
ifeq ($(RELEASE),)
deb: lib qemu ## Debian packages, build/deb/*.deb; RELEASE=trixie: for that release
	@scripts/cmake-build.sh cmake memserver
	@scripts/deb.sh
else
deb: deps
	@scripts/debian_root.py "$(RELEASE)" sh scripts/run deb
endif

test-deb: deb ## the packages installed, used and purged in clean roots; RELEASE=, as for deb
	@mkdir -p build/results
	@scripts/deps.sh deb
	@KINTSUGI_RELEASE=$(RELEASE) $(PYTEST) -v tests/deb \
	    --junitxml=build/results/test-deb$(if $(RELEASE),-$(RELEASE)).xml $(TESTS)

clean: ## remove what was built, keep build/qemu and build/linux
	@if [ -d build ]; then \
	    find build -mindepth 1 -maxdepth 1 ! -name qemu ! -name linux ! -name ".*.lock" \
	        -exec rm -rf {} +; fi

distclean: ## remove build/; refuses while a source tree has edits of yours, unless FORCE=1
	@for name in qemu linux; do \
	    if [ -d build/$$name/.git ] && [ -z "$(FORCE)" ]; then \
	        scripts/source_tree.py status --project $$name || { \
	        echo "[distclean] build/$$name has edits: make $$name-refresh, or FORCE=1" >&2; \
	        exit 1; }; fi; done
	@rm -rf build
