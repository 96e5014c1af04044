//! What passes between the controller and everybody it talks to, and the one call that something happens to.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::{Notify, oneshot};

/// Whom a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// kube-apiserver.
    ApiServer,
    /// ChittyConnect.
    Connect,
    /// ChittyChronicle.
    Chronicle,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApiServer => "api",
            Self::Connect => "connect",
            Self::Chronicle => "chronicle",
        })
    }
}

/// A mutating call as it is found again in another run: what it does to what, and the how manieth such call it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Such as `api PUT configmaps/head`.
    pub call: String,
    /// From 1.
    pub nth: usize,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.call, self.nth)
    }
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some((call, nth)) = text.rsplit_once(" #") else {
            bail!("no call: {text}");
        };
        Ok(Self {
            call: call.to_owned(),
            nth: nth.parse()?,
        })
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It does not arrive, and the connection is cut.
    Lost,
    /// It arrives and is answered, and the connection is cut instead.
    AnswerLost,
    /// It does not arrive, and is answered 409, 429 or 500.
    Status(u16),
    /// It arrives late: after the caller's patience where that is short, and after its end where it was killed.
    Slow,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Lost,
        Self::AnswerLost,
        Self::Status(409),
        Self::Status(429),
        Self::Status(500),
        Self::Slow,
    ];

    /// Whether the call arrives all the same.
    #[must_use]
    pub const fn arrives(self) -> bool {
        matches!(self, Self::AnswerLost | Self::Slow)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("lost"),
            Self::AnswerLost => f.write_str("answer-lost"),
            Self::Status(code) => write!(f, "{code}"),
            Self::Slow => f.write_str("slow"),
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|fault| fault.to_string() == text);
        found.ok_or_else(|| anyhow::anyhow!("no fault: {text}"))
    }
}

/// How long a slow call is held up: longer than the timeout of the connections here.
pub const HELD_UP: Duration = Duration::from_millis(1500);

/// One thing that goes wrong.
#[derive(Debug)]
pub struct Armed {
    pub target: Target,
    pub fault: Fault,
    /// Whoever kills the caller; told when to, it says when that is done.
    pub kill: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

/// A call that passed.
#[derive(Clone, Debug)]
pub struct Call {
    pub at: Instant,
    pub target: Target,
    /// What happened to it.
    pub fault: Option<Fault>,
    /// What it was answered by whom it was for; none where it never got there, or not yet.
    pub status: Option<u16>,
}

/// Where all proxies of one controller meet.
#[derive(Clone, Default)]
pub struct Gate {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Since when calls are counted; before, they are part of the scene.
    counting: bool,
    calls: Vec<Call>,
    seen: BTreeMap<String, usize>,
    armed: Option<Armed>,
    held: usize,
    last: Option<Instant>,
}

/// What a proxy does about a mutating call.
pub(super) struct Verdict {
    /// Its place in the record, where it is counted.
    pub(super) call: Option<usize>,
    pub(super) fault: Option<Fault>,
    pub(super) kill: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on calls are counted; the one that is `armed` meets its fault.
    pub fn begin(&self, armed: Option<Armed>) {
        let mut state = self.state();
        state.counting = true;
        state.calls.clear();
        state.seen.clear();
        state.armed = armed;
    }

    /// Whether what was armed has happened.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.state().armed.is_none()
    }

    /// What is armed is not to happen any more.
    pub fn disarm(&self) {
        self.state().armed = None;
    }

    /// The calls that were counted so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// How long nothing was changed, but for the Lease; and whether nothing is held up.
    #[must_use]
    pub fn quiet_for(&self) -> Option<Duration> {
        let state = self.state();
        (state.held == 0).then(|| state.last.map_or(Duration::MAX, |at| at.elapsed()))
    }

    /// Waits until a call passes.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// A mutating call arrives.
    pub(super) fn arrives(&self, call: String) -> Verdict {
        let mut state = self.state();
        let now = Instant::now();
        if !call.contains("leases") {
            state.last = Some(now);
        }
        if !state.counting {
            return Verdict {
                call: None,
                fault: None,
                kill: None,
            };
        }
        let nth = state.seen.entry(call.clone()).or_default();
        *nth += 1;
        let target = Target { call, nth: *nth };
        let armed = state.armed.take_if(|armed| armed.target == target);
        let (fault, kill) = armed.map_or((None, None), |armed| (Some(armed.fault), armed.kill));
        if fault.is_some() {
            state.held += 1;
        }
        state.calls.push(Call {
            at: now,
            target,
            fault,
            status: None,
        });
        let verdict = Verdict {
            call: Some(state.calls.len() - 1),
            fault,
            kill,
        };
        drop(state);
        self.shared.changed.notify_waiters();
        verdict
    }

    pub(super) fn answered(&self, call: Option<usize>, status: u16) {
        let mut state = self.state();
        if let Some(call) = call.and_then(|call| state.calls.get_mut(call)) {
            call.status = Some(status);
        }
    }

    /// What happened to a call is over.
    pub(super) fn over(&self) {
        let mut state = self.state();
        state.held -= 1;
        state.last = Some(Instant::now());
    }
}
