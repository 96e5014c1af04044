//! What tells one node from all others on this machine: its directory, bridge, addresses and control group.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// The prefix of every name, by which left-overs are found.
pub(super) const PREFIX: &str = "chitty-node-";

/// A node's names, all from one number.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    number: u16,
}

impl Identity {
    /// One whose addresses lead nowhere yet on this machine.
    ///
    /// 198.18.0.0/15 is set apart for measurements inside of one network; it is neither a home's nor a cloud's.
    pub(super) fn draw() -> anyhow::Result<Self> {
        let routes = fs::read_to_string("/proc/net/route").context("failed to read the routes")?;
        let taken = |identity: &Self| {
            let little_endian = u32::from_ne_bytes(identity.address(0).octets());
            routes.contains(&format!("\t{little_endian:08X}\t"))
        };
        for _ in 0..100 {
            let identity = Self {
                number: rand::random_range(0..512),
            };
            if !taken(&identity) && !identity.dir().exists() {
                return Ok(identity);
            }
        }
        bail!("no free network in 198.18.0.0/15");
    }

    /// The one that a left-over directory or link belongs to.
    pub(super) fn of_mark(mark: &str) -> Option<Self> {
        let number = mark.strip_prefix(PREFIX)?.parse().ok()?;
        (number < 512).then_some(Self { number })
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(198, 18 + high, low, host)
    }

    /// Its own name, and that of its control group.
    pub(super) fn mark(&self) -> String {
        format!("{PREFIX}{}", self.number)
    }

    /// At most 15 bytes, as the kernel has it.
    pub(super) fn bridge(&self) -> String {
        format!("chitty{}", self.number)
    }

    pub(super) fn subnet(&self) -> String {
        format!("{}/24", self.address(0))
    }

    /// Where Pods find this machine.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    pub(super) fn dir(&self) -> PathBuf {
        std::env::temp_dir().join(self.mark())
    }
}
