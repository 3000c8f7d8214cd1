//! PeerAuthentication documents: what is read, what is refused and in which words, and what holds at a port.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use postern_policy::document::{Object, parse};
use postern_policy::peer_authentication::{PortModes, Scope, Unheard, Workload, effective, port_modes, unheard};
use postern_policy::{Mode, MtlsMode, PeerAuthentication};
use proptest::prelude::*;

const ROOT: &str = "postern-system";

fn object(version: &str, spec: &str) -> Object {
    let text = format!(
        "apiVersion: {version}\nkind: PeerAuthentication\nmetadata: {{name: door, namespace: shop}}\nspec:\n{spec}\n"
    );
    parse("door.yaml", &text).unwrap().remove(0)
}

fn read(version: &str, spec: &str) -> Result<PeerAuthentication, String> {
    PeerAuthentication::from_object(&object(version, spec)).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn istios_documents_are_read_as_they_are() {
    let spec = "  selector: {matchLabels: {app: cart}}\n  mtls: {mode: STRICT}\n  portLevelMtls:\n    8080: {mode: DISABLE}\n    \"9090\": {mode: UNSET}\n    9091: {}";
    for version in [
        "security.istio.io/v1",
        "security.istio.io/v1beta1",
        "postern.dev/v1alpha1",
    ] {
        let document = read(version, spec).unwrap();
        assert_eq!(document.selector, labels(&[("app", "cart")]));
        assert_eq!(document.mode, Some(MtlsMode::Strict));
        assert_eq!(document.ports, BTreeMap::from([(8080, MtlsMode::Disable)]));
        assert_eq!(document.says(8080), Some(MtlsMode::Disable));
        assert_eq!(document.says(9090), Some(MtlsMode::Strict));
        assert!(!document.unreadable);
    }
    for nothing in [
        "  {}",
        "  mtls: {}",
        "  mtls: {mode: UNSET}",
        "  selector: {}",
        "  selector: {matchLabels: {}}",
    ] {
        let document = read("security.istio.io/v1", nothing).unwrap();
        assert_eq!((document.mode, document.ports.len()), (None, 0), "{nothing}");
        assert_eq!(document.scope(ROOT), Scope::Namespace);
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_the_nearest_name() {
    for (spec, says) in [
        (
            "  mtls: {mode: STRCT}",
            "door.yaml:5:16: spec.mtls.mode: `STRCT` is not one of STRICT, PERMISSIVE, DISABLE, UNSET; did you mean `STRICT`?",
        ),
        ("  mtls: {mode: strict}", "did you mean `STRICT`?"),
        ("  mtls: {mode: true}", "spec.mtls.mode: must be one of STRICT"),
        ("  mtls: {mode: }", "spec.mtls.mode: must be one of STRICT"),
        ("  mtls:", "spec.mtls: must be a map, not nothing"),
        ("  mtls: STRICT", "spec.mtls: must be a map"),
        ("  mtls: {modes: STRICT}", "unknown field `modes`; did you mean `mode`?"),
        (
            "  mTls: {mode: STRICT}",
            "door.yaml:5:3: spec: unknown field `mTls`; did you mean `mtls`?",
        ),
        (
            "  selector: {matchLabel: {a: b}}",
            "unknown field `matchLabel`; did you mean `matchLabels`?",
        ),
        ("  selector:", "spec.selector: must be a map, not nothing"),
        (
            "  portLevelMtls: {80: {mode: STRICT}}",
            "spec.portLevelMtls: ports are those of a workload: it needs `selector.matchLabels` beside it",
        ),
    ] {
        let error = read("postern.dev/v1alpha1", spec).unwrap_err();
        assert!(error.contains(says), "{spec}: {error}");
    }
    let selector = "  selector: {matchLabels: {a: b}}\n";
    for (ports, says) in [
        ("{}", "spec.portLevelMtls: must not be empty"),
        ("", "must be a map from port numbers"),
        ("[80]", "must be a map from port numbers"),
        (
            "{http: {mode: STRICT}}",
            "door.yaml:6:19: spec.portLevelMtls.http: `http` is no port: 1 to 65535",
        ),
        ("{0: {mode: STRICT}}", "`0` is no port"),
        ("{65536: {mode: STRICT}}", "`65536` is no port"),
        ("{-1: {mode: STRICT}}", "`-1` is no port"),
        ("{080: {mode: STRICT}}", "`080` is no port"),
        ("{80: }", "spec.portLevelMtls.80: must be a map, not nothing"),
        ("{80: STRICT}", "spec.portLevelMtls.80: must be a map"),
        ("{80: {mode: OFF}}", "spec.portLevelMtls.80.mode: `OFF` is not one of"),
        ("{80: {port: 1}}", "spec.portLevelMtls.80: unknown field `port`"),
        ("{80: {mode: STRICT}, 80: {mode: DISABLE}}", "`80` is given twice"),
    ] {
        let text = format!("{selector}  portLevelMtls: {ports}");
        let yaml = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: door, namespace: shop}}\nspec:\n{text}\n"
        );
        let errors = match parse("door.yaml", &yaml) {
            Err(errors) => errors,
            Ok(objects) => PeerAuthentication::from_object(&objects[0]).unwrap_err(),
        };
        let error: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(error.join("\n").contains(says), "{ports}: {error:?}");
    }
    let error = read("security.istio.io/v2", "  {}").unwrap_err();
    assert!(
        error.contains("`security.istio.io/v2` is not one of postern.dev/v1alpha1"),
        "{error}"
    );
}

#[test]
fn a_document_that_cannot_be_read_takes_mutual_tls_alone_whatever_others_say() {
    let broken = object(
        "security.istio.io/v1",
        "  selector: {matchLabels: {app: cart}}\n  mtls: {mode: PERMISIVE}\n  portLevelMtls: {80: {mode: DISABLE}}",
    );
    let stand_in = PeerAuthentication::strict_for(&broken, "shop");
    let loose = document(
        "shop",
        &[("app", "cart")],
        Some(MtlsMode::Disable),
        &[(80, MtlsMode::Disable)],
    );
    let all = [loose, stand_in];
    let cart = labels(&[("app", "cart"), ("v", "1")]);
    let workload = |labels| Workload {
        root_namespace: ROOT,
        namespace: "shop",
        labels,
        mode: Mode::Discover,
    };
    let holds = effective(&all, &workload(&cart), 80);
    assert_eq!((holds.mode, holds.by), (MtlsMode::Strict, Some(&all[1])));
    let web = labels(&[("app", "web")]);
    assert_eq!(
        effective(&all, &workload(&web), 80).by,
        None,
        "it selects whom it names"
    );
    assert_eq!(
        unheard(&all, &workload(&cart), &all[0], 80),
        Some(Unheard::Stricter(&all[1]))
    );
}

fn document(
    namespace: &str,
    selector: &[(&str, &str)],
    mode: Option<MtlsMode>,
    ports: &[(u16, MtlsMode)],
) -> PeerAuthentication {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: x, namespace: {namespace}}}\n"
    );
    let mut document = PeerAuthentication::from_object(&parse("x.yaml", &text).unwrap()[0]).unwrap();
    document.selector = labels(selector);
    document.mode = mode;
    document.ports = ports.iter().copied().collect();
    document
}

const STRICT: Option<MtlsMode> = Some(MtlsMode::Strict);
const PERMISSIVE: Option<MtlsMode> = Some(MtlsMode::Permissive);
const DISABLE: Option<MtlsMode> = Some(MtlsMode::Disable);

/// Port 80 of workload `app=cart` in `shop`.
fn at_80(documents: &[PeerAuthentication], mode: Mode) -> MtlsMode {
    let cart = labels(&[("app", "cart")]);
    let workload = Workload {
        root_namespace: ROOT,
        namespace: "shop",
        labels: &cart,
        mode,
    };
    effective(documents, &workload, 80).mode
}

#[test]
fn the_narrowest_scope_that_speaks_decides() {
    use MtlsMode::{Disable, Permissive, Strict};
    let cart = [("app", "cart")];
    let mesh = |mode| document(ROOT, &[], mode, &[]);
    let namespace = |mode| document("shop", &[], mode, &[]);
    let workload = |mode, ports: &[_]| document("shop", &cart, mode, ports);
    for (documents, monitor, protect) in [
        (vec![], Permissive, Strict),
        (vec![mesh(STRICT)], Strict, Strict),
        (vec![mesh(STRICT), namespace(PERMISSIVE)], Permissive, Strict),
        (vec![mesh(STRICT), namespace(None)], Strict, Strict),
        (vec![mesh(DISABLE)], Disable, Strict),
        (
            vec![namespace(STRICT), workload(PERMISSIVE, &[])],
            Permissive,
            Permissive,
        ),
        (vec![namespace(STRICT), workload(None, &[])], Strict, Strict),
        (vec![workload(STRICT, &[(80, Disable)])], Disable, Disable),
        (vec![workload(STRICT, &[(81, Disable)])], Strict, Strict),
        (vec![workload(DISABLE, &[(80, Strict)])], Strict, Strict),
        // Somebody else's.
        (vec![document("other", &[], STRICT, &[])], Permissive, Strict),
        (
            vec![document("shop", &[("app", "web")], DISABLE, &[])],
            Permissive,
            Strict,
        ),
        (
            vec![document("shop", &[("app", "cart"), ("v", "2")], DISABLE, &[])],
            Permissive,
            Strict,
        ),
        // By labels the root namespace's speak for its own workloads.
        (vec![document(ROOT, &cart, STRICT, &[])], Permissive, Strict),
        // Two of one scope: the stricter, also where one says what is wider by saying nothing.
        (vec![namespace(PERMISSIVE), namespace(STRICT)], Strict, Strict),
        (
            vec![workload(DISABLE, &[]), workload(PERMISSIVE, &[])],
            Permissive,
            Permissive,
        ),
        (
            vec![workload(STRICT, &[]), workload(None, &[(80, Permissive)])],
            Strict,
            Strict,
        ),
        (
            vec![mesh(STRICT), namespace(None), namespace(PERMISSIVE)],
            Strict,
            Strict,
        ),
        (
            vec![workload(None, &[(80, Disable)]), workload(None, &[(81, Disable)])],
            Permissive,
            Strict,
        ),
    ] {
        assert_eq!(at_80(&documents, Mode::Monitor), monitor, "{documents:?}");
        assert_eq!(at_80(&documents, Mode::Discover), monitor, "{documents:?}");
        assert_eq!(at_80(&documents, Mode::Protect), protect, "{documents:?}");
    }
}

#[test]
fn what_does_not_hold_is_told_with_the_reason() {
    let cart = labels(&[("app", "cart")]);
    let of = |mode| Workload {
        root_namespace: ROOT,
        namespace: "shop",
        labels: &cart,
        mode,
    };
    let wide = [document("shop", &[], PERMISSIVE, &[])];
    assert_eq!(
        unheard(&wide, &of(Mode::Protect), &wide[0], 80),
        Some(Unheard::Protected)
    );
    assert_eq!(unheard(&wide, &of(Mode::Monitor), &wide[0], 80), None);
    let narrower = [wide[0].clone(), document("shop", &[("app", "cart")], STRICT, &[])];
    assert_eq!(
        unheard(&narrower, &of(Mode::Monitor), &narrower[0], 80),
        None,
        "it is what narrower ones are for"
    );
    let two = [
        document("shop", &[("app", "cart")], PERMISSIVE, &[]),
        document("shop", &[("app", "cart")], None, &[(81, MtlsMode::Disable)]),
    ];
    assert_eq!(
        unheard(&two, &of(Mode::Protect), &two[0], 80),
        Some(Unheard::Stricter(&two[1]))
    );
    assert_eq!(
        unheard(&two, &of(Mode::Protect), &two[1], 80),
        None,
        "it says nothing of it"
    );
    assert_eq!(
        unheard(&two, &of(Mode::Protect), &two[1], 81),
        Some(Unheard::Stricter(&two[0]))
    );
    let strict = [document(ROOT, &[], STRICT, &[])];
    assert_eq!(unheard(&strict, &of(Mode::Protect), &strict[0], 80), None);
}

#[test]
fn of_a_document_beside_a_mistake_only_what_is_strict_is_kept() {
    let cart = [("app", "cart")];
    assert_eq!(
        document("shop", &cart, PERMISSIVE, &[(80, MtlsMode::Disable)]).only_strict(),
        None
    );
    let mixed = document(
        "shop",
        &cart,
        DISABLE,
        &[(80, MtlsMode::Strict), (81, MtlsMode::Permissive)],
    );
    let kept = mixed.only_strict().unwrap();
    assert_eq!(
        (kept.mode, kept.ports),
        (None, BTreeMap::from([(80, MtlsMode::Strict)]))
    );
}

/// Istio's own way (`ComposePeerAuthentication`): the oldest document of each scope alone, and later ones not at all.
fn istio(chosen: [Option<&PeerAuthentication>; 3], port: u16, default: MtlsMode) -> MtlsMode {
    let [mesh, namespace, workload] = chosen;
    let mut mode = default;
    for document in [mesh, namespace, workload].into_iter().flatten() {
        if let Some(said) = document.mode {
            mode = said;
        }
    }
    workload
        .and_then(|workload| workload.ports.get(&port).copied())
        .unwrap_or(mode)
}

fn some_mode() -> impl Strategy<Value = Option<MtlsMode>> {
    prop_oneof![Just(None), Just(STRICT), Just(PERMISSIVE), Just(DISABLE)]
}

fn some_document() -> impl Strategy<Value = PeerAuthentication> {
    let namespace = prop_oneof![Just(ROOT), Just("shop"), Just("shop"), Just("other")];
    let selector = prop_oneof![
        Just(&[][..]),
        Just(&[("app", "cart")][..]),
        Just(&[("app", "cart")][..]),
        Just(&[("app", "web")][..])
    ];
    let ports = proptest::collection::btree_map(80u16..83, some_mode(), 0..3);
    (namespace, selector, some_mode(), ports).prop_map(|(namespace, selector, mode, ports)| {
        let said: Vec<(u16, MtlsMode)> = ports.into_iter().filter_map(|(p, m)| Some((p, m?))).collect();
        // Without a selector there are no ports.
        let said = if selector.is_empty() { Vec::new() } else { said };
        document(namespace, selector, mode, &said)
    })
}

fn some_workload_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Discover), Just(Mode::Monitor), Just(Mode::Protect)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Never looser than Istio, whichever document it would take for the oldest; and no stricter than it must be for that.
    #[test]
    fn what_holds_is_the_strictest_that_istio_could_say(
        documents in proptest::collection::vec(some_document(), 0..6),
        in_root in any::<bool>(),
        mode in some_workload_mode(),
        port in 79u16..84,
    ) {
        let cart = labels(&[("app", "cart")]);
        let namespace = if in_root { ROOT } else { "shop" };
        let workload = Workload { root_namespace: ROOT, namespace, labels: &cart, mode };
        let of = |scope: Scope| -> Vec<Option<&PeerAuthentication>> {
            let of_scope = documents.iter().filter(|document| match scope {
                Scope::Mesh => document.selector.is_empty() && document.namespace == ROOT,
                Scope::Namespace => document.selector.is_empty() && document.namespace == "shop" && !in_root,
                Scope::Workload => document.selector == cart && document.namespace == namespace,
            });
            let found: Vec<_> = of_scope.map(Some).collect();
            // In `protect` what is for more than the workload could only loosen it.
            if found.is_empty() || (mode == Mode::Protect && scope < Scope::Workload) { vec![None] } else { found }
        };
        let mut strictest = MtlsMode::Disable;
        for mesh in of(Scope::Mesh) {
            for narrower in of(Scope::Namespace) {
                for narrowest in of(Scope::Workload) {
                    strictest = strictest.max(istio([mesh, narrower, narrowest], port, MtlsMode::usual(mode)));
                }
            }
        }
        let holds = effective(&documents, &workload, port);
        prop_assert_eq!(holds.mode, strictest);
        // All ports together are the ports one by one, and the order of documents is nobody's business.
        prop_assert_eq!(port_modes(&documents, &workload).of(port), strictest);
        let reversed: Vec<PeerAuthentication> = documents.iter().rev().cloned().collect();
        prop_assert_eq!(effective(&reversed, &workload, port).mode, strictest);
        if let Some(by) = holds.by {
            prop_assert!(by.selects(ROOT, namespace, &cart) && by.says(port) == Some(holds.mode));
        } else {
            prop_assert_eq!(holds.mode, MtlsMode::usual(mode));
        }
        // What is said to be unheard is looser than what holds.
        for document in documents.iter().filter(|document| document.selects(ROOT, namespace, &cart)) {
            if unheard(&documents, &workload, document, port).is_some() && document.scope(ROOT) == Scope::Workload {
                prop_assert!(document.says(port) < Some(holds.mode));
            }
        }
    }

    /// What an API server or a file may hold: an error or a document, and of an error a stand-in that is strict.
    #[test]
    fn any_document_is_read_or_stands_for_strict(mode in "\\PC{0,8}", port in "\\PC{0,6}", label in "\\PC{0,6}") {
        let json = serde_json::json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": "x", "namespace": "shop" },
            "spec": {
                "selector": { "matchLabels": { "app": label } },
                "mtls": { "mode": mode },
                "portLevelMtls": { port.clone(): { "mode": "DISABLE" } },
            },
        });
        let object = Object::from_json(&json, "x").unwrap();
        match PeerAuthentication::from_object(&object) {
            Ok(read) => prop_assert_eq!(read.ports.get(&port.parse().unwrap()), Some(&MtlsMode::Disable)),
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                let stand_in = PeerAuthentication::strict_for(&object, "shop");
                let own = labels(&[("app", &label)]);
                let workload = Workload { root_namespace: ROOT, namespace: "shop", labels: &own, mode: Mode::Discover };
                prop_assert_eq!(effective([&stand_in], &workload, 80).mode, MtlsMode::Strict);
            }
        }
    }
}

#[test]
fn only_what_differs_from_the_usual_is_listed_by_port() {
    let cart = labels(&[("app", "cart")]);
    let workload = Workload {
        root_namespace: ROOT,
        namespace: "shop",
        labels: &cart,
        mode: Mode::Protect,
    };
    let own = document(
        "shop",
        &[("app", "cart")],
        None,
        &[(80, MtlsMode::Disable), (81, MtlsMode::Strict)],
    );
    let modes = port_modes([&own], &workload);
    assert_eq!(
        modes,
        PortModes {
            usual: MtlsMode::Strict,
            ports: BTreeMap::from([(80, MtlsMode::Disable)])
        }
    );
    assert!(!modes.is_stricter_than(Mode::Protect) && modes.is_stricter_than(Mode::Monitor));
    assert!(!PortModes::usual(Mode::Monitor).is_stricter_than(Mode::Monitor));
}
