//! What goes on beside the credentials: delivery, revocation, sweeping, figures, the clock.

pub mod clock;
pub mod delivery;
pub mod measure;
pub mod owed;
pub mod revoke;
pub mod status;
pub mod sweep;
