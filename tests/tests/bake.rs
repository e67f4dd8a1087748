//! Baking: our unpacking against dpkg's, our tree against mmdebstrap's, and a bake that is killed.
//!
//! Everything here needs root (namespaces, owners of files) and the packages of `images/debian-13` and `images/tools`, which
//! are downloaded once into the ordinary cache (`PGKILN_TEST_CACHE` names another).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use pgkiln::bake::{self, Baked, Options};
use pgkiln::cache::Cache;
use pgkiln::configure;
use pgkiln::digest::Sha256;
use pgkiln::lock::relock::fetch_or_relock;
use pgkiln::lock::{Locked, Recipe};
use pgkiln::problem::Problem;
use pgkiln::progress::Ui;
use pgkiln::sandbox::Sandbox;
use pgkiln::tool::{Cmd, table};
use pgkiln::unpack::control::Paragraph;
use pgkiln::unpack::deb::Deb as Package;
use pgkiln::unpack::{self, dpkg_db};
use pgkiln_tests::archive::Deb;
use pgkiln_tests::reference::Reference;
use pgkiln_tests::repro::{Conditions, Place, Unpacker, differences, lock_what_can_be_fetched};
use pgkiln_tests::{binary, tree_diff, workspace};

type Result<T = ()> = anyhow::Result<T>;

const EPOCH: u64 = 1_763_900_000;

fn cache() -> Result<Cache> {
    let named = std::env::var_os("PGKILN_TEST_CACHE").map(PathBuf::from);
    Cache::open(named.unwrap_or_else(pgkiln::cli::default_cache_dir))
}

fn recipe(cache: &Cache) -> Result<Recipe<Locked>> {
    let recipe = Recipe::load(&workspace::image("debian-13"))?.locked()?;
    Ok(fetch_or_relock(recipe, cache, &|_| ())?.recipe)
}

/// Scratch space on the cache's file system, so that packages can be linked.
fn scratch(cache: &Cache) -> Result<tempfile::TempDir> {
    cache.work_dir("test-")
}

/// The essential packages of Debian and what they need: enough to run maintainer scripts.
fn base(recipe: &Recipe<Locked>, cache: &Cache) -> Result<Vec<unpack::Package>> {
    let mut known: BTreeMap<String, (unpack::Package, Paragraph)> = BTreeMap::new();
    for one in &recipe.lock().packages {
        let package = unpack::Package { path: cache.cas_path(&one.sha256), sha256: one.sha256, identity: None };
        let paragraph = Package::open(&package.path, &package.sha256)?.control()?.paragraph;
        known.insert(one.name.clone(), (package, paragraph));
    }
    let essential =
        |(_, (_, paragraph)): &(&String, &(unpack::Package, Paragraph))| paragraph.get("Essential") == "yes";
    let mut todo: Vec<String> = known.iter().filter(essential).map(|(name, _)| name.clone()).collect();
    let mut taken = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if let Some((_, paragraph)) = known.get(&name).filter(|_| taken.insert(name.clone())) {
            todo.extend(["Pre-Depends", "Depends"].iter().flat_map(|field| paragraph.relation(field)).flatten());
        }
    }
    // `awk` is a virtual package.
    taken.insert("mawk".to_owned());
    Ok(known.into_iter().filter(|(name, _)| taken.contains(name)).map(|(_, (package, _))| package).collect())
}

/// Packages that use what makes unpacking more than `tar -x`.
fn awkward() -> Vec<Deb> {
    let log = |name: &str| format!("#!/bin/sh\nset -e\necho {name} $DPKG_MAINTSCRIPT_NAME $1 >> /var/lib/scripts\n");
    vec![
        Deb::new("divert", "1").file("usr/bin/tool", "the diverter's\n").script(
            "preinst",
            &(log("divert")
                + "dpkg-divert --package divert --no-rename --divert /usr/bin/tool.real --add /usr/bin/tool\n"),
        ),
        Deb::new("diverted", "1").file("usr/bin/tool", "the diverted\n"),
        Deb::new("conf", "1")
            .file("etc/conf/main.conf", "shipped\n")
            .file("etc/conf/kept.conf", "shipped\n")
            .script("conffiles", "/etc/conf/main.conf\n/etc/conf/kept.conf\n")
            // A file that is there before the package: dpkg keeps it only if the administrator says so.
            .script("postinst", &log("conf")),
        Deb::new("ears", "1")
            .file("usr/share/ears/list", "")
            .script("triggers", "interest-noawait /usr/share/sounds\ninterest-noawait ring\n")
            .script("postinst", &(log("ears") + "[ \"$1\" != triggered ] || echo \"$2\" >> /var/lib/heard\n")),
        Deb::new("mouth", "1")
            .field("Depends", "ears")
            .file("usr/share/sounds/hello", "hello\n")
            .script("triggers", "activate-noawait ring\n")
            .script("postinst", &log("mouth")),
        Deb::new("early", "1")
            .file("usr/share/early/file", "")
            .script(
                "preinst",
                &(log("early") + "test ! -e /usr/share/early/file\ntest -e /usr/share/before/configured\n"),
            )
            .field("Pre-Depends", "before"),
        Deb::new("before", "1").script("postinst", &(log("before") + "touch /usr/share/before/configured\n")),
        Deb::new("old-owner", "1").file("usr/share/moved/file", "old\n"),
        Deb::new("new-owner", "1").file("usr/share/moved/file", "new\n").field("Replaces", "old-owner"),
        Deb::new("manual", "1")
            .file("usr/share/man/man1/manual.1", "x\n")
            .file("usr/share/doc/manual/copyright", "free\n"),
    ]
}

const FILTER: &str = "path-exclude=/usr/share/man/*\n";

/// The same packages, unpacked by us and by dpkg into the same base, end as the same tree and the same database.
#[test]
#[ignore = "needs root and Debian's packages"]
fn unpacking_agrees_with_dpkg() -> Result {
    let cache = cache()?;
    let base = base(&recipe(&cache)?, &cache)?;
    let work = scratch(&cache)?;
    let mut made = Vec::new();
    for deb in awkward() {
        let path = work.path().join(format!("debs/{}.deb", made.len()));
        deb.build(&path)?;
        made.push(unpack::Package { sha256: Sha256::of_file(&path)?.0, path, identity: None });
    }
    let finish = |root: &Path, packages: &[unpack::Package]| -> Result<Sandbox> {
        fs_err::create_dir_all(root)?;
        let sandbox = Sandbox::new(root, EPOCH);
        let stage = root.with_extension("stage");
        unpack::unpack(packages, FILTER, root, &stage, &sandbox, &|_| Ok(()))?;
        sandbox.run(&["dpkg", "--configure", "--pending"])?;
        Ok(sandbox)
    };

    let ours = work.path().join("ours");
    finish(&ours, &base.iter().chain(&made).cloned().collect::<Vec<_>>())?;

    let theirs = work.path().join("theirs");
    let sandbox = finish(&theirs, &base)?;
    let paths: Vec<String> = (0..made.len()).map(|n| format!("/mnt/{n}.deb")).collect();
    let dpkg = sandbox.bind(&work.path().join("debs"), "mnt", true);
    // All before any is configured, as we do: a package that is not configured yet is not told of files that it will look
    // at anyway. Only what `early` needs first is configured first.
    let (early, others): (Vec<_>, Vec<_>) = paths.iter().map(String::as_str).partition(|path| *path == "/mnt/5.deb");
    dpkg.run(&[&["dpkg", "--unpack"], &others[..]].concat())?;
    dpkg.run(&["dpkg", "--configure", "before"])?;
    dpkg.run(&[&["dpkg", "--unpack"], &early[..]].concat())?;
    dpkg.run(&["dpkg", "--configure", "--pending"])?;

    let mut found = tree_diff::differences(&tree_diff::read(&ours)?, &tree_diff::read(&theirs)?);
    let expected = [
        // dpkg lists excluded files and then misses them for ever; we do not.
        "/usr/lib/sysimage/dpkg/info/manual.list",
        // The order of scripts and of stanzas is dpkg's choice: compared below without it.
        "/var/lib/scripts",
        "/var/lib/heard",
        "/usr/lib/sysimage/dpkg/triggers/File",
    ];
    for path in expected {
        found.remove(path);
    }
    let noise = [
        "/var/log/",
        "/var/cache/",
        "/usr/lib/sysimage/dpkg/status-old",
        "/usr/lib/sysimage/dpkg/diversions-old",
        "/usr/lib/sysimage/dpkg/tmp.ci",
        "/etc/ld.so.cache",
    ];
    // dpkg writes md5sums for the packages that bring none; Debian's all do.
    found.retain(|path, _| !path.ends_with(".md5sums"));
    found.retain(|path, _| !noise.iter().any(|start| path.starts_with(start)));
    assert!(found.is_empty(), "{found:#?}");

    let lines = |root: &Path, path: &str| -> Result<BTreeSet<String>> {
        let text = fs_err::read_to_string(root.join(path))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    assert_eq!(lines(&ours, "var/lib/heard")?, lines(&theirs, "var/lib/heard")?);
    let text = |path: &str| fs_err::read_to_string(ours.join(path));
    assert_eq!((&*text("usr/bin/tool")?, &*text("usr/bin/tool.real")?), ("the diverter's\n", "the diverted\n"));
    assert_eq!(text("usr/share/moved/file")?, "new\n");
    assert_eq!(text("etc/conf/main.conf")?, "shipped\n");
    Ok(())
}

#[test]
#[ignore = "needs root and Debian's packages"]
fn two_packages_with_the_same_file_are_refused() -> Result {
    let cache = cache()?;
    let mut packages = base(&recipe(&cache)?, &cache)?;
    let work = scratch(&cache)?;
    for (n, deb) in [Deb::new("a", "1").file("usr/share/both", "a"), Deb::new("b", "1").file("usr/share/both", "b")]
        .iter()
        .enumerate()
    {
        let path = work.path().join(format!("{n}.deb"));
        deb.build(&path)?;
        packages.push(unpack::Package { sha256: Sha256::of_file(&path)?.0, path, identity: None });
    }
    let root = work.path().join("root");
    fs_err::create_dir(&root)?;
    let sandbox = Sandbox::new(&root, EPOCH);
    let result = unpack::unpack(&packages, "", &root, &work.path().join("stage"), &sandbox, &|_| Ok(()));
    let problem = result.err().context("accepted")?;
    assert!(format!("{problem:#}").contains("both contain `/usr/share/both`"), "{problem:#}");
    Ok(())
}

#[test]
fn an_altered_package_is_refused_before_anything_of_it_is_used() -> Result {
    let work = tempfile::tempdir()?;
    let path = work.path().join("app.deb");
    Deb::new("app", "1").build(&path)?;
    let (sha256, _) = Sha256::of_file(&path)?;
    assert_eq!(Package::open(&path, &sha256)?.control()?.paragraph.get("Package"), "app");
    let mut bytes = fs_err::read(&path)?;
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    fs_err::write(&path, bytes)?;
    let error = Package::open(&path, &sha256).err().context("accepted an altered package")?;
    assert!(error.downcast_ref::<Problem>().is_some_and(|problem| problem.what.contains("altered")), "{error:#}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn scripts_have_no_network_no_host_name_and_die_with_us() -> Result {
    let cache = cache()?;
    let base = base(&recipe(&cache)?, &cache)?;
    let work = scratch(&cache)?;
    let root = work.path().join("root");
    fs_err::create_dir(&root)?;
    let sandbox = Sandbox::new(&root, EPOCH);
    unpack::unpack(&base, "", &root, &work.path().join("stage"), &sandbox, &|_| Ok(()))?;
    let said = |command: &str| -> Result<String> {
        Ok(String::from_utf8(sandbox.run(&["sh", "-c", command])?.stdout)?.trim().to_owned())
    };
    assert_eq!(said("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")?, "lo");
    assert_eq!(said("cat /sys/class/net/*/operstate 2>/dev/null; hostname")?, "localhost");
    assert_eq!(said("echo $TZ $LC_ALL $SOURCE_DATE_EPOCH $HOME")?, format!("UTC C.UTF-8 {EPOCH} /root"));
    assert_eq!(
        said("cut -d' ' -f2 /proc/mounts | grep -c /work || true")?.parse::<u32>().unwrap_or(0),
        0,
        "the host's mounts show"
    );
    // A child left behind does not outlive the command: PID 1 of its namespace is gone.
    said("sleep 4321 >/dev/null 2>&1 & exit 0")?;
    std::thread::sleep(Duration::from_millis(200));
    let mut left = 0;
    for entry in fs_err::read_dir("/proc")? {
        left += usize::from(fs_err::read(entry?.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x004321\0"));
    }
    assert_eq!(left, 0);
    assert!(sandbox.run(&["sh", "-c", "echo why >&2; exit 3"]).is_err_and(|error| error.to_string().contains("why")));
    Ok(())
}

fn bake(cache: &Cache, out: &Path, fresh: bool) -> Result<Baked> {
    let agent = out.with_extension("agent");
    fs_err::write(&agent, "#!/bin/sh\n")?;
    let options =
        Options { agent: Some(agent), fresh, relock: true, ..Options::new(workspace::image("debian-13"), out) };
    bake::bake(&options, &Ui::silent(cache.root().to_owned()))
}

/// The issue's differential test: what we make is what mmdebstrap makes, except for a committed list.
#[test]
#[ignore = "needs root, mmdebstrap and two minutes"]
fn the_tree_is_what_mmdebstrap_makes() -> Result {
    let cache = cache()?;
    let recipe = recipe(&cache)?;
    let work = scratch(&cache)?;
    let baked = bake(&cache, &work.path().join("out"), false)?;
    let reference = work.path().join("reference");
    Reference::new(&recipe, &cache, &work.path().join("archive"))?.make(&reference)?;
    let found = tree_diff::differences(&tree_diff::read(&baked.tree)?, &tree_diff::read(&reference)?);
    let list = workspace::root().join("tests/bake-differences.toml");
    let wrong = tree_diff::Allowed::load(&list)?.judge(&found);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // dpkg's database says the same about every package, apart from what the path filter left out.
    let database = |root: &Path, dir: &str, file: &str| fs_err::read_to_string(root.join(dir).join(file));
    let ours = database(&baked.tree, dpkg_db::ADMIN_DIR, "status")?;
    assert_eq!(ours, database(&reference, "var/lib/dpkg", "status")?);
    Ok(())
}

/// On a node, with `/var` filled by systemd-tmpfiles, dpkg finds nothing to complain about.
#[test]
#[ignore = "needs root and a minute"]
fn dpkg_audit_and_verify_are_clean() -> Result {
    let cache = cache()?;
    let work = scratch(&cache)?;
    let baked = bake(&cache, &work.path().join("out"), false)?;
    let script = "systemd-tmpfiles --create --prefix=/var 2>/dev/null; dpkg --audit; dpkg --verify";
    let output = Sandbox::new(&baked.tree, EPOCH).tmpfs("var").run(&["sh", "-c", script])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(baked.root_bytes <= 265_000_000, "{} bytes", baked.root_bytes);
    assert_eq!(configure::ids::ACCOUNTS[0].id, 900);
    Ok(())
}

/// Same inputs, same bytes, in every format, whatever the world around the bake. The agent is given and the sources stay where
/// they are: building the agent a second time, from a copy of the sources and on one processor, takes longer than both bakes.
/// That is `just repro`.
#[test]
#[ignore = "needs root, faketime and three minutes"]
fn two_bakes_give_the_same_bytes() -> Result {
    let cache = cache()?;
    let work = scratch(&cache)?;
    let place = place(&cache, work.path())?;
    let first = Conditions::USUAL.bake(&place, work.path())?;
    let second = Conditions::OTHER.bake(&place, work.path())?;
    let tools = || place.tools();
    let unpacker = Unpacker { tools: &tools, work: &work.path().join("unpacked") };
    let found = differences(&first, &second, &unpacker)?;
    assert!(found.is_empty(), "{}", found.join("\n"));
    let sums = |dir: &Path| fs_err::read_to_string(dir.join("SHA256SUMS"));
    assert_eq!(sums(&first)?, sums(&second)?);
    let verified = pgkiln::verify::verify(&second, None)?;
    assert_eq!(verified.files, sums(&second)?.lines().count());
    assert!(verified.root_hash.is_some() && verified.unlisted.is_empty(), "{:?}", verified.unlisted);

    let manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(second.join("manifest.json"))?)?;
    let listed = |list: &str, key: &str, name: &str| -> Option<serde_json::Value> {
        manifest[list].as_array()?.iter().find(|one| one[key] == name).cloned()
    };
    let root = listed("outputs", "format", "squashfs").context("no root")?;
    let slot = listed("partitions", "type", "root").context("no slot")?;
    assert_eq!((&root["bytes"], &root["sha256"]), (&slot["used"], &slot["sha256"]), "the slot has the root and zeros");

    // Both bakes have their cache on one file system; another lists directories in another order.
    let disk = pgkiln::disk::gpt::read(&second.join("debian-13.raw"))?;
    let esp = disk.partitions.iter().find(|one| one.kind == pgkiln::disk::gpt::Kind::Esp).context("no ESP")?;
    let sandbox = Sandbox::new(&place.tools()?, EPOCH).bind(&second, "srv", true);
    let listed = sandbox.run(&["mdir", "-b", "-i", &format!("/srv/debian-13.raw@@{}", esp.offset), "::/EFI"])?.stdout;
    assert_eq!(
        String::from_utf8(listed)?.lines().collect::<Vec<_>>(),
        ["::/EFI/BOOT/", "::/EFI/Linux/", "::/EFI/systemd/"]
    );

    // The size in its footer, not the geometry there.
    let info =
        Cmd::new(&table::QEMU_IMG).args(["info", "--output=json", "-f", "vpc"]).arg(second.join("debian-13.vhd"));
    let info: serde_json::Value = serde_json::from_slice(&info.output()?)?;
    assert_eq!(info["virtual-size"].as_u64(), Some(second.join("debian-13.raw").metadata()?.len()));
    Ok(())
}

/// This checkout, with an agent that need not be built.
fn place(cache: &Cache, work: &Path) -> Result<Place> {
    let agent = work.join("agent");
    fs_err::write(&agent, "#!/bin/sh\n")?;
    Ok(Place { agent: Some(agent), ..Place::here("debian-13", cache) })
}

/// What [`two_bakes_give_the_same_bytes`] says when they do not: the file in the root, not only the image around it.
#[test]
#[ignore = "needs root and a cached tool tree"]
fn a_byte_that_differs_between_two_bakes_is_found_in_its_file() -> Result {
    let cache = cache()?;
    let work = scratch(&cache)?;
    let place = place(&cache, work.path())?;
    let tools = place.tools()?;
    let image = |name: &str, built: &str| -> Result<PathBuf> {
        let (root, out) = (work.path().join(name).join("root"), work.path().join(name).join("out"));
        fs_err::create_dir_all(root.join("usr/bin"))?;
        fs_err::create_dir_all(&out)?;
        fs_err::write(root.join("usr/bin/tool"), format!("#!/bin/sh\n# built {built}\n"))?;
        fs_err::write(root.join("usr/bin/same"), "#!/bin/sh\n")?;
        let sandbox = Sandbox::new(&tools, EPOCH).bind(&root, "mnt", true).bind(&out, "srv", false);
        sandbox.run(&["mksquashfs", "/mnt", "/srv/x.root.squashfs", "-noappend", "-quiet"])?;
        Ok(out)
    };
    let (one, other) = (image("one", "10:00")?, image("other", "11:00")?);
    let unpacker = Unpacker { tools: &|| Ok(tools.clone()), work: &work.path().join("unpacked") };
    let found = differences(&one, &other, &unpacker)?;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("/usr/bin/tool: sha256 "), "{found:?}");
    assert!(found[0].ends_with(r"1 differ, the first at 19: `0:00\n` / `1:00\n`"), "{found:?}");
    assert!(found[1].starts_with("x.root.squashfs: "), "{found:?}");
    Ok(())
}

/// Copies a directory with its links and modes.
fn copy_tree(from: &Path, to: &Path) -> Result {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type()? {
            kind if kind.is_dir() => copy_tree(&path, &target)?,
            kind if kind.is_symlink() => std::os::unix::fs::symlink(fs_err::read_link(&path)?, target)?,
            _ => drop(fs_err::copy(&path, &target)?),
        }
    }
    Ok(())
}

/// With a store, no network and an empty cache, a bake makes what the ordinary one makes.
#[test]
#[ignore = "needs root, Debian's packages and four minutes"]
fn a_bake_from_a_store_without_network_gives_the_same_bytes() -> Result {
    let cache = cache()?;
    let work = scratch(&cache)?;
    // Inside the checkout, because role profiles are found from there; with the locks that can be fetched today.
    let images = tempfile::Builder::new().prefix("images-").tempdir_in(workspace::root().join("target"))?;
    copy_tree(&workspace::image("common"), &images.path().join("common"))?;
    for name in ["debian-13", "tools"] {
        let image = images.path().join(name);
        copy_tree(&workspace::image(name), &image)?;
        lock_what_can_be_fetched(&image, &cache)?;
    }
    let agent = work.path().join("agent");
    fs_err::write(&agent, "#!/bin/sh\n")?;
    let (image, store) = (images.path().join("debian-13"), work.path().join("store"));
    let bake = |out: &str, from: &[&str], cache: &Path, offline: bool| -> Result<PathBuf> {
        let out = work.path().join(out);
        let cmd = binary::pgkiln().arg("bake").arg(&image).arg("--agent").arg(&agent).arg("--out").arg(&out).args(from);
        let cmd = cmd.arg("--cache").arg(cache);
        let said = binary::run(if offline { cmd.wrapped_by(&table::UNSHARE, ["--net", "--"]) } else { cmd });
        anyhow::ensure!(said.code == Some(0), "{}", said.stderr);
        Ok(out)
    };
    let usual = bake("usual", &[], cache.root(), false)?;
    let fill = binary::pgkiln().arg("fetch").arg(&image).arg("--to").arg(&store).arg("--cache").arg(cache.root());
    let said = binary::run(fill);
    anyhow::ensure!(said.code == Some(0), "{}", said.stderr);

    let fresh = work.path().join("fresh");
    let without = bake("without", &[], &fresh, true).expect_err("there is a network in there");
    assert!(without.to_string().contains("cannot be reached"), "{without:#}");
    let offline = bake("offline", &["--from", &store.display().to_string()], &fresh, true)?;
    for name in ["SHA256SUMS", "manifest.json"] {
        assert_eq!(fs_err::read_to_string(usual.join(name))?, fs_err::read_to_string(offline.join(name))?, "{name}");
    }
    let root = "debian-13.root.squashfs";
    assert_eq!(Sha256::of_file(&usual.join(root))?, Sha256::of_file(&offline.join(root))?);
    Ok(())
}

/// Killed at any moment, a bake leaves no half-made tree or output, and the next one cleans up.
#[test]
#[ignore = "needs root and two minutes"]
fn a_killed_bake_leaves_nothing_half_made() -> Result {
    let cache = cache()?;
    recipe(&cache)?;
    let work = scratch(&cache)?;
    let agent = work.path().join("agent");
    fs_err::write(&agent, "#!/bin/sh\n")?;
    let out = work.path().join("out");
    for millis in [50, 400, 1500, 4000, 8000] {
        let log = fs_err::File::create(work.path().join("log"))?.into_parts().0;
        let mut running = binary::pgkiln()
            .arg("--cache")
            .arg(cache.root())
            .args(["bake", "--fresh", "--relock", "--agent"])
            .arg(&agent)
            .arg("--out")
            .arg(&out)
            .arg(workspace::image("debian-13"))
            .spawn_logged(&log)?;
        std::thread::sleep(Duration::from_millis(millis));
        nix::sys::signal::kill(running.pid(), nix::sys::signal::Signal::SIGKILL)?;
        running.wait()?;
        assert!(!out.join("SHA256SUMS").exists());
        for tree in fs_err::read_dir(cache.root().join("trees"))? {
            let tree = tree?.path();
            assert!(!tree.is_dir() || tree.join("boot_id").exists(), "half-made: {}", tree.display());
        }
    }
    bake(&cache, &out, false)?;
    let left = |entry: std::io::Result<fs_err::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("bake-"))
    };
    assert_eq!(fs_err::read_dir(cache.root().join("work"))?.filter_map(|entry| left(entry).then_some(())).count(), 0);
    assert!(out.join("SHA256SUMS").exists());
    Ok(())
}
