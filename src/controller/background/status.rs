//! The status of connections: whether they can be used, whether they answer, and how their budgets stand.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::SubsecRound;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::measure::MEASURE_EVERY;
use crate::api::{ChittyConnectionStatus, ConditionType, RateScope, ScopeUsage};
use crate::controller::mint::budget_scheduler::BudgetScheduler;
use crate::controller::state::connections::Resolved;
use crate::controller::state::context::Context;
use crate::core::Time;
use crate::core::budget::Usage;

/// How often a connection's status may be written, apart from changes of its conditions.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// Scopes a connection's status lists at most.
const MOST_SCOPES: usize = 64;

/// Writes the connections' status: a changed condition within a second, figures now and then.
pub async fn report_for_ever(context: Arc<Context>) {
    let mut written: HashMap<String, Instant> = HashMap::new();
    let mut measured = None;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if !context.leading() {
            continue;
        }
        if measured.is_none_or(|at: Instant| at.elapsed() >= MEASURE_EVERY) {
            measured = Some(Instant::now());
            context.measure_all();
        }
        // Before all were looked at, the figures say nothing.
        let initial_sync_done = context.initial_sync_done.load(Ordering::Acquire);
        for resolved in context.caches.connections.all() {
            if resolved.held.is_err() {
                continue;
            }
            let name = resolved.connection.name_any();
            let at = kube::runtime::reflector::ObjectRef::new(&name);
            let Some(connection) = context.caches.connection_store.get(&at) else {
                continue;
            };
            let before = connection.status.clone().unwrap_or_default();
            let probe_at = context.probe_of(&resolved);
            let conditions = resolved.conditions(&before.conditions, probe_at, context.now());
            let is_told = |c: &Condition| before.conditions.iter().any(|told| is_same_news(told, c));
            let sharp = !conditions.iter().all(is_told);
            let lately = written.get(&name).is_some_and(|at| at.elapsed() < REPORT_EVERY);
            if !sharp && (lately || !initial_sync_done) {
                continue;
            }
            let scopes = if initial_sync_done {
                context.usage_of(&resolved)
            } else {
                before.scopes.clone()
            };
            let next = ChittyConnectionStatus {
                observed_generation: resolved.connection.metadata.generation,
                conditions,
                used: ChittyConnectionStatus::fullest(&scopes),
                scopes,
                held_by: before.held_by.clone(),
            };
            if next == before {
                continue;
            }
            match context.cluster.write_connection_status(&connection, &next).await {
                Ok(()) => {
                    written.insert(name, Instant::now());
                }
                Err(error) => tracing::debug!(%error, "failed to write a connection's status"),
            }
        }
    }
}

/// Whether two conditions differ at most in when the next try is.
fn is_same_news(a: &Condition, b: &Condition) -> bool {
    let text = |c: &Condition| (c.type_ != ConditionType::Available.as_str()).then(|| c.message.clone());
    (&a.type_, &a.status, &a.reason, a.observed_generation, text(a))
        == (&b.type_, &b.status, &b.reason, b.observed_generation, text(b))
}

impl Context {
    /// When a connection tries its key although it is refused.
    fn probe_of(&self, resolved: &Resolved) -> Option<Time> {
        let usable = resolved.usable.as_ref().ok()?;
        self.unauthorized.lock().get(&usable.key_digest).copied()
    }

    /// The scopes of a connection with least room, and always the same ones of those with equally much.
    fn usage_of(&self, resolved: &Resolved) -> BTreeMap<String, ScopeUsage> {
        let schedulers: Vec<Arc<BudgetScheduler>> = self.scopes.lock().values().cloned().collect();
        let mut usages: Vec<(String, Usage)> = schedulers
            .iter()
            .filter(|r| resolved.scope(&r.scope.of).as_ref() == Some(&r.scope))
            .map(|scheduler| {
                let title = match scheduler.scope.kind {
                    RateScope::Service => scheduler.scope.of.to_string(),
                    RateScope::Key => "*".to_owned(),
                };
                (title, scheduler.usage())
            })
            .collect();
        let room = |usage: &Usage| usage.limit.saturating_sub(usage.used.saturating_add(usage.kept));
        usages.sort_by(|(a, x), (b, y)| room(x).cmp(&room(y)).then_with(|| a.cmp(b)));
        usages.truncate(MOST_SCOPES);
        let told = usages.into_iter().map(|(title, usage)| {
            let scope = ScopeUsage {
                limit: usage.limit,
                used: usage.used,
                kept_for_renewals: usage.kept,
                waiting: usage.waiting,
                next_slot: usage.next_slot.map(|t| t.trunc_subsecs(0)),
                blocked_until: usage.blocked_until.map(|t| t.trunc_subsecs(0)),
            };
            (title, scope)
        });
        told.collect()
    }
}
