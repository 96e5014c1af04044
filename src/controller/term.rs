//! What a leader adds: the journals, the reconcile loop, and all that goes on beside it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::Controller;
use kube::runtime::controller::{Action as Requeue, Config as ControllerConfig, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::background::{revoke, status};
use super::credential::reconcile;
use super::state::changes;
use super::state::context::Context;
use crate::api::EphemeralCredential;
use crate::cluster::journal::{Found, JournalError};
use crate::core::ids::ObjectName;
use crate::core::journal::Scope;
use crate::core::schedule::spread;
use crate::ops::health::Health;

/// How often a journal that cannot be read is looked at again.
const MENDED_EVERY: Duration = Duration::from_secs(5);

/// Does all there is to do until the term is over.
pub(super) async fn serve(
    context: Arc<Context>,
    triggered: mpsc::UnboundedReceiver<ObjectRef<EphemeralCredential>>,
    concurrency: u16,
    health: Health,
) {
    let stop = context.stop.clone();
    health.waiting_for("the journals to be read");
    context.open_journals(&stop).await;
    if stop.is_cancelled() {
        return;
    }
    health.ready();
    context.spawn("sweep", Arc::clone(&context).sweep_for_ever());
    context.spawn("revocation", revoke::revoke_for_ever(Arc::clone(&context)));
    context.spawn("status of connections", status::report_for_ever(Arc::clone(&context)));
    context.spawn("first looks", Arc::clone(&context).look_at_all());
    drive(context, triggered, concurrency).await;
}

/// The reconcile loop. The watches belong to the process: what they tell comes by `triggered`.
async fn drive(
    context: Arc<Context>,
    triggered: mpsc::UnboundedReceiver<ObjectRef<EphemeralCredential>>,
    concurrency: u16,
) {
    let store = context.caches.credentials.clone();
    let triggered = futures::stream::unfold(
        triggered,
        |mut rx| async move { rx.recv().await.map(|item| (item, rx)) },
    );
    let stop = context.stop.clone();
    Controller::for_stream(futures::stream::pending(), store)
        .with_config(ControllerConfig::default().concurrency(concurrency))
        .reconcile_on(triggered)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile::reconcile, retry, Arc::clone(&context))
        .for_each(|outcome| {
            let context = Arc::clone(&context);
            async move {
                match outcome {
                    Ok(_) => {}
                    Err(ControllerError::ObjectNotFound(gone)) => {
                        let name = ObjectName::new(gone.namespace.clone().unwrap_or_default(), gone.name.clone());
                        context.seen(&name);
                        context.told.lock().remove(&name);
                        let supervisor = context.supervisor.clone();
                        supervisor.see_through("sweep of a name", async move { context.sweep_name(&name).await });
                    }
                    Err(ControllerError::ReconcilerFailed(error, object)) => {
                        tracing::warn!(
                            namespace = object.namespace.as_deref().unwrap_or_default(),
                            name = %object.name,
                            %error,
                            "failed to see a credential through; it is looked at again"
                        );
                    }
                    Err(ControllerError::QueueError(error)) => {
                        tracing::warn!(%error, "failed to watch credentials; the watch is tried again");
                    }
                    Err(ControllerError::RunnerError(error)) => tracing::error!(%error, "the work queue failed"),
                }
            }
        })
        .await;
}

/// Nothing was minted by a pass that failed, and nothing will be by the next but through the journal:
/// a short, spread wait is all it takes.
#[expect(clippy::needless_pass_by_value, reason = "the signature of error policies")]
fn retry(credential: Arc<EphemeralCredential>, _: &reconcile::ReconcileError, _: Arc<Context>) -> Requeue {
    let spread = u64::from(spread(credential.uid().as_deref().unwrap_or_default()));
    Requeue::requeue(Duration::from_millis(1000 + spread))
}

impl Context {
    /// Looks at every credential there is; newcomers are let in when all were looked at.
    async fn look_at_all(self: Arc<Self>) {
        let all = self.caches.credentials.state();
        if all.is_empty() {
            self.finish_initial_sync();
            return;
        }
        let names = all.iter().map(|c| changes::name_of(&**c));
        *self.unreconciled.lock() = Some(names.collect());
        self.trigger_where(|_| true);
        // A credential that can never be looked at must not keep newcomers out for ever.
        tokio::time::sleep(Duration::from_secs(30)).await;
        self.finish_initial_sync();
    }

    /// Opens every journal that is there, and learns from it who has records where and which keys
    /// are refused.
    async fn open_journals(self: &Arc<Self>, stop: &CancellationToken) {
        let found = loop {
            match self.journals.list().await {
                Ok(found) => break found,
                Err(error) => {
                    tracing::warn!(%error, "failed to list the journals; trying again");
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            }
            if stop.is_cancelled() {
                return;
            }
        };
        for found in found {
            let Found::Scope(scope) = found else {
                self.spawn("journal to be mended", Arc::clone(self).await_mended(found));
                continue;
            };
            loop {
                match self.learn(&scope).await {
                    Ok(()) => break,
                    // Until it is mended nobody knows who is in it; its own scope stands still meanwhile.
                    Err(JournalError::Broken { .. }) => {
                        let mended = Arc::clone(self).await_mended(Found::Scope(scope));
                        self.spawn("journal to be mended", mended);
                        break;
                    }
                    Err(JournalError::Unavailable(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Learns from a journal that cannot be read now as soon as it can be.
    async fn await_mended(self: Arc<Self>, mut found: Found) {
        loop {
            tokio::time::sleep(MENDED_EVERY).await;
            match &found {
                Found::Scope(scope) => {
                    if self.learn(scope).await.is_ok() {
                        return;
                    }
                }
                Found::Illegible(name) => match self.journals.find(name).await {
                    Ok(Some(now)) => found = now,
                    // Deleted: what it knew is rebuilt from the Secrets.
                    Ok(None) => return,
                    Err(_) => {}
                },
            }
        }
    }

    async fn learn(self: &Arc<Self>, scope: &Scope) -> Result<(), JournalError> {
        let journal = self.scheduler(scope).journal.view().await?;
        let records = journal.credentials.iter().map(|(uid, r)| (uid, &r.namespace, &r.name));
        let claims = journal.claims.iter().map(|(uid, c)| (uid, &c.namespace, &c.name));
        {
            let mut index = self.index.lock();
            for (uid, namespace, name) in records.chain(claims) {
                let name = ObjectName::new(namespace.as_str(), name.as_str());
                index.add_record(uid.as_str(), &name, scope);
            }
        }
        if let Some(refused) = &journal.unauthorized {
            self.unauthorized.lock().insert(refused.key.clone(), refused.probe_at);
        }
        Ok(())
    }
}
