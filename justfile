# Shortcuts for https://just.systems. Each recipe runs what its name says; `tests/run --help` has the details.

set positional-arguments

# List the recipes.
default:
    @just --list --unsorted

# Run every check, as continuous integration does.
test:
    tests/run

# Run the checks that need no test: format, lints, dependencies, links, scripts, spelling.
lint:
    tests/run --only fmt --only clippy --only deny --only doc --only shell --only python --only typos

# Format the Rust and the Python.
fmt:
    cargo fmt --all
    eval "$(tests/run --env --only python)" && "$WHARFAGE_TEST_PYTHON" -m ruff format --no-cache

# Run Rust tests; `just rust names::` runs those whose name contains `names::`.
rust *ARGUMENTS:
    tests/run --only rust "$@"

# Run the tests with real clients; arguments go to pytest.
clients *ARGUMENTS:
    tests/run --only clients "$@"

# Run the operator's tests on a real API server; arguments go to pytest.
operator *ARGUMENTS:
    tests/run --only operator "$@"

# Run the tests on a cluster with a real node (Linux, root); arguments go to pytest.
node *ARGUMENTS:
    tests/run --only node "$@"

# Compare the registry with CNCF distribution; arguments go to bench/run.
bench *ARGUMENTS:
    bench/run "$@"

# Start the quickstart's registry from a debug build; arguments go to `wharfage up`.
up *ARGUMENTS:
    cargo run -- up deploy/quickstart "$@"

# Build the documentation of the code and check its links.
doc:
    tests/run --only doc
