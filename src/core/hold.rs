//! Which installation serves a connection. Each has a journal of its own, so two that served one would spend its budget
//! twice.

use crate::api::HeldBy;

/// What to do about a connection before it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is ours.
    Ours,
    /// It is nobody's, or that of an installation that is gone: take it, by a compare-and-swap.
    Take,
    /// It is theirs: leave it alone, and all credentials that name it.
    Theirs,
}

/// Decides. `there` is the uid of the namespace that the holder names, where there is such a namespace.
#[must_use]
pub fn hold(held_by: Option<&HeldBy>, own: &HeldBy, there: Option<&str>) -> Hold {
    match held_by {
        Some(holder) if holder == own => Hold::Ours,
        Some(holder) if there == Some(holder.uid.as_str()) => Hold::Theirs,
        _ => Hold::Take,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(namespace: &str, uid: &str) -> HeldBy {
        HeldBy {
            namespace: namespace.into(),
            uid: uid.into(),
        }
    }

    #[test]
    fn a_connection_is_served_by_whoever_held_it_first_while_their_namespace_is_there() {
        let own = of("us", "1");
        assert_eq!(hold(None, &own, None), Hold::Take);
        assert_eq!(hold(Some(&of("us", "1")), &own, Some("1")), Hold::Ours);
        assert_eq!(hold(Some(&of("them", "2")), &own, Some("2")), Hold::Theirs);
        assert_eq!(hold(Some(&of("them", "2")), &own, None), Hold::Take);
        // Their namespace was made anew, or ours was: either is another installation.
        assert_eq!(hold(Some(&of("them", "2")), &own, Some("3")), Hold::Take);
        assert_eq!(hold(Some(&of("us", "0")), &own, Some("1")), Hold::Take);
    }
}
