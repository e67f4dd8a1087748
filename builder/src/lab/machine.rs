//! The machine that QEMU makes of a node: what the host's owner may choose.

use serde::{Deserialize, Serialize};

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor if it is shown to work here, else software
    #[default]
    Auto,
    /// The processor (KVM)
    Kvm,
    /// Software: works everywhere, tens of times slower
    Tcg,
}

impl Accel {
    /// As QEMU's `-accel` has it; what is still to be found out counts as software.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Auto | Self::Tcg => "tcg,thread=multi",
        }
    }

    /// The same for `-cpu`. Emulated, what libraries do with AVX costs more than what they do without: with it QEMU 7.2 encrypts
    /// (AES-256-GCM in openssl) 4 MB/s instead of 29, signs (ECDSA) a third slower, and reaches systemd after 17 s instead of 12.
    pub(super) fn processor(self) -> &'static str {
        match self {
            Self::Kvm => "max",
            Self::Auto | Self::Tcg => "max,-avx,-avx2,-vaes,-vpclmulqdq",
        }
    }
}

/// What the disk hangs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// Paravirtual, as most clouds have it
    #[default]
    Virtio,
    /// AHCI
    Sata,
    /// NVM Express
    Nvme,
}

impl Bus {
    /// QEMU's device for a drive called `id` with sectors of so many bytes.
    pub(super) fn device(self, id: &str, sector: u32) -> String {
        let kind = match self {
            Self::Virtio => "virtio-blk-pci",
            Self::Sata => "ide-hd",
            Self::Nvme => "nvme",
        };
        format!("{kind},drive={id},serial={id},logical_block_size={sector},physical_block_size={sector}")
    }

    /// Whether it takes drives whose sectors have so many bytes. QEMU's AHCI knows 512 only.
    pub(super) fn takes(self, sector: u32) -> bool {
        self != Self::Sata || sector == 512
    }
}

/// A node's hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Who executes its instructions.
    pub accel: Accel,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u8,
    /// What its disk hangs on.
    pub bus: Bus,
    /// Size of its disk in GiB; an image that is larger keeps its own.
    pub disk_gib: u32,
    /// Firmware that starts nothing it has no key for. The keys are the ones that come with OVMF for tests ("snakeoil").
    pub secure_boot: bool,
}

impl Default for Machine {
    fn default() -> Self {
        let (accel, bus) = (Accel::default(), Bus::default());
        Self { accel, memory_mib: 2048, cpus: 1, bus, disk_gib: 16, secure_boot: false }
    }
}
