# The two commands of the README are `make demo` and `make test`; each brings what it needs. `make help` lists the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The agent re-executes its own binary inside pods, whose files are not ours: it must not need a libc.
export CGO_ENABLED := 0
# The version is stamped below; VCS stamping fails in checkouts that belong to somebody else.
export GOFLAGS := -buildvcs=false
export GOWORK := off

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
VERSION_VARIABLE := podwire.dev/internal/daemon.version
LDFLAGS := -s -w -X $(VERSION_VARIABLE)=$(VERSION)

TOOL := go tool -modfile=tools/go.mod
STEP := scripts/step
AS_ROOT := $(CURDIR)/scripts/as-root

# Tests that touch the kernel run as root. For another user only the compiled tests do, never the compiler.
GO_TEST := go test -count=1 -timeout 10m $(if $(filter-out 0,$(shell id -u)),-exec $(AS_ROOT))
# End-to-end drills and benchmarks have their own targets.
PACKAGES = $(shell go list ./... 2>/dev/null | grep -Ev '/(test/e2e|bench)(/|$$)')

##@ Everyday

.PHONY: demo
demo: ## show the platform working, with real packets (installs what it needs)
	@$(STEP) 'what the demo needs' scripts/deps.sh demo
	@$(STEP) 'build bin/' $(MAKE) --no-print-directory build
	@$(STEP) 'podwire demo' scripts/as-root bin/podwire demo

.PHONY: test
test: ## every check of a commit: conventions, tests, kernel tests, the demo once (installs what it needs)
	@$(STEP) 'what the tests need' scripts/deps.sh test
	@$(STEP) 'build bin/' $(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory check
	@$(STEP) 'podwire demo' scripts/as-root bin/podwire demo
	@echo; echo 'make test: everything passed'

.PHONY: check
check: lint unit ## conventions and tests, without the demo

.PHONY: build
build: ## bin/: podwire and each service as a binary of its own
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/... ./services/...

.PHONY: unit
unit: ## go test, everything but end-to-end drills
	@test -n '$(PACKAGES)' || { echo 'unit: go list finds no package:' >&2; go list ./...; exit 1; }
	@$(STEP) 'go test' scripts/go-test $(GO_TEST) -p 2 $(PACKAGES)

.PHONY: race
race: ## the tests under the race detector (needs a C compiler); RACE=./internal/push/... narrows it
	CGO_ENABLED=1 $(GO_TEST) -race -p 1 $(or $(RACE),$(PACKAGES))

.PHONY: e2e
e2e: build ## drills with real packets and real processes
	$(GO_TEST) -timeout 30m ./test/e2e/...

.PHONY: bench
bench: ## benchmarks; BENCH=./services/ipam/... narrows them
	$(GO_TEST) -timeout 60m -p 1 -run '^$$' -bench . -benchmem $(or $(BENCH),./...)

##@ Conventions

.PHONY: lint
lint: ## format, linters, contracts, generated code
	@$(STEP) 'build buf' $(TOOL) buf --version
	@$(STEP) 'build golangci-lint' $(TOOL) golangci-lint version
	@$(STEP) 'format' $(MAKE) --no-print-directory format-check
	@$(STEP) 'go vet and linters' $(TOOL) golangci-lint run ./...
	@$(STEP) 'proto: lint' $(TOOL) buf lint
	@$(STEP) 'proto: breaking changes' $(TOOL) buf breaking --against proto/baseline.binpb
	@$(STEP) 'proto: generated code' scripts/proto-drift.sh

.PHONY: format
format: ## rewrite Go and proto sources in their canonical form
	$(TOOL) golangci-lint fmt ./...
	$(TOOL) buf format -w

.PHONY: format-check
format-check:
	@$(TOOL) golangci-lint fmt --diff ./...
	@$(TOOL) buf format --diff --exit-code

##@ Generated files

.PHONY: gen
gen: proto ## everything that is generated
	go generate ./...

.PHONY: proto
proto: ## Go beside each .proto
	$(TOOL) buf lint
	$(TOOL) buf generate

.PHONY: proto-baseline
proto-baseline: ## move what `buf breaking` compares with; say why in the commit
	$(TOOL) buf build --exclude-source-info -o proto/baseline.binpb

# Packages whose goldens rewrite themselves: their tests have the flag -update.
GOLDEN = $(shell grep -rlE --include='*_test.go' 'flag.Bool."update"' . | xargs -r -n1 dirname | sort -u)

.PHONY: golden
golden: ## rewrite golden files; read the diff before you commit it; GOLDEN=./internal/manifest narrows it
	$(GO_TEST) $(GOLDEN) -update
	git --no-pager diff --stat -- '*testdata*'

##@ Other

.PHONY: clean
clean: ## remove bin/
	rm -rf bin

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
