//! PEM as pods get it: blocks alone, without their headers and without what stands between them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// Characters of a line, at most.
const LINE: usize = 64;

/// What the blocks of a text hold, in order, whatever they are called. What is no block is passed over.
pub fn blocks(text: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    // The label of the block that is being read, and what there is of it.
    let mut open: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim_end) {
        if let Some(label) = label(line, BEGIN) {
            open = Some((label, String::new()));
        } else if let Some((begun, held)) = &mut open {
            if line.starts_with(END) {
                let is_whole = label(line, END) == Some(begun);
                found.extend(STANDARD.decode(held.as_str()).ok().filter(|_| is_whole));
                open = None;
            } else if !line.contains(':') {
                held.push_str(line.trim());
            }
        }
    }
    found
}

fn label<'a>(line: &'a str, head: &str) -> Option<&'a str> {
    line.strip_prefix(head)?.strip_suffix(DASHES)
}

/// A block.
pub fn block(label: &str, held: &[u8]) -> String {
    let text = STANDARD.encode(held);
    let mut pem = format!("{BEGIN}{label}{DASHES}\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + END + label + DASHES + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 47, 48, 49, 96, 200] {
            let held: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let text = block("X Y", &held);
            assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
            assert_eq!(blocks(&text), [held], "{length}");
        }
    }

    #[test]
    fn only_blocks_are_read() {
        let (one, two) = (block("CERTIFICATE", b"one"), block("CERTIFICATE", b"two"));
        let headed = two.replacen('\n', "\nProc-Type: 4\nX: y\n\n", 1);
        let cases: [(String, &[&[u8]]); 7] = [
            (String::new(), &[]),
            (format!("{one}{two}"), &[b"one", b"two"]),
            (format!("said before\n{one}said between\n{headed}"), &[b"one", b"two"]),
            (one.replace('\n', "\r\n"), &[b"one"]),
            (format!("{}{two}", one.replace("END CERT", "END OTHER CERT")), &[b"two"]),
            (format!("{}{two}", block("CERTIFICATE", b"one").replace("b25l", "b*5l")), &[b"two"]),
            ("-----BEGIN CERTIFICATE-----\nb25l\n".to_owned(), &[]),
        ];
        for (text, held) in cases {
            assert_eq!(blocks(&text), held, "{text}");
        }
    }
}
