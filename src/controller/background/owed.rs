//! What journals say is still to be done: tokens to revoke, audit events to deliver.

use std::sync::Arc;
use std::time::Duration;

use super::delivery;
use super::revoke::Revocations;
use crate::controller::state::context::Context;

/// How often it is looked whether a journal changed, or something of one is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Has done what is owed, by tasks that are there while something is: there may be thousands of scopes, and most owe
/// nothing.
pub async fn work_off_for_ever(context: Arc<Context>) {
    let mut revocations = Revocations::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !context.leading() {
            continue;
        }
        let now = context.now();
        let mut scopes = context.journals.take_changed();
        scopes.extend(revocations.due(now).cloned());
        for scope in scopes {
            let scheduler = context.scheduler(&scope);
            // One that cannot be read changes when it can.
            let Ok(journal) = scheduler.journal.view().await else {
                continue;
            };
            revocations.note(&scheduler, &journal, now);
            if !journal.audit.is_empty() {
                delivery::start(&context, &scheduler);
            }
        }
        revocations.start(&context);
    }
}
