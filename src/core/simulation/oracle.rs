//! What must hold, worked out from what happened and not from what the budget says.

use super::broker::Broker;

/// How long before its end a token must have been asked for at the latest, in milliseconds: an answer takes its time.
const ANSWER: i64 = 6_000;
/// By how much the clock of a process may be off, in milliseconds.
const CLOCKS: i64 = 2_000;
/// How long after a start, or after the broker answers again, it may take until that is known: a claim that died with
/// its process is judged then, and a request that hangs is over.
const KNOWN: i64 = 30_000;

/// Why nothing was promised about a token that was lost. Of the first two and of `NoRoom` no order of tries could have
/// kept all, whatever it knew; of `ToldToWait` none that does as it is told. `Kept` and `Foresight` are for those that only
/// luck or knowing the future would have kept, since nothing was wasted meanwhile: [`History::is_waste`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// Its runway is too short for a try.
    ShortRunway,
    /// From half of its runway to its end nothing was answered, or no controller was running.
    Unanswered,
    /// After its own try was refused, a 401, or a 429 that named a time, had it wait until it was too late.
    ToldToWait,
    /// The renewals that were due did not fit, in whatever order, had each been asked for when the broker answered.
    NoRoom,
    /// What was left was kept for the tries of others, at half of their runways: only who knew that they would be
    /// answered at once could have lent it.
    Kept,
    /// Only who knew when the broker would answer could have kept it: slots went for requests that were not answered,
    /// or too little time was left when it did.
    Foresight,
}

/// What a loss is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It was promised not to happen.
    Promised,
    /// Nothing was promised, and yet all that was live could have been kept once the broker answered again, with what was
    /// kept for others still kept.
    Missed,
    /// Nothing was promised, and there is a reason for the loss.
    Excused(Excuse),
}

/// A token that was live, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Whose.
    pub who: usize,
    pub issued: i64,
    pub ends: i64,
    /// The latest safe time by its own runway.
    pub own_latest: i64,
    /// The same, or by the spec as it is now where that asks for a shorter one.
    pub latest: i64,
    /// Until when it was that of its credential.
    pub until: i64,
    /// It was asked for by a newcomer.
    pub newcomer: bool,
    /// It ended unreplaced.
    pub lost: bool,
}

impl Token {
    pub const fn half(&self) -> i64 {
        self.ends - (self.ends - self.latest) / 2
    }

    /// The same by its own runway: from then on it has a try of its own, whatever is asked for since.
    const fn own_half(&self) -> i64 {
        self.ends - (self.ends - self.own_latest) / 2
    }

    /// The next one, as long and with as long a runway, asked for at `at`.
    const fn renewed(&self, at: i64) -> Self {
        let later = at - self.issued;
        Self {
            issued: at,
            ends: self.ends + later,
            own_latest: self.own_latest + later,
            latest: self.latest + later,
            ..*self
        }
    }

    /// By when it and those that follow have to be asked for, before `until`: as late as can be, which asks for the
    /// fewest. Where its `own` try is kept it has its slot by half of its own runway, and so have those that follow, as
    /// if each were renewed at its latest safe time.
    fn deadlines(&self, (from, until): (i64, i64), own: bool, usable: impl Fn(i64) -> i64) -> Vec<i64> {
        let (mut token, mut all) = (*self, Vec::new());
        loop {
            let by = if own {
                token.own_half().max(from)
            } else {
                usable(token.ends - ANSWER)
            };
            if by < until {
                all.push(by);
            }
            if by < from || by >= until {
                return all;
            }
            token = token.renewed(if own { token.own_latest.max(from) } else { by });
        }
    }
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Answered,
    /// It counts, and brought nothing.
    Failed,
    /// It never left.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub number: u64,
    pub who: usize,
    pub sent: i64,
    /// When it counts from.
    pub at: i64,
    pub how: How,
    pub newcomer: bool,
}

/// All that happened and may still matter.
#[derive(Debug, Default)]
pub struct History {
    pub tokens: Vec<Token>,
    pub requests: Vec<Request>,
    /// When no controller was running.
    pub downs: Vec<(i64, i64)>,
    /// Waits that a 401 or a 429 asked for: since when, and until when.
    pub waits: Vec<(i64, i64)>,
}

/// What the promise depends on besides.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub limit: usize,
    /// How long a request counts, in milliseconds.
    pub counts_for: i64,
    pub timeout: i64,
}

impl History {
    pub fn prune(&mut self, before: i64) {
        self.tokens.retain(|t| t.ends > before);
        self.requests.retain(|r| r.at > before);
        self.downs.retain(|(_, until)| *until > before);
        self.waits.retain(|(_, until)| *until > before);
    }

    /// What it is that the token `lost` ended unreplaced.
    pub fn judge(&self, lost: &Token, broker: &Broker, terms: Terms) -> Loss {
        let (half, too_late) = (lost.half(), lost.ends - ANSWER);
        if lost.ends - lost.latest < terms.timeout * 4 + 10_000 {
            return Loss::Excused(Excuse::ShortRunway);
        }
        let own = lost.own_half() - CLOCKS;
        let own_failed = |r: &Request| r.who == lost.who && r.sent >= own && r.how != How::Answered;
        let disturbed =
            self.requests.iter().any(own_failed) || self.was_down(half, lost.ends) || broker.refuses(half, lost.ends);
        if !disturbed {
            let fit = |but_lost| self.fit_from_half(lost, broker, terms, (but_lost, false));
            return match (fit(false), fit(true)) {
                (true, _) => Loss::Promised,
                (_, true) => Loss::Missed,
                _ => Loss::Excused(Excuse::NoRoom),
            };
        }
        let up = self
            .downs
            .iter()
            .filter(|(down, _)| *down < too_late)
            .map(|(_, up)| *up)
            .max();
        let answers = broker.answers_since(too_late).max(up.unwrap_or(0)).max(half);
        let waits = self.waits.iter().filter(|(at, _)| *at < too_late);
        let told = waits.map(|(_, until)| *until).max();
        let told = told.filter(|_| self.requests.iter().any(own_failed)).unwrap_or(0);
        // A failed try is repeated after a third of what is left, at most.
        let known = |since: i64| since + KNOWN + (lost.ends - since).max(0) / 3;
        let from = known(answers.max(told));
        if from < too_late {
            // Whenever one ends there may be more to spare.
            let ends = self.tokens.iter().map(|t| t.until);
            let ends = ends.filter(|until| (from..too_late).contains(until)).map(known);
            let moments: Vec<i64> = std::iter::once(from).chain(ends).filter(|at| *at < too_late).collect();
            let fit = |kept| {
                moments
                    .iter()
                    .any(|at| self.fit_since(lost.who, (*at, answers), terms, kept))
            };
            if fit(true) {
                return Loss::Missed;
            }
            if fit(false) {
                return Loss::Excused(Excuse::Kept);
            }
        } else if known(answers) < too_late {
            return Loss::Excused(Excuse::ToldToWait);
        }
        if self.last_usable(broker, too_late - 1) < half {
            return Loss::Excused(Excuse::Unanswered);
        }
        Loss::Excused(if self.fit_from_half(lost, broker, terms, (true, true)) {
            Excuse::Foresight
        } else {
            Excuse::NoRoom
        })
    }

    /// What happened to `who` and all others in the hour and a quarter before `end`, in seconds before that, for a person.
    pub fn story(&self, who: usize, end: i64, broker: &Broker) -> String {
        let to = |at: i64| (at - end) / 1000;
        let since = end - 4_500_000;
        let mut told: Vec<(i64, String)> = Vec::new();
        for r in self.requests.iter().filter(|r| (since..end).contains(&r.sent)) {
            let whose = if r.who == who { "own" } else { "" };
            let new = if r.newcomer { "new" } else { "" };
            told.push((r.sent, format!("{whose}{new}#{} {:?} {}", r.who, r.how, to(r.at))));
        }
        for t in self
            .tokens
            .iter()
            .filter(|t| t.issued < end && t.until > end - 1_800_000)
        {
            let (who, ends) = (t.who, to(t.ends));
            let let_go = Some(t.until).filter(|until| *until < t.ends);
            let let_go = let_go.map_or_else(String::new, |until| format!(" and was let go {}", to(until)));
            told.push((t.own_half(), format!("half of #{who}, which ends {ends}{let_go}")));
        }
        for (down, up) in self.downs.iter().filter(|(_, up)| *up > since) {
            told.push((*down, format!("no controller until {}", to(*up))));
        }
        for (at, until) in self.waits.iter().filter(|(_, until)| *until > since) {
            told.push((*at, format!("told to wait until {}", to(*until))));
        }
        for t in broker.troubles_between(since, end) {
            told.push((t.from, format!("{:?} {:?} until {}", t.fault, t.flaps, to(t.until))));
        }
        told.sort();
        let lines: Vec<String> = told
            .iter()
            .map(|(at, what)| format!("        {}: {what}", to(*at)))
            .collect();
        lines.join("\n")
    }

    fn was_down(&self, from: i64, until: i64) -> bool {
        self.downs.iter().any(|(down, up)| *down < until && from < *up)
    }

    /// When a controller ran and the broker answered the last time, at `at` or before it.
    fn last_usable(&self, broker: &Broker, mut at: i64) -> i64 {
        loop {
            let down = self.downs.iter().find(|(down, up)| *down <= at && at < *up);
            let last = broker.last_answering(down.map_or(at, |(down, _)| *down - 1));
            if last == at {
                return at;
            }
            at = last;
        }
    }

    /// Whether all that is due by the end of `lost` fits from half of its runway on; but for what is lost by now, and
    /// `foreseen` where requests are made only while the broker answers. What was spent in vain before anybody's half,
    /// and on newcomers since the broker failed, is no excuse.
    fn fit_from_half(&self, lost: &Token, broker: &Broker, terms: Terms, (but_lost, foreseen): (bool, bool)) -> bool {
        let half = lost.half();
        let trouble = broker.trouble_since(lost.issued, half).unwrap_or(i64::MAX);
        let excusable = |r: &&Request| {
            if r.sent > half || r.how == How::Refused {
                return false;
            }
            r.sent < trouble || !r.newcomer && (r.how == How::Answered || self.is_own_try(r))
        };
        let is_due = |t: &&Token| {
            t.issued <= half
                && t.until > half
                && t.ends <= lost.ends
                && !(t.newcomer && t.issued > trouble)
                && !(t.lost && but_lost)
        };
        let usable = |at| if foreseen { self.last_usable(broker, at) } else { at };
        let time = (half, lost.ends);
        let tokens = self.tokens.iter().filter(is_due);
        let by = tokens.flat_map(|t| t.deadlines(time, false, usable)).collect();
        let sent = self.requests.iter().filter(excusable).map(|r| r.at);
        can_be_met(by, sent, half, terms)
    }

    /// Whether all that is live at `from`, but for what is lost by now, can be kept from then on, with all that was
    /// spent but for what newcomers took since the broker `answers`; `kept` where whoever has not made its own try, `who`
    /// apart, has its slot by half of its runway, whether the broker answers it or not.
    fn fit_since(&self, who: usize, (from, answers): (i64, i64), terms: Terms, kept: bool) -> bool {
        let counts = |r: &&Request| r.sent <= from && r.how != How::Refused && !(r.newcomer && r.sent >= answers);
        let lives = |t: &&Token| t.issued <= from && t.until > from && !t.lost && !(t.newcomer && t.issued >= answers);
        let time = (from, from + terms.counts_for);
        let live = self.tokens.iter().filter(lives);
        let own = |t: &Token| kept && t.who != who && !self.has_tried(t, from);
        let by = live.flat_map(|t| t.deadlines(time, own(t), |at| at)).collect();
        let sent = self.requests.iter().filter(counts).map(|r| r.at);
        can_be_met(by, sent, from, terms)
    }

    /// Whether `token` has been asked for since half of its runway.
    fn has_tried(&self, token: &Token, at: i64) -> bool {
        let own = token.own_half() - CLOCKS..=at;
        self.requests
            .iter()
            .any(|r| r.who == token.who && own.contains(&r.sent))
    }

    /// Whether the request `r`, which brought nothing, was nobody's own try and took a slot that another token is to have
    /// by half of its runway.
    pub fn is_waste(&self, r: &Request, terms: Terms) -> bool {
        if r.how != How::Failed || self.is_own_try(r) {
            return false;
        }
        let until = r.sent + terms.counts_for;
        let lives = |t: &&Token| t.who != r.who && t.issued <= r.sent && t.until > r.sent;
        let owed = self
            .tokens
            .iter()
            .filter(lives)
            .filter(|t| t.own_half() > r.sent + CLOCKS);
        // Nobody gains by going earlier: what is free before its half is left to those whose half comes first, whether
        // they are due already or not.
        let mut halves: Vec<i64> = owed.flat_map(|t| t.deadlines((r.sent, until), true, |at| at)).collect();
        halves.sort_unstable();
        let counts = |o: &&Request| o.sent <= r.sent && o.how != How::Refused;
        let sent: Vec<i64> = self.requests.iter().filter(counts).map(|o| o.at).collect();
        let has_room = |(before, half): (usize, &i64)| {
            // By which clock is not known.
            let by = *half + CLOCKS;
            let counting = sent.iter().filter(|at| **at + terms.counts_for > by).count();
            counting + before < terms.limit
        };
        !halves.iter().enumerate().all(has_room)
    }

    /// Whether `r` is the first that its token made from half of its runway on.
    fn is_own_try(&self, r: &Request) -> bool {
        let token = self
            .tokens
            .iter()
            .find(|t| t.who == r.who && t.issued <= r.sent && r.sent <= t.until);
        token.is_some_and(|t| {
            let since = t.own_half() - CLOCKS;
            let before = |o: &Request| o.who == r.who && o.sent >= since && o.sent < r.sent;
            r.sent >= since && !self.requests.iter().any(before)
        })
    }
}

/// Whether requests can be made `by` then, from `from` on and for no longer than one counts. In that time a slot that is
/// free stays so until it is taken, and none that is taken frees again: so it is exact to ask whether by the n-th of these
/// times n slots are free.
fn can_be_met(mut by: Vec<i64>, sent: impl Iterator<Item = i64>, from: i64, terms: Terms) -> bool {
    by.sort_unstable();
    let mut until: Vec<i64> = sent.map(|at| at + terms.counts_for).collect();
    until.sort_unstable();
    by.iter().enumerate().all(|(before, by)| {
        let counting = until.len() - until.partition_point(|until| until <= by);
        *by >= from && counting + before < terms.limit
    })
}
