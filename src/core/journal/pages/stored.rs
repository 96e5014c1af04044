//! Heads and pages, as they are stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::Time;
use crate::core::audit::AuditEvent;
use crate::core::ids::{PageId, Uid};
use crate::core::journal::bounds;
use crate::core::journal::{Attempt, Claim, Record, Revocation, Scope, Throttle, Unauthorized};

/// The head of a journal, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// What the journal is of.
    pub scope: Scope,
    /// How often the head was written.
    pub commit: u64,
    #[serde(deserialize_with = "bounds::span")]
    pub(super) window_seconds: i64,
    #[serde(default)]
    pub(super) attempts: Vec<Attempt>,
    #[serde(default)]
    pub(super) claims: BTreeMap<Uid, Arc<Claim>>,
    #[serde(default)]
    pub(super) throttle: Throttle,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unauthorized: Option<Unauthorized>,
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) typical_lifetime: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lost_at: Option<Time>,
    /// The pages, and the commit that each had at least when this was written: 0 for one that may not be there yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pages: BTreeMap<PageId, u64>,
    /// Records that are in no page.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) slots: BTreeMap<Uid, Slot>,
}

/// A page of a journal, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Page {
    /// [`VERSION`](super::VERSION).
    pub version: u32,
    /// The journal it is of.
    pub scope: Scope,
    /// Its name.
    pub page: PageId,
    /// How often it was written.
    pub commit: u64,
    /// The head's commit when it was written: a head that is older went back in time.
    pub head: u64,
    pub(super) slots: BTreeMap<Uid, Slot>,
}

/// All that a page holds of one credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Slot {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) record: Option<Arc<Record>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<Arc<AuditEvent>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) owed: Vec<Arc<Revocation>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) closed: Option<Closed>,
}

impl Slot {
    pub(super) const fn is_empty(&self) -> bool {
        self.record.is_none() && self.events.is_empty() && self.owed.is_empty() && self.closed.is_none()
    }
}

/// A claim whose outcome a page holds, and what that means for the head, which may not have heard of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Closed {
    pub(super) claim: String,
    pub(super) at: Time,
    /// The request's place in the budget; none where it never left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) attempt: Option<Attempt>,
    #[serde(default)]
    pub(super) throttle: Throttle,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unauthorized: Option<Unauthorized>,
    #[serde(
        default,
        deserialize_with = "bounds::maybe_span",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) typical_lifetime: Option<i64>,
}
