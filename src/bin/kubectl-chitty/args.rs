//! What can be asked, as clap reads it.

use std::path::PathBuf;
use std::time::Duration;

use chittyconnect_operator::core::layout::AnnotationPolicy;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Why a Pod waits for its token, how long tokens live, who uses them and how budgets stand.
#[derive(Debug, Parser)]
#[command(name = "kubectl-chitty", bin_name = "kubectl chitty", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done or told; 1 it could not be done, or there is no such thing; 2 wrong usage; \
3 what was waited for did not come about, or something is wrong.";

#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Namespace to look in. The default is that of the context.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig to use.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubeconfig. The default is that which kubectl takes.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Output,
    /// Namespace of the controller itself: journals are there.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "CHITTYCONNECT_NAMESPACE",
        default_value = "chittyconnect-system"
    )]
    pub system_namespace: String,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    #[default]
    Table,
    /// For a person with a wide screen.
    Wide,
    /// For a program.
    Json,
    /// The same as YAML.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// How credentials stand: how much life their tokens have, and how their budgets are.
    Status(Status),
    /// Why a credential is as it is: what it waits for, the arithmetic of it, and what to do.
    Why(Named),
    /// Have tokens replaced now, each by one mint.
    Rotate(Acted),
    /// Have all tokens revoked and the Secrets deleted; nothing is minted until `rotate`.
    Revoke(Acted),
    /// Have nothing minted; a token that is there lives to its end.
    Suspend(Acted),
    /// Undo `suspend`, and wait for a token.
    Resume(Acted),
    /// Which Pods read a credential's Secrets, how, and what they have.
    Consumers(Named),
    /// How budgets stand: what is used, kept and free, who holds it, and when slots free.
    Budget(Budget),
    /// What became of a credential: Events, and what ChittyChronicle has yet to be told.
    Audit(Named),
    /// Print the Secrets of a credential with made-up values in them: nobody is asked for anything.
    Template(Template),
    /// Whether all is there and well that credentials depend on.
    Doctor,
    /// Print a script that completes commands: source it in your shell.
    Completion {
        /// Which one.
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub struct Status {
    /// One credential, in full. All of the namespace where none is named.
    pub name: Option<String>,
    /// Those of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub all_namespaces: bool,
}

#[derive(Args, Debug)]
pub struct Named {
    /// The credential.
    pub name: String,
}

#[derive(Args, Debug)]
pub struct Acted {
    /// The credentials.
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Wait until it is done, and show how far it is.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
    /// How long to wait at most, such as 90s or 5m.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Args, Debug)]
pub struct Budget {
    /// The service. All budgets where none is named.
    pub service: Option<String>,
}

#[derive(Args, Debug)]
pub struct Template {
    /// A credential of the cluster, to be read from there.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub name: Option<String>,
    /// A file with manifests, such as credential.yaml; - for standard input. No cluster is needed.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A value for an output, in place of a made-up one.
    #[arg(long, value_name = "OUTPUT=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// An output that ChittyConnect leaves out.
    #[arg(long, value_name = "OUTPUT")]
    pub without: Vec<String>,
    /// What Secrets may be annotated with, as the controller is told.
    #[arg(long, value_name = "PREFIXES", default_value = "tekton.dev/,reloader.stakater.com/")]
    pub annotation_prefixes: AnnotationPolicy,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected OUTPUT=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<kube::core::Duration, _> = text.parse();
    let length = parsed.ok().filter(|length| !length.is_negative());
    length
        .map(Duration::from)
        .ok_or_else(|| "expected a duration such as 90s or 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed_and_usage_begins_as_it_is_typed() {
        Arguments::command().debug_assert();
        let usage = Arguments::command().render_usage().to_string();
        assert!(usage.starts_with("Usage: kubectl chitty "), "{usage}");
        let refused = Arguments::try_parse_from(["kubectl-chitty", "why"])
            .unwrap_err()
            .to_string();
        assert!(refused.contains("Usage: kubectl chitty why"), "{refused}");
    }

    #[test]
    fn every_command_has_its_place_in_the_documentation() {
        let page = include_str!("../../../docs/kubectl-chitty.md");
        for command in Arguments::command().get_subcommands() {
            let heading = format!("\n## {}\n", command.get_name());
            assert!(page.contains(&heading), "{heading}");
        }
    }

    #[test]
    fn what_acts_waits_unless_it_is_told_not_to() {
        let parse = |more: &[&str]| {
            let all = ["kubectl-chitty", "rotate", "a", "b", "-n", "demo"].iter().chain(more);
            match Arguments::try_parse_from(all).unwrap().command {
                Command::Rotate(acted) => (acted.names.len(), acted.wait, acted.timeout.as_secs()),
                _ => unreachable!(),
            }
        };
        assert_eq!(parse(&[]), (2, true, 300));
        assert_eq!(parse(&["--wait=false"]), (2, false, 300));
        assert_eq!(parse(&["--timeout", "90s"]), (2, true, 90));
        assert!(duration("-5s").is_err() && duration("soon").is_err());
    }
}
