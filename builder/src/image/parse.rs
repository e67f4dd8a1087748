//! From text to [`Image`]: every rule of the recipe's format, each problem with its line and a way out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::de::DeTable;

use super::distribution::{DISTRIBUTIONS, Distribution};
use super::document::Table;
use super::{Component, Image, Kernels, Located, Overrides, parse_archive};
use crate::apt::version::Version;
use crate::problem::Problems;
use crate::strict::{Reader, suggestion};

/// The version of the format.
const SCHEMA: i64 = 1;
const ARCHITECTURES: &[&str] = &["amd64", "arm64"];
const VARIANTS: &[&str] = &["cloud", "metal"];
const OUTPUTS: &[&str] = &["tree", "raw", "raw-4k", "qcow2", "vhd", "vmdk", "ova", "gce", "pxe", "iso", "update"];
/// What the agent knows how to run.
#[rustfmt::skip]
const COMPONENTS: &[&str] = &[
    "postgresql", "patroni", "etcd", "haproxy", "keepalived", "pgbackrest", "pgbouncer", "pgpool", "pgagroal", "chrony",
    "ssh",
];

pub(super) fn parse(text: &str, file: &Path) -> Result<Image, Problems> {
    let name = file.display().to_string();
    let mut reader = Reader::new(&name, text);
    let root = reader.document()?;
    let reader = RefCell::new(reader);
    let image = read(&reader, root.get_ref(), file);
    reader.borrow_mut().finish()?;
    // Whatever is missing was reported.
    image.ok_or_else(Problems::default)
}

fn read<'i>(reader: &RefCell<Reader<'i>>, root: &DeTable<'i>, file: &Path) -> Option<Image> {
    let top = Table::top(reader, root);
    check_schema(&top);
    let name = top.required("name", "\"debian-13\"");
    name.iter().for_each(|name| check_name(&top, name, file));
    let distribution = top.required("distribution", "\"debian\"").and_then(|id| find_distribution(&top, &id));
    let suite = top.required("suite", "\"trixie\"");
    let architecture = top.required("architecture", "\"amd64\"");
    architecture.iter().for_each(|found| one_of(&top, "architecture", found, ARCHITECTURES));
    let variant = top.text("variant");
    variant.iter().for_each(|found| one_of(&top, "variant", found, VARIANTS));
    let outputs = top.texts("outputs");
    outputs.iter().for_each(|found| one_of(&top, "output", found, OUTPUTS));
    let packages = top.texts("packages");
    packages.iter().for_each(|package| check_package(&top, package));
    check_duplicates(&top, &packages);
    let (kernel, kernels, other_architectures) = top
        .table("kernel")
        .map_or_else(Default::default, |table| kernel(table, variant.as_ref(), architecture.as_ref()));
    let trees = top.texts("trees");
    let names_trees = top.has("trees");
    trees.iter().for_each(|tree| check_tree(&top, tree));
    let path_excludes = patterns(&top, "path-excludes");
    let path_includes = patterns(&top, "path-includes");
    let archives =
        top.table("archives").map_or(Vec::new(), |table| parse_archive::archives(&table, distribution, file));
    let components = top.table("components").map_or(BTreeMap::new(), |table| components(&table));
    let extensions = top.table("extensions").map_or(BTreeMap::new(), |table| extensions(&table, &components));
    if !top.has("archives") {
        top.missing("archives", "a section [archives.debian] that says where packages come from");
    }
    if let Some(suite) = suite.as_ref().filter(|_| !archives.is_empty())
        && !archives.iter().any(|archive| archive.suites.contains(&suite.value))
    {
        let what = format!("no archive has the suite `{}`", suite.value);
        top.problem(suite.line, what, "name it in the `suites` of an archive");
    }
    top.finish();
    Some(Image {
        file: file.to_owned(),
        name: name?.value,
        distribution: distribution?,
        suite: suite?.value,
        architecture: architecture?.value,
        variant: variant.map(|variant| variant.value),
        archives,
        components,
        packages,
        extensions,
        kernel,
        kernels,
        other_architectures,
        path_excludes,
        path_includes,
        outputs: outputs.into_iter().map(|output| output.value).collect(),
        trees: names_trees.then_some(trees),
        overrides: Overrides::default(),
    })
}

pub(super) fn check_schema(top: &Table<'_, '_>) {
    match top.integer("schema") {
        Some(schema) if schema.value != SCHEMA => {
            let what = format!("`schema` is {}, this pgkiln reads {SCHEMA}", schema.value);
            top.problem(schema.line, what, "use the pgkiln this file was written for");
        }
        None if !top.has("schema") => top.missing("schema", "1"),
        Some(_) | None => {}
    }
}

/// The name must be the directory's, where the file is in one.
fn check_name(top: &Table<'_, '_>, name: &Located<String>, file: &Path) {
    let dir = std::path::absolute(file).ok().and_then(|file| Some(file.parent()?.file_name()?.to_str()?.to_owned()));
    if let Some(dir) = dir.filter(|dir| *dir != name.value) {
        let what = format!("`name` is `{}`, the directory is `{dir}`", name.value);
        top.problem(name.line, what, "make them equal: locks and outputs are found by this name");
    }
}

fn one_of(table: &Table<'_, '_>, what: &str, found: &Located<String>, known: &[&str]) {
    if !known.contains(&found.value.as_str()) {
        let what_is = format!("unknown {what} `{}`", found.value);
        table.problem(found.line, what_is, suggestion(&found.value, known, what));
    }
}

fn find_distribution(top: &Table<'_, '_>, id: &Located<String>) -> Option<&'static Distribution> {
    let known: Vec<&str> = DISTRIBUTIONS.iter().map(|distribution| distribution.id).collect();
    one_of(top, "distribution", id, &known);
    Distribution::find(&id.value)
}

fn check_package(table: &Table<'_, '_>, package: &Located<String>) {
    let name = &package.value;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    if name.len() < 2 || name.starts_with(['+', '-', '.']) || !name.chars().all(good) {
        let remedy = match name.split_once(['=', ' ', '(', '/']) {
            Some((name, _)) => format!("write \"{name}\"; versions are pinned in [components.…] with `version`"),
            None => "package names consist of a-z, 0-9, +, - and .".to_owned(),
        };
        table.problem(package.line, format!("`{name}` is not a package name"), remedy);
    }
}

fn check_tree(top: &Table<'_, '_>, tree: &Located<String>) {
    if tree.value.is_empty() || tree.value.starts_with('/') {
        let what = format!("`{}` in `trees` is not a path beside the recipe", tree.value);
        top.problem(tree.line, what, "write it relative to the image's directory: \"tree\", \"../common/tree\"");
    }
}

fn check_duplicates(top: &Table<'_, '_>, packages: &[Located<String>]) {
    let mut seen = BTreeMap::new();
    for package in packages {
        if let Some(first) = seen.insert(package.value.as_str(), package.line) {
            let what = format!("package `{}` is named twice", package.value);
            top.problem(package.line, what, format!("remove one; the other is in line {first}"));
        }
    }
}

/// Either one `package`, or one for each variant; then the recipe's own `variant` says which is meant. Of other
/// architectures always by variant.
fn kernel(
    table: Table<'_, '_>,
    variant: Option<&Located<String>>,
    own: Option<&Located<String>>,
) -> (Option<Located<String>>, Kernels, BTreeMap<String, Kernels>) {
    let kernels = kernels(&table);
    let mut others = BTreeMap::new();
    for name in ARCHITECTURES {
        let Some(other) = table.table(name) else { continue };
        let kernels = self::kernels(&other);
        kernels.values().for_each(|package| check_package(&other, package));
        if own.is_some_and(|own| own.value == *name) {
            other.problem(other.line, "this is the recipe's own architecture", "name its kernels in [kernel] itself");
        } else if variant.is_none_or(|variant| !kernels.contains_key(&variant.value)) {
            other.problem(other.line, "no kernel for the recipe's own `variant`", "name it here, as in [kernel]");
        }
        other.finish();
        others.insert((*name).to_owned(), kernels);
    }
    let package = match kernels.is_empty() {
        true => table.required("package", "\"linux-image-cloud-amd64\""),
        false => table.text("package"),
    };
    package.iter().chain(kernels.values()).for_each(|package| check_package(&table, package));
    if let Some(package) = package.as_ref().filter(|_| !kernels.is_empty()) {
        table.problem(package.line, "`package` and kernels of variants exclude each other", "remove one of them");
    }
    let of_variant = variant.and_then(|variant| kernels.get(&variant.value)).cloned();
    if !kernels.is_empty() && of_variant.is_none() {
        let line = variant.map_or(table.line, |variant| variant.line);
        table.problem(line, "no kernel for the recipe's own `variant`", "set `variant`, and its kernel in [kernel]");
    }
    table.finish();
    (package.or(of_variant), kernels, others)
}

fn kernels(table: &Table<'_, '_>) -> Kernels {
    VARIANTS.iter().filter_map(|name| Some(((*name).to_owned(), table.text(name)?))).collect()
}

/// `pgaudit = "postgresql-17-pgaudit"`: what the server must be able to load, and the package that has it.
fn extensions(table: &Table<'_, '_>, components: &BTreeMap<String, Component>) -> BTreeMap<String, Located<String>> {
    let extensions: BTreeMap<_, _> = table.named_texts().into_iter().collect();
    for (name, package) in &extensions {
        check_package(table, package);
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            let what = format!("`{name}` is not an extension's name");
            table.problem(package.line, what, "extensions are named as in CREATE EXTENSION: a-z, 0-9 and _");
        }
    }
    if !components.get("postgresql").is_some_and(|component| component.paths.contains_key("bin_dir")) {
        let remedy = "add [components.postgresql] with paths = { bin_dir = \"…\" }";
        table.problem(table.line, "extensions need a server to be tried on", remedy);
    }
    extensions
}

fn patterns(top: &Table<'_, '_>, key: &'static str) -> Vec<String> {
    let found = top.texts(key);
    for pattern in found.iter().filter(|pattern| !pattern.value.starts_with('/')) {
        let what = format!("`{}` in `{key}` does not begin with `/`", pattern.value);
        top.problem(pattern.line, what, "patterns match whole paths, as dpkg's path-exclude does");
    }
    found.into_iter().map(|pattern| pattern.value).collect()
}

fn components(all: &Table<'_, '_>) -> BTreeMap<String, Component> {
    let mut components = BTreeMap::new();
    let mut packages = BTreeSet::new();
    for (name, table) in all.named_tables() {
        let named = Located { value: name, line: table.line };
        one_of(all, "component", &named, COMPONENTS);
        let Some(component) = component(table) else { continue };
        if !packages.insert(component.package.value.clone()) {
            let what = format!("package `{}` is used by two components", component.package.value);
            all.problem(component.package.line, what, "remove one of them");
        }
        components.insert(named.value, component);
    }
    components
}

fn component(table: Table<'_, '_>) -> Option<Component> {
    let package = table.required("package", "\"…\"");
    package.iter().for_each(|package| check_package(&table, package));
    let pin = table.required("version", "\"locked\"").filter(|version| version.value != "locked");
    if let Some(pin) = &pin
        && let Err(error) = Version::parse(&pin.value)
    {
        let what = format!("`{}` is not a package version: {error}", pin.value);
        table.problem(pin.line, what, "write \"locked\" or the exact version");
    }
    let unit = table.text("unit");
    let paths = table.table("paths").map_or(Vec::new(), |table| table.named_texts());
    for (_, path) in paths.iter().filter(|(_, path)| !path.value.starts_with('/')) {
        table.problem(path.line, format!("`{}` is not an absolute path", path.value), "begin it with `/`");
    }
    table.finish();
    Some(Component {
        package: package?,
        pin,
        unit: unit.map(|unit| unit.value),
        paths: paths.into_iter().map(|(name, path)| (name, path.value)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> &'static Path {
        Path::new("images/debian-13/image.toml")
    }

    #[test]
    fn the_recipes_in_the_tree_are_good() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
        let recipes = fs_err::read_dir(&images).unwrap().map(|entry| entry.unwrap().path());
        let recipes: Vec<_> = recipes.filter(|dir| dir.join("image.toml").exists()).collect();
        assert!(recipes.len() >= 7, "{recipes:?}");
        for dir in recipes {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap();
            let image = Image::load(&dir).unwrap();
            assert_eq!(image.name, name);
            image.trees().unwrap();
        }
    }

    #[test]
    fn order_lines_and_defaults() {
        let text = "schema = 1\nname = 'debian-13'\ndistribution = 'debian'\nsuite = 'x'\narchitecture = 'amd64'\n\
                    packages = [\n  'less',\n  'etcd-server',\n]\n\
                    [archives.debian-security]\nurl = 'host'\nsuites = ['y']\ncomponents = ['main']\n\
                    fingerprints = ['5E04 A1E3 223A 19A2 0706  E20F 9904 613D 4CCE 68C6']\n\
                    [archives.debian]\nsnapshot = '20261122T000000Z'\nsuites = ['x']\ncomponents = ['main']\n\
                    key = 'k.gpg'\nfingerprints = ['04B54C3CDCA79751B16BC6B5225629DF75B188BD']\n\
                    [components.etcd]\npackage = 'etcd-server'\nversion = '3.5.16-4'\n";
        let image = Image::parse(text, file()).unwrap();
        let ids: Vec<&str> = image.archives.iter().map(|archive| archive.id.as_str()).collect();
        assert_eq!(ids, ["debian-security", "debian"], "the order of the file decides");
        assert_eq!(image.archives[0].fingerprints, ["5E04A1E3223A19A20706E20F9904613D4CCE68C6"]);
        let keys: Vec<String> = image.archives.iter().map(|archive| archive.key.value.to_string()).collect();
        assert_eq!(keys[0], "/usr/share/keyrings/debian-archive-keyring.gpg");
        assert_eq!(keys[1], "images/debian-13/k.gpg", "beside the recipe");
        let wanted: Vec<String> = image.wanted().iter().map(|w| format!("{}:{}", w.spelling(), w.line)).collect();
        assert_eq!(wanted, ["etcd-server=3.5.16-4:23", "less:7"], "the pin wins");
    }

    #[test]
    fn an_extension_is_a_package_that_is_wanted_and_needs_a_server() {
        let start = "schema = 1\nname = 'debian-13'\ndistribution = 'debian'\nsuite = 'x'\narchitecture = 'amd64'\n\
                     [archives.debian]\nurl = 'host'\nsuites = ['x']\ncomponents = ['main']\n\
                     fingerprints = ['04B54C3CDCA79751B16BC6B5225629DF75B188BD']\n[extensions]\npgaudit = 'postgresql-17-pgaudit'\n";
        let server =
            "[components.postgresql]\npackage = 'postgresql-17'\nversion = 'locked'\npaths = { bin_dir = '/b' }\n";
        let image = Image::parse(&format!("{start}{server}"), file()).unwrap();
        let wanted: Vec<String> = image.wanted().iter().map(|w| format!("{}:{}", w.package, w.line)).collect();
        assert_eq!(wanted, ["postgresql-17:14", "postgresql-17-pgaudit:12"]);
        let told = Image::parse(start, file()).unwrap_err().to_string();
        assert!(told.contains(":11: extensions need a server"), "{told}");
        let told = Image::parse(&format!("{start}\"pg audit\" = 'x y'\n{server}"), file()).unwrap_err().to_string();
        assert!(
            told.contains("`pg audit` is not an extension's name") && told.contains("`x y` is not a package"),
            "{told}"
        );
    }

    #[test]
    fn every_problem_at_once() {
        let text = include_str!("testdata/bad.toml");
        let told = Image::parse(text, file()).unwrap_err().to_string();
        assert_eq!(told, include_str!("testdata/bad.txt").trim_end());
    }

    #[test]
    fn only_what_decides_the_packages_makes_a_lock_stale() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/tools");
        let text = fs_err::read_to_string(dir.join("image.toml")).unwrap();
        let digest = |text: &str| Image::parse(text, &dir.join("image.toml")).unwrap().resolution_digest();
        let same = text.replace("path-includes = [", "# a remark\npath-includes = [\"/usr/share/doc/x\", ");
        assert_ne!(same, text);
        assert_eq!(digest(&same), digest(&text));
        assert_eq!(digest(&text.replace("url = \"host\"", "url = \"https://mirror.example/x\"")), digest(&text));
        for (from, to) in [("\"gpgv\"", "\"gpg\""), ("\"trixie-updates\"", "\"trixie-x\""), ("04B5", "04B6")] {
            assert_ne!(digest(&text.replace(from, to)), digest(&text), "{from}");
        }
    }

    #[test]
    fn trees_are_named_relative_to_the_recipe_and_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let (common, own) = (dir.path().join("common/tree"), dir.path().join("debian-13/own"));
        let text = |trees: &str| {
            format!(
                "schema = 1\nname = 'debian-13'\ndistribution = 'debian'\nsuite = 'x'\narchitecture = 'amd64'\n{trees}\n\
                 [archives.debian]\nurl = 'host'\nsuites = ['x']\ncomponents = ['main']\n\
                 fingerprints = ['04B54C3CDCA79751B16BC6B5225629DF75B188BD']\n"
            )
        };
        let file = dir.path().join("debian-13/image.toml");
        let image = |trees: &str| Image::parse(&text(trees), &file);
        assert_eq!(image("").unwrap().trees().unwrap(), [""; 0].map(std::path::PathBuf::from), "no tree is no problem");
        fs_err::create_dir_all(&common).unwrap();
        let two = image("trees = ['../common/tree', 'own']").unwrap();
        let told = two.trees().unwrap_err().to_string();
        assert!(told.contains("image.toml:6: there is no directory `own`"), "{told}");
        fs_err::create_dir_all(&own).unwrap();
        fs_err::create_dir_all(dir.path().join("debian-13/tree")).unwrap();
        assert_eq!(two.trees().unwrap(), [dir.path().join("debian-13/../common/tree"), own]);
        assert_eq!(image("").unwrap().trees().unwrap(), [dir.path().join("debian-13/tree")]);
        let told = image("trees = ['/usr']").unwrap_err().to_string();
        assert!(told.contains("`/usr` in `trees` is not a path beside the recipe"), "{told}");
    }
}
