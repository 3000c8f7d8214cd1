//! Keys of end users' issuers: fetched here, and told to the proxies that need them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_api::control::v1 as wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wire::proxy_message::Message as ToControl;
use wire::request_authentication::Content;

use crate::world::{PATIENCE, SHOP, World, named};

/// RFC 7515 appendix A.3.1, and RFC 8037 appendix A.2.
const FIRST: &str = r#"{"keys":[{"kid":"1","kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const SECOND: &str =
    r#"{"keys":[{"kid":"2","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// An issuer that publishes keys, and counts who asks.
struct Issuer {
    uri: String,
    set: Arc<Mutex<Option<&'static str>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let set = Arc::new(Mutex::new(Some(FIRST)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (published, counted) = (Arc::clone(&set), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                // The head of a GET comes in one piece.
                let _ = stream.read(&mut head).await;
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = match *published.lock().expect("nobody panics") {
                    Some(set) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{set}", set.len()),
                    None => "HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            uri: format!("http://{address}/jwks"),
            set,
            asked,
        }
    }

    fn publish(&self, set: Option<&'static str>) {
        *self.set.lock().expect("nobody panics") = set;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn document(&self) -> String {
        document(&format!(
            "{{issuer: https://sso.test, audiences: [cart], jwksUri: '{}'}}",
            self.uri
        ))
    }
}

fn document(rule: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: sso, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: cart}}}}, jwtRules: [{rule}]}}\n"
    )
}

fn want(issuer: &Issuer, ask: u64) -> ToControl {
    ToControl::WantKeys(wire::WantKeys {
        provider: issuer.uri.clone(),
        ask,
    })
}

#[tokio::test]
async fn keys_are_fetched_once_for_all_and_told_to_whom_they_concern() {
    let issuer = Issuer::start().await;
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", &issuer.document())]).await;
    let mut cart = world.proxy("cart").await.started().await;
    cart.until(|held| held.keys.contains_key(&issuer.uri)).await;
    let keys = &cart.held.keys[&issuer.uri];
    assert_eq!(keys.jwks, FIRST.as_bytes());
    assert!(keys.fetched_unix > 1_700_000_000);
    let policies = cart.held.policies.as_ref().expect("it has started");
    assert_eq!(policies.authentications.len(), 1);
    let mut again = world.proxy("cart").await.started().await;
    again.until(|held| held.keys.contains_key(&issuer.uri)).await;
    assert_eq!(issuer.asked(), 1);
    let mut web = world.proxy("web").await.started().await;
    web.send(named(1, "cart.shop", 80)).await;
    web.until(|held| held.destinations.contains_key(&1)).await;
    assert!(
        web.held.keys.is_empty()
            && web
                .held
                .policies
                .as_ref()
                .is_some_and(|set| set.authentications.is_empty())
    );
}

#[tokio::test]
async fn a_key_that_is_missed_is_fetched_at_once_and_others_for_nobody() {
    let issuer = Issuer::start().await;
    let files = [("shop.yaml", SHOP), ("sso.yaml", &issuer.document())];
    let world = World::configured(&files, |config| config.keys.at_most_every = Duration::ZERO).await;
    let mut cart = world.proxy("cart").await.started().await;
    cart.until(|held| held.keys.contains_key(&issuer.uri)).await;
    issuer.publish(Some(SECOND));
    cart.send(want(&issuer, 7)).await;
    cart.until(|held| held.keys[&issuer.uri].answers == 7).await;
    assert_eq!(
        cart.held.keys[&issuer.uri].jwks,
        SECOND.as_bytes(),
        "what answers was fetched after the question"
    );
    let asked = issuer.asked();
    // Of a provider that is not among a proxy's own rules nothing is fetched.
    let mut web = world.proxy("web").await.started().await;
    web.send(want(&issuer, 1)).await;
    web.send(named(1, "cart.shop", 80)).await;
    web.until(|held| held.destinations.contains_key(&1)).await;
    assert!(web.held.keys.is_empty());
    assert_eq!(issuer.asked(), asked);
}

#[tokio::test]
async fn t_jwks_many_who_miss_keys_make_no_more_fetches_than_one() {
    let issuer = Issuer::start().await;
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", &issuer.document())]).await;
    let mut cart = world.proxy("cart").await.started().await;
    cart.until(|held| held.keys.contains_key(&issuer.uri)).await;
    for ask in 1..200 {
        cart.send(want(&issuer, ask)).await;
    }
    cart.send(named(1, "cart.shop", 80)).await;
    cart.until(|held| held.destinations.contains_key(&1)).await;
    assert_eq!(issuer.asked(), 1, "the next comes 10 s after the first");
}

#[tokio::test]
async fn an_issuer_that_is_away_leaves_its_keys_and_is_told_of() {
    let issuer = Issuer::start().await;
    let files = [("shop.yaml", SHOP), ("sso.yaml", &issuer.document())];
    let world = World::configured(&files, |config| {
        config.keys.at_most_every = Duration::ZERO;
        config.keys.refresh = Duration::from_millis(50);
    })
    .await;
    let mut viewer = world.viewer().await;
    let mut cart = world.proxy("cart").await.started().await;
    cart.until(|held| held.keys.contains_key(&issuer.uri)).await;
    issuer.publish(None);
    let event = viewer.event("cannot be fetched").await;
    assert!(event.text.contains("503") && event.level == "warning", "{event:?}");
    // A proxy that comes now is told what there was, and how old it is.
    let mut late = world.proxy("cart").await.started().await;
    late.until(|held| held.keys.contains_key(&issuer.uri)).await;
    assert_eq!(late.held.keys[&issuer.uri].jwks, FIRST.as_bytes());
    for useless in [
        "{}",
        "<html>",
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#,
    ] {
        let asked = issuer.asked();
        issuer.publish(Some(useless));
        let told = async {
            while issuer.asked() < asked + 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told)
            .await
            .expect("it is asked again and again");
        let mut later = world.proxy("cart").await.started().await;
        later.until(|held| held.keys.contains_key(&issuer.uri)).await;
        assert_eq!(later.held.keys[&issuer.uri].jwks, FIRST.as_bytes(), "{useless}");
    }
    issuer.publish(Some(SECOND));
    cart.until(|held| held.keys[&issuer.uri].jwks == SECOND.as_bytes())
        .await;
}

#[tokio::test]
async fn keys_that_were_never_fetched_are_not_made_up() {
    let issuer = Issuer::start().await;
    issuer.publish(None);
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", &issuer.document())]).await;
    let mut viewer = world.viewer().await;
    viewer.event("cannot be fetched").await;
    let mut cart = world.proxy("cart").await.started().await;
    cart.send(named(1, "cart.shop", 80)).await;
    cart.until(|held| held.destinations.contains_key(&1)).await;
    assert!(cart.held.keys.is_empty());
    assert_eq!(
        cart.held.policies.as_ref().map(|set| set.authentications.len()),
        Some(1)
    );
    issuer.publish(Some(FIRST));
    cart.until(|held| held.keys.contains_key(&issuer.uri)).await;
}

#[tokio::test]
async fn a_file_of_keys_is_part_of_the_document_and_followed() {
    let rule = "{issuer: https://sso.test, audiences: [cart], jwksFile: sso.json}";
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", &document(rule))]).await;
    let mut viewer = world.viewer().await;
    let picture = viewer.until(|picture| !picture.conditions.is_empty()).await;
    assert!(
        picture.conditions[0].contains("no file sso.json stands beside the documents"),
        "{picture:?}"
    );
    let inline = |held: &crate::world::Held| {
        let document = held.policies.as_ref()?.authentications.first()?.clone();
        match document.content? {
            Content::Rules(rules) => match rules.rules.first()?.keys.clone()? {
                wire::jwt_rule::Keys::Inline(text) => Some(text),
                _ => None,
            },
            Content::Unreadable(_) => None,
        }
    };
    let mut cart = world.proxy("cart").await.started().await;
    assert_eq!(inline(&cart.held), None);
    world.write("sso.json", FIRST);
    cart.until(|held| inline(held).as_deref() == Some(FIRST)).await;
    world.write("sso.json", "{\"keys\":[]}");
    viewer.event("sso.json is refused, its last good state stays").await;
    world.write("sso.json", SECOND);
    cart.until(|held| inline(held).as_deref() == Some(SECOND)).await;
    world.remove("sso.json");
    cart.until(|held| inline(held).is_none()).await;
}

#[tokio::test]
async fn a_document_that_never_was_good_refuses_tokens_at_what_it_selects() {
    let broken = document("{isuer: https://sso.test, outputPayloadToHeader: X-User}");
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", &broken)]).await;
    let mut viewer = world.viewer().await;
    let picture = viewer.until(|picture| !picture.bad_files.is_empty()).await;
    let errors = &picture.bad_files[0].errors;
    assert!(
        errors.iter().any(|error| error.ends_with("did you mean `issuer`?")),
        "{errors:?}"
    );
    let cart = world.proxy("cart").await.started().await;
    let sent = cart
        .held
        .policies
        .as_ref()
        .and_then(|set| set.authentications.first()?.content.clone());
    let Some(Content::Unreadable(unreadable)) = sent else {
        panic!("{sent:?}")
    };
    assert!(unreadable.headers.contains(&"x-user".to_owned()));
    let web = world.proxy("web").await.started().await;
    assert!(
        web.held
            .policies
            .as_ref()
            .is_some_and(|set| set.authentications.is_empty())
    );
}

#[tokio::test]
async fn a_set_in_a_document_that_can_verify_nothing_is_refused_with_it() {
    let rule = r#"{issuer: a, audiences: [cart], jwks: '{"keys":[{"kty":"oct","k":"AAAA","kid":"s"}]}'}"#;
    let world = World::with(&[("shop.yaml", SHOP), ("sso.yaml", &document(rule))]).await;
    let mut viewer = world.viewer().await;
    let picture = viewer.until(|picture| !picture.bad_files.is_empty()).await;
    let error = &picture.bad_files[0].errors[0];
    assert!(
        error.starts_with("sso.yaml:4:") && error.contains("s is left out: it is a shared secret"),
        "{error}"
    );
}
