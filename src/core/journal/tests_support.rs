//! Journal parts as tests of the core use them.

use super::*;
use crate::api::{BrokerApi, KeyRef, RateScope};
use crate::core::Time;

/// A request of service `svc`.
#[must_use]
pub fn request() -> RequestFacts {
    RequestFacts {
        connection: "c".into(),
        service: "svc".into(),
        purpose: "p".into(),
        repo: None,
        run_id: "r".into(),
        type_: None,
    }
}

/// The default endpoint.
#[must_use]
pub fn endpoint() -> Arc<EndpointRef> {
    let endpoint = EndpointRef {
        url: "https://connect.chitty.cc".into(),
        api: BrokerApi::Deploy,
        key: KeyRef::default(),
        ca: None,
    };
    endpoint.shared()
}

/// A claim of this test process.
#[must_use]
pub fn claim(uid: &str, namespace: &str, kind: MintReason, at: Time, n: usize) -> Claim {
    Claim {
        id: format!("claim-{n}"),
        namespace: namespace.to_owned(),
        name: uid.to_owned(),
        revision: 1,
        seq: 0,
        page: None,
        at,
        holder: "me".into(),
        timeout_seconds: 10,
        kind,
        request: request(),
        endpoint: endpoint(),
        digest: SpecDigest::default(),
        secrets: vec![],
        renew_before_ms: None,
        counts_from: None,
        max_lifetime_ms: None,
        period_ms: None,
        once: false,
        consumer: None,
        minted: None,
    }
}

/// A token made by `claim`.
#[must_use]
pub fn live(claim: &str, issued_at: Time, ends_at: Time) -> ActiveToken {
    ActiveToken {
        claim: claim.to_owned(),
        revision: 1,
        request: request(),
        endpoint: endpoint(),
        digest: SpecDigest::default(),
        issued_at,
        ends_at,
        full_lifetime: None,
        renew_before_ms: None,
        period_ms: None,
        token_ids: vec![],
        outputs: Box::default(),
        source: None,
        secrets: litemap::LiteMap::new(),
    }
}

/// A scope of service `svc`.
#[must_use]
pub fn scope() -> Scope {
    Scope {
        origin: "https://connect.chitty.cc".into(),
        kind: RateScope::Service,
        of: "svc".into(),
    }
}
