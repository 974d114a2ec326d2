# everlog: every way to build, try, test and measure it. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
# the points where tests kill the binary; the binaries of `make demo` and of a release are built without
FEATURES := $(shell grep -qs '^failpoints *=' cli/Cargo.toml && echo --features everlog-cli/failpoints,everlog-sim/mutants)
ARGS ?=
# a test may end by a panic, and counts things that fit
IN_TESTS := $(addprefix -A clippy::,unwrap_used get_unwrap panic print_stdout print_stderr cast_possible_truncation cast_possible_wrap \
	cast_sign_loss clone_on_ref_ptr disallowed_methods unused_async zombie_processes match_overlapping_arm stable_sort_primitive \
	unchecked_time_subtraction map_unwrap_or too_many_arguments default_trait_access from_iter_instead_of_collect format_collect format_push_string \
	case_sensitive_file_extension_comparisons explicit_counter_loop match_bool large_futures)
PORT ?= 29092

.PHONY: help demo test sim mutants chaos flink engines nightly bench lint fmt docs-check services services-stop

help: ## this list
	@echo "everlog: targets of this Makefile"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

demo: ## the whole story on this machine: archive, kill, replay, handoff, time travel, sessions and their version 2 (ARGS="...")
	@tests/services/setup.sh --build
	@echo "building everlog (the first time takes minutes) ..."
	cargo build --locked -p everlog-cli
	$(TARGET)/debug/everlog demo $(ARGS)

test: ## every test, on real Kafka, S3 and catalog servers (ARGS="-p everlog-common" for a part)
	@tests/services/setup.sh
	@FEATURES="$(FEATURES)" tests/scripts/run_tests.sh $(ARGS)

sim: ## archiver and replayer in simulated worlds (SEED=N: one, with its trace; SEEDS=N FROM=N: many)
	EVERLOG_SIM_SEED=$(SEED) EVERLOG_SIM_SEEDS=$(SEEDS) EVERLOG_SIM_FROM=$(FROM) \
		cargo test --workspace --locked $(FEATURES) --test sim -- --nocapture worlds_of_many_seeds

mutants: ## bugs on purpose, and how many simulated worlds it takes to find each (SEEDS=N: at most so many; MUTANT=NAME,...: only these)
	EVERLOG_SIM_SEEDS=$(SEEDS) EVERLOG_SIM_MUTANT=$(MUTANT) cargo test --workspace --locked $(FEATURES) --test sim -- --nocapture every_planted_bug

chaos: ## real servers and processes under kill -9, hangs, cuts and deletions (MINUTES=5, SEED=N)
	@tests/services/setup.sh
	cargo build --workspace --all-targets --locked $(FEATURES)
	@EVERLOG_BIN_DIR=$(abspath $(TARGET))/debug tests/scripts/run_chaos.sh $(or $(MINUTES),5) $(SEED)

flink: ## jobs against a real Flink, row by row, with records by chance (ROUNDS=10, SEED=N: those of a run again)
	@tests/services/setup.sh
	@EVERLOG_FLINK_ROUNDS=$(or $(ROUNDS),10) EVERLOG_FLINK_SEED=$(SEED) FEATURES="$(FEATURES)" tests/scripts/run_tests.sh -p everlog-tests --test flink

engines: ## docs/engines.md block by block on real Spark, Trino and Flink, beside pyiceberg and DuckDB (ENGINES="pyiceberg duckdb spark"; the first time 1.4 GB)
	@tests/services/setup.sh
	@tests/services/spark.sh fetch >/dev/null
	@tests/services/trino.sh fetch >/dev/null
	@tests/services/flink.sh fetch --iceberg >/dev/null
	@EVERLOG_ENGINES="$(or $(ENGINES),pyiceberg duckdb spark trino flink)" RUST_TEST_THREADS=1 FEATURES="$(FEATURES)" \
		tests/scripts/run_tests.sh -p everlog-tests --test engines

nightly: ## what is too long for `make test`: many simulated worlds, all planted bugs, many rounds against Flink, all engines, five minutes of chaos
	$(MAKE) --no-print-directory sim SEEDS=$(or $(SEEDS),10000)
	$(MAKE) --no-print-directory flink ROUNDS=20
	$(MAKE) --no-print-directory engines
	$(MAKE) --no-print-directory mutants
	$(MAKE) --no-print-directory chaos MINUTES=$(or $(MINUTES),5)

bench: ## archive, replay, job and query rates as ratios, measured on this machine (ARGS="process 5000000 3" for jobs alone, "sql 3000000 2" for queries)
	@tests/services/setup.sh
	cargo build --release --locked --workspace --bins
	@. tests/services/lib.sh && python=$$(py_env) && EVERLOG_PYTHON=$$python/bin/python EVERLOG_BIN=$(abspath $(TARGET))/release/everlog \
		EVERLOG_SERVICES=$(CURDIR)/tests/services $(TARGET)/release/everlog-benches $(ARGS)

lint: ## format, clippy, rustdoc, shell scripts, dependencies, documents: all warnings are errors
	@tests/services/setup.sh --build
	cargo fmt --all --check
	cargo clippy --workspace --lib --bins --locked $(FEATURES) -- -D warnings
	cargo clippy --workspace --tests --examples --locked $(FEATURES) -- -D warnings $(IN_TESTS)
	RUSTDOCFLAGS="-D warnings -A rustdoc::redundant_explicit_links -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked $(FEATURES) --quiet
	@if command -v shellcheck >/dev/null; then echo "shellcheck"; shellcheck -x -P SCRIPTDIR tests/services/*.sh tests/scripts/*.sh .ci/run; \
		else echo "shellcheck is not installed: shell scripts were not checked"; fi
	@if command -v cargo-deny >/dev/null; then echo "cargo deny"; cargo deny --all-features --locked check --hide-inclusion-graph -A duplicate bans licenses sources; \
		else echo "cargo-deny is not installed (cargo install --locked cargo-deny): dependencies were not checked"; fi
	@$(MAKE) --no-print-directory docs-check
	@echo "lint: passed"

fmt: ## format the Rust code
	cargo fmt --all

docs-check: ## links, metric names and alerts in the documents and in deploy/ fit together
	@if command -v python3 >/dev/null; then tests/scripts/check_docs.py && deploy/grafana/make_dashboard.py --check; \
		else echo "python3 is not installed: documents were not checked"; fi

services: ## start Kafka, S3 and a REST catalog to play with, on ports from PORT (29092)
	@tests/services/setup.sh
	@tests/services/playground.sh start target/services $(PORT)

services-stop: ## stop them (what they hold stays in target/services)
	@tests/services/playground.sh stop target/services
