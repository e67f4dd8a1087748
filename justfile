# The daily entry points. `just` lists them; each is a line or two, everything longer is Rust in `tests/`.

# What the README promises: bake, three nodes, kill the leader, read everything back.
demo *args:
    cargo demo {{args}}

# Everything CI runs, in the same order.
ci:
    bash .ci/run

# All tests (unit, golden, property, black-box, end-to-end; the last need root).
test *args:
    cargo selftest {{args}}

# Formatting and lints only.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Accept changed golden files after reading the difference.
bless:
    INSTA_UPDATE=always cargo test --workspace --lib --bins
