//! YAML text to nodes. Aliases are refused: no document of ours needs them, and they are how small texts grow large.

use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::{DocumentError, Node, Place, Value};
use crate::turns;

/// A policy file past this is a mistake.
const MAX_TEXT: usize = 4 * 1024 * 1024;
/// Our deepest kind nests 9 deep.
pub(super) const MAX_DEPTH: usize = 32;
/// Each key is compared with those before it, and an unknown one with all known ones. Ours have a dozen, a workload's labels
/// a few dozen.
pub(super) const MAX_KEYS: usize = 1_000;

pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Node>, DocumentError> {
    let mut reader = Reader {
        file: file.into(),
        parser: Parser::new_from_str(text),
    };
    if text.len() > MAX_TEXT {
        return Err(reader.error(1, 1, format!("the file is longer than {MAX_TEXT} bytes")));
    }
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            event @ (Event::Scalar(..)
            | Event::Alias(_)
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd) => documents.push(reader.node(event, span, 0)?),
        }
    }
    Ok(documents)
}

struct Reader<'t> {
    file: Arc<str>,
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, DocumentError> {
        turns::next();
        match self.parser.next() {
            None => Ok(None),
            Some(Ok(next)) => Ok(Some(next)),
            Some(Err(error)) => {
                let at = error.marker();
                Err(self.error(at.line(), at.col() + 1, format!("not YAML: {}", error.info())))
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, DocumentError> {
        let place = self.place(span.start.line(), span.start.col() + 1);
        if depth > MAX_DEPTH {
            return Err(self.error_at(place, format!("nested deeper than {MAX_DEPTH}")));
        }
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, _, None) => plain(&text),
            Event::Scalar(text, _, _, _) => Value::Text(text.into_owned()),
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(..) => self.map(depth)?,
            Event::Alias(_) => return Err(self.error_at(place, "aliases are not allowed".to_owned())),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(self.error_at(place, "a value is missing here".to_owned())),
        };
        Ok(Node { place, value })
    }

    fn list(&mut self, depth: usize) -> Result<Value, DocumentError> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, span, depth + 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, depth: usize) -> Result<Value, DocumentError> {
        let mut entries: Vec<(String, Place, Node)> = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::MappingEnd {
                break;
            }
            let place = self.place(span.start.line(), span.start.col() + 1);
            let Event::Scalar(key, ..) = event else {
                return Err(self.error_at(place, "a key must be plain text".to_owned()));
            };
            if entries.len() == MAX_KEYS {
                return Err(self.error_at(place, format!("a map with more than {MAX_KEYS} keys")));
            }
            if let Some((_, first, _)) = entries.iter().find(|(known, _, _)| *known == key) {
                let what = format!("`{key}` is given twice, first in line {}", first.line);
                return Err(self.error_at(place, what));
            }
            let Some((event, span)) = self.next()? else {
                return Err(self.error_at(place, format!("`{key}` has no value")));
            };
            let value = self.node(event, span, depth + 1)?;
            entries.push((key.into_owned(), place, value));
        }
        Ok(Value::Map(entries))
    }

    fn place(&self, line: usize, column: usize) -> Place {
        let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
        Place {
            file: Arc::clone(&self.file),
            line: number(line),
            column: number(column),
        }
    }

    fn error(&self, line: usize, column: usize, what: String) -> DocumentError {
        self.error_at(self.place(line, column), what)
    }

    fn error_at(&self, place: Place, what: String) -> DocumentError {
        DocumentError {
            place,
            path: String::new(),
            what,
            nearest: None,
        }
    }
}

/// YAML 1.2 core schema (section 10.3.2).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => {
            let number = text
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'));
            if let (true, Ok(int)) = (number, text.parse::<i64>()) {
                Value::Int(int)
            } else if let (true, Ok(float)) = (number, text.parse::<f64>()) {
                Value::Float(float)
            } else {
                Value::Text(text.to_owned())
            }
        }
    }
}
