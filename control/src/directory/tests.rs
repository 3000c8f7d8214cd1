#![allow(clippy::unwrap_used)]

use postern_policy::{AuthorizationPolicy, MtlsMode, Rule};

use super::*;

mod on_disk;

const CART: &str = "{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: cart, namespace: shop}, \
                    spec: {serviceAccount: cart, ports: [{number: 80}]}}\n";
const BROKEN: &str = "{apiVersion: postern.dev/v1alpha1, kind: Workload, metadata: {name: cart, namespace: shop}, \
                      spec: {serviceAcount: cart}}\n";

/// A directory, and a clock that only the test moves.
struct Watched {
    directory: Directory,
    now: Instant,
}

impl Watched {
    fn new() -> Self {
        Self {
            directory: Directory::new(TrustDomain::parse("cluster.local").unwrap()),
            now: Instant::now(),
        }
    }

    /// These files and no others are there now.
    fn sees(&mut self, files: &[(&str, &str)]) -> Load {
        self.takes(scan_of(files));
        self.directory.load()
    }

    fn takes(&mut self, scan: Scan) -> bool {
        self.directory.take(scan, self.now)
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
    }
}

fn scan_of(files: &[(&str, &str)]) -> Scan {
    Scan {
        files: files
            .iter()
            .map(|(name, text)| ((*name).into(), Found::Text((*text).to_owned())))
            .collect(),
        complete: true,
        ..Scan::default()
    }
}

fn policy(name: &str, action: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  action: {action}\n  rules: [{{}}]\n"
    )
}

/// Kind and name of all that is in force.
fn keys(load: &Load) -> Vec<String> {
    load.documents
        .iter()
        .map(|document| document.key().to_string())
        .collect()
}

fn files_of(load: &Load) -> Vec<&str> {
    load.documents.iter().map(|document| &*document.place().file).collect()
}

fn policies(load: &Load) -> Vec<&AuthorizationPolicy> {
    load.documents
        .iter()
        .filter_map(|document| match document {
            Document::Policy(policy) => Some(policy),
            Document::Namespace(_)
            | Document::Service(_)
            | Document::Workload(_)
            | Document::Authorizer(_)
            | Document::Authentication(_)
            | Document::PeerAuthentication(_) => None,
        })
        .collect()
}

#[test]
fn a_file_that_breaks_keeps_its_last_good_state_and_says_where_and_the_nearest_name() {
    let mut watched = Watched::new();
    let good = watched.sees(&[("a.yaml", CART)]);
    assert_eq!(good.bad, BTreeMap::new());
    let other = policy("other", "ALLOW");
    let broken = watched.sees(&[("a.yaml", BROKEN), ("b.yaml", &other)]);
    assert_eq!(broken.documents[1], good.documents[0]);
    assert_eq!(
        keys(&broken),
        ["AuthorizationPolicy shop/other", "Workload shop/cart"],
        "other files are still heard"
    );
    let error = &broken.bad["a.yaml"][0];
    assert!(error.starts_with("a.yaml:1:"), "{error}");
    assert!(
        error.contains("spec: unknown field `serviceAcount`") && error.ends_with("did you mean `serviceAccount`?"),
        "{error}"
    );
    let mended = watched.sees(&[("a.yaml", CART), ("b.yaml", &other)]);
    assert_eq!((mended.bad, mended.documents), (BTreeMap::new(), broken.documents));
}

#[test]
fn the_column_of_an_error_is_where_the_name_stands() {
    let mut watched = Watched::new();
    let text =
        "apiVersion: postern.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: cart\nspec:\n  ports:\n    - numbr: 1\n";
    let load = watched.sees(&[("deep/w.yml", text)]);
    let errors = &load.bad["deep/w.yml"];
    assert!(
        errors
            .iter()
            .any(|e| e.starts_with("deep/w.yml:7:7: ") && e.contains("`number`")),
        "{errors:?}"
    );
}

#[test]
fn of_a_file_that_never_was_good_only_what_denies_is_in_force() {
    let mut watched = Watched::new();
    let text = [
        CART,
        &policy("open", "ALLOW"),
        &policy("shut", "DENY"),
        &policy("typo", "DENNY"),
    ]
    .concat();
    let load = watched.sees(&[("a.yaml", &text)]);
    assert_eq!(
        keys(&load),
        ["AuthorizationPolicy shop/shut", "AuthorizationPolicy shop/typo"]
    );
    for policy in policies(&load) {
        assert_eq!(policy.action, Action::Deny);
    }
    // Nobody understands it, so everything matches.
    let place = policies(&load)[1].place.clone();
    assert_eq!(
        policies(&load)[1].rules,
        [Rule {
            place,
            index: 0,
            from: Vec::new(),
            to: Vec::new(),
            when: Vec::new(),
        }]
    );
    assert!(load.bad["a.yaml"][0].contains("did you mean `DENY`?"), "{:?}", load.bad);
    // Once it is good, all of it is; when it breaks again, that stays.
    let mended = text.replace("DENNY", "DENY");
    let good = watched.sees(&[("a.yaml", &mended)]);
    assert_eq!((good.documents.len(), good.bad.len()), (4, 0));
    let again = watched.sees(&[("a.yaml", &text)]);
    assert_eq!((again.documents, again.bad.len()), (good.documents, 1));
}

/// One mistake of YAML, or of a document's head, kept all denials of the file out of force.
#[test]
fn a_document_that_is_no_document_takes_no_denial_beside_it_out_of_force() {
    for mistake in ["---\nkind: [Workload\n", "---\nkind: Workload\nmetadta: {name: x}\n"] {
        let text = [&policy("shut", "DENY"), mistake, CART, &policy("typo", "DENNY")].concat();
        let text = text.replace(CART, &format!("--- {CART}"));
        let load = Watched::new().sees(&[("a.yaml", &text)]);
        assert_eq!(
            keys(&load),
            ["AuthorizationPolicy shop/shut", "AuthorizationPolicy shop/typo"]
        );
        assert_eq!(policies(&load)[0].place.to_string(), "a.yaml:2:1");
        let typo = text.lines().position(|line| line.contains("DENNY")).unwrap() + 1;
        let errors = &load.bad["a.yaml"];
        assert!(
            errors.last().unwrap().starts_with(&format!("a.yaml:{typo}:")),
            "{errors:?}"
        );
    }
}

#[test]
fn a_file_that_never_was_good_and_is_no_yaml_is_reported_and_opens_nothing() {
    let mut watched = Watched::new();
    let load = watched.sees(&[("a.yaml", "kind: [Workload\n")]);
    assert_eq!(load.documents, []);
    assert!(load.bad["a.yaml"][0].starts_with("a.yaml:"), "{:?}", load.bad);
}

#[test]
fn an_emptied_file_is_one_that_somebody_is_about_to_write() {
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", CART)]);
    let load = watched.sees(&[("a.yaml", " \n")]);
    assert_eq!(keys(&load), ["Workload shop/cart"]);
    assert!(
        load.bad["a.yaml"][0].starts_with("a.yaml:1:1: the file is empty"),
        "{:?}",
        load.bad
    );
    // Comments alone are a decision.
    let load = watched.sees(&[("a.yaml", "# nothing here\n")]);
    assert_eq!((load.documents.len(), load.bad.len()), (0, 0));
}

/// An editor creates the file first and writes it afterwards: between the two it must not count as a good one.
#[test]
fn a_file_that_was_empty_never_was_good() {
    for before in ["", "\n", "# soon\n"] {
        let mut watched = Watched::new();
        assert_eq!(watched.sees(&[("a.yaml", before)]).bad, BTreeMap::new());
        let load = watched.sees(&[("a.yaml", &policy("shut", "DENNY"))]);
        assert_eq!(keys(&load), ["AuthorizationPolicy shop/shut"], "after {before:?}");
        assert_eq!(policies(&load)[0].action, Action::Deny);
    }
}

#[test]
fn a_deleted_file_is_gone_only_after_it_stayed_away() {
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", CART)]);
    assert_eq!(keys(&watched.sees(&[])), ["Workload shop/cart"]);
    assert!(watched.directory.waits(), "it must be looked for again");
    watched.passes(GONE_AFTER - Duration::from_millis(1));
    assert_eq!(keys(&watched.sees(&[])), ["Workload shop/cart"]);
    // Back in time: it never was away.
    watched.sees(&[("a.yaml", CART)]);
    assert!(!watched.directory.waits());
    watched.passes(Duration::from_millis(1));
    assert_eq!(keys(&watched.sees(&[])), ["Workload shop/cart"]);
    watched.passes(GONE_AFTER);
    assert!(watched.takes(scan_of(&[])), "its end is a change");
    assert_eq!(watched.directory.load().documents, []);
}

#[test]
fn a_file_that_comes_back_broken_after_its_deletion_never_was_good() {
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", CART)]);
    watched.sees(&[]);
    watched.passes(GONE_AFTER);
    watched.sees(&[]);
    let load = watched.sees(&[("a.yaml", BROKEN)]);
    assert_eq!((load.documents.len(), load.bad.len()), (0, 1));
}

#[test]
fn a_renamed_file_stays_in_force_and_is_no_fault() {
    let mut watched = Watched::new();
    let before = watched.sees(&[("a.yaml", CART)]);
    let during = watched.sees(&[("b.yaml", CART)]);
    assert_eq!((keys(&during), &during.bad), (keys(&before), &BTreeMap::new()));
    watched.passes(GONE_AFTER);
    let after = watched.sees(&[("b.yaml", CART)]);
    assert_eq!((keys(&after), after.bad.len()), (keys(&before), 0));
    assert_eq!(files_of(&after), ["b.yaml"]);
}

#[test]
fn a_copy_is_a_fault_as_soon_as_the_first_file_is_back() {
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", CART)]);
    watched.sees(&[("b.yaml", CART)]);
    assert!(watched.takes(scan_of(&[("a.yaml", CART), ("b.yaml", CART)])));
    let load = watched.directory.load();
    assert_eq!(files_of(&load), ["a.yaml"]);
    assert_eq!(load.bad.keys().collect::<Vec<_>>(), ["b.yaml"]);
}

#[test]
fn nothing_is_deleted_by_a_look_that_could_not_see_everything() {
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", CART)]);
    let blind = || Scan {
        errors: vec!["cannot list".to_owned()],
        ..Scan::default()
    };
    assert!(watched.takes(blind()));
    watched.passes(10 * GONE_AFTER);
    assert!(!watched.takes(blind()), "the same fault is no news");
    let load = watched.directory.load();
    assert_eq!(keys(&load), ["Workload shop/cart"]);
    assert_eq!(load.bad["."], ["cannot list"]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_its_last_good_state() {
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", CART)]);
    let mut scan = scan_of(&[]);
    scan.files
        .insert("a.yaml".into(), Found::Unreadable("cannot be read: why not".to_owned()));
    watched.takes(scan);
    let load = watched.directory.load();
    assert_eq!(keys(&load), ["Workload shop/cart"]);
    assert_eq!(load.bad["a.yaml"], ["a.yaml: cannot be read: why not"]);
}

#[test]
fn of_two_files_the_newcomer_is_refused_whatever_its_name() {
    let mut watched = Watched::new();
    watched.sees(&[("b.yaml", CART)]);
    let load = watched.sees(&[("a.yaml", CART), ("b.yaml", CART)]);
    assert_eq!(files_of(&load), ["b.yaml"]);
    let error = &load.bad["a.yaml"][0];
    assert!(
        error.contains("Workload shop/cart is defined already, at b.yaml:1:"),
        "{error}"
    );
    // The one that stands is withdrawn: the other takes its place, and is no fault any more.
    watched.sees(&[("a.yaml", CART)]);
    watched.passes(GONE_AFTER);
    let load = watched.sees(&[("a.yaml", CART)]);
    assert_eq!((files_of(&load), load.bad.len()), (vec!["a.yaml"], 0));
}

#[test]
fn of_two_files_that_come_together_the_first_by_name_stands() {
    let mut watched = Watched::new();
    let load = watched.sees(&[("b.yaml", CART), ("a.yaml", CART)]);
    assert_eq!((files_of(&load), load.bad.len()), (vec!["a.yaml"], 1));
}

#[test]
fn of_two_policies_of_one_name_no_denial_is_dropped_and_no_permission_added() {
    let (allow, deny) = (policy("cart", "ALLOW"), policy("cart", "DENY"));
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", &allow)]);
    let load = watched.sees(&[("a.yaml", &allow), ("b.yaml", &deny)]);
    assert_eq!(
        policies(&load).iter().map(|p| p.action).collect::<Vec<_>>(),
        [Action::Allow, Action::Deny]
    );
    assert_eq!(load.bad.len(), 1);
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", &deny)]);
    let load = watched.sees(&[("a.yaml", &deny), ("b.yaml", &allow)]);
    assert_eq!(policies(&load).len(), 1);
    assert_eq!(policies(&load)[0].action, Action::Deny);
}

#[test]
fn of_two_documents_of_one_name_about_tokens_the_newcomer_believes_nobody_and_one_that_moved_is_as_it_was() {
    let sso = "{apiVersion: postern.dev/v1alpha1, kind: RequestAuthentication, metadata: {name: sso, namespace: shop}, spec: \
               {jwtRules: [{issuer: 'https://a.test', audiences: [shop], jwksUri: 'https://a.test/', outputPayloadToHeader: x-user}]}}\n";
    let of = |load: &Load| -> Vec<Content> {
        let authentications = load.documents.iter().filter_map(|document| match document {
            Document::Authentication(document) => Some(document.content.clone()),
            _ => None,
        });
        authentications.collect()
    };
    let mut watched = Watched::new();
    let first = of(&watched.sees(&[("a.yaml", sso)]));
    let load = watched.sees(&[("a.yaml", sso), ("b.yaml", sso)]);
    let headers = vec!["x-user".to_owned()];
    assert_eq!(of(&load), [first[0].clone(), Content::Unreadable { headers }]);
    assert!(load.bad["b.yaml"][0].contains("is defined already"));
    // a.yaml became b.yaml.
    let mut watched = Watched::new();
    watched.sees(&[("a.yaml", sso)]);
    let load = watched.sees(&[("b.yaml", sso)]);
    assert_eq!((of(&load), load.bad.len()), (first.clone(), 0));
    watched.passes(GONE_AFTER);
    let load = watched.sees(&[("b.yaml", sso)]);
    assert!(
        matches!(&of(&load)[..], [Content::Rules(_)]) && load.bad.is_empty(),
        "{load:?}"
    );
}

#[test]
fn a_name_twice_in_one_file_is_an_error_of_that_file() {
    let mut watched = Watched::new();
    let load = watched.sees(&[("a.yaml", &[CART, "---\n", CART].concat())]);
    assert_eq!(load.documents, []);
    let error = &load.bad["a.yaml"][0];
    assert!(
        error.starts_with("a.yaml:3:") && error.contains("is defined already, at a.yaml:1:"),
        "{error}"
    );
}

/// What came later stood last, until the next look sorted it in: proxies were sent policies that had not changed.
#[test]
fn the_order_of_what_is_in_force_does_not_depend_on_when_it_came() {
    let (a, b) = (policy("a", "ALLOW"), policy("b", "ALLOW"));
    let mut watched = Watched::new();
    watched.sees(&[("b.yaml", &b)]);
    let came = watched.sees(&[("a.yaml", &a), ("b.yaml", &b)]);
    let later = watched.sees(&[("a.yaml", &a), ("b.yaml", &b), ("c.yaml", CART)]);
    assert_eq!(policies(&came), policies(&later));
    let at_once = Watched::new().sees(&[("a.yaml", &a), ("b.yaml", &b), ("c.yaml", CART)]);
    assert_eq!(at_once.documents, later.documents);
}

#[test]
fn the_first_20_errors_of_a_file_are_told_and_the_rest_is_counted() {
    let text = |n: usize| {
        (0..n)
            .map(|i| format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{i}}}}}\n"))
            .collect::<String>()
    };
    let mut watched = Watched::new();
    assert_eq!(
        watched.sees(&[("a.yaml", &text(MAX_ERRORS))]).bad["a.yaml"].len(),
        MAX_ERRORS
    );
    let load = watched.sees(&[("a.yaml", &text(MAX_ERRORS + 1))]);
    let errors = &load.bad["a.yaml"];
    assert_eq!(
        (errors.len(), &*errors[MAX_ERRORS]),
        (MAX_ERRORS + 1, "a.yaml: and 1 more")
    );
}

#[test]
fn the_same_files_again_are_no_change() {
    let mut watched = Watched::new();
    assert!(watched.takes(scan_of(&[("a.yaml", CART), ("b.yaml", BROKEN)])));
    assert!(!watched.takes(scan_of(&[("a.yaml", CART), ("b.yaml", BROKEN)])));
}

fn door(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {spec}\n"
    )
}

/// Name, mode, and is it a stand-in?
fn doors(load: &Load) -> Vec<(&str, Option<MtlsMode>, bool)> {
    let doors = load.documents.iter().filter_map(|document| match document {
        Document::PeerAuthentication(door) => Some((door.name.as_str(), door.mode, door.unreadable)),
        _ => None,
    });
    doors.collect()
}

#[test]
fn of_a_file_that_never_was_good_no_document_takes_plaintext_and_one_that_nobody_understands_takes_none() {
    let good = [
        door("loose", "{mtls: {mode: PERMISSIVE}}"),
        door("strict", "{mtls: {mode: STRICT}}"),
        door(
            "mixed",
            "{selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: STRICT}}}",
        ),
    ]
    .concat();
    let mut watched = Watched::new();
    let broken = [good.clone(), door("broken", "{mtls: {mode: OFF}}")].concat();
    let load = watched.sees(&[("a.yaml", &broken)]);
    assert_eq!(
        doors(&load),
        [
            ("broken", Some(MtlsMode::Strict), true),
            ("mixed", None, false),
            ("strict", Some(MtlsMode::Strict), false)
        ]
    );
    assert!(
        load.bad["a.yaml"][0].contains("`OFF` is not one of STRICT"),
        "{:?}",
        load.bad
    );
    let load = watched.sees(&[("a.yaml", &good)]);
    let loose = Some(MtlsMode::Permissive);
    assert_eq!(doors(&load)[0], ("loose", loose, false));
    // It was good: what it said last stays.
    let load = watched.sees(&[("a.yaml", &broken)]);
    assert_eq!(doors(&load).len(), 3);
    assert_eq!(doors(&load)[0], ("loose", loose, false));
}

#[test]
fn of_two_documents_of_one_name_what_the_newcomer_has_that_is_strict_counts_and_nothing_else() {
    let mut watched = Watched::new();
    let first = door("door", "{mtls: {mode: PERMISSIVE}}");
    watched.sees(&[("a.yaml", &first)]);
    let loose = door("door", "{mtls: {mode: DISABLE}}");
    let load = watched.sees(&[("a.yaml", &first), ("b.yaml", &loose)]);
    assert_eq!(doors(&load), [("door", Some(MtlsMode::Permissive), false)]);
    assert!(load.bad["b.yaml"][0].contains("PeerAuthentication shop/door is defined already"));
    let strict = door("door", "{mtls: {mode: STRICT}}");
    let load = watched.sees(&[("a.yaml", &first), ("b.yaml", &strict)]);
    assert_eq!(doors(&load).len(), 2);
}
