//! Columns for a terminal.

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows under headings; each column as wide as its widest cell, the last one unpadded.
pub(super) fn columns(headings: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        let heading = headings.get(column).map_or(0, |(heading, _)| heading.chars().count());
        cells.max().unwrap_or(0).max(heading)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.into_iter().zip(&widths).zip(headings) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}")),
                Align::Right => line.push_str(&format!("{cell:>width$}")),
            }
        }
        let mut line = line.trim_end().to_owned();
        line.push('\n');
        line
    };
    let mut text = line(headings.iter().map(|(heading, _)| *heading).collect());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Wraps at spaces to `width`, each line indented.
pub(crate) fn wrap(text: &str, indent: usize, width: usize) -> String {
    let mut wrapped = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > width {
            wrapped.push_str(&format!("{:indent$}{line}\n", ""));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    wrapped.push_str(&format!("{:indent$}{line}\n", ""));
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = vec![vec!["a".to_owned(), "1000".to_owned(), "x".to_owned()]];
        let text = columns(
            &[("NAME", Align::Left), ("N", Align::Right), ("LAST", Align::Left)],
            &rows,
        );
        assert_eq!(text, "NAME     N  LAST\na     1000  x\n");
    }

    #[test]
    fn text_is_wrapped_at_spaces_and_long_words_stay_whole() {
        assert_eq!(wrap("a bb ccc", 2, 6), "  a bb\n  ccc\n");
        assert_eq!(wrap("abcdefghij k", 0, 4), "abcdefghij\nk\n");
    }
}
