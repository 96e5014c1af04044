//! The time that all goes by, compared with the API server's; and what follows where that was off.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;

use super::context::{Context, Locked};
use crate::cluster::Cluster;
use crate::core::clock::Checked;

/// How often the time is compared with the API server's.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// What this process is doing, while it leads.
pub(super) type Term = Locked<Option<Arc<Context>>>;

/// Keeps the time for ever.
pub(super) async fn keep(cluster: Cluster, term: Arc<Term>) {
    let mut doubted = false;
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let Some(checked) = cluster.check_clock().await else {
            continue;
        };
        match checked {
            Checked::Agrees => doubted = false,
            Checked::Doubted(off) => {
                if !std::mem::replace(&mut doubted, true) {
                    tracing::warn!(
                        "the API server's clock is {} s off what it was; it is believed if that stands for an hour",
                        off.num_seconds()
                    );
                }
            }
            Checked::Paused(off) | Checked::Stepped(off) => {
                doubted = false;
                tracing::warn!("the time is set by {} s to the API server's", off.num_seconds());
                let context = term.lock().clone();
                if let Some(context) = context.filter(|context| context.leading()) {
                    context.tell_journals(off, matches!(checked, Checked::Paused(_))).await;
                    cluster.move_clock(off);
                    context.start_over(off);
                } else {
                    cluster.move_clock(off);
                }
            }
        }
    }
}

impl Context {
    /// The journals first, or what is committed meanwhile would forget requests that still count.
    async fn tell_journals(&self, off: TimeDelta, paused: bool) {
        // Those of a request under way count from when it must have been answered. Of a successor that was
        // elected meanwhile none is as old as this.
        let until = self.now() + (off / 2).min(TimeDelta::minutes(1));
        let runners: Vec<_> = self.scopes.lock().values().cloned().collect();
        for runner in runners {
            let told = runner.journal.commit(move |journal, _| {
                if paused {
                    journal.outlast(off, until);
                } else {
                    journal.translate(off);
                }
            });
            if let Err(error) = told.await {
                tracing::warn!(scope = runner.scope.title(), %error, "failed to set the times of a journal");
            }
        }
    }

    /// Nothing that waits for a time knows that it is another by now.
    fn start_over(&self, off: TimeDelta) {
        self.unprepared.lock().clear();
        for probe_at in self.unauthorized.lock().values_mut() {
            *probe_at += off;
        }
        for runner in self.scopes.lock().values() {
            runner.start_over();
        }
        self.trigger_where(|_| true);
    }
}
