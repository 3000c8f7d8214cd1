use super::super::question::{MAX_QUESTION, Unreadable};
use super::super::*;

fn read(text: &str) -> Result<Question, String> {
    Question::read(text.as_bytes()).map_err(|error| crate::error_chain(&error))
}

#[test]
fn a_field_that_a_question_does_not_have_is_named_with_the_one_that_is_meant() {
    for (text, says) in [
        (
            r#"{"fromm": "plaintext"}"#,
            "unknown field `fromm`; did you mean `from`?",
        ),
        (
            r#"{"http": {"pth": "/"}}"#,
            "http: unknown field `pth`; did you mean `path`?",
        ),
        (r#"{"zzz": 1}"#, "unknown field `zzz`"),
        (r#"{"to": "shop/cart", "to": "shop/web"}"#, "duplicate field `to`"),
        (r#"{"port": "http"}"#, "invalid type: string \"http\", expected u16"),
        ("[]", "this is no object"),
        (r#"{"http": ["GET", "/"]}"#, "http: this is no object"),
        ("null", "invalid type: null"),
        ("", "EOF"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
    // Names of labels and claims are the asker's.
    let own = r#"{"toLabels": {"fromm": "x"}, "http": {"method": "GET", "path": "/", "claims": {"pth": 1}}}"#;
    assert!(read(own).is_ok());
}

#[test]
fn a_question_that_is_written_is_read_again() {
    let question = Question {
        from: "shop/web".to_owned(),
        to: "shop/cart".to_owned(),
        http: Some(Asked {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            headers: vec![("a".to_owned(), "b".to_owned())],
            claims: serde_json::json!({"sub": "ann"}).as_object().cloned(),
            ..Asked::default()
        }),
        source_ip: Some([10, 0, 0, 1].into()),
        now: Some(1),
        ..Question::default()
    };
    assert_eq!(read(&serde_json::to_string(&question).unwrap()), Ok(question));
}

#[test]
fn a_question_has_a_longest_length() {
    let long = |length: usize| format!("{{{}}}", " ".repeat(length - 2));
    assert!(read(&long(MAX_QUESTION)).is_ok());
    let error = Question::read(long(MAX_QUESTION + 1).as_bytes()).unwrap_err();
    assert!(matches!(error, Unreadable::TooLong { length } if length == MAX_QUESTION + 1));
}

#[test]
fn the_namespace_is_of_the_workload_that_is_called() {
    let of = |to: &str| {
        let question = Question {
            to: to.to_owned(),
            ..Question::default()
        };
        let namespace = question.called_namespace().map(str::to_owned);
        namespace.map_err(|error| error.to_string())
    };
    assert_eq!(of("shop/cart"), Ok("shop".to_owned()));
    assert_eq!(of("spiffe://cluster.local/ns/shop/sa/cart"), Ok("shop".to_owned()));
    for (to, says) in [
        ("cart", "--to: "),
        ("/cart", "no namespace's name"),
        ("Sho p/cart", "no namespace's name"),
        ("../cart", "no namespace's name"),
        ("shop?x=/cart", "no namespace's name"),
        ("spiffe://cluster.local/cart", "the identity has no namespace"),
    ] {
        let error = of(to).unwrap_err();
        assert!(error.contains(says), "{to}: {error}");
    }
    assert!(of(&format!("{}/cart", "a".repeat(63))).is_ok());
    assert!(of(&format!("{}/cart", "a".repeat(64))).is_err());
}

#[cfg(feature = "kubernetes")]
#[test]
fn a_hint_is_of_the_namespaces_that_the_asker_sees() {
    let all = [("bank", "vault"), ("shop", "cart")];
    let error = Unanswerable::undescribed("--from", ("bank", "vaul"), all.into_iter());
    assert!(error.to_string().contains("did you mean `bank/vault`?"), "{error}");
    assert!(!error.clone().seen_from(&["shop"]).to_string().contains("vault"));
    assert!(error.seen_from(&["shop", "bank"]).to_string().contains("vault"));
}
