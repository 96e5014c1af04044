//! `kubectl chitty consumers`: who reads a credential's Secrets, and what they have.

use std::fmt::Write as _;

use chittyconnect_operator::core::{Time, clock};
use serde::Serialize;

use crate::facts::{Consumer, Credential, Seen};
use crate::terminal::{Cell, Table, Tone, length, until};

/// Who uses a credential, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumers {
    #[serde(skip)]
    pub credential: Credential,
    pub pods: Vec<Consumer>,
    /// Credentials that are given its tokens, as namespace/name.
    pub followers: Seen<Vec<String>>,
}

impl Consumers {
    /// As a table of so many columns.
    pub fn text(&self, room: Option<usize>, now: Time) -> String {
        let mut text = String::new();
        if self.pods.is_empty() {
            let _ = writeln!(
                text,
                "No Pod that is bound to a node uses a Secret of {}.",
                self.credential.id()
            );
        } else {
            let columns = [
                ("POD", 0),
                ("OWNER", 3),
                ("SECRET", 2),
                ("READS BY", 0),
                ("STARTED", 1),
                ("HAS", 0),
            ];
            let mut table = Table::new(&columns);
            for pod in &self.pods {
                let (has, tone) = self.has(pod, now);
                table.row(vec![
                    Cell::from(&pod.pod),
                    Cell::from(pod.owner.as_deref().unwrap_or("-")),
                    Cell::from(&pod.secret),
                    pod.reads.join(", ").into(),
                    pod.started_at
                        .map_or_else(|| "not yet".to_owned(), |at| format!("{} ago", length(now - at)))
                        .into(),
                    Cell::new(has, tone),
                ]);
            }
            text.push_str(&table.render(room));
        }
        match &self.followers {
            Seen::Found(all) if !all.is_empty() => {
                let _ = writeln!(text, "\nIts tokens are given to: {}", all.join(", "));
            }
            Seen::Forbidden(what) => {
                let _ = writeln!(
                    text,
                    "{}",
                    Tone::Faint.paint(&format!("Not shown: {what}, and so not who follows it."))
                );
            }
            _ => {}
        }
        text
    }

    /// What a Pod has of the tokens there were.
    fn has(&self, pod: &Consumer, now: Time) -> (String, Tone) {
        let credential = &self.credential;
        if pod.waits {
            return ("waits for the Secret".to_owned(), Tone::Bad);
        }
        if !pod.frozen {
            let once = pod.reads.iter().all(|way| *way == "image pull");
            let text = if once { "pulled its images" } else { "each new token" };
            return (text.to_owned(), Tone::Good);
        }
        let current = credential.issued_at.zip(credential.expires_at).zip(pod.started_at);
        match current {
            Some(((issued, end), started)) if started >= issued && credential.issued => {
                let runway = credential.runway_seconds.unwrap_or_default();
                let tone = if (end - now).num_seconds() < runway {
                    Tone::Warn
                } else {
                    Tone::Plain
                };
                (
                    format!("this token, to {} ({})", clock(end, now), until(end, now)),
                    tone,
                )
            }
            _ => ("an earlier token, for good".to_owned(), Tone::Warn),
        }
    }
}

#[cfg(test)]
mod tests {
    use chittyconnect_operator::api::Reason;
    use expect_test::expect;

    use super::*;
    use crate::examples::{example, now};

    #[test]
    fn of_each_pod_it_is_told_what_it_has_of_the_tokens_there_were() {
        let pod = |name: &str, reads: &[&'static str], ago: Option<i64>| Consumer {
            pod: name.to_owned(),
            owner: Some("Job/deploy".to_owned()),
            secret: "site-deploy".to_owned(),
            reads: reads.to_vec(),
            starting: ago.is_none(),
            waits: ago.is_none(),
            started_at: ago.map(|seconds| now() - chrono::TimeDelta::seconds(seconds)),
            frozen: reads.iter().any(|way| matches!(*way, "env" | "subPath")),
        };
        let consumers = Consumers {
            credential: Credential::from(&example(Reason::Rotated)),
            pods: vec![
                pod("deploy-1", &["volume"], Some(5000)),
                pod("deploy-2", &["env"], Some(600)),
                pod("deploy-3", &["subPath", "volume"], Some(5000)),
                pod("deploy-4", &["volume"], None),
                pod("deploy-5", &["image pull"], Some(60)),
            ],
            followers: Seen::Found(vec!["team-b/site-deploy".to_owned()]),
        };
        let told = consumers.text(Some(120), now());
        expect![[r#"
            POD        OWNER        SECRET        READS BY          STARTED     HAS
            deploy-1   Job/deploy   site-deploy   volume            1h23m ago   each new token
            deploy-2   Job/deploy   site-deploy   env               10m ago     this token, to 13:02:10Z (in 40m)
            deploy-3   Job/deploy   site-deploy   subPath, volume   1h23m ago   an earlier token, for good
            deploy-4   Job/deploy   site-deploy   volume            not yet     waits for the Secret
            deploy-5   Job/deploy   site-deploy   image pull        60s ago     pulled its images

            Its tokens are given to: team-b/site-deploy
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&told).to_string());
    }
}
