//! Frames of SPDY/3.1, as bytes and back. Nothing here reads or writes; see [`super::session`] for that.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

const VERSION: u16 = 3;
pub const FLAG_FIN: u8 = 1;
/// Largest block of headers, in bytes, once it is unpacked.
const MAX_HEADERS: usize = 64 << 10;
/// Bytes that either side may send on a stream before it hears that more are welcome.
pub const INITIAL_WINDOW: u32 = 64 << 10;
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub const SETTING_WINDOW: u32 = 7;

/// Words that every header block's compression starts from (SPDY/3, section 2.6.10.1).
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect \
    expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
    location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
    trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status";
const MORE_WORDS: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace().chain(MORE_WORDS) {
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TAIL.as_bytes());
    bytes
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpdyError {
    #[error("a frame of SPDY version {0}")]
    Version(u16),
    #[error("a malformed SPDY frame: {0}")]
    Malformed(&'static str),
    #[error("headers cannot be unpacked")]
    Compression,
}

pub type Headers = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    /// Pairs of a setting's number and value.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// Of a kind that we do not know, and may pass over.
    Other(u16),
}

/// Turns frames into bytes. One a connection: header blocks are compressed in one go.
pub struct Encoder(Compress);

impl Default for Encoder {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // It can only fail once something has been compressed.
        let _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }
}

impl Encoder {
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::Data { stream, fin, data } => {
                out.put_u32(stream & 0x7fff_ffff);
                put_length(out, fin_flag(*fin), data.len());
                out.put_slice(data);
            }
            Frame::SynStream { stream, fin, headers } => {
                let block = self.pack(headers)?;
                control(out, 1, fin_flag(*fin), 10 + block.len());
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } | Frame::Headers { stream, fin, headers } => {
                let block = self.pack(headers)?;
                let kind = if matches!(frame, Frame::SynReply { .. }) { 2 } else { 8 };
                control(out, kind, fin_flag(*fin), 4 + block.len());
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::RstStream { stream, status } => pair(out, 3, *stream, *status),
            Frame::Settings(settings) => {
                control(out, 4, 0, 4 + 8 * settings.len());
                out.put_u32(settings.len() as u32);
                for (number, value) in settings {
                    out.put_u32(number & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Frame::Ping(id) => {
                control(out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last, status } => pair(out, 7, *last, *status),
            Frame::WindowUpdate { stream, delta } => pair(out, 9, *stream, *delta),
            Frame::Other(_) => {}
        }
        Ok(())
    }

    fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name.to_ascii_lowercase(), value.clone()] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut packed = Vec::with_capacity(plain.len() + 64);
        let mut done = 0;
        loop {
            packed.reserve(256);
            let before = self.0.total_in();
            self.0
                .compress_vec(&plain[done..], &mut packed, FlushCompress::Sync)
                .map_err(|_| SpdyError::Compression)?;
            done += (self.0.total_in() - before) as usize;
            // Room that is left over says that all has come out.
            if done == plain.len() && packed.len() < packed.capacity() {
                return Ok(packed);
            }
        }
    }
}

fn fin_flag(fin: bool) -> u8 {
    if fin { FLAG_FIN } else { 0 }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_length(out, flags, length);
}

fn put_length(out: &mut BytesMut, flags: u8, length: usize) {
    out.put_u32((u32::from(flags) << 24) | (length as u32 & 0x00ff_ffff));
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, 0, 8);
    out.put_u32(first);
    out.put_u32(second);
}

/// Turns bytes into frames. One a connection.
pub struct Decoder(Decompress);

impl Default for Decoder {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Decoder {
    /// Takes the next whole frame out of `bytes`; none until it has all come.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        let Some(head) = bytes.first_chunk::<8>() else { return Ok(None) };
        let head = *head;
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if bytes.len() < 8 + length {
            return Ok(None);
        }
        bytes.advance(8);
        let mut body = bytes.split_to(length).freeze();
        let fin = head[4] & FLAG_FIN != 0;
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: first, fin, data: body }));
        }
        let version = (first >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        let need = |body: &Bytes, bytes: usize| {
            if body.len() < bytes { Err(SpdyError::Malformed("too short")) } else { Ok(()) }
        };
        let frame = match first as u16 {
            1 => {
                need(&body, 10)?;
                let stream = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                Frame::SynStream { stream, fin, headers: self.unpack(&body)? }
            }
            kind @ (2 | 8) => {
                need(&body, 4)?;
                let stream = body.get_u32() & 0x7fff_ffff;
                let headers = self.unpack(&body)?;
                if kind == 2 {
                    Frame::SynReply { stream, fin, headers }
                } else {
                    Frame::Headers { stream, fin, headers }
                }
            }
            3 => {
                need(&body, 8)?;
                Frame::RstStream { stream: body.get_u32() & 0x7fff_ffff, status: body.get_u32() }
            }
            4 => {
                need(&body, 4)?;
                let count = body.get_u32() as usize;
                need(&body, count.saturating_mul(8))?;
                Frame::Settings((0..count).map(|_| (body.get_u32() & 0x00ff_ffff, body.get_u32())).collect())
            }
            6 => {
                need(&body, 4)?;
                Frame::Ping(body.get_u32())
            }
            7 => {
                need(&body, 8)?;
                Frame::GoAway { last: body.get_u32() & 0x7fff_ffff, status: body.get_u32() }
            }
            9 => {
                need(&body, 8)?;
                Frame::WindowUpdate {
                    stream: body.get_u32() & 0x7fff_ffff,
                    delta: body.get_u32() & 0x7fff_ffff,
                }
            }
            other => Frame::Other(other),
        };
        Ok(Some(frame))
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Headers, SpdyError> {
        let mut plain = Vec::with_capacity(1024);
        let mut done = 0;
        while done < packed.len() || plain.len() == plain.capacity() {
            if plain.len() > MAX_HEADERS {
                return Err(SpdyError::Malformed("too many headers"));
            }
            plain.reserve(1024);
            let (read, written) = (self.0.total_in(), plain.len());
            match self.0.decompress_vec(&packed[done..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(SpdyError::Compression),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| SpdyError::Compression)?;
                }
                Err(_) => return Err(SpdyError::Compression),
            }
            let progress = (self.0.total_in() - read) as usize;
            done += progress;
            if progress == 0 && plain.len() == written && done < packed.len() && self.0.total_out() > 0 {
                return Err(SpdyError::Compression);
            }
            if progress == 0 && plain.len() == written && done == packed.len() {
                break;
            }
        }
        parse(&plain)
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, SpdyError> {
    fn text(from: &mut &[u8]) -> Result<String, SpdyError> {
        let length = number(from)?;
        let bytes = from.get(..length).ok_or(SpdyError::Malformed("headers too short"))?;
        *from = &from[length..];
        String::from_utf8(bytes.to_vec()).map_err(|_| SpdyError::Malformed("headers are not text"))
    }
    fn number(from: &mut &[u8]) -> Result<usize, SpdyError> {
        if from.len() < 4 {
            Err(SpdyError::Malformed("headers too short"))
        } else {
            Ok(from.get_u32() as usize)
        }
    }
    let count = number(&mut plain)?;
    if count > MAX_HEADERS / 8 {
        return Err(SpdyError::Malformed("too many headers"));
    }
    (0..count).map(|_| Ok((text(&mut plain)?, text(&mut plain)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_dictionary_is_the_published_one() {
        let dictionary = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary.len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let large = "v".repeat(20_000);
        let frames = [
            Frame::SynStream { stream: 1, fin: false, headers: headers(&[("streamtype", "error")]) },
            Frame::SynStream {
                stream: 3,
                fin: true,
                headers: headers(&[("streamtype", "stdin"), ("x", &large)]),
            },
            Frame::SynReply { stream: 1, fin: false, headers: headers(&[]) },
            Frame::Headers {
                stream: 3,
                fin: false,
                headers: headers(&[("a", "b"), ("streamtype", "error")]),
            },
            Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"hello") },
            Frame::Data { stream: 5, fin: false, data: Bytes::new() },
            Frame::RstStream { stream: 5, status: 3 },
            Frame::Settings(vec![(SETTING_WINDOW, 1 << 20), (4, 100)]),
            Frame::Ping(7),
            Frame::GoAway { last: 5, status: 0 },
            Frame::WindowUpdate { stream: 1, delta: 4096 },
        ];
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut wire = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame, &mut wire).unwrap();
        }
        // Byte by byte, as slowly as a network can.
        let mut arrived = BytesMut::new();
        let mut got = Vec::new();
        for byte in wire {
            arrived.put_u8(byte);
            while let Some(frame) = decoder.decode(&mut arrived).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, frames);
    }

    #[test]
    fn noise_is_refused_without_panic() {
        for seed in 0..200u32 {
            let noise: Vec<u8> = (0..64u32).map(|i| (i * seed + seed * seed / 3) as u8).collect();
            for kind in 0..12 {
                let mut bytes = BytesMut::new();
                control(&mut bytes, kind, 0, noise.len());
                bytes.put_slice(&noise);
                let _ = Decoder::default().decode(&mut bytes);
            }
        }
        let mut bytes = BytesMut::from(&[0x80, 2, 0, 1, 0, 0, 0, 0][..]);
        assert_eq!(Decoder::default().decode(&mut bytes), Err(SpdyError::Version(2)));
    }
}
