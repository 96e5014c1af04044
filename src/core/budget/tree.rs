//! Counts in a row that are raised by ranges and asked for their highest, each in logarithmic time.

/// The counts: a segment tree whose raises stay where they were put.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// The children of `i` are `2 i` and `2 i + 1`; the second half are the counts.
    nodes: Vec<Node>,
    len: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// The highest count below, `raised` included.
    most: i32,
    /// What was added to all counts below.
    raised: i32,
}

impl Tree {
    /// A tree of these counts; their number is a power of two.
    pub(super) fn of(counts: &[i32]) -> Self {
        let len = counts.len().next_power_of_two().max(2);
        let mut nodes = vec![Node::default(); 2 * len];
        for (node, count) in nodes[len..].iter_mut().zip(counts) {
            node.most = *count;
        }
        for i in (1..len).rev() {
            nodes[i].most = nodes[2 * i].most.max(nodes[2 * i + 1].most);
        }
        Self { nodes, len }
    }

    /// How many counts there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Raises the counts `first..=last` by `by`.
    pub(super) fn raise(&mut self, first: usize, last: usize, by: i32) {
        let (mut l, mut r) = (first + self.len, last + self.len + 1);
        while l < r {
            if l % 2 == 1 {
                self.raise_node(l, by);
                l += 1;
            }
            if r % 2 == 1 {
                r -= 1;
                self.raise_node(r, by);
            }
            l /= 2;
            r /= 2;
        }
        self.refresh_above(first + self.len);
        self.refresh_above(last + self.len);
    }

    fn raise_node(&mut self, i: usize, by: i32) {
        self.nodes[i].most += by;
        self.nodes[i].raised += by;
    }

    fn refresh_above(&mut self, mut i: usize) {
        while i > 1 {
            i /= 2;
            let below = self.nodes[2 * i].most.max(self.nodes[2 * i + 1].most);
            self.nodes[i].most = below + self.nodes[i].raised;
        }
    }

    /// The count at `i`.
    pub(super) fn get(&self, i: usize) -> i32 {
        let mut node = i + self.len;
        let mut count = self.nodes[node].most;
        while node > 1 {
            node /= 2;
            count += self.nodes[node].raised;
        }
        count
    }

    /// The last of `first..=last` whose count is above `bound`.
    pub(super) fn last_above(&self, first: usize, last: usize, bound: i32) -> Option<usize> {
        self.last_above_in(1, 0, self.len, first, last, bound)
    }

    fn last_above_in(&self, i: usize, from: usize, len: usize, first: usize, last: usize, bound: i32) -> Option<usize> {
        if from > last || from + len <= first || self.nodes[i].most <= bound {
            return None;
        }
        if len == 1 {
            return Some(from);
        }
        let (bound, half) = (bound - self.nodes[i].raised, len / 2);
        self.last_above_in(2 * i + 1, from + half, half, first, last, bound)
            .or_else(|| self.last_above_in(2 * i, from, half, first, last, bound))
    }
}
