use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a credential is as it is: one vocabulary for conditions, Events, metric labels and audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A request is under way.
    Issuing,
    /// A first token was published.
    Issued,
    /// A token was replaced before its end.
    Rotated,
    /// On demand, and nobody uses it.
    Idle,
    /// `spec.suspend` is set.
    Suspended,
    /// The revoke annotation was set; nothing is minted until the rotate annotation is.
    Revoked,
    /// The spec contradicts itself or its connection.
    InvalidSpec,
    /// No access rule of the connection allows the request.
    NotPermitted,
    /// No credential of that name is there to be followed.
    SourceNotFound,
    /// No credential of that name shares its tokens with this namespace.
    NotShared,
    /// `ChittyConnect` judged the request too risky.
    Denied,
    /// The budget of the scope is spent or kept.
    RateLimited,
    /// `ChittyConnect` cannot be reached or answered 5xx.
    BrokerUnavailable,
    /// `ChittyConnect` answered 400 or 404.
    BrokerRejected,
    /// `ChittyConnect` does not accept the API key.
    Unauthorized,
    /// `ChittyConnect` answered something no token can be taken from.
    InvalidResponse,
    /// A template does not compile, or needs an output that is not there.
    InvalidTemplate,
    /// A Secret of that name belongs to somebody else.
    SecretConflict,
    /// The API server refuses the Secret (quota, admission, RBAC).
    SecretRefused,
    /// The named connection does not exist.
    ConnectionNotFound,
    /// The connection cannot be used now.
    ConnectionNotReady,
    /// Somebody changed or removed a managed Secret.
    Tampered,
    /// The token reached its end before it could be renewed.
    Expired,
    /// A request was sent and its answer never came.
    OutcomeUnknown,
    /// Too many audit events wait for `ChittyChronicle`.
    AuditBacklog,
    /// The credential was deleted: said of its tokens.
    Deleted,
}

impl Reason {
    /// Every reason, in the order the documentation lists them.
    pub const ALL: [Self; 26] = [
        Self::Issuing,
        Self::Issued,
        Self::Rotated,
        Self::Idle,
        Self::Suspended,
        Self::Revoked,
        Self::InvalidSpec,
        Self::NotPermitted,
        Self::SourceNotFound,
        Self::NotShared,
        Self::Denied,
        Self::RateLimited,
        Self::BrokerUnavailable,
        Self::BrokerRejected,
        Self::Unauthorized,
        Self::InvalidResponse,
        Self::InvalidTemplate,
        Self::SecretConflict,
        Self::SecretRefused,
        Self::ConnectionNotFound,
        Self::ConnectionNotReady,
        Self::Tampered,
        Self::Expired,
        Self::OutcomeUnknown,
        Self::AuditBacklog,
        Self::Deleted,
    ];

    /// The word users see, as in `kubectl get ec`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issuing => "Issuing",
            Self::Issued => "Issued",
            Self::Rotated => "Rotated",
            Self::Idle => "Idle",
            Self::Suspended => "Suspended",
            Self::Revoked => "Revoked",
            Self::InvalidSpec => "InvalidSpec",
            Self::NotPermitted => "NotPermitted",
            Self::SourceNotFound => "SourceNotFound",
            Self::NotShared => "NotShared",
            Self::Denied => "Denied",
            Self::RateLimited => "RateLimited",
            Self::BrokerUnavailable => "BrokerUnavailable",
            Self::BrokerRejected => "BrokerRejected",
            Self::Unauthorized => "Unauthorized",
            Self::InvalidResponse => "InvalidResponse",
            Self::InvalidTemplate => "InvalidTemplate",
            Self::SecretConflict => "SecretConflict",
            Self::SecretRefused => "SecretRefused",
            Self::ConnectionNotFound => "ConnectionNotFound",
            Self::ConnectionNotReady => "ConnectionNotReady",
            Self::Tampered => "Tampered",
            Self::Expired => "Expired",
            Self::OutcomeUnknown => "OutcomeUnknown",
            Self::AuditBacklog => "AuditBacklog",
            Self::Deleted => "Deleted",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
