//! The text below the documents: YAML as far as it goes, and no further.

use postern_policy::document::{DocumentError, parse};

/// The limits of `document/yaml.rs`.
const MAX_TEXT: usize = 4 * 1024 * 1024;
const MAX_DEPTH: usize = 32;
const MAX_KEYS: usize = 1_000;

const HEAD: &str = "apiVersion: v1\nkind: K\nmetadata: {name: n}\n";

fn error(text: &str) -> DocumentError {
    let mut errors = parse("dir/f.yaml", text).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.remove(0)
}

#[test]
fn many_documents_are_read_in_order_and_empty_ones_skipped() {
    let text = format!("---\n# nothing\n---\n{HEAD}---\n\n---\n{HEAD}spec: {{a: 1}}\n...\n---\n");
    let objects = parse("f.yaml", &text).unwrap();
    let lines: Vec<_> = objects.iter().map(|object| object.place.line).collect();
    assert_eq!(lines, [4, 10]);
    assert!(objects[0].spec.is_none() && objects[1].spec.is_some());
    assert!(parse("f.yaml", "").unwrap().is_empty());
    assert!(parse("f.yaml", "# only this\n").unwrap().is_empty());
}

#[test]
fn one_bad_document_refuses_the_file_and_all_errors_are_told() {
    let text = format!("{HEAD}spek: 1\n---\n{HEAD}---\n{HEAD}metadata2: {{}}\n---\n- list\n");
    let errors: Vec<_> = parse("f.yaml", &text)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        errors,
        [
            "f.yaml:4:1: unknown field `spek`; did you mean `spec`?",
            "f.yaml:13:1: unknown field `metadata2`; did you mean `metadata`?",
            "f.yaml:15:1: must be a map, not a list",
        ]
    );
}

#[test]
fn what_is_not_yaml_is_refused_with_its_place() {
    for (text, line) in [
        ("a: [1, 2\n", 2),
        ("a: b: c\n", 1),
        ("a:\n\t- b\n", 2),
        ("a: 'unclosed\n", 2),
        ("a: }\n", 1),
        ("{", 1),
    ] {
        let error = error(text);
        assert!(error.what.starts_with("not YAML: "), "{text:?}: {error}");
        assert!(error.place.line.abs_diff(line) <= 1, "{text:?}: {error}");
        assert_eq!(&*error.place.file, "dir/f.yaml");
    }
}

#[test]
fn what_makes_two_readers_see_two_documents_is_refused() {
    let twice = error("apiVersion: v1\nkind: K\nmetadata: {name: n}\nkind: Other\n");
    assert_eq!(
        twice.to_string(),
        "dir/f.yaml:4:1: `kind` is given twice, first in line 2"
    );
    let alias = error("a: &x [1]\nb: *x\n");
    assert_eq!(alias.to_string(), "dir/f.yaml:2:4: aliases are not allowed");
    for key in ["? [a]\n: b\n", "{a: 1}: b\n", "? *x\n: b\n", "&k a: *k\n"] {
        parse("f.yaml", key).expect_err(key);
    }
    // A merge key is a field like any other, and unknown.
    let errors = parse("f.yaml", &format!("{HEAD}<<: {{kind: Other}}\n")).unwrap_err();
    assert!(errors[0].what.contains("unknown field `<<`"), "{errors:?}");
}

#[test]
fn a_billion_laughs_are_refused_at_the_first() {
    let mut text = "a0: &a0 [lol, lol]\n".to_owned();
    for i in 1..40 {
        text += &format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1);
    }
    assert_eq!(error(&text).what, "aliases are not allowed");
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| format!("{HEAD}spec: {}1{}\n", "[".repeat(depth), "]".repeat(depth));
    // `spec` itself is one deep.
    parse("f.yaml", &nested(MAX_DEPTH - 1)).unwrap();
    assert_eq!(error(&nested(MAX_DEPTH)).what, "nested deeper than 32");
    for open in ["[", "{a: ", "- ", "{? "] {
        parse("f.yaml", &open.repeat(100_000)).unwrap_err();
    }
}

#[test]
fn size_is_bounded() {
    let padded = |len: usize| format!("{HEAD}#{}\n", "x".repeat(len - HEAD.len() - 2));
    assert_eq!(padded(MAX_TEXT).len(), MAX_TEXT);
    assert_eq!(parse("f.yaml", &padded(MAX_TEXT)).unwrap().len(), 1);
    assert_eq!(
        error(&padded(MAX_TEXT + 1)).what,
        "the file is longer than 4194304 bytes"
    );
}

#[test]
fn the_keys_of_a_map_are_bounded() {
    let labels = |count: usize| {
        let lines: String = (0..count).map(|i| format!("    k{i}: v\n")).collect();
        format!("apiVersion: v1\nkind: K\nmetadata:\n  name: n\n  labels:\n{lines}")
    };
    assert_eq!(parse("f.yaml", &labels(MAX_KEYS)).unwrap()[0].labels.len(), MAX_KEYS);
    let error = error(&labels(MAX_KEYS + 1));
    assert_eq!(error.what, "a map with more than 1000 keys");
    assert_eq!(error.place.line as usize, 5 + MAX_KEYS + 1);
}

#[test]
fn text_is_what_is_quoted_and_what_is_nothing_else() {
    let text = |value: &str| {
        let text = format!("apiVersion: v1\nkind: K\nmetadata: {{name: {value}}}\n");
        parse("f.yaml", &text).map(|objects| objects[0].name.clone()).ok()
    };
    for (value, name) in [
        ("'1'", "1"),
        ("\"true\"", "true"),
        ("!!str 7", "7"),
        ("yes", "yes"),
        ("1.2.3", "1.2.3"),
        ("0x10", "0x10"),
        ("v1", "v1"),
    ] {
        assert_eq!(text(value).as_deref(), Some(name), "{value}");
    }
    for value in ["1", "-1", "1.5", "1e3", "true", "null", "~", "", "[a]", "{a: b}"] {
        assert_eq!(text(value), None, "{value}");
    }
}
