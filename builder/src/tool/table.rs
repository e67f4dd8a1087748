//! Every host program pgkiln may run. `pgkiln doctor` checks this table; a program that is not here cannot be run.

use super::Tool;

/// Resolves packages and fetches indexes in an isolated directory.
pub const APT_GET: Tool = Tool {
    name: "apt-get",
    package: "apt",
    minimum: Some(("2.2", &["--version"])),
    why: "resolving packages and checking the archive's signatures",
};
/// Tells which archives the host itself uses.
pub const APT_CONFIG: Tool =
    Tool { name: "apt-config", package: "apt", minimum: None, why: "asking apt for this host's archives" };
/// Resolves what the lock pins.
pub const APT_CACHE: Tool =
    Tool { name: "apt-cache", package: "apt", minimum: None, why: "reading package records of an archive" };
/// Verifies archive signatures.
pub const GPGV: Tool = Tool { name: "gpgv", package: "gpgv", minimum: None, why: "checking an archive's signature" };
/// Version order and package database of the host, for tests and `host` archives.
pub const DPKG: Tool = Tool { name: "dpkg", package: "dpkg", minimum: None, why: "comparing versions" };
/// Runs a program in new namespaces.
pub const UNSHARE: Tool =
    Tool { name: "unshare", package: "util-linux", minimum: None, why: "running programs in namespaces of their own" };
/// Runs a program in a running node's namespaces.
pub const NSENTER: Tool =
    Tool { name: "nsenter", package: "util-linux", minimum: None, why: "running programs inside a lab node" };
/// Ties a program's life to ours.
pub const SETPRIV: Tool =
    Tool { name: "setpriv", package: "util-linux", minimum: None, why: "ending programs together with pgkiln" };
/// Mounts images and overlays in the lab's own mount namespace.
pub const MOUNT: Tool = Tool { name: "mount", package: "mount", minimum: None, why: "mounting images" };
/// Undoes [`MOUNT`].
pub const UMOUNT: Tool = Tool { name: "umount", package: "mount", minimum: None, why: "unmounting images" };
/// Enters a root tree.
pub const CHROOT: Tool =
    Tool { name: "chroot", package: "coreutils", minimum: None, why: "running programs of a root tree" };
/// Boots an image's own systemd.
pub const NSPAWN: Tool = Tool {
    name: "systemd-nspawn",
    package: "systemd-container",
    minimum: Some(("247", &["--version"])),
    why: "booting the lab's nodes",
};
/// Runs commands in machines of the lab.
pub const SSH: Tool =
    Tool { name: "ssh", package: "openssh-client", minimum: None, why: "running commands in the lab's machines" };
/// Gives the lab a cgroup that systemd leaves alone, on hosts that systemd runs.
pub const SYSTEMD_RUN: Tool =
    Tool { name: "systemd-run", package: "systemd", minimum: None, why: "giving the lab a scope of its own" };
/// Builds the lab's network.
pub const IP: Tool = Tool { name: "ip", package: "iproute2", minimum: None, why: "building the lab's network" };
/// Cuts the lab's network.
pub const NFT: Tool =
    Tool { name: "nft", package: "nftables", minimum: None, why: "cutting the lab's network in tests" };
/// Signs what a bake left. Its signatures are the same every time, other programs' of this format are not.
pub const MINISIGN: Tool =
    Tool { name: "minisign", package: "minisign", minimum: Some(("0.10", &["-v"])), why: "signing SHA256SUMS" };
/// Writes `cidata` volumes.
pub const XORRISO: Tool =
    Tool { name: "xorriso", package: "xorriso", minimum: None, why: "writing `cidata` ISO images" };
/// Writes `cidata` volumes where xorriso is not installed.
pub const GENISOIMAGE: Tool =
    Tool { name: "genisoimage", package: "genisoimage", minimum: None, why: "writing `cidata` ISO images" };
/// Builds the agent that goes into the image.
pub const CARGO: Tool = Tool {
    name: "cargo",
    package: "cargo",
    minimum: Some(("1.95", &["--version"])),
    why: "building the first-boot agent",
};
/// Links the agent.
pub const CC: Tool = Tool { name: "cc", package: "gcc", minimum: None, why: "linking the first-boot agent" };
/// Compares our tree with what the reference tool makes.
pub const MMDEBSTRAP: Tool =
    Tool { name: "mmdebstrap", package: "mmdebstrap", minimum: None, why: "comparing a baked tree with mmdebstrap's" };
/// Bakes on another day.
pub const FAKETIME: Tool =
    Tool { name: "faketime", package: "faketime", minimum: None, why: "baking under another date in tests" };
/// Kills the agent at chosen system calls.
pub const STRACE: Tool =
    Tool { name: "strace", package: "strace", minimum: None, why: "killing the agent at chosen system calls in tests" };
/// Asks a cluster as any client would.
pub const PSQL: Tool =
    Tool { name: "psql", package: "postgresql-client", minimum: None, why: "talking to a test cluster as a client" };
/// Tells machines where to boot from.
pub const DNSMASQ: Tool =
    Tool { name: "dnsmasq", package: "dnsmasq-base", minimum: None, why: "telling machines where to boot from" };
/// Layers a machine's disk over an image.
pub const QEMU_IMG: Tool =
    Tool { name: "qemu-img", package: "qemu-utils", minimum: None, why: "disks of the lab's machines" };
/// Boots baked disks.
pub const QEMU: Tool = Tool {
    name: "qemu-system-x86_64",
    package: "qemu-system-x86",
    minimum: Some(("7.2", &["--version"])),
    why: "booting disks as machines",
};
/// Copies disks without filling their holes.
pub const CP: Tool = Tool { name: "cp", package: "coreutils", minimum: None, why: "copying disks" };
/// Makes the key that is thrown away where the one for Secure Boot is out of reach.
pub const OPENSSL: Tool = Tool {
    name: "openssl",
    package: "openssl",
    minimum: Some(("3.0", &["version"])),
    why: "the layout of signatures by a command, and keys in tests",
};
/// Runs what the operator says.
pub const SH: Tool = Tool { name: "sh", package: "dash", minimum: None, why: "running the command that signs" };
/// Makes a token that keeps its key, as a security module does.
pub const SOFTHSM: Tool =
    Tool { name: "softhsm2-util", package: "softhsm2", minimum: None, why: "signing with a PKCS #11 token in tests" };
/// Has such a token sign.
pub const PKCS11_TOOL: Tool =
    Tool { name: "pkcs11-tool", package: "opensc", minimum: None, why: "signing with a PKCS #11 token in tests" };
