//! What each reason means, and what to do about it.

use chittyconnect_operator::api::Reason;

use crate::facts::Credential;

/// What to know of a reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    /// What it means.
    pub means: &'static str,
    /// What has to happen before anything else does.
    pub waits_for: String,
    /// What to do, most likely first; nothing where nobody needs to do anything.
    pub todo: Vec<Step>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Step {
    pub text: String,
    /// How.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl Step {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            command: None,
        }
    }

    fn by(text: impl Into<String>, command: String) -> Self {
        Self {
            text: text.into(),
            command: Some(command),
        }
    }
}

/// What to know of `reason`, which `credential` gives.
pub fn advice(reason: Reason, credential: &Credential) -> Advice {
    let at = format!("{} -n {}", credential.name, credential.namespace);
    let connection = &credential.connection;
    let edit = || format!("kubectl edit ec {at}");
    let doctor = || {
        Step::by(
            "Have an administrator look at the connection by steps",
            "kubectl chitty doctor".to_owned(),
        )
    };
    let source = credential.follows.as_deref().unwrap_or("the credential in spec.from");
    let nothing = String::new;
    let (means, waits_for, todo) = match reason {
        Reason::Issuing if credential.follows.is_some() => (
            "What it follows has no token that it can be given now: it never had one, its tokens were revoked, or it is \
             suspended.",
            format!("the next token of {source}"),
            vec![Step::new(format!(
                "Ask the owner of {source} why that has none: kubectl chitty why there says it"
            ))],
        ),
        Reason::Issuing => (
            "ChittyConnect has been asked, and has not answered yet.",
            "the answer. One that does not come within the connection's timeout is OutcomeUnknown, and stays \
             counted"
                .to_owned(),
            vec![],
        ),
        Reason::Issued => (
            "A first token was published, and its Secrets are there.",
            nothing(),
            vec![],
        ),
        Reason::Rotated => (
            "The token was replaced before its end, and its Secrets hold the new one.",
            nothing(),
            vec![],
        ),
        Reason::Idle => (
            "It is on demand, and no Pod needs a token.",
            "a Pod that uses one of its Secrets and is bound to a node; a Pod that nothing schedules asks for \
             none"
                .to_owned(),
            vec![
                Step::by(
                    "See which Pods use it, and how",
                    format!("kubectl chitty consumers {at}"),
                ),
                Step::by("To have a token always, set activation: Always", edit()),
            ],
        ),
        Reason::Suspended => (
            "spec.suspend is set: nothing is minted, and a token that is there is not renewed.",
            "somebody to unset it".to_owned(),
            vec![Step::by("Resume it", format!("kubectl chitty resume {at}"))],
        ),
        Reason::Revoked => (
            "Somebody had its tokens revoked, by the annotation connect.chitty.cc/revoke. Its Secrets are removed, \
             and new Pods \
             wait.",
            "the annotation connect.chitty.cc/rotate to have a new value. No changed spec and no restart has it \
             minted before \
             that"
                .to_owned(),
            vec![Step::by(
                "When what it was revoked for is over, have a new token minted",
                format!("kubectl chitty rotate {at}"),
            )],
        ),
        Reason::InvalidSpec => (
            "The spec contradicts itself, or its connection. ChittyConnect was not asked.",
            "a spec that fits".to_owned(),
            vec![Step::by("Mend what the message names", edit())],
        ),
        Reason::NotPermitted => (
            "No access rule of the connection allows this request. ChittyConnect was not asked, and Secrets that \
             were there \
             are removed.",
            format!(
                "a rule in spec.access of ChittyConnection {connection} that matches in every field, or a \
                     request that one matches"
            ),
            vec![
                Step::new(format!(
                    "Ask an administrator to add this to spec.access of ChittyConnection {connection}"
                )),
                Step::by("Or ask for something that is allowed", edit()),
            ],
        ),
        Reason::SourceNotFound => (
            "The credential whose tokens it is given is not there. Its own Secrets are removed.",
            format!("a credential {source} that shares its tokens with this namespace"),
            vec![
                Step::new(format!("Ask the owner of {source} where it went")),
                Step::by("Or follow another: spec.from", edit()),
            ],
        ),
        Reason::NotShared => (
            "No credential of that name shares its tokens with this namespace: none is there, or spec.sharedWith of \
             it does \
             not choose this namespace. Which of the two is for its owner to tell.",
            format!(
                "spec.sharedWith of {source} to choose namespace {}",
                credential.namespace
            ),
            vec![Step::by(
                "Ask its owner to share it (who shares with other namespaces already adds this one to them)",
                share(credential),
            )],
        ),
        Reason::Denied => (
            "ChittyConnect judged the request too risky. No timer asks again: that would spend everybody's budget, \
             and look \
             like an attack.",
            "a changed request, or somebody who asks once more".to_owned(),
            vec![
                Step::by("Change the request: service, purpose, repo, runId", edit()),
                Step::by(
                    "When ChittyConnect's side has changed, ask once more",
                    format!("kubectl chitty rotate {at}"),
                ),
            ],
        ),
        Reason::RateLimited => (
            "The budget is spent, or what is left of it is kept for renewals: nobody who has a token loses it to \
             somebody who \
             has none.",
            "a slot in the budget's window".to_owned(),
            vec![
                Step::new(
                    "Share one credential: any number of Pods may mount its Secret, spec.secrets lays one mint out \
                     in up to \
                     eight Secrets, and other namespaces may follow it with spec.from",
                ),
                Step::by(
                    "Have it renewed less often: a shorter rotation.renewBefore, a longer rotation.maxLifetime, or \
                     activation: OnDemand",
                    edit(),
                ),
                Step::by("See who holds the budget", budget(credential)),
            ],
        ),
        Reason::BrokerUnavailable => (
            "ChittyConnect cannot be reached, or answers 5xx.",
            "ChittyConnect to answer. It is asked by itself, with pauses that grow, and no later than at half of a \
             live \
             token's runway"
                .to_owned(),
            vec![
                Step::by(
                    "See since when the connection is down, and what is tried next",
                    format!("kubectl describe cconn {connection}"),
                ),
                doctor(),
            ],
        ),
        Reason::BrokerRejected => (
            "ChittyConnect answered 400 or another 4xx: it cannot make this.",
            "a request that it takes. This one is tried again once a window, since upstream trouble can look like \
             this too"
                .to_owned(),
            vec![
                Step::by("Mend service, purpose, repo or type", edit()),
                Step::new(format!(
                    "Where the message says that ChittyConnect does not serve the path, spec.url of ChittyConnection \
                     {connection} \
                     points at something else: tell an administrator"
                )),
            ],
        ),
        Reason::Unauthorized => (
            "ChittyConnect does not accept the connection's API key. Nobody asks with it.",
            "another key in its Secret, which is picked up at once; every 15 minutes one request tries whether this \
             one is \
             accepted again"
                .to_owned(),
            vec![
                Step::new(format!(
                    "Tell an administrator to put a good key into the Secret of ChittyConnection \
                                   {connection}"
                )),
                doctor(),
            ],
        ),
        Reason::InvalidResponse => (
            "ChittyConnect answered, and no usable token was in it: a web page, half a document, no or a past \
             expires_at, or a \
             redirect. The request stays counted.",
            "an answer that can be used. It is asked again by itself, with pauses that grow".to_owned(),
            vec![
                Step::new(format!(
                    "Tell an administrator to check spec.url of ChittyConnection {connection}: a portal or a proxy \
                     may answer there"
                )),
                doctor(),
            ],
        ),
        Reason::InvalidTemplate => (
            "A template cannot be read, or needs an output that ChittyConnect did not send.",
            "templates that fit. Where outputs are missing, it is asked for once a window all the same, for they may come: \
             each time costs a mint"
                .to_owned(),
            vec![
                Step::by(
                    "Render it with made-up values until it fits; nothing is asked for that (--without OUTPUT leaves out \
                     what does not come)",
                    format!("kubectl chitty template {at}"),
                ),
                Step::by("Mend spec.secrets", edit()),
            ],
        ),
        Reason::SecretConflict => (
            "A Secret of that name exists and is not this credential's. It is left alone.",
            "that Secret to go, or another name".to_owned(),
            vec![
                Step::by(
                    "See whose it is (the message names it)",
                    format!("kubectl get secrets -n {} --show-labels", credential.namespace),
                ),
                Step::by("Delete it, or name another in spec.secrets", edit()),
            ],
        ),
        Reason::SecretRefused => (
            "The API server refuses the Secret: a quota, an admission policy, or missing rights. Before a first \
             mint that is tried out, and costs nothing; a token that was minted to renew another waits for its Secret until it \
             ends.",
            "the API server to take it. It is tried again every 15 s".to_owned(),
            vec![
                Step::by(
                    "Have the API server say why, if the message does not",
                    format!("kubectl chitty template {at} | kubectl apply --server-side --force-conflicts --dry-run=server -n {} -f -", credential.namespace),
                ),
                Step::by(
                    "See which policies there are; a label that one wants can stand in spec.secrets[].labels",
                    "kubectl get validatingadmissionpolicies,validatingwebhookconfigurations".to_owned(),
                ),
                Step::by(
                    "Look at the namespace's quotas",
                    format!("kubectl describe quota -n {}", credential.namespace),
                ),
                Step::by(
                    "See whether the controller may write Secrets here",
                    "kubectl chitty doctor".to_owned(),
                ),
            ],
        ),
        Reason::ConnectionNotFound => (
            "spec.connection names a ChittyConnection that does not exist.",
            format!("a ChittyConnection {connection}"),
            vec![
                Step::by("Name one that exists", edit()),
                Step::new(format!("Or ask an administrator for ChittyConnection {connection}")),
            ],
        ),
        Reason::ConnectionNotReady => (
            "The connection is there and cannot be used: mostly its API key, audit token or CA bundle is missing in \
             the \
             controller's namespace. It is also said where a journal was edited.",
            format!("ChittyConnection {connection} to be ready, or the journal that the message names to be mended"),
            vec![
                Step::by("See what it lacks", format!("kubectl describe cconn {connection}")),
                doctor(),
            ],
        ),
        Reason::Tampered => (
            "A managed Secret was changed or removed again within one window. Healing costs a mint, and is done once \
             a window.",
            "the window to pass. Where somebody changes the Secret again after that, it waits for another".to_owned(),
            vec![
                Step::by(
                    "Find out who writes it, a sync tool, a restore, a person: what was changed is removed within a second, \
                     so have this running while it is healed, and look for the last manager",
                    format!(
                        "kubectl get secrets -n {} --watch --output-watch-events -o yaml --show-managed-fields",
                        credential.namespace
                    ),
                ),
                Step::by(
                    "Once that has stopped, heal it at once",
                    format!("kubectl chitty rotate {at}"),
                ),
            ],
        ),
        Reason::Expired => (
            "The token ended without a successor, because spec.suspend is set. Its Secrets are removed, and new Pods \
             wait.",
            "somebody to unset spec.suspend".to_owned(),
            vec![Step::by("Resume it", format!("kubectl chitty resume {at}"))],
        ),
        Reason::OutcomeUnknown => (
            "A request left, and its answer never came: a token may exist that nobody holds. It stays counted, and is \
             never repeated blindly.",
            "the next try, which is a new request with a place of its own in the budget".to_owned(),
            orphans(credential),
        ),
        Reason::AuditBacklog => (
            "Too many audit events wait for ChittyChronicle. Minting stops before one is lost.",
            "ChittyChronicle to take events again".to_owned(),
            vec![doctor()],
        ),
        Reason::Deleted => (
            "Said in audit events alone: the tokens of a credential that was deleted were let go of.",
            nothing(),
            vec![],
        ),
    };
    Advice { means, waits_for, todo }
}

/// What its owner does so that `credential` may follow.
fn share(credential: &Credential) -> String {
    let (namespace, name) = credential
        .follows
        .as_deref()
        .and_then(|source| source.split_once('/'))
        .unwrap_or(("NAMESPACE", "NAME"));
    format!(
        "kubectl patch ec {name} -n {namespace} --type=merge -p \
         '{{\"spec\":{{\"sharedWith\":{{\"namespaces\":[\"{}\"]}}}}}}'",
        credential.namespace
    )
}

fn budget(credential: &Credential) -> String {
    let service = Some(credential.service.as_str()).filter(|service| !service.is_empty());
    format!("kubectl chitty budget {}", service.unwrap_or_default())
        .trim_end()
        .to_owned()
}

fn orphans(credential: &Credential) -> Vec<Step> {
    if credential.orphans.is_empty() {
        return vec![];
    }
    vec![Step::new(format!(
        "Have these token ids revoked by hand at ChittyConnect, where nobody knows them: {}",
        credential.orphans.join(", ")
    ))]
}
