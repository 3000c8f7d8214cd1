//! What each request pays for its decision, at 10, 1,000 and 10,000 rules: the index has to keep it flat.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use postern_identity::SpiffeId;
use postern_policy::canonical::CanonicalPathRef;
use postern_policy::document::Place;
use postern_policy::{
    Action, AuthorizationPolicy, CanonicalHost, Compiled, Http, NoHeaders, Operation, Request, Rule, Source,
    StringMatch, Verdict,
};

const RULES: [u32; 3] = [10, 1_000, 10_000];
/// Compiled together.
const POLICIES: usize = 1_000;
/// Of a pair of them, one that denies and one that allows.
const RULES_OF_EACH: u32 = 20;
/// Of ten rules one denies; the others allow.
const DENY_EVERY: u32 = 10;

fn decide(criterion: &mut Criterion) {
    let host = CanonicalHost::parse("cart.shop:8080").unwrap();
    let mut group = criterion.benchmark_group("decide");
    for rules in RULES {
        let compiled = Compiled::new(policies(rules));
        // The last rules of each kind: whatever is scanned in order is scanned to its end.
        let (allowed, denied) = (rules - 2, rules - DENY_EVERY);
        for (name, account, path, verdict) in [
            (
                "allow",
                account(allowed),
                format!("/api/{allowed}/items"),
                Verdict::Allow,
            ),
            ("deny", account(denied), format!("/admin/{denied}/users"), Verdict::Deny),
            ("miss", "stranger".to_owned(), "/api/1/items".to_owned(), Verdict::Deny),
        ] {
            let peer = SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap();
            let request = Request {
                peer: Some(&peer),
                port: 8080,
                http: Some(Http {
                    method: "GET",
                    host: &host,
                    path: CanonicalPathRef::check(&path).unwrap().unwrap(),
                    headers: &NoHeaders,
                    user: None,
                }),
                ..Request::default()
            };
            let decision = compiled.decide(&request);
            assert_eq!(decision.verdict, verdict, "{name} at {rules}");
            assert_eq!(decision.policy.is_some(), name != "miss", "{name} at {rules}");
            group.bench_with_input(BenchmarkId::new(name, rules), &request, |bench, request| {
                bench.iter(|| compiled.decide(black_box(request)).verdict);
            });
        }
    }
    group.finish();
}

/// What a worker never pays, and a change of policy does: all policies of a large workload anew.
fn compile(criterion: &mut Criterion) {
    let policies: Vec<AuthorizationPolicy> = (0..POLICIES)
        .flat_map(|number| {
            let mut policies = policies(RULES_OF_EACH);
            policies
                .iter_mut()
                .for_each(|policy| policy.name += &number.to_string());
            policies
        })
        .take(POLICIES)
        .collect();
    criterion.bench_function(&format!("compile/{POLICIES}"), |bench| {
        bench.iter_batched(|| policies.clone(), Compiled::new, BatchSize::LargeInput);
    });
}

/// Rules as a large namespace has them: each account may read its own prefix; every tenth is kept from one.
fn policies(rules: u32) -> Vec<AuthorizationPolicy> {
    let of = |action, name: &str, numbers: &mut dyn Iterator<Item = u32>| AuthorizationPolicy {
        namespace: "shop".into(),
        name: name.into(),
        place: Default::default(),
        selector: Default::default(),
        action,
        provider: String::new(),
        foreign_target: false,
        rules: numbers.enumerate().map(|(index, n)| rule(action, index, n)).collect(),
    };
    vec![
        of(Action::Deny, "deny", &mut (0..rules).filter(|n| n % DENY_EVERY == 0)),
        of(Action::Allow, "allow", &mut (0..rules).filter(|n| n % DENY_EVERY != 0)),
    ]
}

fn rule(action: Action, index: usize, n: u32) -> Rule {
    let tree = match action {
        Action::Allow => "api",
        Action::Deny | Action::Audit | Action::Custom => "admin",
    };
    Rule {
        place: Place::default(),
        index: u32::try_from(index).unwrap(),
        from: vec![Arc::new(Source {
            principals: vec![StringMatch::Exact(format!("cluster.local/ns/shop/sa/{}", account(n)))],
            ..Source::default()
        })],
        to: vec![Arc::new(Operation {
            methods: vec![StringMatch::Exact("GET".into())],
            ports: vec![8080],
            paths: vec![StringMatch::Prefix(format!("/{tree}/{n}/"))],
            ..Operation::default()
        })],
        when: Vec::new(),
    }
}

fn account(n: u32) -> String {
    format!("client-{n}")
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(50);
    targets = decide, compile
}
criterion_main!(benches);
