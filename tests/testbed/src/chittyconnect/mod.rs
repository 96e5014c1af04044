//! A simulator of ChittyConnect: its APIs, its limits, its ways to fail, and a ledger of what it did.

mod answers;
mod builder;
mod call;
mod deploy;
mod faults;
mod keys;
mod ledger;
mod limits;
mod matching;
mod other;
mod outputs;
mod provision;
mod simulator;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

pub use self::builder::Builder;
pub use self::faults::{Canned, Expiry, Fault};
pub use self::keys::KeyState;
pub use self::ledger::{AuditEvent, Ledger, Mint, Post, Revocation};
pub use self::limits::{ProvisionLimit, Scope};
pub use self::matching::{Match, Route};
pub use self::outputs::{ACCOUNT_ID, Outputs};
pub use crate::rules::RuleId;

use self::simulator::Simulator;
use crate::server::Server;

/// A running ChittyConnect. It lives on its own thread and stops when dropped.
pub struct ChittyConnect {
    // Before the simulator, so that it stops taking requests first.
    server: Server,
    simulator: Arc<Simulator>,
    api_key: String,
}

/// How a denied request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// 403 with DENIED in its message.
    Forbidden,
    /// 500, and only the message says that it is a denial.
    RiskScore,
}

/// A fault in the making: [`ChittyConnect::on`].
#[must_use = "nothing goes wrong until `fault` says what"]
pub struct FaultBuilder<'a> {
    simulator: &'a Simulator,
    matcher: Match,
    skip: usize,
    times: Option<usize>,
}

impl ChittyConnect {
    /// The documented service: plain HTTP on loopback, tokens of an hour, 10 an hour per service.
    pub fn start() -> anyhow::Result<Self> {
        Self::builder().start()
    }

    /// Anything else.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The URL's host, without the port.
    #[must_use]
    pub fn host(&self) -> &str {
        self.server.host()
    }

    /// The URL's host and port.
    #[must_use]
    pub fn authority(&self) -> String {
        self.server.authority()
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The authority that signed its certificate, where it speaks TLS.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.server.ca_pem()
    }

    /// The certificate it asks clients for, and its key, both as PEM.
    #[must_use]
    pub fn client_certificate(&self) -> Option<(&str, &str)> {
        self.server.client()
    }

    /// The API key it started with.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.api_key
    }

    /// Accepts one more API key.
    pub fn add_key(&self, key: &str, owner: &str) {
        self.simulator.state().keys.add(key, owner);
    }

    /// Forgets an API key: it is invalid from now on.
    pub fn remove_key(&self, key: &str) {
        self.simulator.state().keys.remove(key);
    }

    /// Switches an API key on or off. Panics where there is no such key.
    pub fn set_key_state(&self, key: &str, state: KeyState) {
        let known = self.simulator.state().keys.set_state(key, state);
        assert!(known, "no such API key");
    }

    /// The simulator's clock.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.simulator.state().now()
    }

    /// How far its clock is ahead of the machine's. Its `Date` header and every time it gives out
    /// follow that clock; sliding windows do not.
    pub fn set_clock_skew(&self, skew: TimeDelta) {
        self.simulator.state().skew = skew;
    }

    /// How long the deploy API's tokens live from now on.
    pub fn set_ttl(&self, ttl: Duration) {
        let ttl = TimeDelta::from_std(ttl).expect("a lifetime that a time can carry");
        self.simulator.state().settings.ttl = ttl;
    }

    /// How long an answer of a minting route waits when all is done, as the real one waits for
    /// ChittyChronicle.
    pub fn set_latency(&self, latency: Duration) {
        self.simulator.state().latency = latency;
    }

    /// What the deploy API answers for a service, or with `*` for all that have no own entry.
    pub fn set_outputs(&self, service: impl Into<String>, outputs: Outputs) {
        let service = service.into();
        self.simulator.state().outputs.insert(service, outputs);
    }

    /// Denies these requests from now on.
    pub fn deny(&self, matcher: Match, denial: Denial) {
        self.simulator.state().denials.push((matcher, denial));
    }

    /// Denies nothing any more.
    pub fn clear_denials(&self) {
        self.simulator.state().denials.clear();
    }

    /// Begins a fault for these requests: `sim.on(Match::minting()).times(1).fault(Fault::CutAfter)`.
    /// A request meets the first fault that applies, and only that.
    pub fn on(&self, matcher: Match) -> FaultBuilder<'_> {
        FaultBuilder {
            simulator: &self.simulator,
            matcher,
            skip: 0,
            times: None,
        }
    }

    /// How many requests met that fault.
    #[must_use]
    pub fn hits(&self, fault: RuleId) -> usize {
        self.simulator.state().faults.hits(fault)
    }

    /// Ends one fault.
    pub fn clear_fault(&self, fault: RuleId) {
        self.simulator.state().faults.end(fault);
    }

    /// Ends all faults. Requests that already met one are not freed of it.
    pub fn clear_faults(&self) {
        self.simulator.state().faults.end_all();
    }

    /// Forgets what the rate limits counted. The ledger remembers.
    pub fn reset_limits(&self) {
        self.simulator.state().counters.reset();
    }

    /// Stops listening: connections are refused, and open ones closed.
    pub fn go_down(&self) -> anyhow::Result<()> {
        self.server.listen(false)
    }

    /// Listens again, on the same port.
    pub fn come_back(&self) -> anyhow::Result<()> {
        self.server.listen(true)
    }

    /// How many credentials were minted so far: cheap, for those who ask often.
    #[must_use]
    pub fn minted(&self) -> usize {
        self.simulator.state().ledger.mints.len()
    }

    /// The credentials minted after the first `known`, as [`Ledger::mints`] has them.
    #[must_use]
    pub fn mints_after(&self, known: usize) -> Vec<Mint> {
        self.simulator.state().mints_after(known)
    }

    /// What happened so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.simulator.state().snapshot()
    }
}

impl fmt::Debug for ChittyConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChittyConnect")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl FaultBuilder<'_> {
    /// Only so many requests, then no more. Without this: until cleared.
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// Not the first so many.
    pub fn skip(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// What goes wrong, from now on.
    pub fn fault(self, fault: impl Into<Fault>) -> RuleId {
        let mut state = self.simulator.state();
        state.faults.add(self.matcher, self.skip, self.times, fault.into())
    }
}
