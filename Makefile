# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. Each prints what it does and how long that took, and
# installs the tools that it lacks (scripts/need.sh); `make check` installs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# sudo's secure_path has no /usr/local/go/bin; a clean environment has no HOME.
GO := $(firstword $(shell command -v go) $(wildcard /usr/local/go/bin/go))
HOME ?= $(shell echo ~)
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/halfopen/tools
GOLANGCI_LINT_VERSION := v2.15.0
export HOME TOOLS GOLANGCI_LINT_VERSION
export PATH := $(TOOLS):$(if $(GO),$(patsubst %/,%,$(dir $(GO))):)$(PATH):$(or $(GOPATH),$(HOME)/go)/bin

# The values that `halfopen version` prints. The date is that of the commit, so that the same
# source gives the same binary.
VERSION = $(or $(strip $(file <VERSION)),$(patsubst v%,%,$(shell git describe --tags --always --dirty 2>/dev/null)),unknown)
REVISION = $(or $(shell git rev-parse --verify -q HEAD 2>/dev/null),unknown)
BRANCH = $(or $(shell git symbolic-ref -q --short HEAD 2>/dev/null),unknown)
DATE = $(shell TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d-%H:%M:%S 2>/dev/null)
LDFLAGS = $(foreach v,Version=$(VERSION) Revision=$(REVISION) Branch=$(BRANCH) BuildDate=$(DATE),-X github.com/prometheus/common/version.$(v))

UNIT = $$(go list ./... | grep -v '/e2e$$')

# $(call step,name): print the banner of a step; $tmp is a directory for this step alone.
define step
printf '\n==> %s\n' '$(1)'; SECONDS=0; tmp=$$(mktemp -d)
trap 'code=$$?; rm -rf "$$tmp"; printf "==> %s: %s, %d s\n" "$(1)" "$$( ((code)) && echo FAILED || echo done)" "$$SECONDS"; exit $$code' EXIT
endef

# $(call format): run gofmt, and fail if a hand-written file has more than 500 lines.
# golangci-lint checks that bound for Go; this checks the other languages.
define format
unformatted=$$("$$(go env GOROOT)/bin/gofmt" -l .)
if [[ -n $$unformatted ]]; then
	printf 'gofmt -w would change: %s\n' $$unformatted >&2
	exit 1
fi
find . -type f -regex '.*\.\([ch]\|js\|css\|html\|sh\|md\)\|.*/Makefile' -not -regex '.*/\(\.git\|bin\|libbpf\|uplot\|testdata\)/.*' \
	-not -path ./docs/metrics.md -exec wc -l {} + |
	awk '$$1 > 500 && $$2 != "total" { print $$2 " has " $$1 " lines, more than 500"; long = 1 } END { exit long }' >&2
endef

# $(call unit-tests,flags): run the unit tests, and write each skipped test with its reason to
# a line of $tmp/skipped.
define unit-tests
if ! go test -v $(1) $(UNIT) >"$$tmp/log" 2>&1; then
	awk '/^FAIL\t/ { print of_package $$0 } /^(ok  |\?   |FAIL)\t/ { of_package = ""; next } !/^ *(===|--- (PASS|SKIP)) / { of_package = of_package $$0 "\n" }' "$$tmp/log" >&2
	exit 1
fi
grep '^ok' "$$tmp/log"
awk '/^=== / { test = $$3 } sub(/^ +[a-z0-9_]+\.go:[0-9]+: /, "") { why[test] = $$0 } /^ *--- SKIP/ { print $$3 ": " why[$$3] }' \
	"$$tmp/log" >"$$tmp/skipped"
endef

# $(call unit-tests-all,flags): run the unit tests, and fail if any is skipped.
define unit-tests-all
$(call unit-tests,-count=1 $(1))
if [[ -s $$tmp/skipped ]]; then
	cat "$$tmp/skipped" >&2
	echo 'a test that does not run is a failure' >&2
	exit 1
fi
endef

# $(call regenerate,flags): run go generate in a copy of this directory, which need not be a
# git checkout, and fail on any difference.
define regenerate
tar --exclude=./.git --exclude=./bin -c . | tar -x -C "$$tmp"
(cd "$$tmp" && go generate $(1) ./...)
if ! diff -rq --exclude=.git --exclude=bin . "$$tmp"; then
	echo 'run make generate and commit the files that it writes' >&2
	exit 1
fi
endef

# $(call beside-machines,targets): make the targets and, at the same time, test-kernels. The
# tests on this kernel mostly wait, so the processors have enough time left for the emulated
# machines, which can be slow. The output of test-kernels follows when both are done. If a
# target before e2e fails, test-kernels is killed; for that it has its own process group.
define beside-machines
set -m
QUICK=1 chrt --idle 0 $(MAKE) --no-print-directory test-kernels </dev/null >bin/test-kernels.log 2>&1 &
set +m
machines=$$!
trap 'kill -- "-$$machines" && wait "$$machines" || true' EXIT
trap 'exit 1' INT TERM
code=0
for target in $(1); do
	$(MAKE) --no-print-directory "$$target" && continue
	[[ $$target == e2e ]] || exit 1
	code=1
done
wait "$$machines" || code=$$?
trap - EXIT
cat bin/test-kernels.log
((code == 0)) || exit "$$code"
endef

# All targets with a help text are names of tasks and not of files.
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: root build ## build, and run the agent on this machine (root; ARGS="--idle-after 1m")
	@printf '\n==> bin/halfopen agent %s (Ctrl-C ends it)\n' '$(ARGS)'
	exec bin/halfopen agent $(ARGS)

build: ## build bin/halfopen; the BPF object is committed, so no clang is needed
	@$(call step,build bin/halfopen)
	scripts/need.sh go ca-certificates
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/halfopen ./cmd/halfopen

generate: ## write the generated files: the BPF object and its Go bindings, dashboards, the metrics reference, the licence notices
	@$(call step,generate)
	scripts/need.sh go ca-certificates clang-19 llvm-19
	go generate ./...

check: ## check a change in two minutes; needs only Go, and no root; skips some tests that make test runs
	@$(call step,check)
	part() { printf '%3d s  %s\n' "$$SECONDS" "$$1"; }
	part 'gofmt, length of files'
	$(call format)
	if command -v clang-format-19 >/dev/null; then
		part clang-format
		clang-format-19 --dry-run --Werror bpf/*.c bpf/*.h
	fi
	part 'go vet'
	go vet ./...
	part 'unit tests'
	$(call unit-tests,-vet=off)
	cut -d : -f 2- "$$tmp/skipped" | sort | uniq -c | sed 's/^ */skipped: /'
	part 'generated files: the BPF object by checksum (gen.go), the others generated again'
	if ! sha256sum --check --strict --quiet bpf/generated.sha256; then
		echo 'run make generate, which needs clang-19, and commit the files that it writes' >&2
		exit 1
	fi
	rm "$$tmp"/*
	$(call regenerate,-skip 'bpf2go|sha256sum')
	if [[ $$(golangci-lint version --short 2>/dev/null) == "$${GOLANGCI_LINT_VERSION#v}" ]]; then
		part golangci-lint
		golangci-lint run ./...
	else
		echo 'golangci-lint is not installed: make lint builds it in some minutes'
	fi

test: root deps build ## run all checks of CI, on this kernel and others (root)
	@$(call beside-machines,check-generate lint race e2e)
	printf '\n==> all passed\n'

all-kernels: root build ## run e2e on this kernel and, at the same time, a part of it on others (root)
	@$(call beside-machines,e2e)

e2e: root build ## run the end-to-end tests on this kernel (root; ARGS="-run TestOwners")
	@$(call step,end-to-end tests on kernel $(shell uname -r))
	scripts/need.sh go ca-certificates iproute2 prometheus tmux prometheus-alertmanager chromium fonts-dejavu-core containerd runc busybox-static
	code=0
	HALFOPEN_BIN='$(CURDIR)/bin/halfopen' go test -count=1 -timeout 30m -parallel 8 -v $(ARGS) ./e2e/... 2>&1 | tee "$$tmp/log" || code=$$?
	count() { grep -c "^ *--- $$1: " "$$tmp/log" || true; }
	printf '%d passed, %d failed, %d skipped\n' "$$(count PASS)" "$$(count FAIL)" "$$(count SKIP)"
	((code == 0)) || exit "$$code"
	if (($$(count PASS) == 0 || $$(count SKIP) > 0)); then
		echo 'a test that does not run is a failure' >&2
		exit 1
	fi

e2e-used: root build ## run e2e while wrk and nginx, fifty network namespaces and a second agent use the machine (root)
	scripts/used-machine.sh $(MAKE) --no-print-directory e2e

SOAK = 10m
soak: FUZZTIME = $(SOAK)
soak: root build fuzz ## run the long tests, 10 min each: fuzz each target; watch healthy connections with packet loss, of which none may be called dead; query all data of an agent with 64 MB and 100,000 sockets; make owners with new hostile names; send hostile requests (root; SOAK=1h)
	@$(call step,healthy connections, an agent with little memory, hostile names and requests, for $(SOAK))
	scripts/need.sh go ca-certificates iproute2
	HALFOPEN_SOAK='$(SOAK)' HALFOPEN_BIN='$(CURDIR)/bin/halfopen' go test -count=1 -timeout 0 -v -run '^Test(HealthyConnectionsAreNeverCalledDead|AgentKeepsToItsMemory|HostileNamesMakeFewSeries|HostileRequests)$$' ./e2e

QEMU = qemu-system-x86 qemu-system-arm busybox-static kmod xz-utils debian-archive-keyring
test-kernels: build ## run the tests on Debian's kernels in virtual machines (KERNELS="5.10 6.1", KERNEL_IMAGE=vmlinuz, QUICK=1)
	@$(call step,end-to-end tests on other kernels)
	scripts/need.sh go ca-certificates iproute2 $(QEMU)
	scripts/test-kernels.sh

lint: check-format ## run go vet and golangci-lint, after gofmt and clang-format
	@$(call step,go vet and golangci-lint)
	scripts/need.sh go ca-certificates golangci-lint
	go vet ./...
	golangci-lint run ./...

FUZZTIME = 10s
fuzz: ## fuzz each target for ten seconds (FUZZTIME=10m); go keeps an input that fails, and make test runs it again
	@$(call step,fuzz targets)
	scripts/need.sh go ca-certificates
	go test -list '^Fuzz' $(UNIT) >"$$tmp/list"
	n=0
	while read -r package target; do
		if ! go test -run '^$$' -fuzz "^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=100x -parallel=2 "$$package" >"$$tmp/log" 2>&1 </dev/null; then
			cat "$$tmp/log" >&2
			exit 1
		fi
		printf '%s: %s\n' "$$target" "$$(grep 'execs: ' "$$tmp/log" | tail -n 1)"
		n=$$((n + 1))
	done < <(awk '/^Fuzz/ { targets[++n] = $$1 } $$1 == "ok" { for (i = 1; i <= n; i++) print $$2, targets[i]; n = 0 }' "$$tmp/list")
	printf '%d targets, %s each\n' "$$n" '$(FUZZTIME)'
	((n > 0))

bench: root build ## measure halfopen against ss and the bare kernel, write docs/benchmarks.md (root; ARGS=-quick for a trial)
	@$(call step,benchmarks)
	scripts/need.sh go ca-certificates iproute2 nginx wrk
	go run ./internal/bench -halfopen bin/halfopen -o docs/benchmarks.md $(ARGS)

screenshots: root build ## take the pictures of the live page in docs/ (root)
	@$(call step,screenshots)
	scripts/need.sh go ca-certificates iproute2 chromium fonts-dejavu-core
	HALFOPEN_SCREENSHOTS='$(CURDIR)/docs' HALFOPEN_BIN='$(CURDIR)/bin/halfopen' go test -count=1 -run '^TestPageIsAccessible$$' ./e2e

clean: ## remove the built files; generated files are committed and stay
	rm -rf bin

root: ## fail if the user is not root
	@$(if $(filter-out 0,$(shell id -u)),$(error this target needs root: sudo make $(MAKECMDGOALS)))

deps: ## install what the tests need (root)
	@$(call step,install what the tests need)
	scripts/need.sh go ca-certificates clang-19 llvm-19 clang-format-19 gcc libc6-dev iproute2 prometheus tmux prometheus-alertmanager chromium fonts-dejavu-core containerd runc golangci-lint \
		$(QEMU)
	go mod download

unit: ## run the unit tests (root)
	@$(call step,unit tests)
	scripts/need.sh go ca-certificates prometheus
	$(call unit-tests-all)

race: ## run the unit tests with the race detector (root)
	@$(call step,unit tests with the race detector)
	scripts/need.sh go ca-certificates gcc libc6-dev prometheus
	export CGO_ENABLED=1
	$(call unit-tests-all,-race)

check-generate: ## generate all files again in a copy, and fail on any difference
	@$(call step,generated files are up to date)
	scripts/need.sh go ca-certificates clang-19 llvm-19
	$(call regenerate)

check-format: ## run gofmt and clang-format, and check the length of files
	@$(call step,gofmt and clang-format)
	scripts/need.sh go clang-format-19
	$(call format)
	clang-format-19 --dry-run --Werror bpf/*.c bpf/*.h
