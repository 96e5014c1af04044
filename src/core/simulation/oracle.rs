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
}

impl Token {
    pub const fn half(&self) -> i64 {
        self.ends - (self.ends - self.latest) / 2
    }

    /// The same by its own runway: from then on it has a try of its own, whatever is asked for since.
    const fn own_half(&self) -> i64 {
        self.ends - (self.ends - self.own_latest) / 2
    }

    fn renewal(&self, from: i64, kept: bool) -> Job {
        Job {
            token: *self,
            from: self.latest.max(from),
            kept,
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
            return if self.fit_from_half(lost, broker, terms, false) {
                Loss::Promised
            } else {
                Loss::Excused(Excuse::NoRoom)
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
            if self.fit_since(from, answers, terms, true) {
                return Loss::Missed;
            }
            if self.fit_since(from, answers, terms, false) {
                return Loss::Excused(Excuse::Kept);
            }
        } else if known(answers) < too_late {
            return Loss::Excused(Excuse::ToldToWait);
        }
        if self.next_usable(broker, half) >= too_late {
            return Loss::Excused(Excuse::Unanswered);
        }
        Loss::Excused(if self.fit_from_half(lost, broker, terms, true) {
            Excuse::Foresight
        } else {
            Excuse::NoRoom
        })
    }

    /// What happened in the hour before the end of `lost`, in seconds before that end, for a person.
    pub fn story(&self, lost: &Token, broker: &Broker) -> String {
        let end = lost.ends;
        let to = |at: i64| (at - end) / 1000;
        let mut told: Vec<(i64, String)> = Vec::new();
        for r in self
            .requests
            .iter()
            .filter(|r| r.sent > end - 4_500_000 && r.sent < end)
        {
            let whose = if r.who == lost.who { "own" } else { "" };
            let new = if r.newcomer { "new" } else { "" };
            told.push((r.sent, format!("{whose}{new}#{} {:?} {}", r.who, r.how, to(r.at))));
        }
        for t in self
            .tokens
            .iter()
            .filter(|t| t.issued < end && t.until > end - 1_800_000)
        {
            told.push((t.half(), format!("half of #{}, which ends {}", t.who, to(t.ends))));
        }
        for (down, up) in self.downs.iter().filter(|(_, up)| *up > end - 4_500_000) {
            told.push((*down, format!("no controller until {}", to(*up))));
        }
        for (at, until) in self.waits.iter().filter(|(_, until)| *until > end - 4_500_000) {
            told.push((*at, format!("told to wait until {}", to(*until))));
        }
        for t in broker.troubles_between(end - 4_500_000, end) {
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

    /// From when on a controller runs and the broker answers, at `at` or after it.
    fn next_usable(&self, broker: &Broker, mut at: i64) -> i64 {
        loop {
            let down = self.downs.iter().find(|(down, up)| *down <= at && at < *up);
            let next = broker.next_answering(down.map_or(at, |(_, up)| *up));
            if next == at {
                return at;
            }
            at = next;
        }
    }

    /// Whether all that is due by the end of `lost` fits from half of its runway on; `foreseen` where only at times at
    /// which the broker answers. What was spent in vain before anybody's half, and on newcomers since the broker
    /// failed, is no excuse.
    fn fit_from_half(&self, lost: &Token, broker: &Broker, terms: Terms, foreseen: bool) -> bool {
        let half = lost.half();
        let trouble = broker.trouble_since(lost.issued, half).unwrap_or(i64::MAX);
        let excusable = |r: &&Request| {
            if r.sent > half || r.how == How::Refused {
                return false;
            }
            r.sent < trouble || !r.newcomer && (r.how == How::Answered || self.is_own_try(r))
        };
        let sent = self.requests.iter().filter(excusable).map(|r| r.at).collect();
        let due = |t: &&Token| {
            t.issued <= half && t.until > half && t.ends <= lost.ends && !(t.newcomer && t.issued > trouble)
        };
        let tokens = self.tokens.iter().filter(due);
        let jobs = tokens.map(|t| t.renewal(half, false)).collect();
        let usable = |at| if foreseen { self.next_usable(broker, at) } else { at };
        fits(jobs, sent, (half, lost.ends), terms, usable)
    }

    /// Whether all that is live at `from` can be kept from then on, with all that was spent but for what newcomers took
    /// since the broker `answers`; `kept` where whoever has not come to half of its runway has its slot by then, whether
    /// the broker answers it or not.
    fn fit_since(&self, from: i64, answers: i64, terms: Terms, kept: bool) -> bool {
        let counts = |r: &&Request| r.sent <= from && r.how != How::Refused && !(r.newcomer && r.sent >= answers);
        let sent = self.requests.iter().filter(counts).map(|r| r.at).collect();
        let lives = |t: &&Token| t.issued <= from && t.until > from && !(t.newcomer && t.issued >= answers);
        let live = self.tokens.iter().filter(lives);
        let jobs = live.map(|t| t.renewal(from, kept && t.half() >= from)).collect();
        fits(jobs, sent, (from, from + terms.counts_for), terms, |at| at)
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
        let mut halves: Vec<i64> = owed
            .flat_map(|t| {
                // As if each were renewed at its latest safe time.
                let period = (t.latest - t.issued).max(1);
                let later = (1..)
                    .map(move |n| n * period)
                    .take_while(move |by| t.ends + by <= until);
                std::iter::once(0).chain(later).map(|by| t.half() + by)
            })
            .collect();
        halves.sort_unstable();
        let counts = |o: &&Request| o.sent <= r.sent && o.how != How::Refused;
        let sent: Vec<i64> = self.requests.iter().filter(counts).map(|o| o.at).collect();
        let has_room = |(before, half): (usize, &i64)| {
            let counting = sent.iter().filter(|at| **at + terms.counts_for > *half).count();
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

/// A renewal to be made.
#[derive(Clone, Copy, Debug)]
struct Job {
    token: Token,
    /// From when on it may be asked for.
    from: i64,
    /// It has its slot by half of the runway, and not just before the end; and so have those that follow, as if each
    /// were renewed at its latest safe time.
    kept: bool,
}

impl Job {
    /// By when it has to be asked for.
    const fn by(&self) -> i64 {
        if self.kept {
            self.token.half()
        } else {
            self.token.ends - ANSWER
        }
    }
}

/// Whether all are made in time from `from` to `until`, earliest first: no order does better.
fn fits(
    mut jobs: Vec<Job>,
    mut sent: Vec<i64>,
    (from, until): (i64, i64),
    terms: Terms,
    usable: impl Fn(i64) -> i64,
) -> bool {
    sent.sort_unstable();
    let mut now = usable(from);
    while !jobs.is_empty() {
        if jobs.iter().any(|job| job.by() < now) {
            return false;
        }
        let counting = &sent[sent.partition_point(|at| *at + terms.counts_for <= now)..];
        if counting.len() >= terms.limit {
            now = usable(counting[counting.len() - terms.limit] + terms.counts_for);
            continue;
        }
        let released = jobs.iter().enumerate().filter(|(_, job)| job.from <= now);
        let Some((place, _)) = released.min_by_key(|(_, job)| job.by()) else {
            now = usable(jobs.iter().map(|job| job.from).min().unwrap_or(now + 1));
            continue;
        };
        let Job { token, kept, .. } = jobs.swap_remove(place);
        sent.insert(sent.partition_point(|at| *at <= now), now);
        // Its next token lives as long, with as long a runway.
        let later = if kept {
            token.latest - token.issued
        } else {
            now - token.issued
        };
        let next = Token {
            issued: now,
            ends: token.ends + later,
            latest: token.latest + later,
            ..token
        };
        if next.ends <= until {
            jobs.push(Job {
                token: next,
                from: next.latest,
                kept,
            });
        }
    }
    true
}
