use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Types of conditions, after kstatus: `Reconciling` and `Stalled` are there only while true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// A valid Secret for the current spec is there, or none is due.
    Ready,
    /// A valid Secret is there, if perhaps for an earlier spec.
    Issued,
    /// The controller is working towards the first valid Secret.
    Reconciling,
    /// `ChittyConnect` answers by this connection.
    Available,
    /// Nothing will happen until somebody changes something.
    Stalled,
}

impl ConditionType {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Issued,
        Self::Reconciling,
        Self::Available,
        Self::Stalled,
    ];

    /// The name users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Issued => "Issued",
            Self::Reconciling => "Reconciling",
            Self::Available => "Available",
            Self::Stalled => "Stalled",
        }
    }
}

/// Since when `previous` has the condition `kind` with this status.
#[must_use]
pub fn unchanged_since(previous: &[Condition], kind: ConditionType, status: bool) -> Option<DateTime<Utc>> {
    let found = previous
        .iter()
        .find(|c| c.type_ == kind.as_str() && c.status == text(status))?;
    DateTime::from_timestamp(found.last_transition_time.0.as_second(), 0)
}

/// A condition whose status has been this `since` then; since `now` where it was another before.
#[must_use]
pub fn condition(
    kind: ConditionType,
    status: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Condition {
    let since = since.unwrap_or(now).timestamp();
    Condition {
        last_transition_time: Time(Timestamp::from_second(since).unwrap_or_default()),
        message: message.to_owned(),
        observed_generation: generation,
        reason: reason.to_owned(),
        status: text(status).to_owned(),
        type_: kind.as_str().to_owned(),
    }
}

const fn text(status: bool) -> &'static str {
    if status { "True" } else { "False" }
}
