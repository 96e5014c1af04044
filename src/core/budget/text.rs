//! What those who wait are told.

use chrono::TimeDelta;

use crate::api::Reason;
use crate::core::{Time, clock};

use super::limits::Limit;
use super::timeline::PARTS;
use super::{FRONT, Waiting};

/// Whom to ask how a budget stands.
const LOOK: &str = "`kubectl describe cconn` tells how the budget stands";

/// Why somebody is not admitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Why {
    /// The audit backlog is full.
    Backlog,
    /// The server asked to be left alone until then.
    Blocked(Time),
    /// What was spent before is not known until then.
    Lost(Time),
    /// No slot is free before then, or none at all.
    NoSlot(Option<Time>),
    /// Its namespace may take no more, in mints a window; what it has and needs in thousandths of one.
    Capped { most: u32, has: u64, needs: u64 },
    /// Others were looked at first.
    NotYet,
}

impl Why {
    fn reason(self) -> Reason {
        match self {
            Self::Backlog => Reason::AuditBacklog,
            _ => Reason::RateLimited,
        }
    }

    /// When it is over, as far as is known.
    pub(super) fn until(self, now: Time) -> Option<Time> {
        match self {
            Self::Backlog => Some(now + TimeDelta::seconds(5)),
            Self::NotYet => Some(now + TimeDelta::seconds(1)),
            Self::Blocked(at) | Self::Lost(at) => Some(at),
            Self::NoSlot(at) => at,
            Self::Capped { .. } => None,
        }
    }
}

/// How a budget stands, as its messages say it.
pub(super) struct Figures<'a> {
    pub(super) title: &'a str,
    /// The tightest limit.
    pub(super) limit: Limit,
    pub(super) used: i64,
    pub(super) kept: i64,
    /// Credentials that are live or want to be,
    pub(super) credentials: usize,
    /// and the requests that all of them need in a window, in parts of one.
    pub(super) needed: i64,
    pub(super) now: Time,
}

impl Figures<'_> {
    /// What somebody at the front is told; renewals have position 0.
    pub(super) fn waiting(&self, why: Why, position: usize) -> Waiting {
        Waiting {
            reason: why.reason(),
            position,
            next_slot: match why {
                Why::NotYet => None,
                _ => why.until(self.now),
            },
            message: self
                .stopped(why)
                .unwrap_or_else(|| self.credential_state(why, position)),
        }
    }

    /// What everybody else is told: a text that stays as it is, for each change is a write.
    pub(super) fn behind(&self, why: Why, renewal: bool) -> Waiting {
        Waiting {
            reason: why.reason(),
            position: if renewal { 0 } else { FRONT + 1 },
            next_slot: match why {
                Why::Blocked(at) | Why::Lost(at) => Some(at),
                _ => None,
            },
            message: self.stopped(why).unwrap_or_else(|| {
                let (others, each) = match renewal {
                    true => ("other renewals come", ""),
                    false if self.are_too_many() => ("others wait", ": not all can be live at once"),
                    false => ("others wait", ""),
                };
                format!(
                    "{}, and at least {FRONT} {others} before this one{each}; {LOOK}",
                    self.allowance()
                )
            }),
        }
    }

    fn allowance(&self) -> String {
        format!(
            "{} may mint {} times in {}",
            self.title,
            self.limit.limit,
            window_text(self.limit.window)
        )
    }

    /// What is told to all alike.
    fn stopped(&self, why: Why) -> Option<String> {
        match why {
            Why::Backlog => Some(
                "too many audit events wait for ChittyChronicle; minting goes on once they are delivered".to_owned(),
            ),
            Why::Blocked(until) => Some(format!(
                "ChittyConnect asked to leave {} alone until {}; it is asked again then",
                self.title,
                clock(until, self.now)
            )),
            Why::Lost(until) => Some(format!(
                "the journal of {} was lost and rebuilt; new credentials wait until {}, when all that it forgot has left the window",
                self.title,
                clock(until, self.now)
            )),
            Why::Capped { most, has, needs } => Some(format!(
                "this namespace may take {most} of the mints of {} in {} (maxMintsPerWindow of the connection's access): it \
                 takes {}, and this one needs {} more",
                self.title,
                window_text(self.limit.window),
                tenths(has),
                tenths(needs)
            )),
            Why::NoSlot(_) | Why::NotYet => None,
        }
    }

    fn credential_state(&self, why: Why, position: usize) -> String {
        let mut text = format!(
            "{}: {} used, {} kept for renewals",
            self.allowance(),
            self.used,
            self.kept
        );
        match why {
            Why::NoSlot(Some(at)) => text = format!("{text}; next slot {}", clock(at, self.now)),
            Why::NoSlot(None) => text.push_str("; no slot frees while the live credentials are renewed"),
            _ => {}
        }
        if position > 0 {
            text = format!("{text}, position {position}{}", self.crowd().unwrap_or_default());
        }
        text
    }

    fn are_too_many(&self) -> bool {
        self.needed > i64::from(self.limit.limit) * PARTS
    }

    /// Says that all together can never be live, where that is so.
    fn crowd(&self) -> Option<String> {
        if !self.are_too_many() {
            return None;
        }
        let count = i64::try_from(self.credentials).unwrap_or(i64::MAX).max(1);
        let (tenths, window) = (self.needed / count / (PARTS / 10), window_text(self.limit.window));
        let each = match tenths % 10 {
            0 => (tenths / 10).to_string(),
            rest => format!("{}.{rest}", tenths / 10),
        };
        Some(match count {
            1 => format!(
                "; with about {each} renewals in {window} it can never be live: a longer maxLifetime or a shorter renewBefore \
                 needs fewer"
            ),
            _ => format!(
                "; {count} credentials of {} have about {each} renewals in {window} each: together they need {} of its \
                 {}, so that not all can be live at once",
                self.title,
                (self.needed + PARTS - 1) / PARTS,
                self.limit.limit
            ),
        })
    }
}

/// Thousandths, for a person.
fn tenths(thousandths: u64) -> String {
    let tenths = thousandths.div_ceil(100);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// The length of a window, for a person.
fn window_text(window: TimeDelta) -> String {
    match window.num_seconds() {
        3600 => "an hour".to_owned(),
        s if s % 3600 == 0 => format!("{} hours", s / 3600),
        60 => "a minute".to_owned(),
        s if s % 60 == 0 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}
