//! Each preset's text, to the letter.

use secrecy::SecretString;

use super::*;
use crate::api::{DockerOptions, GitOptions, NpmOptions};
use SecretType::{BasicAuth, DockerConfigJson, Opaque, SshAuth, Tls};

const ROOM: usize = 64 * 1024;
const PRESETS: [Preset; 10] = [
    Preset::Outputs,
    Preset::Env,
    Preset::Dotenv,
    Preset::Npmrc,
    Preset::Netrc,
    Preset::GitCredentials,
    Preset::Gitconfig,
    Preset::BasicAuth,
    Preset::DockerConfig,
    Preset::Jenkins,
];

fn outputs(pairs: &[(&str, &str)]) -> Outputs {
    let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), SecretString::from(*v)));
    pairs.collect()
}

fn all() -> Outputs {
    outputs(&[
        ("account_id", "acc"),
        ("cloudflare_token", "cf_1"),
        ("github_token", "ghs_1"),
        ("npm_token", "npm_1"),
    ])
}

fn layout(preset: Preset, options: PresetOptions) -> Layout {
    Layout {
        presets: vec![preset],
        options,
        ..Layout::default()
    }
}

fn written(preset: Preset, options: PresetOptions, outputs: &Outputs) -> Vec<(String, String)> {
    let files = layout(preset, options)
        .write(preset, SecretType::Opaque, outputs, ROOM)
        .unwrap();
    files.into_iter().map(|(key, text)| (key, text.to_string())).collect()
}

fn file(preset: Preset, options: PresetOptions) -> (String, String) {
    let mut files = written(preset, options, &all());
    assert_eq!(files.len(), 1);
    files.remove(0)
}

fn npm(registry: Option<&str>, scopes: &[&str]) -> PresetOptions {
    let npm = NpmOptions {
        registry: registry.map(str::to_owned),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
    };
    PresetOptions {
        npm: Some(npm),
        ..PresetOptions::default()
    }
}

fn git(hosts: &[&str], username: Option<&str>) -> PresetOptions {
    let git = GitOptions {
        hosts: hosts.iter().map(|s| (*s).to_owned()).collect(),
        username: username.map(str::to_owned),
    };
    PresetOptions {
        git: Some(git),
        ..PresetOptions::default()
    }
}

#[test]
fn a_preset_is_called_in_messages_as_it_is_in_a_spec() {
    for preset in PRESETS {
        assert_eq!(serde_json::json!(preset), preset.as_str());
    }
}

#[test]
fn env_has_the_names_that_tools_read() {
    let names: Vec<String> = written(Preset::Env, PresetOptions::default(), &all())
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(
        names,
        [
            "CLOUDFLARE_ACCOUNT_ID=acc",
            "CLOUDFLARE_API_TOKEN=cf_1",
            "GH_TOKEN=ghs_1",
            "NODE_AUTH_TOKEN=npm_1",
            "NPM_CONFIG_TOKEN=npm_1",
            "NPM_TOKEN=npm_1",
            "YARN_NPM_AUTH_TOKEN=npm_1",
        ]
    );
}

#[test]
fn env_writes_what_came_and_nothing_that_makes_a_shell_or_a_linker_act() {
    let came = outputs(&[
        ("openai_api_key", "sk"),
        ("neon_token", "n"),
        ("neon_database_url", "postgres://u:p@h/d"),
        ("ld_preload", "/tmp/x.so"),
        ("path", "/tmp"),
        ("node_options", "-r /tmp/x"),
        ("bash_env", "/tmp/x"),
        ("git_ssh_command", "x"),
        ("Odd-Name_token", "x"),
        ("github_token", "right"),
        ("gh_token", "wrong"),
    ]);
    let written = written(Preset::Env, PresetOptions::default(), &came);
    let pairs: Vec<(&str, &str)> = written.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("GH_TOKEN", "right"),
            ("NEON_API_KEY", "n"),
            ("NEON_DATABASE_URL", "postgres://u:p@h/d"),
            ("OPENAI_API_KEY", "sk"),
        ]
    );
}

#[test]
fn dotenv_is_read_by_a_shell_as_it_is_whatever_a_value_holds() {
    let came = outputs(&[
        ("a_token", "it's $HOME `id` \"x\"\nand \\ more"),
        ("npm_token", "npm_1"),
    ]);
    let written = written(Preset::Dotenv, PresetOptions::default(), &came);
    assert_eq!(written[0].0, ".env");
    assert_eq!(
        written[0].1,
        "export A_TOKEN='it'\\''s $HOME `id` \"x\"\nand \\ more'\n\
         export NODE_AUTH_TOKEN='npm_1'\n\
         export NPM_CONFIG_TOKEN='npm_1'\n\
         export NPM_TOKEN='npm_1'\n\
         export YARN_NPM_AUTH_TOKEN='npm_1'\n"
    );
}

#[test]
fn npmrc_names_one_registry_and_what_comes_from_it() {
    let text = |options| file(Preset::Npmrc, options).1;
    assert_eq!(
        file(Preset::Npmrc, PresetOptions::default()),
        (".npmrc".into(), "//registry.npmjs.org/:_authToken=npm_1\n".into())
    );
    assert_eq!(
        text(npm(Some("https://npm.example.com/a"), &[])),
        "registry=https://npm.example.com/a/\n//npm.example.com/a/:_authToken=npm_1\n"
    );
    assert_eq!(
        text(npm(Some("https://npm.example.com"), &["@chittyos", "other"])),
        "@chittyos:registry=https://npm.example.com/\n\
         @other:registry=https://npm.example.com/\n\
         //npm.example.com/:_authToken=npm_1\n"
    );
}

#[test]
fn git_and_what_reads_netrc_find_the_token_for_each_host() {
    assert_eq!(
        file(
            Preset::Netrc,
            git(&["github.com", "git.example.com:8443", "git.example.com"], None)
        ),
        (
            ".netrc".into(),
            "machine github.com login x-access-token password ghs_1\n\
             machine git.example.com login x-access-token password ghs_1\n"
                .into()
        )
    );
    assert_eq!(
        file(
            Preset::GitCredentials,
            git(&["github.com", "git.example.com:8443"], Some("a@b"))
        ),
        (
            ".git-credentials".into(),
            "https://a%40b:ghs_1@github.com\nhttps://a%40b:ghs_1@git.example.com:8443\n".into()
        )
    );
    let (key, text) = file(Preset::Gitconfig, git(&["git.example.com:8443"], None));
    assert_eq!(key, ".gitconfig");
    assert_eq!(
        text,
        r#"[chitty "https://git.example.com:8443"]
	token = ghs_1
[credential "https://git.example.com:8443"]
	helper = "!f() { test \"$1\" != get || printf 'username=%s\\npassword=%s\\n' x-access-token \"$(git config --get chitty.https://git.example.com:8443.token)\"; }; f"
[url "https://git.example.com:8443/"]
	insteadOf = git@git.example.com:
	insteadOf = ssh://git@git.example.com/
"#
    );
    assert_eq!(
        written(Preset::BasicAuth, PresetOptions::default(), &all()),
        [
            ("password".to_owned(), "ghs_1".to_owned()),
            ("username".to_owned(), "x-access-token".to_owned())
        ]
    );
}

#[test]
fn docker_config_has_what_each_kind_of_client_reads() {
    assert_eq!(
        file(Preset::DockerConfig, PresetOptions::default()),
        (
            "config.json".into(),
            "{\"auths\":{\"ghcr.io\":{\"username\":\"x-access-token\",\"password\":\"ghs_1\",\
             \"auth\":\"eC1hY2Nlc3MtdG9rZW46Z2hzXzE=\"}}}\n"
                .into()
        )
    );
    let docker = DockerOptions {
        registries: vec!["a.example".into(), "b.example/c".into()],
        username: Some("u".into()),
    };
    let options = PresetOptions {
        docker: Some(docker),
        ..PresetOptions::default()
    };
    let odd = outputs(&[("github_token", "a\"b\\c")]);
    let layout = layout(Preset::DockerConfig, options);
    let files = layout
        .write(Preset::DockerConfig, SecretType::DockerConfigJson, &odd, ROOM)
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&files[".dockerconfigjson"]).unwrap();
    assert_eq!(json["auths"]["b.example/c"]["password"], "a\"b\\c");
    assert_eq!(json["auths"].as_object().unwrap().len(), 2);
}

#[test]
fn a_preset_for_one_tool_needs_its_output_and_the_others_write_what_came() {
    let none = outputs(&[("account_id", "acc")]);
    for preset in PRESETS {
        let layout = layout(preset, PresetOptions::default());
        let missing = missing([("s", &layout)].into_iter(), &none);
        let written = layout.write(preset, SecretType::Opaque, &none, ROOM);
        let needs = match preset {
            Preset::Outputs | Preset::Env | Preset::Dotenv | Preset::Jenkins => None,
            Preset::Npmrc => Some("npm_token"),
            _ => Some("github_token"),
        };
        assert_eq!(written.err(), needs.map(Unwritable::Missing), "{preset:?}");
        let told = needs.map(|output| format!("Secret s, preset {} needs {output}", preset.as_str()));
        assert_eq!(missing.into_iter().next(), told);
    }
}

#[test]
fn a_token_that_a_file_cannot_hold_is_told_and_never_written_as_something_else() {
    for odd in ["a\nb", "a b", "a#b", "a\"b", "${HOME}", "a;b", "a\\b"] {
        let odd = outputs(&[("npm_token", odd), ("github_token", odd)]);
        for preset in [Preset::Npmrc, Preset::Netrc, Preset::Gitconfig] {
            let written = layout(preset, PresetOptions::default()).write(preset, SecretType::Opaque, &odd, ROOM);
            assert!(matches!(written, Err(Unwritable::Unfit(_))), "{preset:?}");
        }
    }
    let nul = outputs(&[("a_token", "a\0b")]);
    assert_eq!(variables::dotenv(&nul, ROOM), Err(Unwritable::Unfit("a_token".into())));
    let encoded = written(
        Preset::GitCredentials,
        PresetOptions::default(),
        &outputs(&[("github_token", "a@b:c/d\n")]),
    );
    assert_eq!(encoded[0].1, "https://x-access-token:a%40b%3Ac%2Fd%0A@github.com\n");
}

#[test]
fn no_preset_writes_more_than_it_may() {
    let token = "x".repeat(1000);
    let long = outputs(&[("npm_token", &token), ("github_token", &token)]);
    for preset in PRESETS.into_iter().filter(|preset| *preset != Preset::Jenkins) {
        let written = layout(preset, PresetOptions::default()).write(preset, SecretType::Opaque, &long, 999);
        assert_eq!(written.err(), Some(Unwritable::TooLong), "{preset:?}");
    }
}

/// Invariant 5.
#[test]
fn keys_that_are_reserved_missing_or_written_twice_are_found_before_anything_is_minted() {
    let check = |type_, presets: &[Preset], data: &[&str]| {
        let layout = Layout {
            presets: presets.to_vec(),
            data: data.iter().map(|key| ((*key).to_owned(), String::new())).collect(),
            ..Layout::default()
        };
        layout.check_keys("s", type_).map_err(|p| {
            assert_eq!(p.reason, Reason::InvalidSpec);
            p.message
        })
    };
    let refused: [(SecretType, &[Preset], &[&str], &str); 9] = [
        (Opaque, &[], &["expires_at"], "Secret s: the key expires_at is reserved"),
        (
            Opaque,
            &[Preset::Npmrc],
            &[".npmrc"],
            "Secret s: preset npmrc writes the key .npmrc, and so does data",
        ),
        (Opaque, &[Preset::BasicAuth], &["password"], "writes the key password"),
        (
            DockerConfigJson,
            &[Preset::Outputs],
            &[],
            "needs the key .dockerconfigjson in data, or the preset dockerConfig",
        ),
        (
            BasicAuth,
            &[Preset::Outputs],
            &[],
            "needs the key username or password in data, or the preset basicAuth",
        ),
        (Tls, &[], &["tls.crt"], "needs the keys tls.crt and tls.key in data"),
        (SshAuth, &[], &[], "needs the key ssh-privatekey in data"),
        (Opaque, &[Preset::Jenkins], &[], "Jenkins wants the key text"),
        (Opaque, &[Preset::Jenkins], &["username"], "Jenkins wants the key text"),
    ];
    for (type_, presets, data, why) in refused {
        let told = check(type_, presets, data).unwrap_err();
        assert!(told.contains(why), "{told}");
    }
    let all_but_jenkins = &PRESETS[..9];
    let taken: [(SecretType, &[Preset], &[&str]); 8] = [
        (Opaque, all_but_jenkins, &["x"]),
        (DockerConfigJson, &[Preset::DockerConfig], &["config.json"]),
        (DockerConfigJson, &[], &[".dockerconfigjson"]),
        (BasicAuth, &[Preset::BasicAuth], &[]),
        (BasicAuth, &[], &["password"]),
        (Tls, &[], &["tls.crt", "tls.key"]),
        (SshAuth, &[], &["ssh-privatekey"]),
        (Opaque, &[Preset::Jenkins, Preset::BasicAuth], &[]),
    ];
    for (type_, presets, data) in taken {
        assert_eq!(check(type_, presets, data), Ok(()), "{type_:?} {presets:?} {data:?}");
    }
}

#[test]
fn jenkins_is_told_by_a_label_which_credential_a_secret_is() {
    let label = |presets: &[Preset], data: &[&str]| {
        let layout = Layout {
            presets: presets.to_vec(),
            data: data.iter().map(|key| ((*key).to_owned(), String::new())).collect(),
            ..Layout::default()
        };
        let team = [("team".to_owned(), "web".to_owned())].into();
        let own = layout.metadata(SecretType::Opaque, &team, &BTreeMap::new());
        assert_eq!(own.labels["team"], "web");
        own.labels.get("jenkins.io/credentials-type").cloned()
    };
    assert_eq!(label(&[Preset::Jenkins], &["text"]).as_deref(), Some("secretText"));
    let both = [Preset::BasicAuth, Preset::Jenkins];
    assert_eq!(label(&both, &[]).as_deref(), Some("usernamePassword"));
    assert_eq!(label(&[Preset::BasicAuth], &["text"]), None);
}

#[test]
fn the_digest_covers_presets_and_the_options_they_take_and_no_others() {
    let parts = |presets: &[Preset], options: PresetOptions| {
        let layout = Layout {
            presets: presets.to_vec(),
            options,
            ..Layout::default()
        };
        layout.digest_parts()
    };
    // As stored in journals: a change of these words mints anew.
    assert_eq!(parts(&[Preset::Outputs], PresetOptions::default()), ["preset outputs"]);
    assert_eq!(
        parts(
            &[Preset::Npmrc, Preset::Gitconfig],
            npm(Some("https://npm.example.com"), &["@a", "b"])
        ),
        [
            "preset npmrc",
            "registry https://npm.example.com/",
            "scope a",
            "scope b",
            "preset gitconfig",
            "host github.com",
            "user x-access-token"
        ]
    );
    let spelt_out = npm(Some("https://registry.npmjs.org"), &[]);
    let options = PresetOptions::default;
    assert_eq!(parts(&[Preset::Npmrc], spelt_out), parts(&[Preset::Npmrc], options()));
    assert_eq!(
        parts(&[Preset::Npmrc], git(&["x"], None)),
        parts(&[Preset::Npmrc], options())
    );
    for preset in [
        Preset::Netrc,
        Preset::GitCredentials,
        Preset::Gitconfig,
        Preset::BasicAuth,
    ] {
        let renamed = git(&["github.com"], Some("other"));
        assert_ne!(parts(&[preset], renamed), parts(&[preset], options()), "{preset:?}");
    }
    let image = DockerOptions {
        registries: vec!["a.example".into()],
        username: None,
    };
    let docker = PresetOptions {
        docker: Some(image),
        ..options()
    };
    assert_ne!(
        parts(&[Preset::DockerConfig], docker),
        parts(&[Preset::DockerConfig], options())
    );
    // It gives labels alone.
    assert_eq!(parts(&[Preset::Jenkins], options()), Vec::<String>::new());
}
