//! What the operator is tested on.
//!
//! - [`ControlPlane`]: a real etcd, kube-apiserver and kube-controller-manager, in a directory of
//!   their own and gone when the test process is.
//! - [`ChittyConnect`] and [`Chronicle`]: simulators that speak the services' wire formats, fail on
//!   request, and keep a [`Ledger`](chittyconnect::Ledger) that tests hold the operator's claims
//!   against.
//!
//! Everything here can be shared between tests that each have a tokio runtime of their own: the
//! control plane is child processes, the simulators run on their own threads.
#![forbid(unsafe_code)]
// Test code: what can panic and fail is the point, and callers read the error itself.
#![allow(clippy::missing_errors_doc, clippy::missing_panics_doc)]

pub mod binaries;
pub mod chittyconnect;
pub mod chronicle;
pub mod collector;
pub mod control_plane;
pub mod image;
pub mod node;
pub mod perturb;
mod pki;
mod ports;
pub mod process;
pub mod proxy;
mod rules;
mod server;
pub mod stub;

pub use binaries::{Binaries, Tool};
pub use chittyconnect::ChittyConnect;
pub use chronicle::Chronicle;
pub use collector::Collector;
pub use control_plane::{ControlPlane, Options};
pub use ports::loopback;
pub use proxy::Proxy;
pub use rules::RuleId;
pub use stub::Stub;

/// Makes ring rustls' provider for this process, once. Clients that are built without it panic.
pub fn install_crypto_provider() {
    // An error says that somebody else installed one first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
