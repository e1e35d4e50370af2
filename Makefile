# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. `make demo` and `make test` do all their own set-up.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

export PATH := $(CURDIR)/node_modules/.bin:$(PATH):/usr/sbin:/sbin

CLANG      ?= clang
LLVM_STRIP ?= llvm-strip
BPF_CFLAGS := -target bpf -mcpu=v3 -O2 -g -Wall -Werror -I/usr/include/$(shell uname -m)-linux-gnu -Ibpf

BPF_SOURCES  := $(wildcard bpf/*.bpf.c)
BPF_HEADERS  := $(wildcard bpf/*.h)
BPF_OBJECTS  := $(BPF_SOURCES:bpf/%.bpf.c=dist/bpf/%.bpf.o)
# Programs that only tests and benchmarks load; they are not shipped.
TEST_SOURCES := $(shell find test -name '*.bpf.c' 2>/dev/null)
TEST_OBJECTS := $(TEST_SOURCES:%.bpf.c=build/%.bpf.o)
# Folders too: they change when a source goes.
TS_SOURCES   := $(shell find src -name '*.ts' -o -type d)
C_SOURCES    := $(BPF_SOURCES) $(BPF_HEADERS) $(TEST_SOURCES)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is missing: apt packages, Node.js packages
	@scripts/setup.sh

.PHONY: build
build: $(BPF_OBJECTS) dist/.built ## Build the BPF objects and the command into dist/

dist/bpf/%.bpf.o: bpf/%.bpf.c $(BPF_HEADERS) Makefile
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@
	$(LLVM_STRIP) -g $@

build/test/%.bpf.o: test/%.bpf.c $(BPF_HEADERS) Makefile
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@
	$(LLVM_STRIP) -g $@

# tsc leaves behind what it made of a source that has gone, so dist/ is emptied of modules first.
dist/.built: $(TS_SOURCES) scripts/manual.mjs scripts/completion.bash tsconfig.json tsconfig.build.json package.json | node_modules/.package-lock.json
	@mkdir -p dist
	@find dist -path dist/bpf -prune -o -type f -name '*.js' -print | while read -r file; do \
		source="src/$${file#dist/}"; [ -e "$${source%.js}.ts" ] || rm "$$file"; done
	tsc -p tsconfig.build.json
	chmod +x dist/cli/main.js
	node scripts/manual.mjs
	@touch $@

node_modules/.package-lock.json:
	@scripts/setup.sh modules

.PHONY: build-tests
build-tests: build $(TEST_OBJECTS) build/test/matrix/tun-relay

build/test/matrix/tun-relay: test/matrix/tun-relay.c Makefile
	@mkdir -p $(@D)
	cc -O2 -Wall -Werror $< -o $@

.PHONY: lint
lint: | node_modules/.package-lock.json ## Check style, layering and types
	biome check --error-on-warnings
	clang-format --dry-run -Werror $(C_SOURCES)
	tsc -p tsconfig.json

.PHONY: format
format: | node_modules/.package-lock.json ## Rewrite the sources in the house style
	biome check --write
	clang-format -i $(C_SOURCES)

.PHONY: verify
verify: | node_modules/.package-lock.json ## Check what is generated or must agree: layout, lock file, docs
	node scripts/layout.mjs --check
	node scripts/lockfile.mjs check
	vitest run --project unit test/unit/docs.test.ts test/unit/configDocs.test.ts

.PHONY: docs
docs: | node_modules/.package-lock.json ## Write the documents that are generated
	vitest run --project unit test/unit/docs.test.ts -t docs/reasons.md --update --reporter=default
	vitest run --project unit test/unit/configDocs.test.ts -t docs/config --update --reporter=default

build/scripts/demo.js: scripts/demo.ts scripts/tsconfig.json $(wildcard test/support/*.ts) $(TS_SOURCES)
	tsc -p scripts/tsconfig.json
	@touch $@

.PHONY: demo
demo: ## Set up, build, and show lasthop at work in network namespaces
	@scripts/setup.sh
	@$(MAKE) build build/scripts/demo.js
	@scripts/as-root.sh scripts/preflight.sh
	@scripts/as-root.sh node build/scripts/demo.js

.PHONY: test
test: ## Set up, build, and run every test
	@rm -f build/test-totals
	@scripts/setup.sh
	@$(MAKE) build-tests
	@scripts/as-root.sh scripts/preflight.sh
	@mkdir -p node_modules/.vite-temp # not by root, or vitest could not write there without root any longer
	@scripts/as-root.sh vitest run --no-cache $(TESTS)

# Of the tests in guests: `default` is what `make test` runs of them, `full` takes hours.
LANE ?= default

.PHONY: test-vm-kernel
test-vm-kernel: ## Set up, build, and run the tests on other kernels only, in guests; LANE=full for more of them
	@rm -f build/test-totals
	@scripts/setup.sh
	@$(MAKE) build-tests
	@scripts/as-root.sh scripts/preflight.sh
	@mkdir -p node_modules/.vite-temp
	@LASTHOP_VM_LANE=$(LANE) scripts/as-root.sh vitest run --no-cache --project vm $(TESTS)

.PHONY: test-matrix
test-matrix: ## Set up, build, and play every pair of routing interfaces, here and in guests; writes docs/matrix.md
	@scripts/setup.sh
	@$(MAKE) build-tests
	@scripts/as-root.sh scripts/preflight.sh
	@scripts/as-root.sh node test/matrix/run.mjs --out build/matrix/here.json
	@LASTHOP_VM_LANE=full LASTHOP_VM_TESTS=test/matrix/product.matrix.ts scripts/as-root.sh vitest run --no-cache --project vm
	@node test/matrix/run.mjs --document docs/matrix.md build/matrix/here.json build/vm/last-6.12/matrix-*.json build/vm/last-6.1/matrix-*.json

.PHONY: bench
bench: ## Set up, build, and measure; writes build/bench.json
	@scripts/setup.sh
	@$(MAKE) build-tests
	@scripts/as-root.sh scripts/preflight.sh
	@scripts/as-root.sh node test/bench/run.mjs

# Minutes that the soak takes.
MINUTES ?= 10

.PHONY: soak
soak: ## Set up, build, and churn interfaces, devices and flows for MINUTES (10); then check what must hold
	@scripts/setup.sh
	@$(MAKE) build-tests
	@scripts/as-root.sh scripts/preflight.sh
	@scripts/as-root.sh node test/soak/run.mjs --minutes $(MINUTES)

.PHONY: install
install: build ## Install into PREFIX (/usr/local), below DESTDIR; the unit, and an example configuration
	@scripts/install.sh install

.PHONY: uninstall
uninstall: ## Remove what `make install` installed
	@scripts/install.sh uninstall

.PHONY: ffi-napi
ffi-napi: ## Install the optional second FFI backend (LASTHOP_FFI=ffi-napi)
	@scripts/setup.sh ffi-napi

.PHONY: clean
clean: ## Remove what was built
	rm -rf dist build
