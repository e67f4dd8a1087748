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

# Tries to break clusters again and again: `just torture birth|chaos --count 50`, `just torture crash|flips|update`. Root, PGKILN_TEST_IMAGE.
torture what *args:
    cargo run --release -p pgkiln-tests --bin torture -- {{what}} {{args}}

# Our bake beside mmdebstrap on the same packages, medians of N interleaved runs. Root.
bench-bake runs="3":
    cargo run --release -p pgkiln-tests --bin bench-bake -- {{runs}}

# Two bakes that share nothing but their inputs, agents included: the same bytes, or which file differs and how. Root; a quarter of an hour.
repro *args:
    cargo run --release -p pgkiln-tests --bin repro -- {{args}}

# `just bench form|failover|gaps|wins`: real clusters, PGKILN_TEST_IMAGE. `just bench disk`: sizes, a bake beside mkosi's, a boot. Root.
bench what *args:
    cargo run --release -p pgkiln-tests --bin bench -- {{what}} {{args}}
