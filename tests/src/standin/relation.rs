//! Relations between packages, rewritten for packages that have other names and versions now.

use pgkiln::apt::version::Version;

/// What a package is called now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Its version before.
    pub was: String,
}

/// A relation field with every package that `target` knows under its new name. An exact version becomes the new one; a bound
/// that the new version does not satisfy is dropped, for it speaks of another package's history.
pub fn rewrite(field: &str, target: &dyn Fn(&str) -> Option<Target>) -> String {
    let group = |group: &str| {
        let atoms: Vec<String> = group.split('|').map(|atom| rewrite_one(atom.trim(), target)).collect();
        atoms.join(" | ")
    };
    field.split(',').map(str::trim).filter(|text| !text.is_empty()).map(group).collect::<Vec<_>>().join(", ")
}

/// A `Breaks` or `Conflicts` field without what only the new version would be hit by, for the same reason.
pub fn forgive(field: &str, target: &dyn Fn(&str) -> Option<Target>) -> String {
    let meant = |atom: &&str| {
        let Some(target) = target(package(atom)) else { return true };
        let Some((operator, version)) = bound(atom) else { return true };
        satisfies(&target.was, operator, version) || !satisfies(&target.version, operator, version)
    };
    field.split(',').map(str::trim).filter(|text| !text.is_empty()).filter(meant).collect::<Vec<_>>().join(", ")
}

fn package(atom: &str) -> &str {
    atom.split([' ', '(', ':', '[']).next().unwrap_or_default()
}

fn bound(atom: &str) -> Option<(&str, &str)> {
    let (inside, _) = atom.split_once('(')?.1.split_once(')')?;
    inside.trim().split_once(' ').map(|(operator, version)| (operator, version.trim()))
}

fn rewrite_one(atom: &str, target: &dyn Fn(&str) -> Option<Target>) -> String {
    let Some(target) = target(package(atom)) else { return atom.to_owned() };
    let Some((operator, version)) = bound(atom) else { return target.name };
    let kept = match operator {
        // A binary rebuild (`+b1`) depends on the source's version.
        "=" if target.was.starts_with(version) => Some(target.version.as_str()),
        _ if satisfies(&target.version, operator, version) => Some(version),
        _ => None,
    };
    kept.map_or_else(|| target.name.clone(), |version| format!("{} ({operator} {version})", target.name))
}

fn satisfies(have: &str, operator: &str, bound: &str) -> bool {
    let (Ok(have), Ok(bound)) = (Version::parse(have), Version::parse(bound)) else { return false };
    match operator {
        ">=" => have >= bound,
        ">>" => have > bound,
        "<=" => have <= bound,
        "<<" => have < bound,
        _ => have == bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bounds_follow() {
        let target = |name: &str| {
            let to = |name: &str, version: &str, was: &str| {
                Some(Target { name: name.into(), version: version.into(), was: was.into() })
            };
            match name {
                "postgresql-client-17" => to("percona-postgresql-client-17", "2:17.11-1.noble", "17.12-0+deb13u1"),
                "postgresql-common" => to("postgresql-common", "1:293-1.noble", "278+deb13u1"),
                "python3-etcd" => to("python3-etcd", "0.4.5-4", "0.4.5-6+b1"),
                _ => None,
            }
        };
        let field = "locales | locales-all, postgresql-client-17 (= 17.12-0+deb13u1), postgresql-common (>= 266~), \
                     python3:any, python3-etcd (>= 0.4.5-5) | python3-consul, python3-etcd (= 0.4.5-6)";
        assert_eq!(
            rewrite(field, &target),
            "locales | locales-all, percona-postgresql-client-17 (= 2:17.11-1.noble), postgresql-common (>= 266~), \
             python3:any, python3-etcd | python3-consul, python3-etcd (= 0.4.5-4)"
        );
        let breaks = "python3-etcd (<< 0.4.5-5), python3-etcd (<< 0.4.5-9), other (<< 9), postgresql-common";
        assert_eq!(forgive(breaks, &target), "python3-etcd (<< 0.4.5-9), other (<< 9), postgresql-common");
    }
}
