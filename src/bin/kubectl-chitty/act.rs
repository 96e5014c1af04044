//! `rotate`, `revoke`, `suspend` and `resume`: what is asked of the controller, and how far it is.

use chittyconnect_operator::api::{REVOKE_ANNOTATION, ROTATE_ANNOTATION, Reason};
use chittyconnect_operator::core::{Time, clock};
use serde_json::{Value, json};

use crate::facts::Credential;
use crate::terminal::until;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Rotate,
    Revoke,
    Suspend,
    Resume,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Not there yet; what for, where that is told.
    Waits(String),
    Done(String),
    /// It will not come about.
    Failed(String),
}

impl Act {
    /// What is written to a credential for it. The value of an annotation is one that was not there before.
    pub fn patch(self, now: Time) -> Value {
        let value = now.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
        let annotate = |key: &str| json!({"metadata": {"annotations": {key: value}}});
        match self {
            Self::Rotate => annotate(ROTATE_ANNOTATION),
            Self::Revoke => annotate(REVOKE_ANNOTATION),
            Self::Suspend => json!({"spec": {"suspend": true}}),
            Self::Resume => json!({"spec": {"suspend": false}}),
        }
    }

    /// Why it cannot be asked of `credential`.
    pub fn objection(self, credential: &Credential) -> Option<String> {
        let source = credential.follows.as_deref()?;
        let (namespace, name) = source.split_once('/')?;
        match self {
            Self::Rotate | Self::Revoke => Some(format!(
                "{} is given the tokens of {source}: kubectl chitty {} {name} -n {namespace}",
                credential.id(),
                self.word()
            )),
            Self::Suspend | Self::Resume => None,
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Revoke => "revoke",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }

    /// How far it is, of a credential that was as `before` when it was asked for.
    pub fn progress(self, before: &Credential, credential: &Credential, now: Time) -> Progress {
        let told = || match credential.ready {
            None => "the controller has not looked at it".to_owned(),
            Some(true) if credential.is_well() => "the controller has yet to answer".to_owned(),
            Some(_) => format!("{}: {}", credential.reason, credential.message),
        };
        let ends = credential.expires_at.filter(|_| credential.issued);
        let ends = ends.map(|end| format!("{} ({})", clock(end, now), until(end, now)));
        let news = (&before.reason, &before.message, before.since)
            != (&credential.reason, &credential.message, credential.since);
        match self {
            Self::Rotate => match (credential.revision, ends) {
                (Some(revision), Some(ends)) if credential.revision > before.revision => {
                    Progress::Done(format!("revision {revision}, valid until {ends}"))
                }
                _ if credential.known_reason() == Some(Reason::Idle) && !credential.issued => Progress::Done(
                    "it is on demand, and no Pod needs a token: whoever comes next has a new one minted".to_owned(),
                ),
                _ if credential.stalled && news => Progress::Failed(told()),
                _ => Progress::Waits(told()),
            },
            Self::Revoke => {
                if credential.known_reason() == Some(Reason::Revoked) && !credential.issued {
                    Progress::Done(credential.message.clone())
                } else {
                    Progress::Waits(told())
                }
            }
            Self::Suspend | Self::Resume if !credential.seen => Progress::Waits(told()),
            Self::Suspend => Progress::Done(match ends {
                Some(ends) => {
                    format!("nothing is minted; its token lives until {ends}, and then its Secrets are removed")
                }
                None => "nothing is minted, and it has no token".to_owned(),
            }),
            Self::Resume => match (credential.ready, ends) {
                (Some(true), Some(ends)) => Progress::Done(format!("it has a token, valid until {ends}")),
                (Some(true), None) => Progress::Done("it is on demand, and no Pod needs a token".to_owned()),
                _ if credential.stalled => Progress::Failed(told()),
                _ => Progress::Waits(told()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::examples::{credential, example, merge, now};

    fn of(reason: Reason, over: serde_json::Value) -> Credential {
        let mut object = serde_json::to_value(example(reason)).unwrap();
        merge(&mut object, over);
        Credential::from(&credential("site-deploy", object))
    }

    #[test]
    fn a_rotation_is_done_with_the_next_revision_and_fails_where_a_new_verdict_stands_still() {
        let before = of(Reason::Rotated, json!({}));
        let progress = |after: &Credential| Act::Rotate.progress(&before, after, now());
        assert!(matches!(progress(&before), Progress::Waits(_)));
        let next = of(Reason::Rotated, json!({"status": {"revision": 8}}));
        assert_eq!(
            progress(&next),
            Progress::Done("revision 8, valid until 13:02:10Z (in 40m)".to_owned())
        );
        // Where nobody needs a token there is none to replace.
        assert!(matches!(progress(&of(Reason::Idle, json!({}))), Progress::Done(_)));
        let denied = of(Reason::Denied, json!({}));
        assert!(matches!(progress(&denied), Progress::Failed(_)));
        // What stood still before is no answer to what is asked now.
        assert!(matches!(
            Act::Rotate.progress(&denied, &denied, now()),
            Progress::Waits(_)
        ));
    }

    #[test]
    fn a_revocation_is_done_once_secrets_are_gone_and_a_suspension_once_it_is_seen() {
        let before = of(Reason::Rotated, json!({}));
        let progress = |act: Act, after: &Credential| act.progress(&before, after, now());
        assert!(matches!(progress(Act::Revoke, &before), Progress::Waits(_)));
        assert!(matches!(
            progress(Act::Revoke, &of(Reason::Revoked, json!({}))),
            Progress::Done(_)
        ));
        let unseen = of(Reason::Suspended, json!({"metadata": {"generation": 2}}));
        assert!(matches!(progress(Act::Suspend, &unseen), Progress::Waits(_)));
        let Progress::Done(told) = progress(Act::Suspend, &of(Reason::Suspended, json!({}))) else {
            panic!("it is seen");
        };
        assert!(told.contains("its token lives until 12:33:50Z"), "{told}");
        assert!(matches!(
            progress(Act::Resume, &of(Reason::Idle, json!({}))),
            Progress::Done(_)
        ));
    }

    #[test]
    fn who_follows_is_sent_to_whom_it_follows() {
        let follower = of(Reason::NotShared, json!({}));
        let told = Act::Revoke.objection(&follower).unwrap();
        assert!(
            told.ends_with("kubectl chitty revoke shared-deploy -n platform"),
            "{told}"
        );
        assert_eq!(Act::Suspend.objection(&follower), None);
    }
}
