//! Founding with start delays and a partition: three seeds here, more with `torture birth`.

#[test]
fn one_cluster_is_born_whatever_happens_meanwhile() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    for seed in 1..=3 {
        let seconds = pgkiln_tests::birth::run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        eprintln!("seed {seed}: one cluster {seconds:.1}s after the last disturbance");
    }
}
