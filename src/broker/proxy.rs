//! The way out: directly, or through an HTTP proxy.

use std::fmt;
use std::net::IpAddr;

use hyper_util::client::proxy::matcher::Matcher;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

/// A forward proxy, asked by `CONNECT`.
#[derive(Clone)]
pub struct Proxy {
    /// Its URL, without user and password.
    pub url: String,
    /// Whom to connect to directly, as in `NO_PROXY`: hosts, domains with all below them, addresses and networks.
    pub no_proxy: String,
    /// User name and password.
    pub credentials: Option<(String, SecretString)>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL from the environment may hold a password.
        let url = Url::parse(&self.url).map_or_else(|_| String::new(), |url| url.origin().ascii_serialization());
        f.debug_struct("Proxy")
            .field("origin", &url)
            .field("no_proxy", &self.no_proxy)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// The proxy that `HTTPS_PROXY` and `NO_PROXY` name, in capitals or not, as `variable` has them.
    #[must_use]
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let either = |name: &str| {
            let lower = || variable(&name.to_ascii_lowercase());
            variable(name).filter(|value| !value.is_empty()).or_else(lower)
        };
        Some(Self {
            url: either("HTTPS_PROXY").filter(|url| !url.trim().is_empty())?,
            no_proxy: either("NO_PROXY").unwrap_or_default(),
            credentials: None,
        })
    }

    /// The proxy to ask for a connection to `url`, or `None` where that is direct: for `http`, for this machine itself,
    /// and for what `no_proxy` names.
    ///
    /// # Errors
    /// Where its own URL cannot be used.
    pub(crate) fn between(&self, url: &Url) -> Result<Option<reqwest::Proxy>, Unusable> {
        let own = Url::parse(&self.url).map_err(|_| Unusable)?;
        if !matches!(own.scheme(), "http" | "https") || !own.has_host() {
            return Err(Unusable);
        }
        let to: http::Uri = url.as_str().parse().map_err(|_| Unusable)?;
        let matcher = Matcher::builder()
            .https(self.url.as_str())
            .no(self.no_proxy.as_str())
            .build();
        if is_loopback(url) {
            return Ok(None);
        }
        let Some(through) = matcher.intercept(&to) else {
            return Ok(None);
        };
        let proxy = reqwest::Proxy::https(through.uri().to_string()).map_err(|_| Unusable)?;
        Ok(Some(match (&self.credentials, through.basic_auth()) {
            (Some((user, password)), _) => proxy.basic_auth(user, password.expose_secret()),
            (None, Some(header)) => proxy.custom_http_auth(header.clone()),
            (None, None) => proxy,
        }))
    }
}

/// The proxy's own URL cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable;

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(no_proxy: &str) -> Proxy {
        Proxy {
            url: "http://proxy.example:3128".into(),
            no_proxy: no_proxy.into(),
            credentials: None,
        }
    }

    fn goes_through(url: &str, no_proxy: &str) -> bool {
        proxy(no_proxy).between(&Url::parse(url).unwrap()).unwrap().is_some()
    }

    #[test]
    fn what_is_outside_goes_through_the_proxy() {
        assert!(goes_through("https://connect.chitty.cc", ""));
        assert!(goes_through("https://connect.chitty.cc", "chitty.example,10.0.0.0/8"));
        assert!(goes_through("https://[2001:db8::1]", ""));
    }

    #[test]
    fn this_machine_and_plain_http_never_do() {
        let direct = [
            "https://localhost:8443",
            "https://a.localhost",
            "https://127.0.0.1",
            "https://127.8.9.1:1",
            "https://[::1]",
            "https://[::ffff:127.0.0.1]",
            "http://connect.chitty.svc",
        ];
        for url in direct {
            assert!(!goes_through(url, ""), "{url}");
        }
    }

    #[test]
    fn what_no_proxy_names_is_connected_to_directly() {
        for (url, list) in [
            ("https://connect.chitty.cc", "connect.chitty.cc"),
            ("https://connect.chitty.cc", "example.com, .chitty.cc"),
            ("https://connect.chitty.cc", "*"),
            ("https://10.1.2.3", "10.0.0.0/8"),
        ] {
            assert!(!goes_through(url, list), "{url} {list}");
        }
    }

    #[test]
    fn the_environment_names_a_proxy_in_capitals_or_not() {
        let of = |pairs: &[(&str, &str)]| {
            let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            Proxy::of_environment(value).map(|proxy| (proxy.url, proxy.no_proxy))
        };
        assert_eq!(of(&[("NO_PROXY", "a")]), None);
        assert_eq!(of(&[("HTTPS_PROXY", "")]), None);
        let named = Some(("http://p:1".to_owned(), "a".to_owned()));
        assert_eq!(of(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "a")]), named);
        assert_eq!(of(&[("https_proxy", "http://p:1"), ("no_proxy", "a")]), named);
    }

    #[test]
    fn a_proxy_that_is_none_is_refused_and_no_password_is_printed() {
        let url = Url::parse("https://connect.chitty.cc").unwrap();
        for bad in ["socks5://p:1", "nonsense", ""] {
            let proxy = Proxy {
                url: bad.into(),
                ..proxy("")
            };
            assert_eq!(proxy.between(&url).err(), Some(Unusable), "{bad}");
        }
        let proxy = Proxy {
            url: "http://user:canary@p:1".into(),
            credentials: Some(("user".into(), "canary".into())),
            ..proxy("")
        };
        assert!(!format!("{proxy:?}").contains("canary"));
    }
}
