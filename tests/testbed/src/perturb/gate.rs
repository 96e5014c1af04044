//! What passes between the controller and everybody it talks to, and the one call that something happens to.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::sync::{oneshot, watch};

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
    /// Of a request for a token: this one and all that follow for a while are answered 500.
    Down,
    /// Of a watch: nothing comes for a while, and then all at once.
    Stale,
    /// Of a watch: it is cut.
    Cut,
    /// Of a watch: it is cut, and the next is told that what it begins with is gone.
    Gone,
    /// Of a watch: what it would tell for a while it never tells. Then it is cut, what is there is listed anew, and
    /// whatever came and went meanwhile was there for nobody.
    Unseen,
}

impl Fault {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let calls = Self::OF_CALLS.into_iter().chain(Self::OF_REQUESTS);
        calls.chain(Self::OF_WATCHES)
    }

    /// What happens to requests for tokens besides.
    pub const OF_REQUESTS: [Self; 1] = [Self::Down];
    /// What happens to watches.
    pub const OF_WATCHES: [Self; 4] = [Self::Stale, Self::Cut, Self::Gone, Self::Unseen];
    /// What happens to calls.
    pub const OF_CALLS: [Self; 6] = [
        Self::Lost,
        Self::AnswerLost,
        Self::Status(409),
        Self::Status(429),
        Self::Status(500),
        Self::Slow,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("lost"),
            Self::AnswerLost => f.write_str("answer-lost"),
            Self::Status(code) => write!(f, "{code}"),
            Self::Slow => f.write_str("slow"),
            Self::Down => f.write_str("down"),
            Self::Stale => f.write_str("stale"),
            Self::Cut => f.write_str("cut"),
            Self::Gone => f.write_str("gone"),
            Self::Unseen => f.write_str("unseen"),
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::all().find(|fault| fault.to_string() == text);
        found.ok_or_else(|| anyhow::anyhow!("no fault: {text}"))
    }
}

/// How long a slow call is held up, and a watch is: longer than the timeout of the connections here, and than a process
/// that was killed takes to come back.
pub const HELD_UP: Duration = Duration::from_millis(2500);
/// How long ChittyConnect is down: past half of the runway of a token that comes of age here, and not to its end.
const DOWN_FOR: Duration = Duration::from_secs(14);
/// What the call of a watch begins with; its kind follows.
pub const WATCH: &str = "api WATCH ";

/// What watches meet, by kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    held: Option<String>,
    /// How often all of a kind were cut.
    cuts: BTreeMap<String, usize>,
    gone: Option<String>,
}

impl Weather {
    pub(super) fn holds(&self, kind: &str) -> bool {
        self.held.as_deref() == Some(kind)
    }

    pub(super) fn cuts(&self, kind: &str) -> usize {
        self.cuts.get(kind).copied().unwrap_or(0)
    }
}

/// One thing that goes wrong.
#[derive(Debug)]
pub struct Armed {
    pub target: Target,
    pub fault: Fault,
    /// Whoever kills the caller; told when to, it says when that is done.
    pub kill: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

/// Whether a call asks ChittyConnect for a token.
#[must_use]
pub fn is_request(call: &str) -> bool {
    call.starts_with("connect POST ")
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
    weather: watch::Sender<Weather>,
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
    /// Until when ChittyConnect answers no request.
    down_until: Option<Instant>,
    /// How many of all calls meet some fault.
    flaky: f64,
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

    /// What is armed for a watch happens now.
    pub async fn storm(&self) {
        let armed = {
            let mut state = self.state();
            let armed = state.armed.take_if(|armed| armed.target.call.starts_with(WATCH));
            state.held += usize::from(armed.is_some());
            armed
        };
        let Some(armed) = armed else { return };
        let kind = armed.target.call.trim_start_matches(WATCH).to_owned();
        self.blow(&kind, armed.fault, armed.kill).await;
        self.over();
    }

    /// What watches of a kind meet, now; somebody may be killed of it.
    pub(super) async fn blow(&self, kind: &str, fault: Fault, kill: Option<oneshot::Sender<oneshot::Sender<()>>>) {
        let holds = matches!(fault, Fault::Stale | Fault::Unseen);
        let cuts = |weather: &mut Weather| {
            *weather.cuts.entry(kind.to_owned()).or_default() += 1;
            weather.gone = (fault != Fault::Cut).then(|| kind.to_owned());
        };
        self.shared.weather.send_modify(|weather| {
            if holds {
                weather.held = Some(kind.to_owned());
            } else {
                cuts(weather);
            }
        });
        if let Some(kill) = kill {
            tokio::time::sleep(HELD_UP / 5).await;
            let (done, is_done) = oneshot::channel();
            if kill.send(done).is_ok() {
                let _ = is_done.await;
            }
        }
        if holds {
            tokio::time::sleep(HELD_UP).await;
            self.shared.weather.send_modify(|weather| {
                weather.held = None;
                if fault == Fault::Unseen {
                    cuts(weather);
                }
            });
        }
    }

    /// From now on so many of all calls meet some fault.
    pub(super) fn flake(&self, rate: f64) {
        self.state().flaky = rate;
    }

    pub(super) fn weather(&self) -> watch::Receiver<Weather> {
        self.shared.weather.subscribe()
    }

    /// Whether a watch that begins is to be told that what it begins with is gone.
    pub(super) fn is_gone(&self, kind: &str) -> bool {
        let gone = |weather: &mut Weather| weather.gone.take_if(|gone| gone == kind).is_some();
        self.shared.weather.send_if_modified(gone)
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

    /// Whether nothing was changed since, but for the Lease.
    #[must_use]
    pub fn is_quiet_since(&self, since: Instant) -> bool {
        self.state().last.is_none_or(|at| at < since)
    }

    /// A mutating call arrives.
    pub(super) fn arrives(&self, call: String) -> Verdict {
        let mut state = self.state();
        let now = Instant::now();
        if !call.contains("leases") {
            state.last = Some(now);
        }
        if !state.counting {
            let flakes = state.flaky > 0.0 && rand::rng().random_bool(state.flaky);
            let fault = flakes
                .then(|| Fault::OF_CALLS.choose(&mut rand::rng()).copied())
                .flatten();
            state.held += usize::from(fault.is_some());
            return Verdict {
                call: None,
                fault,
                kill: None,
            };
        }
        let nth = state.seen.entry(call.clone()).or_default();
        *nth += 1;
        let target = Target { call, nth: *nth };
        let armed = state.armed.take_if(|armed| armed.target == target);
        let (mut fault, kill) = armed.map_or((None, None), |armed| (Some(armed.fault), armed.kill));
        if fault == Some(Fault::Down) {
            state.down_until = Some(now + DOWN_FOR);
        } else if is_request(&target.call) && state.down_until.is_some_and(|until| now < until) {
            fault = Some(Fault::Down);
        }
        if fault.is_some() {
            state.held += 1;
        }
        state.calls.push(Call {
            at: now,
            target,
            fault,
            status: None,
        });
        Verdict {
            call: Some(state.calls.len() - 1),
            fault,
            kill,
        }
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
