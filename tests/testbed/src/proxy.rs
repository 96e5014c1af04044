//! A forward proxy that is the only way to hosts nobody else knows of.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use data_encoding::BASE64;

/// Opens tunnels by `CONNECT`, and does nothing else. It ends with the process.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

struct Rules {
    /// Where `host:port` leads.
    ways: BTreeMap<String, SocketAddr>,
    /// What `Proxy-Authorization` has to be.
    authorization: Option<String>,
}

impl Proxy {
    /// A proxy that knows `ways`, each from `host:port` to where that leads; with `credentials` only for those who have them.
    pub fn start(
        ways: impl IntoIterator<Item = (String, SocketAddr)>,
        credentials: Option<(&str, &str)>,
    ) -> std::io::Result<Self> {
        Self::start_on(crate::loopback(), ways, credentials)
    }

    /// The same, where `ip` is: one of this machine's that others can reach.
    pub fn start_on(
        ip: IpAddr,
        ways: impl IntoIterator<Item = (String, SocketAddr)>,
        credentials: Option<(&str, &str)>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let rules = Arc::new(Rules {
            ways: ways.into_iter().collect(),
            authorization: credentials
                .map(|(user, password)| format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))),
        });
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (rules, seen) = (Arc::clone(&rules), Arc::clone(&seen));
                thread::spawn(move || {
                    // An error is a peer that left.
                    let _ = serve(stream, &rules, &seen);
                });
            }
        });
        Ok(Self { address, asked })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its host and port.
    #[must_use]
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Whom it was asked to connect to so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut client: TcpStream, rules: &Rules, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(target.to_owned());
    let authorization = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization")
            .then(|| value.to_owned())
    });
    let status = if method != "CONNECT" {
        "405 Method Not Allowed"
    } else if rules.authorization.is_some() && rules.authorization != authorization {
        "407 Proxy Authentication Required"
    } else if let Some(way) = rules.ways.get(target) {
        let server = TcpStream::connect(way)?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        return tunnel(&client, &server);
    } else {
        "403 Forbidden"
    };
    client.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
}

fn tunnel(client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let upward = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = upward.join();
    Ok(())
}
