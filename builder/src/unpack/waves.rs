//! In which rounds packages are unpacked, so that every preinst finds its pre-dependencies configured.

use std::collections::{BTreeMap, BTreeSet};

use super::Known;
use super::control::Paragraph;

/// Which packages (by index) provide a name.
struct Providers<'a>(BTreeMap<String, Vec<usize>>, &'a [&'a Paragraph]);

impl<'a> Providers<'a> {
    fn of(packages: &'a [&'a Paragraph]) -> Self {
        let mut table: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, package) in packages.iter().enumerate() {
            let own = std::iter::once(package.get("Package").to_owned());
            for name in own.chain(package.relation("Provides").into_iter().flatten()) {
                table.entry(name).or_default().push(index);
            }
        }
        Self(table, packages)
    }

    /// Everything `start` needs, itself included: the fields of `start`, then all dependencies of what those name.
    fn closure(&self, start: impl IntoIterator<Item = usize>, fields: &[&str]) -> BTreeSet<usize> {
        let mut done = BTreeSet::new();
        let mut todo: Vec<usize> = start.into_iter().collect();
        while let Some(index) = todo.pop() {
            if done.insert(index) {
                let named = fields.iter().flat_map(|field| self.1[index].relation(field)).flatten();
                todo.extend(named.filter_map(|name| self.0.get(&name)).flatten());
            }
        }
        done
    }

    fn direct(&self, index: usize, field: &str) -> BTreeSet<usize> {
        self.1[index]
            .relation(field)
            .into_iter()
            .flatten()
            .filter_map(|name| self.0.get(&name))
            .flatten()
            .copied()
            .collect()
    }
}

/// Splits packages (by index, order kept) into rounds: the base, then those whose pre-dependencies the earlier rounds have.
///
/// `has_preinst` says which ones run something before their files appear; the others need no order.
pub(super) fn waves(packages: &[&Paragraph], has_preinst: &[bool]) -> Vec<Vec<usize>> {
    let providers = Providers::of(packages);
    let essential = packages.iter().enumerate().filter(|(_, package)| package.get("Essential") == "yes");
    // base-passwd and base-files are essential; what the essential ones need must be there for any script to run.
    let base = providers.closure(essential.map(|(index, _)| index), &["Pre-Depends", "Depends"]);
    let mut rounds: Vec<Vec<usize>> = vec![base.iter().copied().collect()];
    let mut placed = base;
    loop {
        let ready: Vec<usize> = (0..packages.len())
            .filter(|index| !placed.contains(index))
            .filter(|index| {
                let before = providers.direct(*index, "Pre-Depends");
                !has_preinst[*index] || before.iter().all(|other| placed.contains(other))
            })
            .collect();
        let all_left: Vec<usize> = (0..packages.len()).filter(|index| !placed.contains(index)).collect();
        if all_left.is_empty() {
            return rounds;
        }
        // A circle of pre-dependencies cannot be ordered; policy forbids it. Unpack it together and let dpkg judge.
        let round = if ready.is_empty() { all_left } else { ready };
        placed.extend(&round);
        rounds.push(round);
    }
}

/// Names, for `dpkg --configure`, of the pre-dependencies of the packages `next` and everything these depend on.
pub(super) fn pre_dependencies(packages: &[Known], next: &[usize]) -> Vec<String> {
    let paragraphs: Vec<&Paragraph> = packages.iter().map(|known| &known.control.paragraph).collect();
    let providers = Providers::of(&paragraphs);
    let direct = next.iter().flat_map(|index| providers.direct(*index, "Pre-Depends"));
    let closure = providers.closure(direct.collect::<Vec<_>>(), &["Pre-Depends", "Depends"]);
    closure.iter().map(|index| super::dpkg_db::instance_name(&packages[*index].control)).collect()
}
