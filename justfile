# Lists the recipes.
default:
    @just --list

# What CI runs.
check: fmt lint doc deny test

# Formatting, unchanged files.
fmt:
    cargo fmt --all --check

# Lints without warnings.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Documentation without warnings.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace

# Licences, sources and advisories of dependencies, where cargo-deny is installed.
deny:
    @if command -v cargo-deny >/dev/null; then cargo deny check; else echo "SKIPPED: cargo-deny is not installed"; fi

# Every test, doctests included.
test:
    cargo test --workspace

# Writes deploy/REFERENCE.md from the flags and metrics, and lowers the figures of tests/tidy.allow.
reference:
    SMG_UPDATE=1 cargo test --test tidy

# Cost of one request's metrics.
metrics-cost:
    cargo test --release --lib cost_of_one_request -- --nocapture

# Real processes under faults in network namespaces, with a table; needs root. `just namespaces loss` for a part.
namespaces *scenario:
    tests/namespaces/run {{scenario}}
