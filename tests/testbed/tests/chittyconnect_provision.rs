//! The provision API mints, revokes and audits as the wire contract says.

mod common;

use std::collections::HashSet;

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use testbed::ChittyConnect;

use common::{deploy, get, provision, revoke, time};

struct Row {
    requested: &'static str,
    context: Value,
    comes_as: &'static str,
    days: Option<i64>,
    revocable: bool,
}

fn table() -> Vec<Row> {
    let cloudflare = |requested, context, days| Row {
        requested,
        context,
        comes_as: "cloudflare_api_token",
        days: Some(days),
        revocable: true,
    };
    let other = |requested, context, comes_as, days| Row {
        requested,
        context,
        comes_as,
        days,
        revocable: false,
    };
    let api_key = |requested| other(requested, json!({"purpose": "p"}), requested, None);
    let service = json!({"service": "s"});
    let bucket = json!({"service": "s", "bucket": "b"});
    let database = json!({"service": "s", "database": "d"});
    let repository = json!({"repository": "r"});
    let pair = json!({"source_service": "s", "target_service": "t", "ttl": 86_400});
    let readonly = json!({"database": "d", "readonly": true});
    vec![
        cloudflare("cloudflare_workers_deploy", service.clone(), 365),
        cloudflare("cloudflare_workers_read", service, 90),
        cloudflare("cloudflare_r2_access", bucket, 180),
        cloudflare("cloudflare_d1_access", database, 180),
        other("github_deploy_token", repository, "github_token", Some(90)),
        other("chittyos_service_token", pair, "service_token", Some(1)),
        other("neon_database_connection", readonly, "database_connection", None),
        api_key("neon_api_key"),
        api_key("openai_api_key"),
        api_key("github_api_key"),
        api_key("stripe_api_key"),
    ]
}

#[tokio::test]
async fn provision_maps_each_type_to_what_it_comes_back_as() -> Result<()> {
    let sim = ChittyConnect::builder().without_limits().start()?;
    for Row {
        requested,
        context,
        comes_as,
        days,
        revocable,
    } in table()
    {
        let needed: Vec<_> = context.as_object().into_iter().flatten().collect();
        for (field, _) in needed.iter().filter(|(field, _)| *field != "ttl") {
            let mut partial = context.clone();
            partial.as_object_mut().context("an object")?.remove(*field);
            let answer = provision(&sim, requested, partial).await?;
            assert_eq!(answer.status, 400, "{requested} without {field}");
            assert!(answer.message().contains(&format!("{field} is required")));
        }
        let answer = provision(&sim, requested, context).await?;
        assert_eq!(answer.status, 200, "{requested}");
        let body = answer.json();
        let credential = &body["credential"];
        assert_eq!(body["success"], true);
        assert_eq!(credential["type"], comes_as, "{requested}");
        assert_eq!(credential["token_id"].is_string(), revocable, "{requested}");
        assert_eq!(credential["account_id"].is_string(), revocable, "{requested}");
        let ends = credential["expires_at"].as_str().map(|_| {
            let life = time(&credential["expires_at"]) - Utc::now();
            (life + TimeDelta::minutes(1)).num_days()
        });
        assert_eq!(ends, days, "{requested}");
        let value = credential["value"].as_str().context("a value")?;
        assert!(body["usage_instructions"].to_string().contains(value));
        assert!(sim.ledger().mint_of(value).is_some());
    }
    let unknown = provision(&sim, "launch_codes", json!({})).await?;
    assert_eq!(unknown.status, 400);
    assert_eq!(unknown.message(), "Unknown credential type: launch_codes");
    Ok(())
}

#[tokio::test]
async fn a_token_is_revoked_once_and_then_unknown() -> Result<()> {
    let sim = ChittyConnect::start()?;
    let minted = provision(&sim, "cloudflare_workers_deploy", json!({"service": "s"})).await?;
    let id = json!({"token_id": minted.json()["credential"]["token_id"]});
    assert_eq!(sim.ledger().live_tokens(sim.now()).len(), 1);

    let first = revoke(&sim, &id).await?;
    assert_eq!(first.status, 200);
    assert_eq!(first.json()["token_id"], id["token_id"]);
    assert!(sim.ledger().live_tokens(sim.now()).is_empty());

    for body in [id, json!({"token_id": "never-was"})] {
        let again = revoke(&sim, &body).await?;
        assert_eq!(again.status, 500);
        assert_eq!(again.json()["error"]["code"], "REVOKE_FAILED");
        assert!(again.message().contains("404"));
    }
    assert_eq!(revoke(&sim, &json!({})).await?.status, 400);
    let statuses: Vec<_> = sim.ledger().revocations.iter().map(|r| r.status).collect();
    assert_eq!(statuses, [200, 500, 500, 400]);
    Ok(())
}

#[tokio::test]
async fn audit_tells_what_was_provisioned_and_no_more() -> Result<()> {
    let sim = ChittyConnect::builder().api_key("k", "ci").start()?;
    let context = json!({"service": "chittyid", "purpose": "p", "repo": "r", "run_id": "1"});
    provision(&sim, "cloudflare_workers_deploy", context.clone()).await?;
    provision(&sim, "openai_api_key", context).await?;
    deploy(&sim, "chittyid").await?;

    let all = get(&sim, "/api/credentials/audit?limit=10&offset=0").await?.json();
    let rows = all["provisions"].as_array().context("rows")?;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["service"], "N/A");
    let row = rows[1].as_object().context("a row")?;
    let names: HashSet<_> = row.keys().map(String::as_str).collect();
    let documented = [
        "id",
        "type",
        "service",
        "purpose",
        "requesting_service",
        "token_id",
        "expires_at",
        "created_at",
    ];
    assert_eq!(names, HashSet::from(documented));
    assert_eq!(row["requesting_service"], "ci");
    let created = row["created_at"].as_str().context("a time")?;
    chrono::NaiveDateTime::parse_from_str(created, "%Y-%m-%d %H:%M:%S")?;

    for (query, found) in [
        ("service=chittyid", 1),
        ("type=openai_api_key", 1),
        ("service=other", 0),
        ("limit=1", 1),
        ("offset=2", 0),
    ] {
        let page = get(&sim, &format!("/api/credentials/audit?{query}")).await?.json();
        assert_eq!(page["provisions"].as_array().map(Vec::len), Some(found), "{query}");
    }
    Ok(())
}
