//! Bugs that are put in on purpose: the tests are tested by them. There are none without the feature `planted-bugs`, and
//! what is built to be released cannot have that.

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted-bugs is for tests alone: what is released is built without it");

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A claim is written with its outcome, after its request.
    MintBeforeClaim,
    /// What its status says is ready is not looked at after a start.
    StatusTrusted,
    /// A Secret is deleted whatever became of it since it was looked at.
    DeleteUnguarded,
    /// What fails is not looked at again.
    RequeueLost,
    /// The token that a new one replaces is owed no revocation.
    PreviousForgotten,
    /// An event is acknowledged before it is delivered.
    AckBeforeDelivery,
    /// A page is written after the head that counts on it.
    PageAfterHead,
    /// A renewal that is due goes, whatever the window allows.
    RenewalUnprojected,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::MintBeforeClaim,
        Self::StatusTrusted,
        Self::DeleteUnguarded,
        Self::RequeueLost,
        Self::PreviousForgotten,
        Self::AckBeforeDelivery,
        Self::PageAfterHead,
        Self::RenewalUnprojected,
    ];
}

/// Whether `bug` is in: the one that `PLANTED_BUG` names.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    static NAMED: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("PLANTED_BUG").ok());
    NAMED.as_ref().is_some_and(|named| *named == format!("{bug:?}"))
}

/// None is.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn is_planted(_: Bug) -> bool {
    false
}
