//! The time that all goes by, compared with the API server's again and again.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::controller::state::context::Context;
use crate::core::clock::Checked;
use parking_lot::Mutex;

/// How often.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// What this process does while it leads.
pub(crate) type Term = Mutex<Option<Arc<Context>>>;

/// Keeps the time for ever.
pub(crate) async fn sync_clock(cluster: Cluster, term: Arc<Term>) {
    let mut doubted = false;
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        match cluster.check_clock().await {
            None => {}
            Some(Checked::Agrees) => doubted = false,
            Some(Checked::Doubted(_)) if doubted => {}
            Some(Checked::Doubted(off)) => {
                doubted = true;
                tracing::warn!(
                    "the API server's clock was stepped by {} s; this goes on by the time as it was until it is started anew",
                    off.num_seconds()
                );
            }
            Some(Checked::Paused(pause)) => {
                tracing::warn!("the machine stood still for {} s", pause.lasted.num_seconds());
                let context = term.lock().clone();
                if let Some(context) = context {
                    context.start_over();
                }
            }
        }
    }
}

impl Context {
    /// Nothing that waits for a time knows that it is later by now.
    fn start_over(&self) {
        for scheduler in self.scopes.lock().values() {
            scheduler.wake();
        }
        self.trigger_where(|_, _| true);
    }
}
