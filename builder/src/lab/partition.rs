//! Cutting the network between nodes: frames are dropped on the bridge, so ARP and every protocol above go too.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::config::Options;
use crate::tool::{Cmd, table};

/// Which nodes cannot reach which.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    /// `(from, to)`, by index.
    cut: BTreeSet<(usize, usize)>,
    names: Vec<String>,
}

impl Partitions {
    /// Drops frames from one node to another, and back unless `one_way`.
    pub(super) fn cut(&mut self, options: &Options, from: &str, to: &str, one_way: bool) -> anyhow::Result<()> {
        let (from, to) = (options.slot(from)?.0, options.slot(to)?.0);
        self.cut.insert((from, to));
        if !one_way {
            self.cut.insert((to, from));
        }
        self.apply(options)
    }

    /// Undoes what was cut between two nodes, or everything.
    pub(super) fn heal(&mut self, options: &Options, between: Option<(&str, &str)>) -> anyhow::Result<()> {
        match between {
            None => self.cut.clear(),
            Some((a, b)) => {
                let (a, b) = (options.slot(a)?.0, options.slot(b)?.0);
                self.cut.remove(&(a, b));
                self.cut.remove(&(b, a));
            }
        }
        self.apply(options)
    }

    /// The pairs by name.
    pub(super) fn pairs(&self) -> Vec<(String, String)> {
        self.cut.iter().map(|(from, to)| (self.names[*from].clone(), self.names[*to].clone())).collect()
    }

    fn apply(&mut self, options: &Options) -> anyhow::Result<()> {
        self.names = options.nodes.iter().map(|node| node.slot.clone()).collect();
        let ports = (0..options.nodes.len()).map(|index| options.bridge_port(index)).collect::<Vec<_>>();
        Cmd::new(&table::NFT).args(["-f", "-"]).stdin_bytes(ruleset(&self.cut, &ports)).run()
    }
}

/// The whole table, replaced at once: declaring it first makes deleting it always possible.
fn ruleset(cut: &BTreeSet<(usize, usize)>, ports: &[String]) -> String {
    let mut rules = String::new();
    for (from, to) in cut {
        let _ = writeln!(rules, "    iifname \"{}\" oifname \"{}\" drop", ports[*from], ports[*to]);
    }
    format!(
        "table bridge pgkiln\ndelete table bridge pgkiln\ntable bridge pgkiln {{\n  chain forward {{\n    \
         type filter hook forward priority 0; policy accept;\n{rules}  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cut_direction_is_dropped() {
        let text = ruleset(&BTreeSet::from([(0, 1)]), &["vb-a-1".into(), "vb-a-2".into()]);
        assert!(text.contains("    iifname \"vb-a-1\" oifname \"vb-a-2\" drop\n"), "{text}");
        assert_eq!(text.matches("drop").count(), 1);
        assert!(text.starts_with("table bridge pgkiln\ndelete table bridge pgkiln\n"), "{text}");
    }
}
