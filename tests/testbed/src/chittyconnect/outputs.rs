//! The secrets themselves: each value unique and random.

use std::collections::BTreeSet;

use rand::distr::{Alphanumeric, SampleString};

/// The account id of every answer, as in the documentation's example. It is no secret.
pub const ACCOUNT_ID: &str = "0bc21e3a5a9de1a4cc843be9c3e98121";

/// What the deploy API answers for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    pub(super) names: BTreeSet<String>,
}

impl Default for Outputs {
    /// As documented: cloudflare, npm and github tokens, and an account id.
    fn default() -> Self {
        let names = ["cloudflare_token", "npm_token", "github_token", "account_id"];
        Self {
            names: names.map(String::from).into(),
        }
    }
}

impl Outputs {
    /// Leaves one out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.names.remove(name);
        self
    }

    /// Adds one; a name the documentation does not know gets a random value too.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>) -> Self {
        self.names.insert(name.into());
        self
    }
}

/// A value that looks like what `output` usually holds.
pub(super) fn secret(output: &str) -> String {
    match output {
        "cloudflare_token" => format!("cf_ephemeral_{}", random(32)),
        "npm_token" => format!("npm_{}", random(36)),
        "github_token" => format!("ghs_{}", random(36)),
        "neon_database_url" => format!(
            "postgresql://chitty:{}@ep-test-123456.us-east-2.aws.neon.tech/chittyos?sslmode=require",
            random(24)
        ),
        "service_token" => format!("chitty_svc_{}", random(40)),
        other => format!("{}_{}", other.trim_end_matches("_token"), random(36)),
    }
}

pub(super) fn random(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length)
}

/// As Cloudflare's token ids look.
pub(super) fn token_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
