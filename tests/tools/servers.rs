//! The services that tools talk to, as far as they talk here. Each takes the token of the round and answers 401 to all others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Write, copy};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use data_encoding::BASE64;
use serde_json::{Value, json};
use testbed::Stub;
use testbed::stub::{Asked, Told};

use crate::docs::{ACCOUNT, tokens};
use crate::mount::Job;

type Expected = Arc<Mutex<String>>;

fn unauthorized() -> Told {
    let mut told = Told::status(401);
    told.headers
        .push(("www-authenticate".to_owned(), "Basic realm=\"here\"".to_owned()));
    told
}

/// A server behind one header.
fn guarded(tls: bool, expected: &Expected, answer: impl Fn(&Asked) -> Told + Send + Sync + 'static) -> Stub {
    let expected = Arc::clone(expected);
    Stub::start(tls, move |asked| {
        if asked.header("authorization") == *expected.lock().unwrap() {
            answer(asked)
        } else {
            unauthorized()
        }
    })
    .unwrap()
}

pub struct Cloudflare {
    stub: Stub,
    expected: Expected,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Cloudflare {
    pub fn start() -> Self {
        let expected = Expected::default();
        let paths: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&paths);
        let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
        let stub = guarded(false, &expected, move |asked| {
            seen.lock().unwrap().push(asked.path.clone());
            // wrangler turns pages until one is empty.
            let turned = asked.path.contains("&page=");
            let result = match asked.path.split('?').next().unwrap() {
                "/client/v4/user/tokens/verify" => json!({"id": "t", "status": "active"}),
                path if path == namespaces && turned => json!([]),
                path if path == namespaces => {
                    json!([{"id": "n", "title": "a-namespace", "supports_url_encoding": true}])
                }
                _ => return Told::status(404),
            };
            let info = json!({"page": 1, "per_page": 100, "count": 1, "total_count": 1, "total_pages": 1});
            Told::json(&json!({"success": true, "errors": [], "messages": [], "result": result, "result_info": info}))
        });
        Self { stub, expected, paths }
    }

    pub fn url(&self) -> String {
        self.stub.url()
    }

    pub fn expect(&self, round: &str) {
        *self.expected.lock().unwrap() = format!("Bearer {}", tokens(round)["cloudflare_token"]);
    }

    /// What was asked with the token.
    pub fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

/// GitHub's API, behind a socket of its own: there gh speaks without TLS.
pub struct GitHub {
    stub: Stub,
    expected: Expected,
}

impl GitHub {
    pub fn start() -> Self {
        let expected = Expected::default();
        let stub = guarded(false, &expected, |asked| match asked.path.as_str() {
            "/user" => Told::json(&json!({"login": "octocat"})),
            _ => Told::status(404),
        });
        Self { stub, expected }
    }

    pub fn expect(&self, round: &str) {
        *self.expected.lock().unwrap() = format!("token {}", tokens(round)["github_token"]);
    }

    pub fn socket(&self, dir: &Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("github.sock");
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let authority = self.stub.authority();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&authority) else {
                    return;
                };
                let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || copy(&mut from_client, &mut to_server));
                let (mut from_server, mut to_client) = (server, client);
                std::thread::spawn(move || copy(&mut from_server, &mut to_client));
            }
        });
        path
    }
}

/// An npm registry: it keeps what is published, and gives it to whoever has the token.
pub struct Registry {
    stub: Stub,
    expected: Expected,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    /// Tarballs by the path they are at.
    tarballs: BTreeMap<String, Vec<u8>>,
    /// What is told of packages, by name.
    packages: BTreeMap<String, Value>,
    published: Vec<String>,
}

impl Registry {
    pub fn start() -> Self {
        let (expected, shelf) = (Expected::default(), Arc::<Mutex<Shelf>>::default());
        let kept = Arc::clone(&shelf);
        let stub = guarded(false, &expected, move |asked| {
            let mut shelf = kept.lock().unwrap();
            let name = asked.path.trim_start_matches('/').to_lowercase().replace("%2f", "/");
            if asked.path == "/-/whoami" {
                return Told::json(&json!({"username": "ci-of-chittyos"}));
            }
            if asked.method == "PUT" {
                let sent: Value = serde_json::from_slice(&asked.body).unwrap();
                let version = sent["versions"].as_object().unwrap().keys().next().unwrap().clone();
                shelf.published.push(format!("{name} {version}"));
                shelf.packages.insert(name, sent);
                return Told::json(&json!({"ok": true}));
            }
            if let Some(tarball) = shelf.tarballs.get(&asked.path) {
                let mut told = Told::status(200);
                told.body.clone_from(tarball);
                return told;
            }
            shelf.packages.get(&name).map_or(Told::status(404), Told::json)
        });
        Self { stub, expected, shelf }
    }

    pub fn url(&self) -> String {
        self.stub.url()
    }

    pub fn expect(&self, round: &str) {
        *self.expected.lock().unwrap() = format!("Bearer {}", tokens(round)["npm_token"]);
    }

    /// A package to install, as npm packs it.
    pub fn add_package(&self, job: &Job) {
        job.file(
            "library/package.json",
            r#"{"name": "@chittyos/library", "version": "1.0.0"}"#,
        );
        let packed: Value = serde_json::from_str(&job.run("cd library && npm pack --silent --json")).unwrap();
        let integrity = &packed[0]["integrity"];
        let tarball = fs::read(job.work().join("library/chittyos-library-1.0.0.tgz")).unwrap();
        job.remove("library");
        let path = "/@chittyos/library/-/library-1.0.0.tgz";
        let url = format!("{}{path}", self.url());
        let package = json!({
            "name": "@chittyos/library", "dist-tags": {"latest": "1.0.0"},
            "versions": {"1.0.0": {"name": "@chittyos/library", "version": "1.0.0", "dist": {"tarball": url, "integrity": integrity}}},
        });
        let mut kept = self.shelf.lock().unwrap();
        kept.packages.insert("@chittyos/library".to_owned(), package);
        kept.tarballs.insert(path.to_owned(), tarball);
    }

    pub fn published(&self) -> Vec<String> {
        self.shelf.lock().unwrap().published.clone()
    }
}

/// A git host that speaks https, with one repository: git's own server behind a password.
pub struct GitHost {
    stub: Stub,
    expected: Expected,
    dir: tempfile::TempDir,
}

impl GitHost {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = r"
            git init --quiet --bare --initial-branch=main CHITTYOS/chittyid.git
            git -C CHITTYOS/chittyid.git config http.receivepack true
            git init --quiet --initial-branch=main tree
            git -C tree -c user.name=x -c user.email=x@example.com commit --quiet --allow-empty --message one
            git -C tree push --quiet ../CHITTYOS/chittyid.git main";
        let made = Command::new("sh")
            .args(["-euc", script])
            .current_dir(dir.path())
            .status()
            .unwrap();
        assert!(made.success());
        let expected = Expected::default();
        let root = dir.path().to_path_buf();
        let stub = guarded(true, &expected, move |asked| backend(&root, asked));
        Self { stub, expected, dir }
    }

    pub fn authority(&self) -> String {
        self.stub.authority()
    }

    pub fn ca_pem(&self) -> &str {
        self.stub.ca_pem().unwrap()
    }

    pub fn expect(&self, round: &str) {
        let both = format!("x-access-token:{}", tokens(round)["github_token"]);
        *self.expected.lock().unwrap() = format!("Basic {}", BASE64.encode(both.as_bytes()));
    }

    /// How many requests came with a password.
    pub fn count(&self) -> usize {
        self.stub
            .take()
            .iter()
            .filter(|asked| !asked.header("authorization").is_empty())
            .count()
    }

    pub fn has_branch(&self, name: &str) -> bool {
        self.dir
            .path()
            .join("CHITTYOS/chittyid.git/refs/heads")
            .join(name)
            .exists()
    }
}

/// `git http-backend`, as a web server runs it.
fn backend(root: &Path, asked: &Asked) -> Told {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", asked.method.as_str())
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REMOTE_USER", "ci")
        .env("CONTENT_TYPE", asked.header("content-type"))
        .env("CONTENT_LENGTH", asked.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", asked.header("content-encoding"))
        .env("GIT_PROTOCOL", asked.header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&asked.body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").expect("headers");
    let mut told = Told::status(200);
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            told.status = value.split(' ').next().unwrap().parse().unwrap();
        } else {
            told.headers.push((name.to_owned(), value.to_owned()));
        }
    }
    told.body = output[end + 4..].to_vec();
    told
}
