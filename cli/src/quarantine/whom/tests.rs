#![allow(clippy::unwrap_used)]
use super::*;

fn known() -> Known {
    let of = |namespace: &str, name: &str, account: &str| wire::WorkloadView {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        spiffe_id: format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
        instance: name.to_owned(),
        certificate: Some(wire::Certificate {
            serial: "0aff".to_owned(),
            ..wire::Certificate::default()
        }),
        ..wire::WorkloadView::default()
    };
    Known(vec![
        of("shop", "cart", "cart"),
        of("lab", "cart", "cart"),
        of("shop", "web", "web"),
    ])
}

fn whom() -> WhomArgs {
    WhomArgs {
        id: None,
        pod: None,
        instance: None,
        serial: None,
    }
}

fn pod(namespace: &str, name: &str) -> WhomArgs {
    WhomArgs {
        pod: Some((namespace.to_owned(), name.to_owned())),
        ..whom()
    }
}

#[test]
fn a_pod_is_its_instance_under_its_own_identity_and_that_is_said() {
    let (subject, who) = pod("shop", "cart").resolved(Some(&known()), false).unwrap();
    assert_eq!(
        subject.to_string(),
        "instance cart of spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert!(who.contains("shop/cart") && who.contains("instance cart"), "{who}");
    assert!(
        pod("shop", "cart")
            .resolved(None, false)
            .unwrap_err()
            .contains("--control")
    );
}

#[test]
fn who_is_not_known_is_answered_with_the_nearest_and_taken_by_force_alone() {
    let why = pod("shop", "crat").resolved(Some(&known()), true).unwrap_err();
    assert!(why.contains("did you mean `shop/cart`"), "{why}");
    let of = |id: &str| WhomArgs {
        id: Some(SpiffeId::parse(id).unwrap()),
        ..whom()
    };
    let misspelt = "spiffe://cluster.local/ns/shop/sa/wbe";
    let why = of(misspelt).resolved(Some(&known()), false).unwrap_err();
    assert!(
        why.contains("spiffe://cluster.local/ns/shop/sa/web") && why.contains("--force"),
        "{why}"
    );
    assert_eq!(
        of(misspelt).resolved(Some(&known()), true).unwrap().0.to_string(),
        misspelt
    );
    let serial = |text: &str| WhomArgs {
        serial: Some(Serial::parse(text).unwrap()),
        ..whom()
    };
    let (_, who) = serial("A:FF").resolved(Some(&known()), false).unwrap();
    assert!(who.contains("pod shop/cart"), "{who}");
    assert!(serial("0a00").resolved(Some(&known()), false).is_err());
}

#[test]
fn only_who_is_listed_is_lifted_and_an_instance_of_several_identities_asks_which() {
    let entry = |id: &str| pb::Quarantined {
        subject: Some(pb::quarantined::Subject::Instance(pb::QuarantinedInstance {
            instance: "cart".to_owned(),
            spiffe_id: id.to_owned(),
        })),
        ..pb::Quarantined::default()
    };
    let shop = "spiffe://cluster.local/ns/shop/sa/cart";
    let mut list = pb::QuarantineState {
        entries: vec![entry(shop)],
        ..pb::QuarantineState::default()
    };
    let by_instance = |name: &str| WhomArgs {
        instance: Some(Instance::parse(name).unwrap()),
        ..whom()
    };
    let lifted = by_instance("cart").listed(None, &list).unwrap();
    assert_eq!(lifted.to_string(), format!("instance cart of {shop}"));
    let why = by_instance("crat").listed(None, &list).unwrap_err();
    assert!(
        why.contains("not in quarantine") && why.contains("did you mean"),
        "{why}"
    );
    list.entries.push(entry("spiffe://cluster.local/ns/lab/sa/cart"));
    let why = by_instance("cart").listed(None, &list).unwrap_err();
    assert!(why.contains("--id"), "{why}");
    assert_eq!(pod("shop", "cart").listed(Some(&known()), &list).unwrap(), lifted);
}
