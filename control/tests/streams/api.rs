//! The aggregated API over real sockets, with an API server that the test plays: who is believed, who may, what is shown.

use http::StatusCode;
use postern_api::control::v1 as wire;
use serde_json::{Value, json};
use wire::proxy_message::Message as ToControl;

use crate::world::{World, id};

mod explanations;
mod played;

use played::{Front, Played, TABLE};

const EDGES: &str = "/apis/view.postern.dev/v1alpha1/namespaces/shop/edges";
const ALL_EDGES: &str = "/apis/view.postern.dev/v1alpha1/edges";

/// Cart has let in 12 requests of web's and refused 3; web reports the same ones from its side, and one to the outside.
async fn shop(front: &Front) -> (World, Vec<crate::world::Proxy>) {
    let world = World::configured(&[("shop.yaml", crate::world::SHOP)], |config| {
        config.api = Some(front.config());
    })
    .await;
    let mut cart = world.proxy("cart").await.started().await;
    let mut web = world.proxy("web").await.started().await;
    let flow = |direction: wire::Direction, destination: String, secured, allowed, denied| wire::Flow {
        direction: direction as i32,
        source: id("web"),
        destination,
        service: "cart.shop".to_owned(),
        port: 80,
        protocol: wire::Protocol::Http1 as i32,
        mutual_tls: secured,
        allowed,
        denied,
        ..wire::Flow::default()
    };
    let report = |flows| {
        let certificate = Some(wire::Certificate {
            serial: "0a1b".to_owned(),
            issued_unix_ms: 1_700_000_000_000,
            not_after_unix_ms: 1_700_014_400_000,
            renewals: 2,
            ..wire::Certificate::default()
        });
        ToControl::Flows(wire::FlowReport {
            sequence: 1,
            flows,
            certificate,
            ..wire::FlowReport::default()
        })
    };
    cart.send(report(vec![flow(wire::Direction::Inbound, id("cart"), true, 12, 3)]))
        .await;
    web.send(report(vec![
        flow(wire::Direction::Outbound, id("cart"), true, 12, 0),
        flow(wire::Direction::Outbound, String::new(), false, 5, 0),
    ]))
    .await;
    let mut viewer = world.viewer().await;
    viewer.until(|picture| picture.flows.len() == 3).await;
    (world, vec![cart, web])
}

fn message(document: &Value) -> &str {
    document["message"].as_str().unwrap()
}

#[tokio::test]
async fn a_forged_remote_user_without_the_front_proxys_certificate_is_nobody() {
    let front = Front::new(Played::default());
    let (world, _proxies) = shop(&front).await;
    let forged = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    for chain in [
        None,
        Some(front.foreign("front-proxy-client")),
        Some(front.genuine("somebody-else")),
    ] {
        let mut client = front.dial(&world, chain.as_ref()).await;
        for path in ["/apis", EDGES, "/nowhere", "/metrics"] {
            let (code, document, _) = client.get(path, &forged).await;
            assert_eq!(code, StatusCode::UNAUTHORIZED, "{path}: {document}");
            assert_eq!(
                (&document["kind"], &document["reason"]),
                (&json!("Status"), &json!("Unauthorized"))
            );
        }
    }
    assert!(front.played.reviews().is_empty(), "nobody is not even asked about");
}

#[tokio::test]
async fn the_front_proxy_must_name_one_user() {
    let front = Front::new(Played::default());
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    for headers in [
        &[][..],
        &[("x-remote-user", "")],
        &[("x-remote-user", "a"), ("x-remote-user", "b")],
    ] {
        let (code, document, _) = client.get(EDGES, headers).await;
        assert_eq!(code, StatusCode::UNAUTHORIZED, "{headers:?}: {document}");
    }
}

#[tokio::test]
async fn the_api_server_decides_about_exactly_this_user_and_request() {
    let front = Front::new(Played::default());
    let (world, _proxies) = shop(&front).await;
    front.played.allow("ann");
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let ann = [
        ("x-remote-user", "ann"),
        ("x-remote-group", "dev"),
        ("x-remote-group", "ops"),
        ("x-remote-extra-a%2fb", "c"),
    ];
    let (code, document, _) = client.get(EDGES, &ann).await;
    assert_eq!(code, StatusCode::OK, "{document}");
    let review = front.played.reviews().pop().unwrap();
    assert_eq!(
        review,
        json!({
            "user": "ann",
            "groups": ["dev", "ops"],
            "extra": { "a/b": ["c"] },
            "resourceAttributes": {
                "group": "view.postern.dev", "version": "v1alpha1", "resource": "edges", "verb": "list", "namespace": "shop",
            },
        })
    );
    let (code, document, _) = client.get(EDGES, &[("x-remote-user", "bob")]).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        message(&document),
        "edges.view.postern.dev is forbidden: User \"bob\" cannot list resource \"edges\" in API group \
         \"view.postern.dev\" in the namespace \"shop\": RBAC says no"
    );
    front.played.break_reviews();
    let (code, document, _) = client.get(ALL_EDGES, &ann).await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR, "{document}");
}

#[tokio::test]
async fn a_yes_is_remembered_for_the_same_question_and_a_no_is_not() {
    let front = Front::new(Played::default());
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let ann = [("x-remote-user", "ann")];
    for _ in 0..2 {
        assert_eq!(client.get(EDGES, &ann).await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(front.played.reviews().len(), 2);
    front.played.allow("ann");
    for _ in 0..3 {
        assert_eq!(client.get(EDGES, &ann).await.0, StatusCode::OK);
    }
    assert_eq!(front.played.reviews().len(), 3);
    client.get(ALL_EDGES, &ann).await;
    client
        .get(EDGES, &[("x-remote-user", "ann"), ("x-remote-group", "more")])
        .await;
    assert_eq!(front.played.reviews().len(), 5);
}

#[tokio::test]
async fn an_edge_is_shown_once_with_both_identities_its_counts_and_its_rate() {
    let front = Front::new(Played::allowing("ann"));
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let (code, list, _) = client.get(EDGES, &[("x-remote-user", "ann")]).await;
    assert_eq!((code, &list["kind"]), (StatusCode::OK, &json!("EdgeList")), "{list}");
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 2, "{list}");
    let edge = items.iter().find(|edge| edge["secured"] == true).unwrap();
    assert_eq!(edge["source"]["spiffeId"], id("web"));
    assert_eq!(edge["destination"]["spiffeId"], id("cart"));
    assert_eq!(
        (&edge["allowed"], &edge["denied"], &edge["direction"]),
        (&json!(12), &json!(3), &json!("inbound"))
    );
    assert!(edge["allowedPerSecond"].as_f64().unwrap() > 0.0, "{edge}");
    let plain = items.iter().find(|edge| edge["secured"] == false).unwrap();
    assert_eq!(
        (&plain["direction"], &plain["allowed"]),
        (&json!("outbound"), &json!(5))
    );

    let name = edge["metadata"]["name"].as_str().unwrap();
    let (code, one, _) = client
        .get(&format!("{EDGES}/{name}"), &[("x-remote-user", "ann")])
        .await;
    assert_eq!((code, &one["kind"]), (StatusCode::OK, &json!("Edge")), "{one}");
    let (code, none, _) = client
        .get(&format!("{EDGES}/nothing"), &[("x-remote-user", "ann")])
        .await;
    assert_eq!((code, &none["reason"]), (StatusCode::NOT_FOUND, &json!("NotFound")));
    let other = EDGES.replace("shop", "bank");
    let (_, empty, _) = client.get(&other, &[("x-remote-user", "ann")]).await;
    assert_eq!(
        empty["items"],
        json!([]),
        "nothing of another namespace is shown in this one"
    );
}

#[tokio::test]
async fn kubectl_gets_columns() {
    let front = Front::new(Played::allowing("ann"));
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let ann = [("x-remote-user", "ann"), ("accept", TABLE)];
    let (code, table, _) = client
        .get(
            &format!("{EDGES}?labelSelector=view.postern.dev%2Fsecured%3Dtrue"),
            &ann,
        )
        .await;
    assert_eq!((code, &table["kind"]), (StatusCode::OK, &json!("Table")), "{table}");
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        columns[..6],
        ["Source", "Destination", "Port", "Secured", "Allowed", "Denied"]
    );
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{table}");
    assert_eq!(rows[0]["cells"].as_array().unwrap().len(), columns.len());
    assert_eq!(
        rows[0]["cells"].as_array().unwrap()[..6],
        [
            json!("shop/web"),
            json!("shop/cart"),
            json!(80),
            json!("mTLS"),
            json!(12),
            json!(3)
        ]
    );
    assert_eq!(rows[0]["object"]["metadata"]["namespace"], "shop");
}

#[tokio::test]
async fn identities_proxies_and_replicas_say_what_a_check_needs() {
    let front = Front::new(Played::allowing("ann"));
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let ann = [("x-remote-user", "ann")];
    let of_shop = EDGES.replace("edges", "identities/cart");
    let (_, identity, _) = client.get(&of_shop, &ann).await;
    assert_eq!(identity["spiffeId"], id("cart"));
    assert_eq!(
        (&identity["serial"], &identity["renewals"]),
        (&json!("0a1b"), &json!(2))
    );
    assert_eq!(identity["notAfter"], "2023-11-15T02:13:20Z");
    let (_, proxies, _) = client.get("/apis/view.postern.dev/v1alpha1/proxies", &ann).await;
    let cart = &proxies["items"][0];
    assert_eq!(
        (&cart["metadata"]["name"], &cart["connected"], &cart["mode"]),
        (&json!("cart"), &json!(true), &json!("protect"))
    );
    let (_, replicas, _) = client.get("/apis/view.postern.dev/v1alpha1/replicas", &ann).await;
    assert_eq!(replicas["items"].as_array().unwrap().len(), 1);
    assert_eq!(replicas["items"][0]["connectedProxies"], 2);
    assert_eq!(replicas["items"][0]["rootsSha256"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_in_words() {
    let front = Front::new(Played::allowing("ann"));
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let ann = [("x-remote-user", "ann")];
    for (path, code, says) in [
        (
            &*format!("{EDGES}?watch=true"),
            StatusCode::METHOD_NOT_ALLOWED,
            "cannot be watched",
        ),
        (
            &format!("{EDGES}?fieldSelector=spec.x%3Dy"),
            StatusCode::BAD_REQUEST,
            "metadata.name",
        ),
        (
            &format!("{EDGES}?labelSelector=a+in+(b)"),
            StatusCode::BAD_REQUEST,
            "key=value",
        ),
        (
            "/apis/view.postern.dev/v1alpha1/secrets",
            StatusCode::NOT_FOUND,
            "edges, identities, proxies",
        ),
        (
            "/apis/view.postern.dev/v1alpha1/edges/x",
            StatusCode::NOT_FOUND,
            "could not find",
        ),
        (
            "/apis/view.postern.dev/v2/edges",
            StatusCode::NOT_FOUND,
            "could not find",
        ),
    ] {
        let (answered, document, _) = client.get(path, &ann).await;
        assert_eq!(answered, code, "{path}: {document}");
        assert!(message(&document).contains(says), "{path}: {document}");
    }
    let (code, _, _) = client.send("DELETE", EDGES, &ann).await;
    assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn discovery_lists_the_resources_to_whoever_comes_through_the_front_proxy() {
    let front = Front::new(Played::default());
    let (world, _proxies) = shop(&front).await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let user = [("x-remote-user", "system:kube-aggregator")];
    let (_, groups, _) = client.get("/apis", &user).await;
    assert_eq!(groups["groups"][0]["name"], "view.postern.dev");
    let (_, group, _) = client.get("/apis/view.postern.dev", &user).await;
    assert_eq!(group["preferredVersion"]["version"], "v1alpha1");
    let (_, resources, _) = client.get("/apis/view.postern.dev/v1alpha1", &user).await;
    let names: Vec<&str> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["edges", "identities", "proxies", "replicas", "explanations"]);
    for resource in resources["resources"].as_array().unwrap() {
        // What cannot be listed is not among what `kubectl get postern-view` lists.
        let (verbs, categories) = match resource["name"].as_str() {
            Some("explanations") => (json!(["create"]), Value::Null),
            _ => (json!(["get", "list"]), json!(["postern-view"])),
        };
        assert_eq!(
            (&resource["verbs"], &resource["categories"]),
            (&verbs, &categories),
            "{resource}"
        );
    }
    assert_eq!(
        (&resources["kind"], &resources["apiVersion"]),
        (&json!("APIResourceList"), &json!("v1"))
    );
    for path in ["/openapi/v2", "/openapi/v3"] {
        assert_eq!(client.get(path, &user).await.0, StatusCode::OK);
    }
    let mut anybody = front.dial(&world, None).await;
    assert_eq!(anybody.get("/healthz", &[]).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_front_proxy_ca_that_is_replaced_is_believed_at_once_and_the_old_one_is_not() {
    let front = Front::new(Played::allowing("ann"));
    let (world, _proxies) = shop(&front).await;
    let ann = [("x-remote-user", "ann")];
    let mut before = front.dial(&world, Some(&front.proxy())).await;
    assert_eq!(before.get(EDGES, &ann).await.0, StatusCode::OK);
    let next = front.rotate();
    let mut after = front.dial(&world, Some(&next)).await;
    after.until(EDGES, &ann, StatusCode::OK).await;
    // The same connection as before.
    assert_eq!(before.get(EDGES, &ann).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn replicas_put_their_pictures_together_and_name_who_is_missing() {
    let front = Front::new(Played::allowing("ann"));
    let (world, _proxies) = shop(&front).await;
    // Another replica of the same control, whose only peer is the first one; and one that is not there.
    let address = world.running.listen;
    let second = Front::new(Played::allowing("ann"));
    let other = world.another(|config| {
        let mut api = second.config();
        api.replicas = Some(address.to_string());
        config.api = Some(api);
    });
    let other = other.await;
    let ann = [("x-remote-user", "ann")];
    let mut client = second.dial_to(other.api.unwrap(), Some(&second.proxy())).await;
    let (_, edges, warnings) = client.get(EDGES, &ann).await;
    assert_eq!(edges["items"].as_array().unwrap().len(), 2, "{edges}");
    assert!(warnings.is_empty(), "{warnings:?}");
    let (_, replicas, _) = client.get("/apis/view.postern.dev/v1alpha1/replicas", &ann).await;
    assert_eq!(replicas["items"].as_array().unwrap().len(), 2, "{replicas}");
    let (_, proxies, _) = client.get("/apis/view.postern.dev/v1alpha1/proxies", &ann).await;
    assert_eq!(
        proxies["items"][0]["connected"], true,
        "connected to the other replica: {proxies}"
    );
    world.running.stop().await;
    // Pictures are remembered for a second.
    let warnings = client.until_warned(EDGES, &ann).await;
    assert!(warnings[0].contains(&address.to_string()), "{warnings:?}");
}
