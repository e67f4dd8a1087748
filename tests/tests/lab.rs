//! The lab with real nodes. Needs root and a baked image (`PGKILN_TEST_IMAGE`); `cargo selftest` provides both.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::BTreeSet;
use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgkiln::lab::{Lab, NodeState, Options};
use pgkiln::problem::Problem;
use pgkiln_tests::image;

/// A lab of `nodes` plain nodes whose data goes away with `dir`.
fn options(name: &str, nodes: u8, dir: &tempfile::TempDir) -> Options {
    let mut options = Options::new(name, image::baked().unwrap(), "10.0.0.0/24".parse().unwrap());
    // The name is in the path so that a mount left behind can be told from others.
    options.state_dir = dir.path().join(name);
    for n in 1..=nodes {
        options = options.node(format!("pg-{n}"), format!("10.0.0.1{n}").parse().unwrap(), None);
    }
    options
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn run(lab: &Lab, slot: &str, script: &str) -> (bool, String) {
    let done = lab.exec(slot, ["sh", "-c", script]).unwrap();
    (done.status.success(), String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

/// The lab leaves addresses to the agent; here there is none, and networkd must not remove what we add.
fn address(lab: &Lab, n: u8) {
    let script = format!(
        "mkdir -p /run/systemd/network && printf '[Match]\\nName=host0\\n[Link]\\nUnmanaged=yes\\n' \
         >/run/systemd/network/05-test.network; if systemctl is-active -q systemd-networkd; then networkctl reload || exit 1; fi; \
         ip address replace 10.0.0.1{n}/24 dev host0 && ip link set host0 up"
    );
    // Early in the boot there is no bus yet to ask networkd through.
    eventually(Duration::from_secs(20), || run(lab, &format!("pg-{n}"), "test -S /run/dbus/system_bus_socket").0);
    eventually(Duration::from_secs(20), || run(lab, &format!("pg-{n}"), &script).0 && has_address(lab, n));
}

fn has_address(lab: &Lab, n: u8) -> bool {
    lab.status().unwrap().nodes[usize::from(n) - 1].addresses.contains(&format!("10.0.0.1{n}/24"))
}

/// Answers `hello` once per connection on port 4242 of the node.
fn serve(lab: &Lab, slot: &str) {
    let script = "python3 -c 'import socketserver as s\nclass H(s.BaseRequestHandler):\n  def handle(self):\n    \
                  self.request.sendall(b\"hello\"); self.request.recv(1)\ns.ThreadingTCPServer((\"\",4242),H).serve_forever()' \
                  >/dev/null 2>&1 & exit 0";
    assert!(run(lab, slot, script).0);
}

fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn hello(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut text = [0; 5];
    stream.read_exact(&mut text).ok()?;
    assert_eq!(&text, b"hello");
    Some(stream)
}

fn refusal(result: anyhow::Result<Lab>) -> Problem {
    result.map(drop).unwrap_err().downcast::<Problem>().unwrap()
}

/// Whatever could show that a lab was here.
fn traces(of: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for process in fs_err::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let read = |file| fs_err::read(process.path().join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        if process.file_name().to_string_lossy().parse::<u32>().is_ok() && line.contains(of) {
            found.insert(format!("process {line}"));
        }
        let mounts = String::from_utf8_lossy(&read("mounts")).into_owned();
        found.extend(mounts.lines().filter(|mount| mount.contains(of)).map(|mount| format!("mount {mount}")));
    }
    for backing in fs_err::read_dir("/sys/block").unwrap().filter_map(Result::ok) {
        let file = fs_err::read_to_string(backing.path().join("loop/backing_file")).unwrap_or_default();
        if file.contains(of) {
            found.insert(format!("loop device of {file}"));
        }
    }
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let groups = fs_err::read_dir(hierarchy).into_iter().flatten().filter_map(Result::ok);
        let names = groups.map(|group| group.file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|name| name.contains(of)).map(|name| format!("cgroup {name}")));
    }
    let registry = PathBuf::from("/run/pgkiln/lab").join(of);
    if registry.exists() {
        found.insert(format!("directory {}", registry.display()));
    }
    found
}

fn gone(of: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !traces(of).is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", traces(of));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_node_lives_dies_and_comes_back_with_its_data() {
    if image::baked().is_none() {
        return;
    }
    let dir = dir();
    let lab = Lab::up(options("tst-life", 2, &dir).publish("pg-1", 4242, None)).unwrap();
    assert!(!run(&lab, "pg-1", "exit 7").0);
    assert_eq!(lab.exec("pg-1", ["sh", "-c", "exit 7"]).unwrap().status.code(), Some(7));
    assert_eq!(lab.exec_with_input("pg-1", ["cat"], "through").unwrap().stdout, b"through");
    assert_eq!(run(&lab, "pg-1", "cat /proc/1/comm").1, "systemd");
    assert!(!run(&lab, "pg-1", "touch /usr/x").0, "the root image is read-only");
    assert!(run(&lab, "pg-1", "echo kept >/var/kept && echo lost >/etc/lost && sync").0);
    let machine = |lab: &Lab, slot| run(lab, slot, "cat /etc/machine-id").1;
    eventually(Duration::from_secs(20), || machine(&lab, "pg-1").len() == 32 && machine(&lab, "pg-2").len() == 32);
    let id = machine(&lab, "pg-1");
    assert_ne!(id, machine(&lab, "pg-2"), "two machines, two identities");

    address(&lab, 1);
    serve(&lab, "pg-1");
    let port = lab.host_port("pg-1", 4242).unwrap();
    eventually(Duration::from_secs(20), || hello(port).is_some());
    let mut open = hello(port).unwrap();

    lab.kill("pg-1").unwrap();
    let end = open.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "an open connection ends when its node dies");
    // Refused, and not left to wait for a machine that will not answer.
    let asked = Instant::now();
    assert!(hello(port).is_none(), "nobody serves");
    assert!(asked.elapsed() < Duration::from_secs(2), "a new connection waited {:?}", asked.elapsed());
    assert_eq!(lab.status().unwrap().nodes[0].state, NodeState::Off);
    eventually(Duration::from_secs(20), || lab.status().unwrap().nodes[1].state == NodeState::Running);
    let off = lab.exec("pg-1", ["true"]).unwrap_err().downcast::<Problem>().unwrap();
    assert_eq!(off.what, "node `pg-1` is off");

    lab.start("pg-1").unwrap();
    assert_eq!(run(&lab, "pg-1", "cat /var/kept; cat /etc/lost"), (false, "kept".into()));
    eventually(Duration::from_secs(20), || machine(&lab, "pg-1") == id);
    lab.stop("pg-1").unwrap();
    let status = lab.status().unwrap();
    assert_eq!(status.nodes[0].last_end.as_deref(), Some("powered off"));
    lab.down(false).unwrap();
    gone("tst-life");
    assert!(!dir.path().join("tst-life").exists());
}

#[test]
fn the_network_can_be_cut_one_way_both_ways_and_healed() {
    if image::baked().is_none() {
        return;
    }
    let dir = dir();
    let lab = Lab::up(options("tst-cut", 3, &dir)).unwrap();
    for n in 1..=3 {
        address(&lab, n);
    }
    let reaches = |from: &str, to: u8| {
        let connect = format!("timeout 1 bash -c 'exec 3<>/dev/tcp/10.0.0.1{to}/4242; head -c 5 <&3'");
        run(&lab, from, &connect).1 == "hello"
    };
    serve(&lab, "pg-2");
    serve(&lab, "pg-3");
    eventually(Duration::from_secs(20), || reaches("pg-1", 2) && reaches("pg-1", 3) && reaches("pg-3", 2));
    lab.partition("pg-1", "pg-2", false).unwrap();
    assert!(!reaches("pg-1", 2), "cut");
    assert!(reaches("pg-1", 3) && reaches("pg-3", 2), "the third node still reaches both");
    lab.heal(Some(("pg-2", "pg-1"))).unwrap();
    eventually(Duration::from_secs(20), || reaches("pg-1", 2));
    lab.partition("pg-2", "pg-1", true).unwrap();
    assert_eq!(lab.status().unwrap().partitions, [("pg-2".to_owned(), "pg-1".to_owned())]);
    assert!(!reaches("pg-1", 2), "answers do not come back");
    lab.heal(None).unwrap();
    eventually(Duration::from_secs(20), || reaches("pg-1", 2));
}

#[test]
fn names_and_ports_in_use_are_refused_with_a_remedy() {
    if image::baked().is_none() {
        return;
    }
    let (first_dir, second_dir) = (dir(), dir());
    let first = Lab::up(options("tst-one", 1, &first_dir).publish("pg-1", 4242, None)).unwrap();
    let name = refusal(Lab::up(options("tst-one", 1, &second_dir)));
    assert_eq!(name.what, "a lab named `tst-one` is up already");
    assert!(name.remedy.contains("pgkiln lab down tst-one"));

    let port = first.host_port("pg-1", 4242).unwrap();
    let taken = refusal(Lab::up(options("tst-two", 1, &second_dir).publish("pg-1", 4242, Some(port))));
    assert!(taken.what.starts_with(&format!("port {port} on 127.0.0.1 cannot be used")), "{}", taken.what);
    gone("tst-two");

    // Same slots, same addresses, at the same time.
    let second = Lab::up(options("tst-two", 1, &second_dir)).unwrap();
    assert!(run(&first, "pg-1", "true").0 && run(&second, "pg-1", "true").0);
    drop(second);
    gone("tst-two");
    assert!(run(&first, "pg-1", "true").0, "the other lab lives on");
    assert_eq!(refusal(Lab::attach("tst-two")).what, "lab `tst-two` is not up");
}

#[test]
fn killing_any_of_its_processes_leaves_nothing() {
    if image::baked().is_none() {
        return;
    }
    let dir = dir();
    for victim in ["supervisor", "init", "warden"] {
        let lab = Lab::up(options("tst-crash", 2, &dir)).unwrap();
        let process = |name: &str| {
            let wanted = format!("lab supervise {name} tst-crash");
            let all = fs_err::read_dir("/proc").unwrap().filter_map(Result::ok);
            let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
            pids.find(|pid| {
                let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).replace('\0', " ").contains(&wanted)
            })
        };
        let pid = process(victim).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        if victim == "warden" {
            // Nobody is left to sweep empty directories; the next lab does.
            drop(lab);
            drop(Lab::up(options("tst-next", 1, &dir)).unwrap());
            let _ = fs_err::remove_dir_all("/run/pgkiln/lab/tst-crash");
        }
        gone("tst-crash");
    }
}

#[test]
fn an_owner_that_ends_takes_the_lab_along_unless_it_let_go() {
    if image::baked().is_none() {
        return;
    }
    let dir = dir();
    drop(Lab::up(options("tst-own", 1, &dir)).unwrap());
    gone("tst-own");
    Lab::up(options("tst-own", 1, &dir)).unwrap().detach().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let lab = Lab::attach("tst-own").unwrap();
    assert!(run(&lab, "pg-1", "echo kept >/var/kept").0);
    lab.down(true).unwrap();
    gone("tst-own");
    let again = Lab::up(options("tst-own", 1, &dir)).unwrap();
    assert_eq!(run(&again, "pg-1", "cat /var/kept").1, "kept");
    again.down(false).unwrap();
    gone("tst-own");
}
