//! The server over real connections on 127.0.0.1, with a small set.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::*;
use crate::cluster::{self, Cluster, SeedFormat};
use crate::digest::Sha256;

const MAC: &str = "52-54-00-12-34-56";

fn set_in(dir: &Path, id: &str) {
    let script = format!(
        "#!ipxe\nkernel {id}.vmlinuz initrd={id}.initrd initrd={id}.root.cpio ro roothash=00 pgkiln.live ${{pgkiln_words}}\n\
         initrd {id}.initrd\ninitrd {id}.root.cpio\nboot\n"
    );
    set_with(dir, id, &script);
}

/// With another script; it is in the sums all the same.
fn set_with(dir: &Path, id: &str, script: &str) {
    let files = [("vmlinuz", "kernel"), ("initrd", "initrd"), ("root.cpio", "0123456789"), ("ipxe", script)];
    let before = fs_err::read_to_string(dir.join("SHA256SUMS")).unwrap_or_default();
    let mut sums: String = before.lines().filter(|line| !line.contains(id)).map(|line| format!("{line}\n")).collect();
    for (name, text) in files {
        fs_err::write(dir.join(format!("{id}.{name}")), text).unwrap();
        sums += &format!("{}  {id}.{name}\n", Sha256::of(text));
    }
    fs_err::write(dir.join("SHA256SUMS"), sums).unwrap();
    fs_err::write(dir.join("secret"), "not of the set").unwrap();
}

fn cluster_in(dir: &Path) -> Cluster {
    let options = cluster::Options {
        name: "orders".into(),
        nodes: vec!["10.0.0.11".into()],
        prefix_len: Some(24),
        ..Default::default()
    };
    let mut definition = options.definition().unwrap();
    definition.nodes[0].mac = Some("52:54:00:12:34:56".into());
    cluster::create(dir, definition).unwrap()
}

/// A served site; what it answers to raw requests.
struct Served {
    address: SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
}

fn served(site: Site) -> Served {
    let (send, events) = mpsc::unbounded_channel();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            serve(listener, Arc::new(site), send).await.unwrap();
        });
    });
    Served { address: told.recv().unwrap(), events }
}

impl Served {
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let text = request.replace('\n', "\r\n");
        write!(stream, "{text}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn body(&self, path: &str) -> String {
        let answer = self.ask(&format!("GET {path} HTTP/1.1"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        body.to_owned()
    }
}

fn site(dir: &Path) -> Site {
    set_in(dir, "debian-13_1");
    let mut machines = Machines::from_cluster(&cluster_in(&dir.join("orders")), Mode::Live).unwrap();
    machines.0.get_mut(MAC).unwrap().disk = Some(firstboot::spec::SystemDisk {
        serial: Some("DISK1".into()),
        overwrite: Some("7,unseen".into()),
        ..Default::default()
    });
    Site::new(Set::all(dir).unwrap().remove(0), &[], machines, "quiet".into())
}

#[test]
fn a_machine_finds_everything_by_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = served(site(dir.path()));
    let address = served.address;
    assert!(served.body("/boot.ipxe").contains("chain --replace --autofree /ipxe/${mac:hexhyp}"));
    let script = served.body("/ipxe/52:54:00:12:34:56");
    let kernel = format!(
        "kernel http://{address}/i/debian-13_1/debian-13_1.vmlinuz initrd=debian-13_1.initrd initrd=debian-13_1.root.cpio ro \
         roothash=00 pgkiln.live ds=nocloud;s=http://{address}/seed/{MAC}/ pgkiln.disk=serial:DISK1 \
         pgkiln.overwrite=7,unseen quiet || goto failed\n"
    );
    assert!(script.contains(&kernel), "{script}\n{kernel}");
    assert!(script.contains("is pg-1 of cluster orders") && !script.contains("pgkiln.mode"), "{script}");
    for line in script.lines().filter(|line| line.starts_with("initrd ") || line.starts_with("kernel ")) {
        let url = line.split(' ').nth(1).unwrap();
        let path = url.strip_prefix(&format!("http://{address}")).unwrap();
        assert!(!served.body(path).is_empty(), "{line}");
    }
    let meta = served.body(&format!("/seed/{MAC}/meta-data"));
    assert!(
        meta.contains("instance-id:") && served.body(&format!("/seed/{MAC}/network-config")).contains("version: 2")
    );
    let user_data = served.body(&format!("/seed/{MAC}/user-data"));
    assert!(user_data.contains("slot: pg-1") && !user_data.contains("founding"), "{user_data}");
    let unknown = served.body("/ipxe/52-54-00-00-00-99");
    assert!(
        unknown.contains("no machine has the address 52-54-00-00-00-99") && unknown.contains("exit 1"),
        "{unknown}"
    );
    let event = served.events.blocking_recv().unwrap();
    assert_eq!((event.path.as_str(), event.status, event.complete), ("/boot.ipxe", 200, true));
}

#[test]
fn parts_of_a_file_and_nothing_that_is_no_part_of_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let served = served(site(dir.path()));
    let root = "/i/debian-13_1/debian-13_1.root.cpio";
    let ranged = |more: &str| served.ask(&format!("GET {root} HTTP/1.1\n{more}"));
    let part = ranged("Range: bytes=3-5");
    assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\n345"), "{part}");
    assert!(part.contains("content-range: bytes 3-5/10") && part.contains("content-length: 3\r\n"), "{part}");
    assert!(ranged("Range: bytes=10-").starts_with("HTTP/1.1 416"));
    assert!(ranged("Range: bytes=4-\nIf-Range: \"other\"").ends_with("\r\n\r\n0123456789"), "of another version");
    let head = served.ask(&format!("HEAD {root} HTTP/1.1"));
    assert!(head.contains("content-length: 10\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(served.ask(&format!("POST {root} HTTP/1.1\nContent-Length: 0")).starts_with("HTTP/1.1 405"));
    for path in [
        "/",
        "/secret",
        "/i/debian-13_1/secret",
        "/i/debian-13_1/../secret",
        "/i/debian-13_1/..%2fsecret",
        "/i/debian-13_1/%2e%2e/secret",
        "/i//debian-13_1.vmlinuz",
        "/i/debian-13_2/debian-13_1.vmlinuz",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/seed/52-54-00-12-34-56/",
        "/seed/52-54-00-12-34-56/vendor-data",
        "/seed/52-54-00-12-34-56/../../secret",
        "/seed/52-54-00-00-00-99/user-data",
        "/ipxe/",
        "/ipxe/x",
        "/ipxe/52-54-00-12-34-56/x",
        "/seed/52-54-00-12-34-56",
        "/boot.ipxe/",
        "/i/debian-13_1/debian-13_1.ipxe",
    ] {
        let answer = served.ask(&format!("GET {path} HTTP/1.1"));
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("not of the set"), "{path}: {answer}");
    }
    // What was baked is served, whatever becomes of the directory.
    fs_err::remove_file(dir.path().join("debian-13_1.root.cpio")).unwrap();
    fs_err::write(dir.path().join("debian-13_1.root.cpio"), "another one").unwrap();
    assert_eq!(served.body(root), "0123456789");
}

#[test]
fn whatever_holds_a_secret_or_would_be_refused_by_its_machine_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("orders"));
    let seeds = dir.path().join("seeds");
    fs_err::create_dir(&seeds).unwrap();
    let refused = || Machines::from_seeds(&seeds, Mode::Live).unwrap_err().to_string();
    assert!(refused().contains("no machine is known here"));
    cluster.write_seed("pg-1", SeedFormat::Directory, &seeds.join(MAC), true).unwrap();
    let said = refused();
    assert!(said.contains("the seed of `pg-1` holds the founding bundle") && said.contains(MAC), "{said}");
    fs_err::remove_dir_all(seeds.join(MAC)).unwrap();
    cluster.write_seed("pg-1", SeedFormat::Directory, &seeds.join(MAC), false).unwrap();
    assert_eq!(Machines::from_seeds(&seeds, Mode::Live).unwrap().0[MAC].slot, "pg-1");
    let user_data = seeds.join(MAC).join("user-data");
    let good = fs_err::read_to_string(&user_data).unwrap();
    fs_err::write(&user_data, format!("{good}motd: |\n  -----BEGIN PRIVATE KEY-----\n")).unwrap();
    assert!(refused().contains("`user-data` of `pg-1` holds a private key"), "{}", refused());
    fs_err::write(&user_data, good.replace("role: node", "role: nod")).unwrap();
    assert!(refused().contains("unknown role `nod`"), "{}", refused());
    fs_err::write(&user_data, &good).unwrap();
    fs_err::create_dir(seeds.join("pg-2")).unwrap();
    assert!(refused().contains("`pg-2` is no MAC address"), "{}", refused());
    let bare = cluster::Options {
        name: "bare".into(),
        nodes: vec!["10.0.0.11".into()],
        prefix_len: Some(24),
        ..Default::default()
    };
    let bare = cluster::create(&dir.path().join("bare"), bare.definition().unwrap()).unwrap();
    assert!(Machines::from_cluster(&bare, Mode::Live).unwrap_err().to_string().contains("node `pg-1` has no `mac`"));
}

#[test]
fn a_set_is_whole_or_refused_and_installing_is_one_word() {
    let dir = tempfile::tempdir().unwrap();
    let refused = || Set::all(dir.path()).unwrap_err().to_string();
    assert!(refused().contains("no SHA256SUMS"), "{}", refused());
    set_in(dir.path(), "debian-13_1");
    set_in(dir.path(), "debian-13_2");
    assert_eq!(Set::all(dir.path()).unwrap().len(), 2);
    fs_err::write(dir.path().join("debian-13_2.initrd"), "damaged").unwrap();
    assert!(refused().contains("debian-13_2.initrd: the file has SHA-256"), "{}", refused());
    let good = fs_err::read_to_string(dir.path().join("debian-13_2.ipxe")).unwrap();
    for strange in ["initrd debian-13_1.initrd", "initrd ../debian-13_2.initrd", "initrd debian-13_2.x/../../secret"] {
        set_with(dir.path(), "debian-13_2", &good.replace("initrd debian-13_2.initrd", strange));
        assert!(refused().contains("does not belong to `debian-13_2`"), "{}", refused());
    }
    // Left by an earlier bake, which the sums of the later one do not know.
    let sums = fs_err::read_to_string(dir.path().join("SHA256SUMS")).unwrap();
    let later: String = sums.lines().filter(|line| !line.contains("_2.")).map(|line| format!("{line}\n")).collect();
    fs_err::write(dir.path().join("SHA256SUMS"), later).unwrap();
    assert_eq!(Set::all(dir.path()).unwrap().len(), 1);

    let mut machines = Machines::from_cluster(&cluster_in(&dir.path().join("orders")), Mode::Live).unwrap();
    assert!(machines.install(&["pg-2".into()]).unwrap_err().what.contains("names 0 machines"));
    machines.install(&["52:54:00:12:34:56".into()]).unwrap();
    let site = Site::new(Set::all(dir.path()).unwrap().remove(0), &[], machines, String::new());
    let script = served(site).body(&format!("/ipxe/{MAC}"));
    assert!(script.contains("/ pgkiln.mode=install || goto failed\n"), "{script}");
}

#[test]
fn dnsmasq_gives_out_no_address() {
    let address = "10.0.0.5".parse().unwrap();
    let text = dhcp::config(
        "br0",
        address,
        "255.255.255.0".parse().unwrap(),
        "10.0.0.5:8080".parse().unwrap(),
        Path::new("/t"),
    );
    let ranges: Vec<&str> = text.lines().filter(|line| line.starts_with("dhcp-range")).collect();
    assert_eq!(ranges, ["dhcp-range=10.0.0.0,proxy,255.255.255.0"]);
    assert!(
        text.contains("port=0\n") && text.contains("dhcp-boot=tag:ipxe,http://10.0.0.5:8080/boot.ipxe,,10.0.0.5\n"),
        "{text}"
    );
    assert!(advice("10.0.0.5:8080".parse().unwrap()).matches("http://10.0.0.5:8080/boot.ipxe").count() == 3);
}
