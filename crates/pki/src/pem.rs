//! PEM as upstream reads it (Go's `encoding/pem`): what is between the blocks is passed over, and so is what begins
//! like a block and is none. And as it writes it: blocks alone, without headers.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

const BEGIN: &[u8] = b"\n-----BEGIN ";
const END: &[u8] = b"\n-----END ";
const DASHES: &[u8] = b"-----";
/// Characters of a line that is written, at most.
const LINE: usize = 64;

/// Go does not mind bits behind the last byte.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// One block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// What it says to be: `CERTIFICATE`.
    pub kind: String,
    pub has_headers: bool,
    pub bytes: Vec<u8>,
}

/// The blocks of a text, in their order.
pub fn blocks(text: &str) -> Blocks<'_> {
    Blocks { rest: text.as_bytes() }
}

pub struct Blocks<'a> {
    rest: &'a [u8],
}

impl Iterator for Blocks<'_> {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        loop {
            // The first line of all has no line break before it.
            self.rest = match self.rest.strip_prefix(BEGIN.trim_ascii_start()) {
                Some(after) => after,
                None => cut(self.rest, BEGIN)?.1,
            };
            let (kind, after) = line(self.rest);
            self.rest = after;
            let Some(kind) = kind.strip_suffix(DASHES) else { continue };
            match body(kind, after) {
                Body::Block(block, after) => {
                    self.rest = after;
                    return Some(block);
                }
                Body::None(after) => self.rest = after,
                Body::End => return None,
            }
        }
    }
}

/// What comes behind the first line of a block.
enum Body<'a> {
    Block(Block, &'a [u8]),
    /// It is no block: where to look on.
    None(&'a [u8]),
    End,
}

fn body<'a>(kind: &[u8], mut rest: &'a [u8]) -> Body<'a> {
    let mut has_headers = false;
    loop {
        if rest.is_empty() {
            return Body::End;
        }
        let (header, after) = line(rest);
        if !header.contains(&b':') {
            break;
        }
        has_headers = true;
        rest = after;
    }
    // Of an empty block the end may follow at once.
    let at_once = rest.strip_prefix(END.trim_ascii_start()).filter(|_| !has_headers);
    let Some((data, trailer)) = at_once.map(|after| (&rest[..0], after)).or_else(|| cut(rest, END)) else {
        return Body::None(rest);
    };
    let ended = trailer.strip_prefix(kind).and_then(|after| after.strip_prefix(DASHES));
    let Some((remains, after)) = ended.map(line) else { return Body::None(rest) };
    if !remains.is_empty() {
        return Body::None(rest);
    }
    let data: Vec<u8> = data.iter().copied().filter(|c| !b" \t\r\n".contains(c)).collect();
    let Ok(bytes) = BASE64.decode(data) else { return Body::None(rest) };
    Body::Block(Block { kind: String::from_utf8_lossy(kind).into_owned(), has_headers, bytes }, after)
}

/// A line without the spaces at its end, and what follows it.
fn line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = cut(text, b"\n").unwrap_or((text, &[]));
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let spaces = line.iter().rev().take_while(|c| b" \t".contains(c)).count();
    (line.get(..line.len() - spaces).unwrap_or_default(), rest)
}

fn cut<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memchr::memmem::find(text, mark)?;
    Some((text.get(..at)?, text.get(at + mark.len()..)?))
}

/// A block as it is written.
pub fn block(kind: &str, bytes: &[u8]) -> String {
    let text = BASE64.encode(bytes);
    let mut pem = format!("-----BEGIN {kind}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + "-----END " + kind + "-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, bool, Vec<u8>)> {
        blocks(text).map(|block| (block.kind, block.has_headers, block.bytes)).collect()
    }

    fn held(kind: &str, has_headers: bool, bytes: &[u8]) -> (String, bool, Vec<u8>) {
        (kind.to_owned(), has_headers, bytes.to_vec())
    }

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 47, 48, 49, 96, 200] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let text = block("X Y", &bytes);
            assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
            assert_eq!(read(&text), [held("X Y", false, &bytes)], "{length}");
        }
    }

    #[test]
    fn blocks_are_read_wherever_they_are() {
        let text = "words\n-----BEGIN A-----\r\nYWJj\r\n-----END A-----  \nmore words\n-----BEGIN B C-----\nK: v\n\n\
                    YW Jj\nZGVm\n-----END B C-----\n-----BEGIN D-----\n-----END D-----";
        assert_eq!(
            read(text),
            [held("A", false, b"abc"), held("B C", true, b"abcdef"), held("D", false, b"")]
        );
    }

    #[test]
    fn what_is_no_block_is_passed_over() {
        for (text, found) in [
            ("", 0),
            ("-----BEGIN A-----", 0),
            ("-----BEGIN A-----\nYWJj\n-----END B-----\n", 0),
            ("-----BEGIN A-----\n?\n-----END A-----\n-----BEGIN A-----\nYWJj\n-----END A-----\n", 1),
            ("-----BEGIN A----\n-----BEGIN A-----\nYWJj\n-----END A-----\n", 1),
            ("-----BEGIN A-----\nYWJj\n-----END A-----x\n", 0),
            ("x-----BEGIN A-----\nYWJj\n-----END A-----\n", 0),
        ] {
            assert_eq!(read(text).len(), found, "{text:?}");
        }
    }
}
