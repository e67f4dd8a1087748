//! The agent killed while it makes a node, at points spread over its first run; all points with `torture crash`.

use pgkiln_tests::crash::Sweep;

fn sweep(nodes: usize, points: usize) -> anyhow::Result<()> {
    let sweep = Sweep::measure(nodes)?;
    eprintln!("{} events in a first run of {nodes} nodes", sweep.events.len());
    for number in sweep.sample(points) {
        let outcome = sweep.point(number)?;
        let at = outcome.killed_at.map_or("the end".to_owned(), |event| event.to_string());
        eprintln!("killed at {number} ({at}): healthy {:.1}s after the second start", outcome.seconds);
    }
    Ok(())
}

#[test]
fn a_killed_agent_continues_where_it_was() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    sweep(1, 6).unwrap_or_else(|error| panic!("{error:#}"));
    sweep(3, 2).unwrap_or_else(|error| panic!("{error:#}"));
}
