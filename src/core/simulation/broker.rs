//! A broker that fails in every way it can, at times that are drawn beforehand.

use std::collections::VecDeque;

use super::random::Random;

/// How requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 500, at once.
    ServerError,
    /// No connection.
    Refused,
    /// No answer before the timeout.
    Hang,
    /// 429, with so many seconds to wait where it says so.
    Limited(Option<i64>),
    /// 401.
    Unauthorized,
    /// 503, with so many seconds to wait.
    Unavailable(i64),
}

/// Every way to fail.
pub const FAULTS: [Fault; 9] = [
    Fault::ServerError,
    Fault::Refused,
    Fault::Hang,
    Fault::Limited(None),
    Fault::Limited(Some(60)),
    Fault::Limited(Some(1800)),
    Fault::Unauthorized,
    Fault::Unavailable(120),
    Fault::Unavailable(3600),
];

/// A time in which requests fail.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// When it begins, in milliseconds.
    pub from: i64,
    /// When it is over.
    pub until: i64,
    /// How requests fail.
    pub fault: Fault,
    /// Milliseconds down and up again, where it flaps.
    pub flaps: Option<(i64, i64)>,
}

impl Trouble {
    /// Where it is down at `at`: since when, and until when.
    fn down(&self, at: i64) -> Option<(i64, i64)> {
        if at < self.from || at >= self.until {
            return None;
        }
        let Some((down, up)) = self.flaps else {
            return Some((self.from, self.until));
        };
        let begun = at - (at - self.from).rem_euclid(down + up);
        (at < begun + down).then_some((begun, (begun + down).min(self.until)))
    }

    /// The end of the last time it is down that begins before `before`.
    fn last_down(&self, before: i64) -> Option<i64> {
        if before <= self.from {
            return None;
        }
        let Some((down, up)) = self.flaps else {
            return Some(self.until);
        };
        let last = before.min(self.until) - 1;
        let begun = last - (last - self.from).rem_euclid(down + up);
        Some((begun + down).min(self.until))
    }
}

/// The broker of one scope.
#[derive(Debug)]
pub struct Broker {
    troubles: Vec<Trouble>,
    window: i64,
    arrivals: VecDeque<i64>,
    /// Requests in the fullest window.
    pub most: usize,
    /// All requests.
    pub requests: usize,
}

impl Broker {
    /// One that fails at these times, in order, and answers else.
    pub fn new(window: i64, troubles: Vec<Trouble>) -> Self {
        Self {
            troubles,
            window,
            arrivals: VecDeque::new(),
            most: 0,
            requests: 0,
        }
    }

    /// Troubles of every kind, on average one in two hours, from ten seconds to half an hour long.
    pub fn troubled(window: i64, until: i64, random: &mut Random) -> Self {
        let mut troubles = Vec::new();
        let mut at = 0;
        loop {
            at += random.between(600_000, 13_800_000);
            if at >= until {
                break;
            }
            let longest = *random.pick(&[60_000, 300_000, 600_000, 1_800_000]);
            let fault = *random.pick(&FAULTS);
            let flaps = (random.below(4) == 0).then(|| (random.between(5_000, 90_000), random.between(1_000, 60_000)));
            let trouble = Trouble {
                from: at,
                until: at + random.between(10_000, longest),
                fault,
                flaps,
            };
            at = trouble.until;
            troubles.push(trouble);
        }
        Self::new(window, troubles)
    }

    /// Trouble of one kind every three hours, for two minutes to half an hour, each time 97 s later in the hour.
    pub fn swept(window: i64, until: i64, fault: Fault, flaps: bool) -> Self {
        let lengths = [120_000, 300_000, 600_000, 1_200_000, 1_800_000];
        let troubles = (1..until / 10_800_000).map(|i| {
            let from = i * (10_800_000 + 97_000);
            Trouble {
                from,
                until: from + lengths[usize::try_from(i).unwrap_or(0) % lengths.len()],
                fault,
                flaps: flaps.then_some((40_000, 20_000)),
            }
        });
        Self::new(window, troubles.collect())
    }

    fn trouble(&self, at: i64) -> Option<&Trouble> {
        let place = self.troubles.partition_point(|t| t.until <= at);
        self.troubles.get(place).filter(|t| t.from <= at)
    }

    /// How a request fails that is made at `at`; `None` where it is answered.
    pub fn fault(&self, at: i64) -> Option<Fault> {
        let trouble = self.trouble(at)?;
        trouble.down(at).map(|_| trouble.fault)
    }

    /// When requests were answered the last time, at `at` or before it.
    pub fn last_answering(&self, mut at: i64) -> i64 {
        while let Some((since, _)) = self.trouble(at).and_then(|t| t.down(at)) {
            at = since - 1;
        }
        at
    }

    /// From when on all requests before `until` are answered; `until` where the last are not.
    pub fn answers_since(&self, until: i64) -> i64 {
        let place = self.troubles.partition_point(|t| t.from < until);
        let last = place
            .checked_sub(1)
            .and_then(|place| self.troubles[place].last_down(until));
        last.map_or(0, |at| at.min(until))
    }

    /// Whether no connection can be made at some moment between these.
    pub fn refuses(&self, from: i64, until: i64) -> bool {
        self.troubles_between(from, until).any(|t| t.fault == Fault::Refused)
    }

    /// When the first trouble of those began that reach into this time.
    pub fn trouble_since(&self, from: i64, until: i64) -> Option<i64> {
        self.troubles_between(from, until).next().map(|t| t.from)
    }

    /// The troubles that reach into this time.
    pub fn troubles_between(&self, from: i64, until: i64) -> impl Iterator<Item = &Trouble> {
        self.troubles.iter().filter(move |t| t.from < until && from < t.until)
    }

    /// Counts a request.
    pub fn arrives(&mut self, at: i64) {
        self.requests += 1;
        while self.arrivals.front().is_some_and(|first| *first + self.window <= at) {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(at);
        self.most = self.most.max(self.arrivals.len());
    }
}
