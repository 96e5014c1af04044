//! Whether the broker behind a connection answers: noted after each request, and told to all who wait.

use std::sync::{Arc, Weak};

use crate::api::Reason;
use crate::broker::{Refusal, Sent};
use crate::core::ids::{ObjectName, Uid};
use crate::core::journal::Scope;
use crate::core::outage::{Asker, is_no_answer};

use crate::controller::mint::prepare::Prepared;
use crate::controller::state::caches::Caches;
use crate::controller::state::connections::Usable;
use crate::controller::state::context::Context;

/// Whether a request provably never left, for want of a connection: nothing came of it, and nothing is to be kept of it.
pub(crate) fn never_left(refusal: &Refusal) -> bool {
    refusal.sent == Sent::No && refusal.reason == Reason::BrokerUnavailable
}

/// Notes how a request of `p` went.
pub(crate) fn note(context: &Arc<Context>, scope: &Scope, p: &Prepared, refusal: Option<&Refusal>) {
    let (usable, connection, now) = (&p.usable, &p.desired.connection, context.now());
    match refusal.filter(|refusal| is_no_answer(refusal.reason)) {
        None => {
            let ended = usable.gate.lock().answered();
            if let Some(outage) = ended {
                let seconds = (now - outage.since()).num_seconds();
                tracing::info!(connection, seconds, "ChittyConnect answers again");
                context.tell_line(connection);
            }
        }
        Some(refusal) if never_left(refusal) => {
            if usable.gate.lock().unreachable(&refusal.message, now) {
                tracing::warn!(connection, "{}; tried every few seconds", refusal.message);
                context.tell_line(connection);
                let news = Arc::downgrade(context);
                let checking = check(
                    Arc::clone(&context.caches),
                    news,
                    Arc::clone(usable),
                    connection.clone(),
                );
                // What is known of a connection outlasts a term, and so does this.
                context.supervisor.see_through("check of a connection", checking);
            }
        }
        Some(refusal) => {
            let (uid, name) = (
                Uid::from(p.owner.uid.as_str()),
                ObjectName::new(p.owner.namespace.as_str(), p.owner.name.as_str()),
            );
            let asker = Asker {
                uid: &uid,
                name: &name,
                scope,
            };
            let spare = context.scheduler(scope).spare(now);
            let rest_until = refusal.retry_after.map(|wait| now + wait);
            if usable.gate.lock().unanswered(asker, spare, rest_until, now) {
                tracing::warn!(connection, "{}; one request at a time tries for all", refusal.message);
                context.tell_line(connection);
            }
        }
    }
}

/// Asks for a connection until there is one: that costs nothing.
async fn check(caches: Arc<Caches>, news: Weak<Context>, usable: Arc<Usable>, connection: String) {
    let mut next = usable.gate.lock().next_check();
    while let Some(at) = next {
        tokio::time::sleep((at - caches.cluster.now()).to_std().unwrap_or_default()).await;
        let current = caches.connections.get(&connection).and_then(|r| r.usable.ok());
        if !current.is_some_and(|current| Arc::ptr_eq(&current, &usable)) {
            // It is another one by now, and nothing is known of that.
            return;
        }
        let reached = usable.broker.reach().await;
        next = usable.gate.lock().checked(reached, caches.cluster.now());
    }
    tracing::info!(connection, "ChittyConnect can be reached again");
    if let Some(context) = news.upgrade() {
        context.tell_line(&connection);
    }
}

impl Context {
    /// Tells all who wait for an answer by `connection` that there is news.
    fn tell_line(&self, connection: &str) {
        for scheduler in self.scopes.lock().values() {
            scheduler.tell_line(self, connection);
        }
    }
}
