//! What can be asked, as clap reads it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chittyconnect_operator::core::layout::AnnotationPolicy;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
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

/// How a credential is named.
const NAME: &str = "[NAMESPACE/]NAME";

/// A credential, by its name alone or with its namespace before it, as all commands print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub namespace: Option<String>,
    pub name: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace == Some("") {
            return Err("expected NAME or NAMESPACE/NAME".to_owned());
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl Arguments {
    /// The credentials that are named.
    fn names(&self) -> &[Name] {
        match &self.command {
            Command::Status(Status { name, .. }) | Command::Template(Template { name, .. }) => name.as_slice(),
            Command::Why(named) | Command::Consumers(named) | Command::Audit(named) => {
                std::slice::from_ref(&named.name)
            }
            Command::Rotate(acted) | Command::Revoke(acted) | Command::Suspend(acted) | Command::Resume(acted) => {
                &acted.names
            }
            Command::Budget(_) | Command::Doctor | Command::Completion { .. } => &[],
        }
    }

    /// Whether all that is asked for can be meant at once.
    ///
    /// # Errors
    /// Where a credential is named in another namespace than `--namespace` says.
    pub fn agree(&self) -> Result<(), clap::Error> {
        let Some(asked) = &self.common.namespace else {
            return Ok(());
        };
        let other = |name: &&Name| name.namespace.as_ref().is_some_and(|own| own != asked);
        match self.names().iter().find(other) {
            None => Ok(()),
            Some(Name { namespace, name }) => {
                let own = namespace.as_deref().unwrap_or_default();
                let said = format!("{own}/{name} is not in namespace {asked}: leave out one of them");
                Err(Self::command().error(ErrorKind::ArgumentConflict, said))
            }
        }
    }
}

#[derive(Args, Debug)]
pub struct Status {
    /// One credential, in full. All of the namespace where none is named.
    #[arg(value_name = NAME)]
    pub name: Option<Name>,
    /// Those of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub all_namespaces: bool,
}

#[derive(Args, Debug)]
pub struct Named {
    /// The credential.
    #[arg(value_name = NAME)]
    pub name: Name,
}

#[derive(Args, Debug)]
pub struct Acted {
    /// The credentials.
    #[arg(required = true, value_name = NAME)]
    pub names: Vec<Name>,
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
    #[arg(required_unless_present = "file", conflicts_with = "file", value_name = NAME)]
    pub name: Option<Name>,
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
    fn a_credential_is_named_with_or_without_its_namespace_and_never_in_two() {
        let parse = |arguments: &str| {
            let parsed = Arguments::try_parse_from(format!("kubectl-chitty {arguments}").split(' '))?;
            parsed.agree()?;
            Ok::<_, clap::Error>(parsed.names().to_vec())
        };
        let name = |namespace: Option<&str>, name: &str| Name {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        for command in ["why", "status", "consumers", "audit", "template"] {
            let told = |rest: &str| parse(&format!("{command} {rest}")).unwrap();
            assert_eq!(told("a"), [name(None, "a")], "{command}");
            assert_eq!(told("demo/a"), [name(Some("demo"), "a")], "{command}");
            assert_eq!(told("demo/a -n demo"), [name(Some("demo"), "a")], "{command}");
        }
        for command in ["rotate", "revoke", "suspend", "resume"] {
            let told = parse(&format!("{command} a demo/b other/c")).unwrap();
            let names = [name(None, "a"), name(Some("demo"), "b"), name(Some("other"), "c")];
            assert_eq!(told, names, "{command}");
        }
        let refused = parse("rotate demo/a other/b -n demo").unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        let said = refused.to_string();
        assert!(
            said.contains("other/b is not in namespace demo: leave out one of them"),
            "{said}"
        );
        for amiss in ["demo/", "/a", "demo/a/b", "ec/demo/a"] {
            let said = parse(&format!("why {amiss}")).unwrap_err().to_string();
            assert!(said.contains("expected NAME or NAMESPACE/NAME"), "{amiss}: {said}");
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
