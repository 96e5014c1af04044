//! Who uses the Secrets of a credential, and what that asks for.
//!
//! A Pod that reads by a volume sees each new token, so tokens are renewed while there is one. Whatever else reads does so
//! once (environment variables, a subPath, pulling an image): it needs a token to start with, and none after that.

mod pod;

use std::sync::Arc;

use chrono::TimeDelta;

use super::journal::{LetGo, MintReason, Span};
use super::{Problem, Time};
use crate::api::InUse;

pub use pod::{About, Consumer, Pod, PodSpec, PodStatus};

/// How long before a token was let go a Pod must have been bound to have had its chance: the API server tells that in whole
/// seconds, and who was bound in the very moment is given another.
const CHANCE: TimeDelta = TimeDelta::seconds(2);

/// How a Pod reads one Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Ways(u8);

impl Ways {
    /// By a volume.
    pub const VOLUME: Self = Self(1);
    /// By environment variables.
    pub const ENV: Self = Self(2);
    /// By a subPath of a volume.
    pub const SUB_PATH: Self = Self(4);
    /// It need not be there.
    pub const OPTIONAL: Self = Self(8);
    /// To pull images.
    pub const IMAGE_PULL: Self = Self(16);
    /// The kubelet says that it lacks it.
    pub const LACKS: Self = Self(32);

    /// Whether all of `other` are among them.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether what was read once is in use: it ends with its token.
    #[must_use]
    pub const fn is_frozen(self) -> bool {
        self.has(Self::ENV) || self.has(Self::SUB_PATH)
    }
}

impl std::ops::BitOr for Ways {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Ways {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What the Pods that use a credential's Secrets come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// How many they are, by how they read.
    pub counts: InUse,
    /// How many they are.
    pub pods: usize,
    /// Something lacks the Secret now, or would: it reads by a volume, or the kubelet says so.
    needs: bool,
    /// When the last was bound of those that have yet to start.
    bound: Option<Time>,
}

impl Uses {
    /// Counts one that reads in these ways.
    pub fn add(&mut self, pod: &Pod, ways: Ways) {
        let count = |n: &mut u32, way| *n += u32::from(ways.has(way));
        count(&mut self.counts.volume, Ways::VOLUME);
        count(&mut self.counts.env, Ways::ENV);
        count(&mut self.counts.sub_path, Ways::SUB_PATH);
        count(&mut self.counts.optional, Ways::OPTIONAL);
        count(&mut self.counts.image_pull, Ways::IMAGE_PULL);
        self.pods += 1;
        if pod.leaving {
            // It goes on with what it has, and starts nothing.
            return;
        }
        self.needs |= ways.has(Ways::VOLUME) || ways.has(Ways::LACKS);
        if pod.starting {
            self.bound = self.bound.max(Some(pod.bound));
        }
    }

    /// Whether tokens are renewed for them.
    #[must_use]
    pub const fn renews(&self) -> bool {
        self.counts.volume > 0
    }

    /// Whether one of them needs a token, where there is none: whoever reads once had its chance if it was bound while the
    /// last token was there.
    #[must_use]
    pub fn asks(&self, last: Option<&LetGo>) -> bool {
        self.needs
            || self
                .bound
                .is_some_and(|at| last.is_none_or(|last| at + CHANCE > last.at))
    }
}

/// Who uses the tokens of a credential.
#[derive(Clone, Debug, PartialEq)]
pub enum Users {
    /// Whoever may come: there always is a token.
    Anybody,
    /// These Pods and nobody else: on demand.
    Pods(Uses),
    /// It is on demand, and not known for whom; why, where that is no matter of a moment.
    Unknown(Option<Problem>),
}

impl Users {
    /// Whether tokens are renewed; nothing where that is not known.
    #[must_use]
    pub const fn renew(&self) -> Option<bool> {
        match self {
            Self::Anybody => Some(true),
            Self::Pods(uses) => Some(uses.renews()),
            Self::Unknown(_) => None,
        }
    }

    /// Whether they ask for a mint that is made for this `reason`.
    #[must_use]
    pub fn ask(&self, reason: MintReason, last: Option<&LetGo>) -> bool {
        match self {
            Self::Anybody => true,
            Self::Pods(uses) if reason.is_newcomer() => uses.asks(last),
            Self::Pods(uses) => uses.renews(),
            Self::Unknown(_) => false,
        }
    }
}

/// When that of `tokens` ends which was the newest at `at`.
#[must_use]
pub fn end_of_token_read_at(at: Time, tokens: impl IntoIterator<Item = Span>) -> Option<Time> {
    let read = tokens.into_iter().filter(|t| t.issued_at <= at && t.ends_at > at);
    read.max_by_key(|t| t.issued_at).map(|t| t.ends_at)
}

/// Which consumer a mint is for: the first that tells, in the order of names.
#[must_use]
pub fn consumer<'a>(waiting: impl IntoIterator<Item = &'a Arc<Pod>>) -> Option<Consumer> {
    waiting.into_iter().filter_map(|pod| pod.consumer.clone()).min()
}

#[cfg(test)]
mod tests;
