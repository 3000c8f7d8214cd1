//! A text that cannot be read as a whole, document by document.

use postern_policy::document::{Node, Object, Value, parse};

/// The objects of those documents that hold, each at the line where it stands in the file.
pub(super) fn objects(name: &str, text: &str) -> Vec<Object> {
    let pieces = split(text).into_iter();
    let read = pieces.filter_map(|(line, piece)| Some((line, parse(name, piece).ok()?)));
    read.flat_map(|(line, objects)| objects.into_iter().map(move |object| moved(object, line)))
        .collect()
}

/// Each document, and how many lines stand before it. Three dashes begin one wherever a line begins with them (YAML 1.2.2, 9.1.2).
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut pieces = Vec::new();
    let (mut begin, mut begin_line, mut at) = (0, 0, 0);
    for (line, content) in (0..).zip(text.split_inclusive('\n')) {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            pieces.push((begin_line, &text[begin..at]));
            (begin, begin_line) = (at, line);
        }
        at += content.len();
    }
    pieces.push((begin_line, &text[begin..]));
    pieces
}

fn moved(mut object: Object, lines: u32) -> Object {
    object.place.line += lines;
    if let Some(spec) = &mut object.spec {
        shift(spec, lines);
    }
    object
}

fn shift(node: &mut Node, lines: u32) {
    node.place.line += lines;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        Value::Map(entries) => {
            for (_, place, value) in entries {
                place.line += lines;
                shift(value, lines);
            }
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => {}
    }
}
