# make, make install, make installcheck: as with any PGXS extension (PG_CONFIG=... picks the server).
#
# These do all their own set-up, on servers of their own:
#   make demo [ROWS=1150000] [KEEP=1]      the extension at work on a large table
#   make test [TESTS="regress tap:001*"]   all tests; TESTS picks some, as kind or kind:name
#   make test-all                          all tests, on every server version that can be had here
#   make test-pristine                     that demo and test do their own set-up, on a Debian that nobody has prepared
#   make bench                             the measured numbers
#   make check-static                      both compilers without a warning, cppcheck, formatting

EXTENSION = bgw_backfill
MODULE_big = bgw_backfill
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = $(wildcard sql/bgw_backfill--*.sql)

# PostgreSQL's own headers and callbacks are full of unused parameters.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter

REGRESS := $(sort $(basename $(notdir $(wildcard test/sql/*.sql))))
REGRESS_OPTS = --inputdir=test --outputdir=test/out/regress
ISOLATION := $(sort $(basename $(notdir $(wildcard test/specs/*.spec))))
ISOLATION_OPTS = --inputdir=test --outputdir=test/out/isolation
REGRESS_PREP = test/out
PROVE_TESTS := $(sort $(wildcard test/t/*.pl))
TAP_TESTS := $(if $(PROVE_TESTS),1)
EXTRA_CLEAN = test/out test/node_modules tmp_check

# No bitcode: nothing here is worth inlining, and it needs the very clang PostgreSQL was built with.
override with_llvm = no

.DEFAULT_GOAL := all

PG_CONFIG ?= pg_config
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null))

HEADER := $(wildcard $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)/postgres.h)

ifneq ($(and $(PGXS),$(HEADER)),)
include $(PGXS)
PROVE_FLAGS += -I test/t
$(OBJS): $(wildcard src/*.h)
test/out:
	mkdir $@
else
all install installcheck clean:
	@echo "$(PG_CONFIG) finds no PGXS or no postgres.h: install the PostgreSQL server headers or set PG_CONFIG" >&2
	@false
endif

# For the targets below: what is missing is installed, then make is started anew to find it.
.PHONY: demo test test-all test-pristine bench check-static ready-demo ready-test ready-bench
ready-demo ready-test ready-bench: ready-%:
	test/setup $*
	$(MAKE) --no-print-directory all

demo: ready-demo
	test/demo

test: ready-test
	test/run

test-all:
	test/run-all

test-pristine:
	test/pristine

bench: ready-bench
	test/bench/run

check-static:
	test/setup static
	test/static
