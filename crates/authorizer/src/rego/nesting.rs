//! How deep a policy nests, before anything parses it. regorus reads what stands in `[` and `{` twice, as a comprehension and then as
//! a collection, and up to twice more behind a `|`: so what nests n deep is read 2^n to 4^n times, be it well formed or not. And it
//! recurs: over brackets, signs and the trees that operators and references build, for which a worker has a stack of 1 MiB.

use super::RegoError;

/// Readings of a byte, all in all: a Mi takes a second at most. A rule's body with a list in it is read 4 times by this count.
const MAX_READINGS: u64 = 1 << 20;
/// Brackets of all kinds, one in the other.
const MAX_DEPTH: usize = 64;
/// Operators, dots and brackets of one expression, and of what stands in its brackets: the height of its tree.
const MAX_HEIGHT: usize = 256;
/// Signs before one operand.
const MAX_SIGNS: usize = 8;

pub(super) fn check<'m>(modules: impl Iterator<Item = (&'m String, &'m String)>) -> Result<(), RegoError> {
    let mut readings = 0;
    for (name, text) in modules {
        Scan::of(text, &mut readings).map_err(|(place, message)| RegoError {
            module: Some(name.clone()),
            place: Some(place),
            message,
        })?;
    }
    Ok(())
}

/// What is open, or the module itself.
struct Frame {
    /// How often what stands in it is read.
    times: u64,
    /// Of the expression at hand.
    operators: usize,
    /// Of the tallest bracket in that.
    height: usize,
    /// Of the tallest expression before it.
    tallest: usize,
}

impl Frame {
    fn new(times: u64) -> Self {
        Self {
            times,
            operators: 0,
            height: 0,
            tallest: 0,
        }
    }

    fn total(&self) -> usize {
        self.tallest.max(self.operators + self.height)
    }

    /// Another expression begins.
    fn next(&mut self) {
        *self = Self {
            tallest: self.total(),
            ..Self::new(self.times)
        };
    }
}

type Fault = ((u32, u32), String);

struct Scan {
    open: Vec<Frame>,
    outermost: Frame,
    /// The product of all that is open.
    times: u64,
    signs: usize,
    after_operator: bool,
    new_line: bool,
}

impl Scan {
    /// Brackets in strings and comments are none. Where a string does not end regorus stops reading, too.
    fn of(text: &str, readings: &mut u64) -> Result<(), Fault> {
        let mut scan = Self {
            open: Vec::new(),
            outermost: Frame::new(1),
            times: 1,
            signs: 0,
            after_operator: false,
            new_line: true,
        };
        let (mut line, mut column) = (1, 0);
        let mut inside: Option<u8> = None;
        let (mut escaped, mut word) = (false, String::new());
        for byte in text.bytes().chain([b'\n']) {
            column += 1;
            match (inside, byte) {
                (Some(b'#'), b'\n') | (Some(b'`'), b'`') => inside = None,
                // No string of this kind goes over its line.
                (Some(b'"'), b'\n') => (inside, escaped) = (None, false),
                (Some(b'"'), _) if escaped => escaped = false,
                (Some(b'"'), b'\\') => escaped = true,
                (Some(b'"'), b'"') => inside = None,
                (Some(_), _) => {}
                (None, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80..) => word.push(char::from(byte)),
                (None, _) => {
                    scan.word(&std::mem::take(&mut word));
                    match byte {
                        b'#' => inside = Some(byte),
                        b'`' | b'"' => {
                            scan.operand();
                            inside = Some(byte);
                        }
                        _ => scan.symbol(byte),
                    }
                }
            }
            *readings = readings.saturating_add(scan.times);
            if let Some(what) = scan.fault(*readings) {
                let message = format!(
                    "{what} here, so that reading it would take too long or too much; name the inner parts in rules of their own, \
                     or move them to `data`"
                );
                return Err(((line, column), message));
            }
            if byte == b'\n' {
                (line, column) = (line + 1, 0);
                scan.new_line = true;
            }
        }
        Ok(())
    }

    fn fault(&self, readings: u64) -> Option<String> {
        let depth = self.open.len();
        if readings > MAX_READINGS || depth > MAX_DEPTH {
            return Some(format!("brackets nest {depth} deep"));
        }
        if self.signs > MAX_SIGNS {
            return Some(format!("{} signs stand before one operand", self.signs));
        }
        let height = self.open.last().unwrap_or(&self.outermost).total();
        (height > MAX_HEIGHT)
            .then(|| format!("an expression has {height} operators, dots and brackets, one in the other"))
    }

    fn frame(&mut self) -> &mut Frame {
        self.open.last_mut().unwrap_or(&mut self.outermost)
    }

    fn word(&mut self, word: &str) {
        match word {
            "" => {}
            "in" => self.operator(),
            _ => self.operand(),
        }
    }

    /// Two operands in a row are two expressions, of which the second stands on a line of its own.
    fn operand(&mut self) {
        if self.new_line && !self.after_operator {
            self.frame().next();
        }
        (self.signs, self.after_operator, self.new_line) = (0, false, false);
    }

    fn operator(&mut self) {
        self.frame().operators += 1;
        (self.after_operator, self.new_line) = (true, false);
    }

    fn symbol(&mut self, byte: u8) {
        match byte {
            b'-' => {
                self.operator();
                self.signs += 1;
            }
            b'|' => {
                self.operator();
                let frame = self.frame();
                if frame.times == 2 {
                    frame.times = 4;
                    self.times *= 2;
                }
                self.signs = 0;
            }
            b'+' | b'*' | b'/' | b'%' | b'&' | b'=' | b'<' | b'>' | b'!' | b':' | b'.' => {
                self.operator();
                self.signs = 0;
            }
            b',' | b';' => {
                self.frame().next();
                (self.signs, self.after_operator) = (0, true);
            }
            b'[' | b'{' | b'(' => {
                // An index, a call or a part: a level of the tree in either case, on a new line as well.
                self.frame().operators += 1;
                let times = if byte == b'(' { 1 } else { 2 };
                self.open.push(Frame::new(times));
                self.times = self.times.saturating_mul(times);
                (self.signs, self.after_operator, self.new_line) = (0, true, false);
            }
            b']' | b'}' | b')' => {
                if let Some(closed) = self.open.pop() {
                    self.times /= closed.times;
                    let frame = self.frame();
                    frame.height = frame.height.max(closed.total());
                }
                (self.signs, self.after_operator, self.new_line) = (0, false, false);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rego::{RegoPolicy, Source};

    fn checked(text: &str) -> Result<(), RegoError> {
        check(std::iter::once((&"a.rego".to_owned(), &text.to_owned())))
    }

    /// A value of which a part is written `n` times.
    fn of(begin: &str, n: usize, end: &str) -> String {
        format!(
            "package envoy.authz\nallow := x if {{\n  x := {}1{}\n}}\n",
            begin.repeat(n),
            end.repeat(n)
        )
    }

    const NESTED: [(&str, &str); 9] = [
        ("[", "]"),
        ("{", "}"),
        ("{\"a\": ", "}"),
        ("count([", "])"),
        ("(", ")"),
        ("[1|", ",1]"),
        ("{1|", ", 1}"),
        ("{0: 1|", ", 1: 1}"),
        ("{1|", ": 1}"),
    ];
    const LONG: [(&str, &str); 11] = [
        ("-", ""),
        ("- # sign\n", ""),
        ("1 + ", ""),
        ("1 |\n", ""),
        ("", "\n+ 1"),
        ("1 in ", ""),
        ("", "\nin y"),
        ("", ".y"),
        ("", "\n[0]"),
        ("1 + (1\n) + ", ""),
        ("(1 + ", ")"),
    ];

    #[test]
    fn what_would_be_read_again_and_again_is_refused_with_its_place() {
        for (open, close) in NESTED {
            for close in [close, ""] {
                let error = checked(&of(open, 80, close)).unwrap_err();
                let (line, column) = error.place.unwrap();
                assert!(line == 3 && column > 10, "{error:?}");
                assert!(error.message.contains("deep here"), "{error:?}");
            }
        }
        // Wide as well as deep.
        let wide = format!(
            "package a\nx := {}{}{}\n",
            "[".repeat(10),
            "1, ".repeat(2_000),
            "]".repeat(10)
        );
        assert!(checked(&wide).is_err());
    }

    #[test]
    fn trees_that_grow_without_brackets_are_bounded_as_well() {
        for (begin, end) in LONG {
            let text = of(begin, 20_000, end);
            let error = checked(&text).unwrap_err();
            assert!(error.place.is_some(), "{begin:?} {end:?}: {error:?}");
        }
    }

    /// The most of each kind that passes is read soon, and on a worker's stack.
    #[test]
    fn what_passes_is_read_on_a_small_stack() {
        let read = || {
            for (begin, end) in NESTED.into_iter().chain(LONG) {
                let most = (1..300).rev().find(|n| checked(&of(begin, *n, end)).is_ok()).unwrap();
                let source = Source {
                    modules: [("a.rego".to_owned(), of(begin, most, end))].into(),
                    ..Source::default()
                };
                // Some are no Rego; none takes the process with it.
                let began = std::time::Instant::now();
                let loaded = RegoPolicy::load(&source).map(|policy| policy.evaluator());
                println!("{begin:?} {most}: {} in {:?}", loaded.is_ok(), began.elapsed());
            }
        };
        std::thread::Builder::new()
            .stack_size(1 << 20)
            .spawn(read)
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn what_people_write_is_read() {
        let rule = "allow if {\n  some x in input.list  # [ in a comment {\n  x.y == [{\"a\": [1, {\"b\": {2, 3}}]}]\n  \
                    regex.match(`^[a-z{]+$`, x.z)\n  x.s != \"[[\\\"[[\"\n  y := x.a + x.b - -1\n  count({z | some z in y}) > 1\n}\n";
        let policy = format!("package a\n{}", rule.repeat(800));
        assert!(policy.len() > 100_000);
        checked(&policy).unwrap();
        let table = format!(
            "package a\nx := {{\n{}}}\n",
            "  \"a.b\": [1.5, {\"c\": -2}],\n".repeat(3_000)
        );
        checked(&table).unwrap();
        // Brackets that close nothing, and strings that end with their line.
        checked("package a\n]}))\nx := \"[[[[\ny := [1]\n").unwrap();
    }
}
