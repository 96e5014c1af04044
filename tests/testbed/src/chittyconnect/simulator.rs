//! The way of a request through ChittyConnect: arrive, go wrong, be processed, go wrong, be answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::answers::Draft;
use super::call::Call;
use super::faults::Fault;
use super::keys::Keys;
use super::ledger::{Ledger, Mint, Post};
use super::limits::{Counters, DeployLimit, KeyLimit, ProvisionLimit, Standing};
use super::matching::{Match, Route};
use super::outputs::Outputs;
use super::{Denial, deploy, other, provision};
use crate::rules::Rules;
use crate::server::{Reply, Request};

/// Long enough that requests sent together overlap.
const RACE: Duration = Duration::from_millis(30);

pub(super) struct Settings {
    pub(super) ttl: TimeDelta,
    pub(super) deploy_limit: Option<DeployLimit>,
    pub(super) provision_limit: Option<ProvisionLimit>,
    pub(super) key_limit: Option<KeyLimit>,
    pub(super) retry_after: Option<Duration>,
    pub(super) undated: bool,
    pub(super) unserved: BTreeSet<Route>,
}

pub(super) struct Simulator {
    started: Instant,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) skew: TimeDelta,
    pub(super) latency: Duration,
    pub(super) keys: Keys,
    pub(super) outputs: BTreeMap<String, Outputs>,
    pub(super) denials: Vec<(Match, Denial)>,
    pub(super) faults: Rules<Match, Fault>,
    pub(super) counters: Counters,
    pub(super) ledger: Ledger,
    /// Beside [`Ledger::mints`]: what the server sets when an answer went out.
    delivered: Vec<Arc<AtomicBool>>,
}

/// What is known of a request once it arrived.
struct Arrival {
    call: Call,
    post: Option<usize>,
    fault: Option<Fault>,
    latency: Duration,
}

impl Simulator {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::new(State {
                settings,
                skew: TimeDelta::zero(),
                latency: Duration::ZERO,
                keys: Keys::default(),
                outputs: BTreeMap::new(),
                denials: Vec::new(),
                faults: Rules::default(),
                counters: Counters::default(),
                ledger: Ledger::default(),
                delivered: Vec::new(),
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn handle(self: Arc<Self>, request: Request) -> Reply {
        let Arrival {
            call,
            post,
            fault,
            latency,
        } = self.arrive(&request);
        match &fault {
            Some(Fault::DelayBefore(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::HangBefore) => std::future::pending().await,
            Some(Fault::CutBefore) => return Reply::Cut,
            _ => {}
        }
        let now = self.state().now();
        let instead = fault.as_ref().and_then(|fault| fault.instead(now));
        let draft = if let Some(draft) = instead {
            draft
        } else {
            let draft = self.process(&call, post, fault.as_ref()).await;
            match &fault {
                Some(fault) => fault.spoil(call.route, draft, now),
                None => draft,
            }
        };
        if call.route.mints() {
            tokio::time::sleep(latency).await;
        }
        match &fault {
            Some(Fault::DelayAfter(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::HangAfter) => std::future::pending().await,
            Some(Fault::CutAfter) => return Reply::Cut,
            _ => {}
        }
        self.answer(post, draft)
    }

    fn arrive(&self, request: &Request) -> Arrival {
        let mut state = self.state();
        let call = Call::read(request, &state.keys);
        *state.ledger.calls.entry(call.route).or_default() += 1;
        let post = call.route.mints().then(|| {
            let post = Post {
                at: state.now(),
                since_start: self.started.elapsed(),
                route: call.route,
                service: call.service.clone(),
                purpose: call.purpose.clone(),
                repo: call.repo.clone(),
                run_id: call.run_id.clone(),
                credential_type: call.credential_type.clone(),
                idempotency_key: call.idempotency_key.clone(),
                key_owner: call.key_owner.clone(),
                status: None,
                mint: None,
            };
            state.ledger.posts.push(post);
            state.ledger.posts.len() - 1
        });
        Arrival {
            fault: state.faults.take(|rule| rule.matches(&call)),
            latency: state.latency,
            call,
            post,
        }
    }

    async fn process(&self, call: &Call, post: Option<usize>, fault: Option<&Fault>) -> Draft {
        let standing = match self.state().admit(call) {
            Ok(standing) => standing,
            Err(draft) => return draft,
        };
        let draft = match (call.route, post) {
            (Route::Deploy, Some(post)) => deploy::handle(&mut self.state(), call, post, fault),
            (Route::Provision, Some(post)) => self.provision(call, post, fault).await,
            _ => other::handle(&mut self.state(), call),
        };
        match standing {
            Some(standing) => self.state().with_standing(draft, standing),
            None => draft,
        }
    }

    async fn provision(&self, call: &Call, post: usize, fault: Option<&Fault>) -> Draft {
        if let Err(draft) = provision::check(&mut self.state(), call) {
            return draft;
        }
        let racy = self.state().settings.provision_limit.is_some_and(|limit| limit.racy);
        if racy {
            tokio::time::sleep(RACE).await;
            provision::charge(&mut self.state(), call);
        }
        provision::handle(&mut self.state(), call, post, fault)
    }

    fn answer(&self, post: Option<usize>, draft: Draft) -> Reply {
        let mut state = self.state();
        if let Some(post) = post {
            state.ledger.posts[post].status = Some(draft.status);
        }
        let delivered = match draft.mint {
            Some(mint) => state.delivered[mint].clone(),
            None => Arc::default(),
        };
        let now = Some(state.now()).filter(|_| !state.settings.undated);
        Reply::Answer(draft.finish(delivered, now))
    }
}

impl State {
    pub(super) fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.skew
    }

    /// What happens before any route's own work. The limiter's standing goes on every answer.
    fn admit(&mut self, call: &Call) -> Result<Option<Standing>, Draft> {
        if call.route == Route::Unknown || self.settings.unserved.contains(&call.route) {
            return Err(Draft::not_found());
        }
        if call.route.is_open() {
            return Ok(None);
        }
        if let Some(refusal) = call.refusal {
            return Err(Draft::json(401, json!({"error": refusal.text()})));
        }
        let Some(limit) = self.settings.key_limit else {
            return Ok(None);
        };
        let (granted, standing) = self.counters.key(limit, call, Instant::now());
        if granted {
            return Ok(Some(standing));
        }
        let draft = Draft::json(429, json!({"error": "Rate limit exceeded"})).header("retry-after", "60");
        Err(self.with_standing(draft, standing))
    }

    fn with_standing(&self, draft: Draft, standing: Standing) -> Draft {
        let reset = self.now() + standing.reset_in;
        draft
            .header("x-ratelimit-limit", standing.limit.to_string())
            .header("x-ratelimit-remaining", standing.remaining.to_string())
            .header("x-ratelimit-reset", reset.timestamp_millis().to_string())
    }

    pub(super) fn denial(&self, call: &Call) -> Option<Draft> {
        let (_, denial) = self.denials.iter().find(|(rule, _)| rule.matches(call))?;
        let message = match denial {
            Denial::Forbidden => "Credential request DENIED: risk level critical",
            Denial::RiskScore => "Context validation failed: Risk score too high: 80",
        };
        Some(Draft::refusal(message, self.now()))
    }

    /// Enters a new credential and gives its place in the ledger.
    pub(super) fn mint(
        &mut self,
        call: &Call,
        post: usize,
        token_id: Option<String>,
        expires_at: Option<DateTime<Utc>>,
        secrets: BTreeMap<String, String>,
    ) -> usize {
        let mint = self.ledger.mints.len();
        self.ledger.mints.push(Mint {
            post,
            route: call.route,
            credential_type: call.credential_type.clone(),
            token_id,
            service: call.service.clone(),
            purpose: call.purpose.clone(),
            repo: call.repo.clone(),
            run_id: call.run_id.clone(),
            key_owner: call.key_owner.clone().unwrap_or_default(),
            issued_at: self.now(),
            expires_at,
            revoked_at: None,
            delivered: false,
            secrets,
        });
        self.delivered.push(Arc::default());
        self.ledger.posts[post].mint = Some(mint);
        mint
    }

    pub(super) fn snapshot(&self) -> Ledger {
        let mut ledger = self.ledger.clone();
        ledger.mints = self.mints_after(0);
        ledger
    }

    pub(super) fn mints_after(&self, known: usize) -> Vec<Mint> {
        let known = self.ledger.mints.iter().zip(&self.delivered).skip(known);
        known
            .map(|(mint, delivered)| Mint {
                delivered: delivered.load(Ordering::SeqCst),
                ..mint.clone()
            })
            .collect()
    }
}
