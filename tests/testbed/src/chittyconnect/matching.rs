//! Which requests a fault, a denial or a count is about.

use std::fmt;

use http::Method;

use super::call::Call;

/// What ChittyConnect serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// `POST /credentials/deploy`
    Deploy,
    /// `POST /api/credentials/provision`
    Provision,
    /// `DELETE /api/credentials/revoke`
    Revoke,
    /// `GET /api/credentials/audit`
    Audit,
    /// `GET /api/health`, which takes a key
    ApiHealth,
    /// `GET /api/credentials/health`
    CredentialsHealth,
    /// `POST /api/chittychronicle/events`
    Events,
    /// `GET /health`, without a key
    Health,
    /// `GET /api/v1/status`, without a key
    Status,
    /// Anything else: 404.
    Unknown,
}

impl Route {
    pub(super) fn of(method: &Method, path: &str) -> Self {
        match (method.as_str(), path) {
            ("POST", "/credentials/deploy") => Self::Deploy,
            ("POST", "/api/credentials/provision") => Self::Provision,
            ("DELETE", "/api/credentials/revoke") => Self::Revoke,
            ("GET", "/api/credentials/audit") => Self::Audit,
            ("GET", "/api/health") => Self::ApiHealth,
            ("GET", "/api/credentials/health") => Self::CredentialsHealth,
            ("POST", "/api/chittychronicle/events") => Self::Events,
            ("GET", "/health") => Self::Health,
            ("GET", "/api/v1/status") => Self::Status,
            _ => Self::Unknown,
        }
    }

    /// Whether a request there can make a credential.
    #[must_use]
    pub fn mints(self) -> bool {
        matches!(self, Self::Deploy | Self::Provision)
    }

    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Status | Self::Unknown)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Requests that have all these properties; by default, every request.
#[derive(Clone, Debug, Default)]
pub struct Match {
    route: Option<Route>,
    minting: bool,
    service: Option<String>,
    purpose: Option<String>,
    repo: Option<String>,
    run_id: Option<String>,
    credential_type: Option<String>,
    key_owner: Option<String>,
}

impl Match {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests to this route.
    #[must_use]
    pub fn route(route: Route) -> Self {
        Self {
            route: Some(route),
            ..Self::default()
        }
    }

    /// Requests to either route that mints.
    #[must_use]
    pub fn minting() -> Self {
        Self {
            minting: true,
            ..Self::default()
        }
    }

    /// For this service.
    #[must_use]
    pub fn service(mut self, service: impl Into<String>) -> Self {
        self.service = Some(service.into());
        self
    }

    /// For this purpose.
    #[must_use]
    pub fn purpose(mut self, purpose: impl Into<String>) -> Self {
        self.purpose = Some(purpose.into());
        self
    }

    /// For this repository.
    #[must_use]
    pub fn repo(mut self, repo: impl Into<String>) -> Self {
        self.repo = Some(repo.into());
        self
    }

    /// With this run id.
    #[must_use]
    pub fn run_id(mut self, run_id: impl Into<String>) -> Self {
        self.run_id = Some(run_id.into());
        self
    }

    /// For this credential type (provision only).
    #[must_use]
    pub fn credential_type(mut self, credential_type: impl Into<String>) -> Self {
        self.credential_type = Some(credential_type.into());
        self
    }

    /// With an API key of this owner's.
    #[must_use]
    pub fn key_owner(mut self, owner: impl Into<String>) -> Self {
        self.key_owner = Some(owner.into());
        self
    }

    pub(super) fn matches(&self, call: &Call) -> bool {
        fn fits(wanted: Option<&String>, got: Option<&String>) -> bool {
            wanted.is_none() || wanted == got
        }
        self.route.is_none_or(|route| route == call.route)
            && (!self.minting || call.route.mints())
            && fits(self.service.as_ref(), call.service.as_ref())
            && fits(self.purpose.as_ref(), call.purpose.as_ref())
            && fits(self.repo.as_ref(), call.repo.as_ref())
            && fits(self.run_id.as_ref(), call.run_id.as_ref())
            && fits(self.credential_type.as_ref(), call.credential_type.as_ref())
            && fits(self.key_owner.as_ref(), call.key_owner.as_ref())
    }
}
