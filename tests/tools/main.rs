//! The files that presets write, read by the tools they are for, with the very commands of `docs/layouts.md`: against local
//! servers that take the token of the moment and no other, by a user who is not root, from a read-only mount laid out as
//! the kubelet does it, before and after a rotation.

#![allow(clippy::disallowed_methods, reason = "tests run in real time")]

mod docs;
mod mount;
mod servers;
mod workflow;

use std::collections::BTreeMap;
use std::fs;

use chittyconnect_operator::api::Preset;
use docs::{ACCOUNT, Section, sections, tokens};
use mount::{Job, tools_are_there};
use servers::{Cloudflare, GitHost, GitHub, Registry};

/// Runs what a section says with the tokens of one round after the other, in one mount: `check` is told which round it is.
fn rounds(section: &Section, job: &Job, mut before: impl FnMut(&str, &Job), check: impl Fn(&str, &str)) {
    for round in ["one", "two"] {
        job.mount(&section.render(&tokens(round)));
        before(round, job);
        let said = job.run(&section.command);
        check(round, &said);
    }
}

#[test]
fn the_docs_show_each_preset_as_it_is_written() {
    let sections = sections();
    let presets: Vec<Preset> = serde_yaml::from_str(
        "[outputs, env, dotenv, npmrc, netrc, gitconfig, gitCredentials, basicAuth, dockerConfig, jenkins]",
    )
    .unwrap();
    let named: Vec<&str> = sections.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(named, presets.iter().map(|p| p.as_str()).collect::<Vec<_>>());
    for section in &sections {
        let shown = docs::shown(section);
        let written: BTreeMap<String, String> = section
            .render(&docs::sample())
            .into_iter()
            .filter(|(key, _)| key != "expires_at")
            .map(|(key, value)| (key, String::from_utf8(value.to_vec()).unwrap()))
            .collect();
        assert_eq!(shown, written, "{}", section.name);
    }
}

#[test]
fn curl_finds_a_token_in_the_file_of_its_own() {
    if !tools_are_there(&["curl"]) {
        return;
    }
    let cloudflare = Cloudflare::start();
    let job = Job::new("outputs");
    let section = Section::named("outputs").with("https://api.cloudflare.com", &cloudflare.url());
    rounds(
        &section,
        &job,
        |round, _| cloudflare.expect(round),
        |_, said| assert!(said.contains("active"), "{said}"),
    );
}

#[test]
fn wrangler_and_gh_find_theirs_in_what_a_shell_reads() {
    if !tools_are_there(&["wrangler", "gh"]) {
        return;
    }
    let (cloudflare, github) = (Cloudflare::start(), GitHub::start());
    let job = Job::new("dotenv");
    job.env("CLOUDFLARE_API_BASE_URL", &format!("{}/client/v4", cloudflare.url()));
    job.env("WRANGLER_SEND_METRICS", "false");
    job.env("WRANGLER_HIDE_BANNER", "true");
    let socket = github.socket(job.dir());
    fs::write(
        job.home().join("config.yml"),
        format!("http_unix_socket: {}\n", socket.display()),
    )
    .unwrap();
    job.env("GH_CONFIG_DIR", job.home().to_str().unwrap());
    rounds(
        &Section::named("dotenv"),
        &job,
        |round, _| {
            cloudflare.expect(round);
            github.expect(round);
        },
        |_, said| {
            assert!(said.contains("a-namespace"), "{said}");
            assert!(said.contains("octocat"), "{said}");
        },
    );
    // wrangler was not left to look up the account: a token of one account cannot.
    assert!(
        cloudflare.paths().iter().all(|path| path.contains(ACCOUNT)),
        "{:?}",
        cloudflare.paths()
    );
}

#[test]
fn npm_publishes_and_pnpm_installs_with_one_file() {
    if !tools_are_there(&["npm", "pnpm"]) {
        return;
    }
    let registry = Registry::start();
    let job = Job::new("npmrc");
    registry.add_package(&job);
    job.env("NPM_CONFIG_CACHE", &format!("{}/npm", job.home().display()));
    job.env("NPM_CONFIG_UPDATE_NOTIFIER", "false");
    let section =
        Section::named("npmrc").with_options(&format!("npm: {{registry: '{}', scopes: [chittyos]}}", registry.url()));
    rounds(
        &section,
        &job,
        |round, job| {
            registry.expect(round);
            let version = if round == "one" { "1.0.1" } else { "1.0.2" };
            job.file(
                "package.json",
                &format!(
                    r#"{{"name": "@chittyos/site", "version": "{version}", "dependencies": {{"@chittyos/library": "1.0.0"}}}}"#
                ),
            );
            job.remove("node_modules");
        },
        |_, _| {
            assert!(job.work().join("node_modules/@chittyos/library/package.json").exists());
        },
    );
    assert_eq!(registry.published(), ["@chittyos/site 1.0.1", "@chittyos/site 1.0.2"]);
}

#[test]
fn yarn_finds_its_token_in_a_variable() {
    if !tools_are_there(&["yarn"]) {
        return;
    }
    let registry = Registry::start();
    let section = Section::named("env");
    for round in ["one", "two"] {
        // Frozen when a Pod starts: another round is another Pod.
        let job = Job::new("env");
        registry.expect(round);
        for (name, value) in section.render(&tokens(round)) {
            job.env(&name, std::str::from_utf8(&value).unwrap());
        }
        job.env("YARN_NPM_REGISTRY_SERVER", &registry.url());
        job.env("YARN_UNSAFE_HTTP_WHITELIST", "127.0.0.1");
        job.env("YARN_ENABLE_TELEMETRY", "0");
        job.file("package.json", r#"{"name": "site"}"#);
        job.file("yarn.lock", "");
        let said = job.run(&section.command);
        assert!(said.contains("ci-of-chittyos"), "{said}");
    }
}

#[test]
fn git_clones_and_pushes_by_each_of_its_files_and_stores_nothing() {
    if !tools_are_there(&["git", "curl"]) {
        return;
    }
    for name in ["gitconfig", "gitCredentials", "netrc", "basicAuth"] {
        let host = GitHost::start();
        let job = Job::new(name);
        let ca = job.file("ca.pem", host.ca_pem());
        job.env("GIT_SSL_CAINFO", ca.to_str().unwrap());
        job.env("CURL_CA_BUNDLE", ca.to_str().unwrap());
        // A job's own configuration stays its own.
        job.env("GIT_TERMINAL_PROMPT", "0");
        let section = Section::named(name)
            .with_options(&format!("git: {{hosts: ['{}']}}", host.authority()))
            .with("git@github.com", "git@127.0.0.1")
            .with("github.com", &host.authority());
        rounds(
            &section,
            &job,
            |round, job| {
                host.expect(round);
                job.remove("chittyid");
            },
            |_, said| {
                for complaint in ["fatal", "lock", "warning", "error"] {
                    assert!(!said.contains(complaint), "{name}: {said}");
                }
            },
        );
        let asked = host.count();
        assert!(asked >= 2, "{name}: {asked}");
        if name == "gitconfig" {
            assert!(host.has_branch("tried"), "the push arrived");
            let told = job.run(
                "export GIT_CONFIG_SYSTEM=/creds/.gitconfig; git config --global user.name ci; git config user.name",
            );
            assert_eq!(told.trim(), "ci");
        }
    }
}

#[test]
fn a_docker_client_finds_user_and_password_for_its_registry_alone() {
    let section = Section::named("dockerConfig");
    for round in ["one", "two"] {
        let data = section.render(&tokens(round));
        let credential =
            |registry| docker_credential::get_credential_from_reader(data["config.json"].as_slice(), registry);
        let Ok(docker_credential::DockerCredential::UsernamePassword(user, password)) = credential("ghcr.io") else {
            panic!("no user and password");
        };
        assert_eq!(
            (user, password),
            ("x-access-token".to_owned(), tokens(round)["github_token"].clone())
        );
        assert!(credential("docker.io").is_err());
    }
}

#[test]
fn a_job_that_keeps_running_reads_the_next_token_from_the_same_mount() {
    if !tools_are_there(&["sh"]) {
        return;
    }
    let section = Section::named("dotenv");
    let job = Job::new("rotation");
    job.mount(&section.render(&tokens("one")));
    let running = job.start(
        r#". /creds/.env; echo "$GH_TOKEN"; read -r _; . /creds/.env; echo "$GH_TOKEN"
        if touch /creds/x 2>/dev/null; then echo "the mount is writable"; fi; id -u"#,
    );
    let said = running.after_first_line(|| job.mount(&section.render(&tokens("two"))));
    let (one, two) = (&tokens("one")["github_token"], &tokens("two")["github_token"]);
    assert_eq!(said, format!("{one}\n{two}\n1001\n"));
}
