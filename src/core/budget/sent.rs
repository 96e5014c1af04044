//! What was sent, and still counts.

/// Requests by time, with how many there are from each on.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    /// When, and how many; ascending, each time once.
    requests: Vec<(i64, u32)>,
    /// How many there are from each of `requests` on.
    from: Vec<u64>,
}

impl Sent {
    /// These requests, which ascend.
    pub(super) fn of(requests: impl IntoIterator<Item = (i64, u32)>) -> Self {
        let mut merged: Vec<(i64, u32)> = Vec::new();
        for (at, count) in requests {
            match merged.last_mut() {
                Some(last) if last.0 == at => last.1 = last.1.saturating_add(count),
                _ => merged.push((at, count)),
            }
        }
        let mut from = vec![0; merged.len()];
        let mut sum = 0;
        for (total, (_, count)) in from.iter_mut().zip(&merged).rev() {
            sum += u64::from(*count);
            *total = sum;
        }
        Self { requests: merged, from }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, u32)> + '_ {
        self.requests.iter().copied()
    }

    /// How many were sent after `at`.
    pub(super) fn after(&self, at: i64) -> u64 {
        let index = self.requests.partition_point(|(t, _)| *t <= at);
        self.from.get(index).copied().unwrap_or(0)
    }

    /// The last time from which on there are `count` or more.
    pub(super) fn nth_last(&self, count: u64) -> Option<i64> {
        let enough = self.from.partition_point(|n| *n >= count);
        Some(self.requests[enough.checked_sub(1)?].0)
    }

    /// By how much the requests of each time are more, or fewer, than in `old`.
    pub(super) fn changes_from(&self, old: &Self) -> Vec<(i64, i32)> {
        let signed = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let (mut a, mut b) = (old.iter().peekable(), self.iter().peekable());
        let mut changes = Vec::new();
        loop {
            let next = match (a.peek(), b.peek()) {
                (None, None) => return changes,
                (Some((t, _)), None) | (None, Some((t, _))) => *t,
                (Some((t, _)), Some((u, _))) => *t.min(u),
            };
            let was = a.next_if(|(t, _)| *t == next).map_or(0, |(_, n)| signed(n));
            let is = b.next_if(|(t, _)| *t == next).map_or(0, |(_, n)| signed(n));
            if was != is {
                changes.push((next, is - was));
            }
        }
    }
}
