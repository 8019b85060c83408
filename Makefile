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
test: ## every check of a commit: conventions, tests, kernel tests, the demo and the Compose stack once (installs what it needs)
	@$(STEP) 'what the tests need' scripts/deps.sh test
	@$(STEP) 'build bin/' $(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory check
	@$(STEP) 'podwire demo' scripts/as-root bin/podwire demo
	@$(STEP) 'the Compose stack' scripts/compose-run bash -c '$(COMPOSE_DEMO) && scripts/compose-smoke'
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

##@ Compose

COMPOSE_DEMO = scripts/compose exec -T outside podwire demo

.PHONY: images
images: build ## the images of deploy/compose, FROM scratch, one static binary each; nothing is pulled
	@scripts/deps.sh compose
	@scripts/engine start
	scripts/images bin

.PHONY: compose-up
compose-up: images ## bring the stack of deploy/compose up and wait until it is healthy
	scripts/compose up -d --wait
	@echo 'next: scripts/compose exec outside podwire status (deploy/compose/README.md says more)'

.PHONY: compose-down
compose-down: ## take it down, with its data; stop the engine if `make` started it
	scripts/compose down --volumes
	@scripts/engine stop

.PHONY: compose-demo
compose-demo: build ## the demo on the stack: up, the checks from the outside container, down
	@scripts/deps.sh compose
	scripts/compose-run $(COMPOSE_DEMO)

.PHONY: compose-smoke
compose-smoke: build ## the part of `make test` that is about the stack: up, real packets, grpcurl, down
	@scripts/deps.sh compose
	scripts/compose-run scripts/compose-smoke

.PHONY: compose-addr
compose-addr: ## the address of a service's container, for grpcurl from this host: make -s compose-addr S=svcproxy
	@scripts/compose-addr '$(S)'

##@ Other

.PHONY: clean
clean: ## remove bin/
	rm -rf bin

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
