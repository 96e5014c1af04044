//! Numbers that a seed decides about, the same with every version of every crate.

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Those that follow from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is positive.
    pub fn below(&mut self, end: i64) -> i64 {
        i64::try_from(self.next() % end.max(1).unsigned_abs()).unwrap_or(0)
    }

    /// A number from `from` to before `until`.
    pub fn between(&mut self, from: i64, until: i64) -> i64 {
        from + self.below(until - from)
    }

    /// One of `all`.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let place = usize::try_from(self.below(i64::try_from(all.len()).unwrap_or(1))).unwrap_or(0);
        &all[place]
    }
}
