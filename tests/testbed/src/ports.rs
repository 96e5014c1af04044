//! Free ports that stay free, and the address they are on.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Below Linux's default ephemeral range (32768 and up): an outgoing connection never takes the
/// port of a server that is down for a moment and comes back.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// This machine, as it calls itself: by IPv6 where it has nothing else, as in a network namespace of its own.
#[must_use]
pub fn loopback() -> IpAddr {
    static LOOPBACK: LazyLock<IpAddr> = LazyLock::new(|| {
        if TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        }
    });
    *LOOPBACK
}

/// A port nobody listens on, and which this process has not been given before.
///
/// Another process may still take it before it is bound; callers try again then.
pub(crate) fn free_port(ip: IpAddr) -> io::Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(RANGE);
        let first_time = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if first_time && TcpListener::bind((ip, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no free port on {ip} between {} and {}", RANGE.start, RANGE.end),
    ))
}
