//! Where in its text an expression is wrong, shown as cel-go shows it.

/// The most faults that are told.
const MOST: usize = 100;
/// The longest line that is shown, in bytes.
const LONGEST_LINE: usize = 16_384;

/// All faults of an expression, in the order of their places; `start` tells where a part starts, in bytes.
pub fn all(source: &str, faults: &[(u64, String)], start: impl Fn(u64) -> usize) -> String {
    let mut placed: Vec<_> = faults
        .iter()
        .take(MOST)
        .map(|(id, message)| (line_and_column(source, start(*id)), message.as_str()))
        .collect();
    placed.sort_by_key(|(place, _)| *place);
    let mut shown: Vec<String> =
        placed.into_iter().map(|(place, message)| self::shown(source, place, message)).collect();
    if faults.len() > MOST {
        shown.push(format!("{} more errors were truncated", faults.len() - MOST));
    }
    shown.join("\n")
}

/// A fault with its line and a pointer to its column, both counted from one. Under wide characters stand wide dots.
pub fn shown(source: &str, (line, column): (isize, isize), message: &str) -> String {
    let out = format!("ERROR: <input>:{line}:{column}: {message}");
    let text = usize::try_from(line - 1).ok().and_then(|i| source.split('\n').nth(i));
    let Some(text) = text.filter(|text| text.len() <= LONGEST_LINE) else { return out };
    let before = usize::try_from(column - 1).unwrap_or(0);
    let mut pointer: String =
        text.chars().take(before).map(|c| if c.is_ascii() { '.' } else { '\u{ff0e}' }).collect();
    pointer.push(if text.chars().nth(before).is_none_or(|c| c.is_ascii()) { '^' } else { '\u{ff3e}' });
    format!("{out}\n | {}\n | {pointer}", text.replace('\t', " "))
}

/// Where a place in a text is, counted from one.
fn line_and_column(source: &str, at: usize) -> (isize, isize) {
    let before = &source[..source.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line as isize, column as isize)
}
