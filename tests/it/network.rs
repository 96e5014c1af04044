//! Ways to ChittyConnect: proxies, client certificates, private authorities.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::{Value, json};
use testbed::{Chronicle, Proxy};

use crate::support::*;

/// A name that nothing but the proxy knows a way to.
const HOST: &str = "broker.test";

async fn write_secret(case: &Case, suffix: &str, host: Option<&str>, data: Value) -> String {
    let name = format!("{}-{suffix}", case.connection);
    let annotations = host.map_or(json!({}), |host| json!({"connect.chitty.cc/host": host}));
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "annotations": annotations}, "stringData": data,
    });
    apply(&case.keys(), &secret).await;
    name
}

async fn write_bundle(case: &Case, suffix: &str, pem: &str) -> Value {
    let name = format!("{}-{suffix}", case.connection);
    let maps: Api<ConfigMap> = Api::namespaced(case.client.clone(), SYSTEM);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.crt": pem}});
    apply(&maps, &map).await;
    json!({"name": name, "key": "ca.crt"})
}

/// A broker behind a proxy, and the part of a connection's spec that names the way to it.
async fn behind_proxy(credentials: Option<(&str, &str)>) -> (Case, Proxy, Value) {
    let setup = Setup::new(generous().tls([HOST])).await;
    let address = format!("127.0.0.1:{}", setup.broker.port()).parse().unwrap();
    let proxy = Proxy::start([(format!("{HOST}:443"), address)], credentials).unwrap();
    let pem = setup.broker.ca_pem().unwrap().to_owned();
    let case = setup.connection(json!({"suspend": true})).case().await;
    case.write_key_for(HOST).await;
    let bundle = write_bundle(&case, "ca", &pem).await;
    let way = json!({
        "suspend": false, "allowInsecure": false, "url": format!("https://{HOST}"), "caBundleRef": bundle,
        "proxy": {"httpsProxy": proxy.url()},
    });
    (case, proxy, way)
}

fn said(credential: &chittyconnect_operator::api::EphemeralCredential) -> String {
    condition(credential, "Ready").2
}

#[tokio::test]
async fn a_proxy_that_is_the_only_way_out_is_gone_through() {
    let (case, proxy, way) = behind_proxy(None).await;
    case.connect(way).await;
    case.issued("a", json!({})).await;
    assert_eq!(case.posts(), 1);
    assert_eq!(proxy.asked(), [format!("{HOST}:443")]);
}

#[tokio::test]
async fn a_proxy_gets_its_credentials_from_a_secret_that_names_it_and_from_no_other() {
    let (case, proxy, mut way) = behind_proxy(Some(("user", "canary-proxy pass"))).await;
    case.connect(way.clone()).await;
    case.apply("a", json!({})).await;
    case.until("a", |c| said(c).contains("asks for other credentials (407)"))
        .await;

    let basic = json!({"username": "user", "password": "canary-proxy pass"});
    let name = write_secret(&case, "proxy", Some("elsewhere.example"), basic.clone()).await;
    way["proxy"]["credentialsSecretRef"] = json!({"name": name});
    case.connect(way).await;
    let bound = case.until_ready_is("a", "False", "ConnectionNotReady").await;
    assert!(said(&bound).contains("annotate that Secret"), "{}", said(&bound));

    write_secret(&case, "proxy", Some(&proxy.authority()), basic).await;
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts(), 1);
    assert!(!case.world.log().contains("canary-proxy"));
}

#[tokio::test]
async fn it_is_told_which_part_of_the_way_through_a_proxy_fails() {
    let (case, proxy, mut way) = behind_proxy(None).await;
    case.apply("a", json!({})).await;
    for (url, words) in [
        (
            "http://proxy.invalid:3128".to_owned(),
            "host name of the proxy does not resolve",
        ),
        ("http://127.0.0.1:1".to_owned(), "no connection to the proxy"),
    ] {
        way["proxy"]["httpsProxy"] = json!(url);
        case.connect(way.clone()).await;
        case.until("a", |c| said(c).contains(words)).await;
    }
    way["proxy"]["httpsProxy"] = json!(proxy.url());
    let good = way["caBundleRef"].take();
    case.connect(way.clone()).await;
    case.until("a", |c| said(c).contains("no TLS session")).await;
    way["caBundleRef"] = good;
    case.write_key_for("unknown.test").await;
    way["url"] = json!("https://unknown.test");
    case.connect(way.clone()).await;
    case.until("a", |c| said(c).contains("the proxy opens no way to it"))
        .await;
    // Nothing ever left, so nothing counts.
    assert_eq!(case.posts(), 0);

    way["url"] = json!(format!("https://{HOST}"));
    way["proxy"]["noProxy"] = json!([".test"]);
    case.write_key_for(HOST).await;
    case.connect(way).await;
    case.until("a", |c| said(c).contains("its host name does not resolve"))
        .await;
}

#[tokio::test]
async fn the_environment_names_the_proxy_where_the_connection_does_not_and_the_api_server_is_never_behind_it() {
    let world = World::without_controller("proxied").await;
    let broker = generous().tls([HOST]).start().unwrap();
    let address = format!("127.0.0.1:{}", broker.port()).parse().unwrap();
    let proxy = Proxy::start([(format!("{HOST}:443"), address)], Some(("user", "pass"))).unwrap();
    let url = format!("http://user:pass@{}", proxy.authority());
    let environment = [
        format!("HTTPS_PROXY={url}"),
        format!("https_proxy={url}"),
        format!("HTTP_PROXY={url}"),
    ];
    let _controller = world.spawn_with(&environment, "proxied", &world.controller_kubeconfig());
    let setup = Setup {
        world,
        broker,
        spec: json!({"suspend": true}),
    };
    let case = setup.case().await;
    case.write_key_for(HOST).await;
    let bundle = write_bundle(&case, "ca", case.broker.ca_pem().unwrap()).await;
    case.connect(json!({"url": format!("https://{HOST}"), "allowInsecure": false, "caBundleRef": bundle}))
        .await;
    case.issued("a", json!({})).await;
    assert_eq!(proxy.asked(), [format!("{HOST}:443")]);
    assert!(!case.world.log().contains("user:pass"));
}

#[tokio::test]
async fn a_broker_that_asks_for_a_client_certificate_is_shown_the_one_bound_to_its_host() {
    let setup = Setup::new(generous().tls(["127.0.0.1"]).client_certificates()).await;
    let pem = setup.broker.ca_pem().unwrap().to_owned();
    let case = setup.connection(json!({"suspend": true})).case().await;
    let bundle = write_bundle(&case, "ca", &pem).await;
    let mut spec = json!({"suspend": false, "caBundleRef": bundle});
    case.connect(spec.clone()).await;
    case.apply("a", json!({})).await;
    let refused = case.until("a", |c| said(c).contains("clientCertSecretRef")).await;
    assert!(said(&refused).contains("nothing was sent"), "{}", said(&refused));

    let (cert, key) = case.broker.client_certificate().unwrap();
    let pair = json!({"tls.crt": cert, "tls.key": key});
    let name = write_secret(&case, "tls", None, pair.clone()).await;
    spec["auth"] = json!({"clientCertSecretRef": {"name": name}});
    case.connect(spec).await;
    let bound = case.until_ready_is("a", "False", "ConnectionNotReady").await;
    assert!(said(&bound).contains("annotate that Secret"), "{}", said(&bound));

    write_secret(
        &case,
        "tls",
        Some("127.0.0.1"),
        json!({"tls.crt": cert, "tls.key": "no key"}),
    )
    .await;
    case.until("a", |c| said(c).contains("check tls.crt and tls.key")).await;
    write_secret(&case, "tls", Some("127.0.0.1"), pair).await;
    case.until_ready_is("a", "True", "Issued").await;
    assert_eq!(case.posts(), 1);
}

#[tokio::test]
async fn a_suspended_connection_mints_nothing_and_says_so_and_goes_on_where_it_was() {
    let case = Setup::new(generous().ttl(Duration::from_secs(12))).await.case().await;
    case.issued("a", json!({})).await;
    case.patch_connection(json!({"spec": {"suspend": true}})).await;
    let held = case.until_ready_is("a", "True", "Suspended").await;
    assert!(said(&held).contains("is suspended"), "{}", said(&held));
    case.apply("b", json!({})).await;
    case.until_ready_is("b", "False", "Suspended").await;
    let connection = case.connections().get(&case.connection).await.unwrap();
    let ready = &connection.status.unwrap().conditions[0];
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Suspended"));
    // A renewal falls due meanwhile, and the token ends.
    case.until_ready_is("a", "False", "Expired").await;
    assert_eq!(case.posts(), 1);
    case.patch_connection(json!({"spec": {"suspend": false}})).await;
    case.until_ready_is("b", "True", "Issued").await;
    case.until("a", |c| condition(c, "Ready").0 == "True").await;
}

#[tokio::test]
async fn chittychronicle_is_trusted_by_its_own_bundle_and_not_by_chittyconnects() {
    let world = World::start("bundles").await;
    let chronicle = Chronicle::builder().tls(["127.0.0.1"]).start().unwrap();
    let setup = Setup::within(world, generous().tls(["127.0.0.1"]));
    let (connects, chronicles) = (setup.broker.ca_pem().unwrap().to_owned(), chronicle.ca_pem().unwrap());
    let case = setup.connection(json!({"suspend": true})).case().await;
    // Whoever went by ChittyConnect's would trust both.
    let both = write_bundle(&case, "both", &format!("{connects}{chronicles}")).await;
    let own = write_bundle(&case, "own", chronicles).await;
    let mut spec = events_to(&case, &chronicle).await;
    spec["suspend"] = json!(false);
    spec["caBundleRef"] = both;
    case.connect(spec.clone()).await;
    case.issued("a", json!({})).await;
    wait_for("the session that did not come about", || async {
        case.world
            .log()
            .contains("ChittyChronicle cannot be reached: no TLS session")
            .then_some(())
    })
    .await;
    assert!(chronicle.entries().is_empty());

    spec["audit"]["chronicle"]["caBundleRef"] = own;
    case.connect(spec).await;
    wait_for("the event", || async { chronicle.entries().first().cloned() }).await;
    case.issued("b", json!({})).await;
}
