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

/// A condition as of `now`; the transition time of `previous` is kept while its status is.
#[must_use]
pub fn condition(
    kind: ConditionType,
    status: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    previous: &[Condition],
    now: DateTime<Utc>,
) -> Condition {
    let status = if status { "True" } else { "False" };
    let since = previous
        .iter()
        .find(|c| c.type_ == kind.as_str() && c.status == status)
        .map_or_else(
            || Time(Timestamp::from_second(now.timestamp()).unwrap_or_default()),
            |c| c.last_transition_time.clone(),
        );
    Condition {
        last_transition_time: since,
        message: message.to_owned(),
        observed_generation: generation,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: kind.as_str().to_owned(),
    }
}
