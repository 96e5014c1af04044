//! A server of canned answers on a real socket, for tests of clients.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use chrono::TimeDelta;
use url::Url;

use super::Endpoint;

/// How long clients in tests wait, where an answer comes.
const PATIENCE: TimeDelta = TimeDelta::seconds(30);
/// How long they wait where none comes.
pub(crate) const IMPATIENCE: TimeDelta = TimeDelta::seconds(2);

/// What becomes of a request.
pub(crate) enum Canned {
    Answer {
        status: u16,
        headers: String,
        body: Vec<u8>,
    },
    /// The start of an answer, and the connection ends.
    Partial(String),
    /// The start of an answer, and nothing more.
    Stalled(String),
    /// These bytes, endlessly, after the start of an answer.
    Endless(String),
    Cut,
    Hang,
}

impl Canned {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::Answer {
            status,
            headers: "Content-Type: application/json\r\n".to_owned(),
            body: body.as_bytes().to_vec(),
        }
    }

    pub(crate) fn header(mut self, line: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            let _ = write!(headers, "{line}\r\n");
        }
        self
    }

    pub(crate) const fn hangs(&self) -> bool {
        matches!(self, Self::Stalled(_) | Self::Hang)
    }

    fn play(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        match self {
            Self::Answer { status, headers, body } => {
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
                )?;
                stream.write_all(body)
            }
            Self::Partial(text) => stream.write_all(text.as_bytes()),
            Self::Stalled(text) => {
                stream.write_all(text.as_bytes())?;
                hang();
                Ok(())
            }
            Self::Endless(text) => {
                stream.write_all(text.as_bytes())?;
                loop {
                    stream.write_all(&[b' '; 4096])?;
                }
            }
            Self::Cut => Ok(()),
            Self::Hang => {
                hang();
                Ok(())
            }
        }
    }
}

fn hang() {
    thread::sleep(Duration::from_secs(60));
}

/// Answers every request alike. Its threads end with the test process.
pub(crate) struct Server {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(canned: Canned) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, canned) = (Arc::clone(&requests), Arc::new(canned));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, seen, canned) = (stream.unwrap(), Arc::clone(&seen), Arc::clone(&canned));
                thread::spawn(move || {
                    let request = read(&mut stream);
                    seen.lock().unwrap().push(request);
                    let _ = canned.play(&mut stream);
                });
            }
        });
        Self { url, requests }
    }

    /// Every request so far, head and body.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text.into_owned();
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&request).into_owned(),
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
}

/// An endpoint at `url`, in a process that can speak TLS.
pub(crate) fn endpoint(url: &str, key: &str) -> Endpoint {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Endpoint {
        url: Url::parse(url).unwrap(),
        key: key.into(),
        ca_bundle: None,
        identity: None,
        proxy: None,
        timeout: PATIENCE,
    }
}
