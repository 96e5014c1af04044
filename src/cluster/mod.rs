//! Kubernetes reads and writes: each timed out, each write guarded by what it was decided on.

mod clock;
pub mod config;
pub mod journal;
pub mod keys;
pub mod lease;
pub mod pods;
pub mod reach;
pub mod records;
pub mod secrets;
mod workloads;

use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;

use self::reach::Reach;
use crate::core::Time;
use crate::core::clock::{SteadyClock, Suspension};

/// How long one call to the API server may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call to the API server came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not answer in time; whether it did what was asked is unknown.
    #[error("the API server did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// It refused, or could not be reached.
    #[error("{0}")]
    Kube(#[from] kube::Error),
}

impl Error {
    /// The HTTP status, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Nothing of that name is there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else was faster.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The API server has too much to do, or cannot be reached: nothing is wrong with what was asked, and asking again
    /// soon may do.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Kube(kube::Error::Api(status)) => matches!(status.code, 429 | 503 | 504),
            Self::Kube(_) | Self::Timeout => true,
        }
    }

    /// The API server understood and said no: asking again changes nothing.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 405 | 413 | 422))
    }

    /// This without the API server's own words, for writes of values: whoever refused one may have
    /// repeated it.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        if let Self::Kube(kube::Error::Api(status)) = &mut self {
            status.message = format!("refused with {} {}", status.code, status.reason);
            status.details = None;
        }
        self
    }

    /// What the API server said, for a person; capped, and never an object.
    #[must_use]
    pub fn brief(&self) -> String {
        let text = match self {
            Self::Kube(kube::Error::Api(status)) => status.message.clone(),
            Self::Kube(_) => "the API server cannot be reached".to_owned(),
            Self::Timeout => self.to_string(),
        };
        truncate(&text, 300)
    }
}

/// Cuts `text` to at most `most` bytes, on a character boundary.
#[must_use]
pub fn truncate(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// Awaits one call to the API server, for [`CALL_TIMEOUT`] at most.
///
/// # Errors
/// [`Error::Timeout`], or what the call failed with.
pub async fn bounded<T: Debug>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    tokio::time::timeout(CALL_TIMEOUT, call)
        .await
        .map_err(|_| Error::Timeout)?
        .map_err(Error::from)
}

/// A client, the namespace of the controller itself, and the clock that both are used by.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// Where keys, journals and the lease live.
    pub namespace: String,
    /// What of the cluster is this installation's.
    pub reach: Reach,
    time: Arc<Mutex<Timekeeping>>,
}

struct Timekeeping {
    steady: SteadyClock,
    /// Since this process was started.
    pauses: Vec<Suspension>,
}

impl Cluster {
    /// The controller's view of the cluster behind `client`; its time is the machine's until
    /// [`Cluster::set_clock`].
    #[must_use]
    pub fn new(client: Client, namespace: String) -> Self {
        Self {
            client,
            namespace,
            reach: Reach::default(),
            time: Arc::new(Mutex::new(Timekeeping {
                steady: SteadyClock::unverified(clock::wall(), clock::elapsed()),
                pauses: Vec::new(),
            })),
        }
    }

    /// The same, with nothing but this in reach.
    #[must_use]
    pub fn reaching(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Time {
        self.time().steady.now(clock::elapsed())
    }

    /// Now, and the pauses after the first `known` that this time has passed over.
    pub(crate) fn now_and_pauses(&self, known: usize) -> (Time, Vec<Suspension>) {
        let time = self.time();
        let pauses = time.pauses.get(known..).unwrap_or_default().to_vec();
        (time.steady.now(clock::elapsed()), pauses)
    }

    fn time(&self) -> MutexGuard<'_, Timekeeping> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
