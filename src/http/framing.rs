//! Where requests end, read strictly from the bytes of a connection.
//!
//! hyper repairs what others may read differently: it drops a `Content-Length` beside
//! `Transfer-Encoding`, one of two that are equal, and codings before the last. Behind a proxy that
//! reads the other one, that is how a second request is smuggled in. What hyper dropped cannot be
//! seen in a request, so the bytes are looked at on their way in. Where a head is ambiguous, its
//! last byte is replaced by one that no head may have, and the connection ends there: hyper then
//! answers 400 and closes.
//!
//! Whatever hyper takes for the end of a request has to be one here as well, else a head would be
//! missed. So everything that is read here is read at least as strictly, and what is not
//! understood ends the connection.

/// Of each line so much is looked at; longer ones with a name that counts are refused.
const LINE: usize = 48;
/// Stands nowhere in a head, nor in the size of a chunk.
const POISON: u8 = 0;
/// More digits may not fit.
const DIGITS: usize = 18;

/// Where the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A line of the head.
    Head,
    /// A body or chunk with so many bytes to come; a chunk ends in an empty line.
    Data {
        left: u64,
        is_chunk: bool,
    },
    /// The two bytes after a chunk.
    ChunkCr,
    ChunkLf,
    /// The size of a chunk, of which so many digits were read.
    Size {
        size: u64,
        digits: usize,
    },
    /// What follows the size and means nothing.
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    /// A line after the last chunk: at its beginning, within, and at its end.
    Trailer,
    TrailerRest,
    TrailerLf,
    EndLf,
    /// It was not understood.
    Lost,
}

/// Reads along.
#[derive(Debug)]
pub(super) struct Framing {
    place: Place,
    line: [u8; LINE],
    /// Bytes of the line so far, also those that were not kept.
    length: usize,
    /// Lines of this head that say something, the first one included.
    began: bool,
    /// What the head said.
    body: Option<Body>,
    /// Heads that are whole.
    heads: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Sized(u64),
    Chunked,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { place: Place::Head, line: [0; LINE], length: 0, began: false, body: None, heads: 0 }
    }

    /// Was something refused? Then nothing more counts.
    pub(super) fn is_lost(&self) -> bool {
        self.place == Place::Lost
    }

    /// Is there more than the heads of so many requests?
    pub(super) fn has_more_than(&self, requests: u64) -> bool {
        self.heads != requests || self.began || self.is_lost()
    }

    /// What is passed on after the last byte, once. hyper looks at a head that came in parts again
    /// when it seems whole; a chunk has to stay as it is.
    pub(super) fn last_words(&mut self) -> &'static [u8] {
        if self.is_lost() && std::mem::take(&mut self.began) { b"\r\n\r\n" } else { b"" }
    }

    /// Looks at bytes that arrived; answers how many of them may be passed on. If that is not all,
    /// the last of them was replaced.
    pub(super) fn look(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if let Place::Data { left, is_chunk } = self.place {
                let rest = (bytes.len() - at) as u64;
                let taken = left.min(rest);
                at += usize::try_from(taken).unwrap_or(bytes.len());
                self.place = match (left - taken, is_chunk) {
                    (0, true) => Place::ChunkCr,
                    (0, false) => Place::Head,
                    (left, is_chunk) => Place::Data { left, is_chunk },
                };
                continue;
            }
            self.place = if self.place == Place::Head {
                self.head(bytes[at])
            } else {
                chunked(self.place, bytes[at])
            };
            if self.place == Place::Lost {
                bytes[at] = POISON;
                return at + 1;
            }
            at += 1;
        }
        at
    }

    fn head(&mut self, byte: u8) -> Place {
        if byte != b'\n' {
            if let Some(kept) = self.line.get_mut(self.length) {
                *kept = byte;
            }
            self.length += 1;
            return Place::Head;
        }
        let length = std::mem::take(&mut self.length);
        let line = &self.line[..length.min(LINE)];
        if line.is_empty() || (line == b"\r" && length == 1) {
            // Empty lines before a head are none of its.
            if !std::mem::take(&mut self.began) {
                return Place::Head;
            }
            self.heads += 1;
            return match self.body.take() {
                None | Some(Body::Sized(0)) => Place::Head,
                Some(Body::Sized(left)) => Place::Data { left, is_chunk: false },
                Some(Body::Chunked) => Place::Size { size: 0, digits: 0 },
            };
        }
        if !std::mem::replace(&mut self.began, true) {
            return Place::Head;
        }
        let body = match says(line, length > LINE) {
            Says::Nothing => return Place::Head,
            Says::Ambiguous => return Place::Lost,
            Says::This(body) => body,
        };
        match self.body.replace(body) {
            None => Place::Head,
            Some(_) => Place::Lost,
        }
    }
}

/// What a line of a head says of the body.
enum Says {
    Nothing,
    This(Body),
    Ambiguous,
}

fn says(line: &[u8], is_cut: bool) -> Says {
    // Names that end in blanks, and lines that begin with them, are refused by hyper; here they
    // count as what somebody may take them for.
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
    let value = line.get(line.len().min(name.len() + 1)..).unwrap_or_default();
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
    let (sized, coded) = (is("content-length"), is("transfer-encoding"));
    if !sized && !coded {
        return Says::Nothing;
    }
    let exact = line.get(name.len()) == Some(&b':');
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    let value = &value[start..end];
    if is_cut || !exact {
        return Says::Ambiguous;
    }
    if coded {
        let plain = value.eq_ignore_ascii_case(b"chunked");
        return if plain { Says::This(Body::Chunked) } else { Says::Ambiguous };
    }
    // One more digit than always fits: 1 followed by 18 others is within 64 bits.
    if value.is_empty() || value.len() > DIGITS + 1 || !value.iter().all(u8::is_ascii_digit) {
        return Says::Ambiguous;
    }
    let number = value.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    Says::This(Body::Sized(number))
}

fn chunked(place: Place, byte: u8) -> Place {
    match (place, byte) {
        (Place::Size { size, digits }, byte) => sized(size, digits, byte),
        (Place::Extension { size }, b'\r') => Place::SizeLf { size },
        (Place::Extension { .. }, b'\n') => Place::Lost,
        (Place::Extension { size }, _) => Place::Extension { size },
        (Place::SizeLf { size: 0 }, b'\n') => Place::Trailer,
        (Place::SizeLf { size }, b'\n') => Place::Data { left: size, is_chunk: true },
        (Place::ChunkCr, b'\r') => Place::ChunkLf,
        (Place::ChunkLf, b'\n') => Place::Size { size: 0, digits: 0 },
        (Place::Trailer, b'\r') => Place::EndLf,
        (Place::TrailerRest, b'\r') => Place::TrailerLf,
        (Place::Trailer | Place::TrailerRest, b'\n') => Place::Lost,
        (Place::Trailer | Place::TrailerRest, _) => Place::TrailerRest,
        (Place::TrailerLf, b'\n') => Place::Trailer,
        (Place::EndLf, b'\n') => Place::Head,
        (
            Place::Head
            | Place::Data { .. }
            | Place::ChunkCr
            | Place::ChunkLf
            | Place::SizeLf { .. }
            | Place::TrailerLf
            | Place::EndLf
            | Place::Lost,
            _,
        ) => Place::Lost,
    }
}

fn sized(size: u64, digits: usize, byte: u8) -> Place {
    match (char::from(byte).to_digit(16), byte) {
        // Zeros in front count as well: nobody needs so many.
        (Some(digit), _) if digits < 16 => match size.checked_mul(16) {
            Some(size) => Place::Size { size: size + u64::from(digit), digits: digits + 1 },
            None => Place::Lost,
        },
        (None, b'\r') if digits > 0 => Place::SizeLf { size },
        (None, b';') if digits > 0 => Place::Extension { size },
        // Blanks before an extension are allowed (RFC 9112, 7.1.1), and nobody sends them.
        (Some(_) | None, _) => Place::Lost,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use http_body_util::BodyExt;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Reads bytes in parts of so many; answers how many were passed on, and where it stands.
    fn read(bytes: &[u8], part: usize) -> (usize, Place) {
        let mut framing = Framing::new();
        let mut passed = 0;
        for part in bytes.to_vec().chunks_mut(part) {
            passed += framing.look(part);
            if framing.is_lost() {
                break;
            }
        }
        (passed, framing.place)
    }

    fn head(lines: &str) -> Vec<u8> {
        format!("PUT /v1/keys/a HTTP/1.1\r\nHost: x\r\n{lines}\r\n").into_bytes()
    }

    #[test]
    fn requests_end_where_they_say_however_they_arrive() {
        let chunks = "5\r\nhello\r\n0a;x=1\r\n0123456789\r\n0\r\nX: 1\r\nY: 2\r\n\r\n";
        let whole = [
            head("Content-Length: 5\r\n"),
            b"hello\r\n\r\n".to_vec(),
            head("content-length:\t0 \r\n"),
            head("Transfer-Encoding: Chunked\r\n"),
            chunks.into(),
            b"GET / HTTP/1.1\nHost: x\n\n".to_vec(),
            head("Transfer-Encodings: gzip\r\nX-Content-Length: 5\r\n"),
        ]
        .concat();
        for part in 1..whole.len() {
            assert_eq!(read(&whole, part), (whole.len(), Place::Head), "in parts of {part}");
        }
        // A head within a body is none.
        let inner = head("Content-Length: 1\r\nContent-Length: 2\r\n");
        let outer = [head(&format!("Content-Length: {}\r\n", inner.len())), inner].concat();
        assert_eq!(read(&outer, 7), (outer.len(), Place::Head));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_passed_on() {
        let bad = [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 00000000000000000005\r\n",
            "Content-Length: 18446744073709551621\r\n",
            "Content-Length : 5\r\n",
            " Content-Length: 5\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\x0bchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding\r\n",
            "Transfer-Encoding:                                          chunked\r\n",
        ];
        for lines in bad {
            let bytes = head(lines);
            for part in [1, 7, bytes.len()] {
                let (passed, place) = read(&bytes, part);
                assert_eq!(place, Place::Lost, "{lines:?}");
                assert!(passed <= bytes.len() - 2, "{lines:?}: the end of the head was passed on");
            }
        }
    }

    #[test]
    fn chunks_that_are_not_understood_end_the_connection() {
        for chunks in [
            "g\r\n",
            "\r\n",
            "-1\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\n",
            "5 \r\n",
            "5\nhello\r\n",
            "10000000000000005\r\nhello\r\n",
            "00000000000000005\r\nhello\r\n",
            "5;\n",
            "5\r\nhello0\r\n",
            "5\r\nhello\n0\r\n",
            "0\r\nX\n",
            "0\r\n\rX",
            "0\r\nX\r\r",
        ] {
            let mut bytes = head("Transfer-Encoding: chunked\r\n");
            bytes.extend(chunks.as_bytes());
            assert_eq!(read(&bytes, bytes.len()).1, Place::Lost, "{chunks:?}");
            assert_eq!(read(&bytes, 1).1, Place::Lost, "{chunks:?}");
        }
    }

    /// What is passed on, and the lengths of the bodies in it, the last one maybe not whole.
    fn follow(bytes: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let mut framing = Framing::new();
        let (mut passed, mut bodies) = (Vec::new(), Vec::new());
        for byte in bytes {
            let (began, place) = (framing.began, framing.place);
            let mut byte = [*byte];
            framing.look(&mut byte);
            passed.extend(byte);
            if framing.is_lost() {
                break;
            }
            if began && !framing.began {
                bodies.push(0);
            }
            if let (Place::Data { .. }, Some(body)) = (place, bodies.last_mut()) {
                *body += 1;
            }
        }
        (passed, bodies)
    }

    /// The bodies that hyper finds; `None`: it broke off.
    async fn as_hyper_reads(bytes: &[u8]) -> Vec<Option<usize>> {
        let found = Arc::new(Mutex::new(Vec::new()));
        let told = found.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let told = told.clone();
            async move {
                let length = request.into_body().collect().await.ok().map(|b| b.to_bytes().len());
                told.lock().expect("no panic").push(length);
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        });
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        ours.write_all(bytes).await.expect("it fits");
        ours.shutdown().await.expect("it is open");
        let connection = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(theirs), service);
        let _ = connection.await;
        drop(ours);
        std::mem::take(&mut *found.lock().expect("no panic"))
    }

    #[tokio::test]
    async fn hyper_never_finds_a_request_that_was_not_looked_at() {
        const PIECES: [&str; 30] = [
            "PUT /a HTTP/1.1\r\n",
            "POST /b HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n",
            "GET / HTTP/1.1\r\n",
            "Host: x\r\n",
            "X: y\n",
            "X: y\r",
            "Content-Length: 5\r\n",
            "content-length:5\r\n",
            "Content-Length: 0\r\n",
            "Content-Length: 20\r\n",
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding:\tCHUNKED \r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Connection: keep-alive\r\n",
            "Upgrade: x\r\nConnection: upgrade\r\n",
            "Expect: 100-continue\r\n",
            "\r\n",
            "\r\n",
            "\n",
            "hello",
            "5\r\nhello\r\n",
            "5;a=b\r\nhello\r\n",
            "005\r\nhello\r\n",
            "0\r\n\r\n",
            "0\r\nX: y\r\n\r\n",
            " ",
            "\r",
            "0\r\n",
            "CONNECT x:1 HTTP/1.1\r\n",
        ];
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).expect("31 bits") % bound
        };
        let (mut requests, mut lost) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            for _ in 0..3 {
                // Often a sound request, so that something stands behind it.
                match below(4) {
                    0 => bytes.extend(head("Content-Length: 5\r\n").into_iter().chain(*b"hello")),
                    1 => {
                        bytes.extend(head("Transfer-Encoding: chunked\r\n"));
                        bytes.extend(b"3\r\nabc\r\n0\r\n\r\n");
                    }
                    _ => (0..below(7)).for_each(|_| bytes.extend(PIECES[below(30)].as_bytes())),
                }
            }
            if below(3) == 0 && !bytes.is_empty() {
                let at = below(bytes.len());
                bytes[at] = *b"\r\n\0 :;0a\xff".get(below(9)).unwrap_or(&b'x');
            }
            let (passed, ours) = follow(&bytes);
            let theirs = as_hyper_reads(&passed).await;
            let about =
                || format!("{:?}: {ours:?}, hyper {theirs:?}", bytes.escape_ascii().to_string());
            assert!(theirs.len() <= ours.len(), "{}", about());
            for (our, their) in ours.iter().zip(&theirs) {
                assert!(their.is_none_or(|their| their == *our), "{}", about());
            }
            requests += theirs.len();
            lost += usize::from(passed.len() < bytes.len());
        }
        assert!(requests > 10_000 && lost > 1_000, "{requests} requests, {lost} refused");
    }
}
