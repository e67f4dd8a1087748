//! Where the image's own programs run: maintainer scripts, dpkg, mkfs.
//!
//! A command gets its own mount, PID, UTS, IPC and network namespaces. The network has no interface that is up, the host
//! name is fixed, `/dev` holds the harmless nodes only, `/run` and `/tmp` are empty, and nothing of the host's environment
//! comes in. When pgkiln dies, by any means, the kernel kills the command and everything it started: the command is PID 1 of
//! its namespace and dies with the thread that waits for it.
//!
//! `fsync` and its relatives succeed without doing anything (a seccomp filter, as mkosi does): a tree that is thrown away
//! after a crash gains nothing from dpkg's care for power cuts, and that care costs more than half of the configure stage.
//!
//! Everything here needs `CAP_SYS_ADMIN` in the current user namespace and nothing else of root. Running as an ordinary user
//! means one more flag in [`NAMESPACES`] and writing the id maps before the first mount; the mounts below are all allowed
//! there (that is why `/dev` is bind mounts, not `mknod`).

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, fork, sethostname};

/// What a command shares with the host: only the user namespace, the cgroup and the clock.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET);

/// Host name seen by maintainer scripts; never the host's.
const HOSTNAME: &str = "localhost";

/// An absent argument of `mount`.
const NONE: Option<&std::ffi::CStr> = None;

/// A tree to run programs in.
#[derive(Debug, Clone)]
pub struct Sandbox {
    root: PathBuf,
    binds: Vec<Bind>,
    overlays: Vec<Overlay>,
    tmpfs: Vec<String>,
    env: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
struct Bind {
    from: PathBuf,
    at: String,
    read_only: bool,
}

#[derive(Debug, Clone)]
struct Overlay {
    lower: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
    at: String,
}

/// One step of setting up the mount namespace; prepared before the fork, because nothing may allocate after it.
enum Step {
    Mount { from: CString, at: CString, kind: Option<CString>, flags: MsFlags, data: Option<CString> },
    Touch(CString),
    Mkdir(CString),
    Symlink { target: CString, at: CString },
}

impl Sandbox {
    /// A sandbox whose `/` is `root`, with the environment every reproducible maintainer script needs.
    pub fn new(root: &Path, source_date_epoch: u64) -> Self {
        let epoch = source_date_epoch.to_string();
        let env = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("LANG", "C.UTF-8"),
            ("TZ", "UTC"),
            ("TERM", "dumb"),
            ("SOURCE_DATE_EPOCH", &epoch),
            ("PYTHONHASHSEED", "0"),
            // What a script merely imports leaves no `.pyc` behind (its bytes vary); py3compile's do not.
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
            ("DEBCONF_NOWARNINGS", "yes"),
            // Honoured by the kernel hooks of initramfs-tools and dracut: an initrd is built once, by us, if at all.
            ("INITRD", "No"),
        ];
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { root: root.to_owned(), binds: Vec::new(), overlays: Vec::new(), tmpfs: Vec::new(), env }
    }

    /// Shows a host file or directory inside, at an existing path of the tree.
    pub fn bind(mut self, from: &Path, at: &str, read_only: bool) -> Self {
        self.binds.push(Bind { from: from.to_owned(), at: at.to_owned(), read_only });
        self
    }

    /// Shows several host directories merged (topmost first) at an existing path; writes go to `upper` (with `work` beside it).
    pub fn overlay(mut self, lower: &[&Path], upper: Option<(&Path, &Path)>, at: &str) -> Self {
        let lower = lower.iter().map(|path| path.to_path_buf()).collect();
        let upper = upper.map(|(upper, work)| (upper.to_owned(), work.to_owned()));
        self.overlays.push(Overlay { lower, upper, at: at.to_owned() });
        self
    }

    /// An empty directory in memory at an existing path.
    pub fn tmpfs(mut self, at: &str) -> Self {
        self.tmpfs.push(at.to_owned());
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs a command; its output is in the error if it fails.
    pub fn run(&self, argv: &[&str]) -> anyhow::Result<Output> {
        let output = self.output(argv)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n  ");
            bail!("`{}` failed in the image's tree ({}):\n  {tail}", argv.join(" "), output.status);
        }
        Ok(output)
    }

    /// Runs a command to its end, whatever the end is.
    pub fn output(&self, argv: &[&str]) -> anyhow::Result<Output> {
        let (program, args) = argv.split_first().context("empty command")?;
        let steps = self.steps()?;
        let root = c_path(&self.root)?;
        #[expect(clippy::disallowed_methods, reason = "programs of the image in its own namespaces, not of the host")]
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[expect(unsafe_code, reason = "namespaces must be entered between fork and exec")]
        // SAFETY: `enter` runs in a forked child with one thread, touches only memory prepared above, and makes system
        // calls; it neither allocates nor takes locks.
        unsafe {
            command.pre_exec(move || enter(&root, &steps).map_err(std::io::Error::from));
        }
        let child = command.spawn().with_context(|| format!("starting `{program}` in {}", self.root.display()))?;
        child.wait_with_output().with_context(|| format!("waiting for `{program}`"))
    }

    fn steps(&self) -> anyhow::Result<Vec<Step>> {
        let at = |path: &str| c_path(&self.root.join(path.trim_start_matches('/')));
        let virtual_fs = |kind: &str, place: &str, flags: MsFlags, data: &str| -> anyhow::Result<Step> {
            Ok(Step::Mount {
                from: CString::new(kind)?,
                at: at(place)?,
                kind: Some(CString::new(kind)?),
                flags,
                data: (!data.is_empty()).then(|| CString::new(data)).transpose()?,
            })
        };
        let bind = |from: &Path, place: &str, flags: MsFlags| -> anyhow::Result<Step> {
            Ok(Step::Mount {
                from: c_path(from)?,
                at: at(place)?,
                kind: None,
                flags: MsFlags::MS_BIND | flags,
                data: None,
            })
        };
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mut steps = vec![
            bind(&self.root, "", MsFlags::MS_REC)?,
            virtual_fs("proc", "proc", safe | MsFlags::MS_NOEXEC, "")?,
            virtual_fs("tmpfs", "run", safe, "mode=0755")?,
            virtual_fs("tmpfs", "tmp", safe, "mode=1777")?,
            virtual_fs("tmpfs", "dev", MsFlags::MS_NOSUID, "mode=0755")?,
            Step::Mkdir(at("dev/pts")?),
            Step::Mkdir(at("dev/shm")?),
            Step::Mkdir(at("run/lock")?),
        ];
        for node in ["null", "zero", "full", "random", "urandom", "tty"] {
            steps.push(Step::Touch(at(&format!("dev/{node}"))?));
            steps.push(bind(&Path::new("/dev").join(node), &format!("dev/{node}"), MsFlags::empty())?);
        }
        for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            let target = CString::new(format!("/proc/self/fd{target}"))?;
            steps.push(Step::Symlink { target, at: at(&format!("dev/{name}"))? });
        }
        for place in &self.tmpfs {
            steps.push(virtual_fs("tmpfs", place, safe, "mode=0755")?);
        }
        for one in &self.binds {
            steps.push(bind(&one.from, &one.at, MsFlags::MS_REC)?);
            if one.read_only {
                steps.push(bind(&one.from, &one.at, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?);
            }
        }
        for one in &self.overlays {
            let paths: Vec<&str> =
                one.lower.iter().map(|path| path.to_str().context("path")).collect::<Result<_, _>>()?;
            let mut data = format!("lowerdir={}", paths.join(":"));
            if let Some((upper, work)) = &one.upper {
                data += &format!(",upperdir={},workdir={}", upper.display(), work.display());
            }
            steps.push(virtual_fs("overlay", &one.at, MsFlags::empty(), &data)?);
        }
        Ok(steps)
    }
}

fn c_path(path: &Path) -> anyhow::Result<CString> {
    let bytes: &OsStr = path.as_os_str();
    CString::new(bytes.as_bytes()).with_context(|| format!("path {} contains a zero byte", path.display()))
}

/// Between fork and exec: become PID 1 of new namespaces whose `/` is the tree.
fn enter(root: &CString, steps: &[Step]) -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    unshare(NAMESPACES)?;
    #[expect(unsafe_code, reason = "only a child of the process that called unshare is inside the PID namespace")]
    // SAFETY: this process has one thread; the parent half below only closes descriptors, waits and exits.
    let forked = unsafe { fork()? };
    if let ForkResult::Parent { child } = forked {
        wait_and_exit(child);
    }
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    nix::unistd::setsid()?;
    sethostname(HOSTNAME)?;
    mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    for step in steps {
        match step {
            Step::Mount { from, at, kind, flags, data } => {
                mount(Some(from.as_c_str()), at.as_c_str(), kind.as_deref(), *flags, data.as_deref())?;
            }
            Step::Touch(at) => {
                use nix::fcntl::{OFlag, open};
                drop(open(
                    at.as_c_str(),
                    OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC,
                    Mode::from_bits_truncate(0o666),
                )?);
            }
            Step::Mkdir(at) => nix::unistd::mkdir(at.as_c_str(), Mode::from_bits_truncate(0o755))?,
            Step::Symlink { target, at } => {
                nix::unistd::symlinkat(target.as_c_str(), nix::fcntl::AT_FDCWD, at.as_c_str())?;
            }
        }
    }
    // Not chroot: the host's mounts must not even be visible.
    chdir(root.as_c_str())?;
    nix::unistd::pivot_root(c".", c".")?;
    nix::mount::umount2(c".", nix::mount::MntFlags::MNT_DETACH)?;
    umask(Mode::from_bits_truncate(0o022));
    ignore_sync()
}

/// The process outside the PID namespace: passes the end of PID 1 on.
fn wait_and_exit(child: nix::unistd::Pid) -> ! {
    // The descriptor on which `Command::spawn` learns of a successful exec must not stay open here.
    #[expect(unsafe_code, reason = "close_range and _exit have no safe wrapper")]
    // SAFETY: nothing in this process uses a descriptor above 2 any more; _exit runs no handlers of the parent's.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
        let code = loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => break code,
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(_) => break 127,
            }
        };
        libc::_exit(code)
    }
}

/// Makes `fsync`, `fdatasync`, `sync`, `syncfs`, `sync_file_range` and `msync` return success at once.
fn ignore_sync() -> nix::Result<()> {
    const CALLS: [libc::c_long; 6] = [
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync,
        libc::SYS_syncfs,
        libc::SYS_sync_file_range,
        libc::SYS_msync,
    ];
    let load = |offset: u32| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let jump_equal = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: 0x15, jt, jf, k };
    let answer = |k: u32| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let arch: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
    // Other architectures' numbers (32-bit programs) mean other calls: let them through untouched.
    let mut program = [answer(0); 3 + CALLS.len() + 2];
    program[0] = load(4);
    program[1] = jump_equal(arch, 0, CALLS.len() as u8 + 1);
    program[2] = load(0);
    for (n, call) in CALLS.iter().enumerate() {
        program[3 + n] = jump_equal(*call as u32, (CALLS.len() - n) as u8, 0);
    }
    program[3 + CALLS.len()] = answer(libc::SECCOMP_RET_ALLOW);
    program[4 + CALLS.len()] = answer(libc::SECCOMP_RET_ERRNO);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    #[expect(unsafe_code, reason = "installing a seccomp filter has no safe wrapper")]
    // SAFETY: `filter` points to `program`, both live until the call returns; the kernel copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    nix::Error::result(result).map(drop)
}
