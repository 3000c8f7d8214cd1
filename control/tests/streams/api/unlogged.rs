//! See `unlogged.rs`, the program.

use std::sync::{Arc, Mutex};

use http::StatusCode;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span;

use super::played::{Front, Played};
use crate::world::World;

const HERE: &str = "/apis/view.postern.dev/v1alpha1/namespaces/shop/explanations";
const ANN: [(&str, &str); 2] = [("x-remote-user", "ann"), ("content-type", "application/json")];

#[tokio::test]
async fn nothing_of_a_question_is_logged() {
    let heard = Heard::default();
    let text = Arc::clone(&heard.0);
    // Of every thread.
    tracing::subscriber::set_global_default(heard).unwrap();
    let front = Front::new(Played::allowing("ann"));
    let world = World::configured(&[("shop.yaml", crate::world::SHOP)], |config| {
        config.api = Some(front.config());
    })
    .await;
    let mut client = front.dial(&world, Some(&front.proxy())).await;
    let secret = json!({
        "method": "GET", "path": "/s3cret", "host": "s3cret.example", "headers": [["authorization", "Bearer s3cret"]],
        "claims": { "iss": "https://s3cret.example", "sub": "s3cret" },
    });
    let asked = |to: &str| {
        let spec = json!({ "from": "shop/web", "to": to, "http": secret });
        json!({ "apiVersion": "view.postern.dev/v1alpha1", "kind": "Explanation", "spec": spec })
    };
    for (to, code) in [
        ("shop/cart", StatusCode::CREATED),
        ("shop/s3cret", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(client.post(HERE, &ANN, &asked(to)).await.0, code);
    }
    let mut wrong = asked("shop/cart");
    wrong["spec"]["s3cret"] = json!("s3cret");
    assert_eq!(client.post(HERE, &ANN, &wrong).await.0, StatusCode::BAD_REQUEST);
    let text = text.lock().unwrap();
    assert!(
        text.contains("the front proxy is known"),
        "the test hears what is logged"
    );
    assert!(!text.contains("s3cret"), "{text}");
}

/// All that is logged, at every level.
#[derive(Default)]
struct Heard(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?}\n"));
    }
}

impl tracing::Subscriber for Heard {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        span.record(&mut Fields(&mut self.0.lock().unwrap()));
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Fields(&mut self.0.lock().unwrap()));
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
